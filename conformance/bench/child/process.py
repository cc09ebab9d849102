"""The process that runs benchmarks: pytest with pytest-benchmark's fixture, for one request.

The first argument is a JSON object: the `request`, the results file (`out`), the seconds to wait
for one turn (`patience`), and the `places` to search first for the targets' code. The others are
numbers of pipes: one for the answer, a JSON object on one line, and two that carry the turn from
and to the partner process, -1 without one.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from conformance.bench.child.turns import Alone, PartnerStopped, Turns
from conformance.bench.request import BenchRequest
from conformance.errors import CannotAssess
from conformance.places import HOME
from conformance.run.launch import end_with_parent


def main() -> None:
    asked = json.loads(sys.argv[1])
    answers, from_other, to_other = map(int, sys.argv[2:])
    end_with_parent()
    _put_first(asked["places"])
    request = BenchRequest.from_json(asked["request"])
    turns = Alone()
    if request.first is not None:
        turns = Turns(request.first, from_other, to_other, asked["patience"])
    answer = _measure(request, Path(asked["out"]), turns)
    os.write(answers, (json.dumps(answer) + "\n").encode("ascii"))
    sys.stdout.flush()
    os._exit(0)


def _put_first(places: list[str]) -> None:
    """Search `places` first for the targets' code, and the harness's folder last.

    The harness is still imported from its folder: its package is loaded and knows its place.
    """
    if not places:
        return
    ours = str(HOME)
    others = [place for place in sys.path if place not in ("", ours, *places)]
    sys.path[:] = [*places, *others, ours]
    os.chdir(places[0])


def _measure(request: BenchRequest, out: Path, turns: Alone) -> dict[str, Any]:
    try:
        import torch
        import transformers

        from conformance.bench.child.measuring import measure

        transformers.logging.set_verbosity_error()
        gc.freeze()
        if request.device == "cpu":
            # Probe models are too small for more threads, and two processes share a processor.
            torch.set_num_threads(1)
        measure(request, out, turns)
    except CannotAssess as refusal:
        return {"refused": str(refusal)}
    except PartnerStopped:
        return {"partner": "stopped"}
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        return {"error": f"{type(error).__name__}: {error}"}
    return {"out": str(out)}

"""The process in which benchmarks run: pytest with pytest-benchmark's fixture, on the points of one request.

Requests arrive on standard input, a JSON object a line, with the file that the results go to; for each, one line goes to the
pipe whose number is the first argument. The next two arguments are the pipes that carry the turn from and to the process
that it takes turns with, -1 without one. Each request is measured in a fork of this process, which has imported everything
and measured nothing; or in this process itself, which then ends (``"fork": false``).
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from conformance.bench.request import BenchRequest
from conformance.bench.turns import PartnerStopped, Turns
from conformance.run.launch import end_with_parent


def main() -> None:
    answers, from_other, to_other = map(int, sys.argv[1:4])
    places = sys.argv[4:]
    end_with_parent()
    _put_first(places)
    import transformers

    from conformance.bench import measuring

    transformers.logging.set_verbosity_error()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        request, out = BenchRequest.from_json(asked["request"]), Path(asked["out"])
        if asked["fork"] and request.device == "cpu":
            _import_targets(request)
        pid = os.fork() if asked["fork"] else 0
        if not pid:
            end_with_parent()
            turns = (
                None
                if request.first is None
                else Turns(request.first, from_other, to_other, asked["patience"])
            )
            _answer(answers, _measure(measuring.measure, request, out, turns))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status:
            _answer(
                answers,
                {"error": f"the process that measured ended with status {os.waitstatus_to_exitcode(status)}"},
            )


def _put_first(places: list[str]) -> None:
    """Let the targets' code come from the first of ``places``, or the others, and the harness from where it is: all of it is
    imported by way of its package, which knows its own place."""
    if not places:
        return
    from conformance.places import HOME

    home = str(HOME)
    sys.path[:] = [*places, *(place for place in sys.path if place not in ("", home, *places)), home]
    os.chdir(places[0])


def _import_targets(request: BenchRequest) -> None:
    """So that forks need not, each anew; what cannot be imported is theirs to tell.

    Not with a GPU: code that uses it while it is imported would leave forks none that they could use.
    """
    from conformance.errors import CannotAssess
    from conformance.subject.target import resolve

    for target in request.targets:
        with suppress(CannotAssess):
            resolve(target, request.backbone_id)


def _measure(measure: Any, request: BenchRequest, out: Path, turns: Turns | None) -> dict[str, Any]:
    from conformance.errors import CannotAssess

    try:
        if request.device == "cpu":
            import torch

            # Probe models are too small for more, and two processes would share a processor.
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


def _answer(pipe: int, answer: dict[str, Any]) -> None:
    os.write(pipe, (json.dumps(answer) + "\n").encode("ascii"))


if __name__ == "__main__":
    main()

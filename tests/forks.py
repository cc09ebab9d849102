"""Running the suite on many subjects from one warmed process: each is judged in a fork, and nothing
it does stays."""

from __future__ import annotations

import gc
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.catalogue import expected_clauses
from conformance.run.request import RunRequest
from conformance.subject.target import Target
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from conformance.verdict.upstream import apply_defects, known_defects

FORK_SECONDS = 480.0
"""A fork that takes longer is killed; its subject counts as hung."""


@dataclass(frozen=True)
class Case:
    """One subject: `factory` under `backbone_id`, with `declared` on top of its recipe's
    declarations, judged by the clauses of `profile` (of none if that is None) and those in
    `also`."""

    name: str
    factory: Callable[..., Any]
    backbone_id: str
    declared: Mapping[str, Any]
    profile: str | None = "default"
    also: frozenset[str] = frozenset()
    seed: int = 0
    budget: str = "standard"
    recipes: tuple[Path, ...] = ()
    models: tuple[str, ...] = ()
    adapter: Mapping[str, Any] | None = None


def judge_in_forks(
    cases: Sequence[Case], hub: Path | None, *, jobs: int = 2
) -> Iterator[tuple[Case, dict[str, ClauseOutcome]]]:
    """Outcomes by clause ID for every case, in the order in which they finish. A fork that dies
    yields none, whatever it had judged by then: half of the clauses must not pass for all."""
    import torch

    from conformance.suite.collection import clause_tests

    torch.set_num_threads(
        1
    )  # threads do not survive a fork, and probe models are too small for them
    clause_tests()  # imports torch, transformers and the suite once, before the first fork
    # As the child of `conformance certify` does, and forks share what nobody looks through.
    gc.freeze()
    waiting = list(cases)
    running: dict[int, tuple[Case, Path, float]] = {}
    with tempfile.TemporaryDirectory(prefix="conformance-matrix-") as scratch:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    case = waiting.pop(0)
                    home = Path(scratch) / str(len(waiting))
                    running[_fork(case, hub, home)] = (case, home, time.monotonic())
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid in running:
                    case, home, _ = running.pop(pid)
                    yield case, _read(home) if status == 0 else {}
                    continue
                for slow in [
                    pid
                    for pid, (_, _, started) in running.items()
                    if time.monotonic() - started > FORK_SECONDS
                ]:
                    os.kill(slow, signal.SIGKILL)
                time.sleep(0.02)
        finally:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def failed(outcomes: Mapping[str, ClauseOutcome]) -> set[str]:
    """The clauses that failed or broke; blocked ones are not counted, their cause is."""
    return {
        clause
        for clause, found in outcomes.items()
        if found.outcome in {Outcome.FAILED, Outcome.ERROR, Outcome.NOT_RUN}
    }


def _fork(case: Case, hub: Path | None, home: Path) -> int:
    home.mkdir()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with open(home / "log", "w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        _judge(case, hub, home)
        status = 0
    finally:
        os._exit(status)


def _judge(case: Case, hub: Path | None, home: Path) -> None:
    from conformance.run.elsewhere import Elsewhere
    from conformance.run.judging import judge
    from conformance.run.session import open_session

    place = f"{case.factory.__module__}:{getattr(case.factory, '__qualname__', case.name)}"
    request = RunRequest(
        target=place,
        backbone_id=case.backbone_id,
        budget=case.budget,
        seed=case.seed,
        hub=hub,
        recipes=case.recipes,
        models=case.models,
    )
    target = Target(case.name, case.factory, case.backbone_id)
    tables = (case.declared, case.adapter)
    elsewhere = Elsewhere(request, home / "elsewhere", *tables)
    with open_session(
        target, request, home / "hf", lambda phase, detail: None, *tables, elsewhere
    ) as session:
        session.construct()
        # In the order in which a whole profile would judge them.
        whole = expected_clauses([case.profile or "default"])
        chosen = whole if case.profile else [clause for clause in whole if clause in case.also]
        clauses = dict.fromkeys((*chosen, *sorted(case.also)))
        known, environment = known_defects(), session.facts().environment
        with open(home / "outcomes", "w", encoding="utf-8") as stream:
            for item in judge(session.subject, tuple(clauses)):
                if isinstance(item, ClauseOutcome):
                    (outcome,) = apply_defects([item], known, environment)
                    print(
                        json.dumps(
                            {**outcome.as_json(), "root_cause": outcome.root_cause}, default=repr
                        ),
                        file=stream,
                        flush=True,
                    )


def _read(home: Path) -> dict[str, ClauseOutcome]:
    path = home / "outcomes"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    outcomes = [ClauseOutcome.from_json(json.loads(line)) for line in lines]
    return {outcome.id: outcome for outcome in outcomes}

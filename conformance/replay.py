"""Reproduces one failure: what the scripts under `counterexamples/` call."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from conformance.catalogue import catalogue
from conformance.errors import CannotAssess
from conformance.run.request import STREAMING_PROFILE, RunRequest
from conformance.subject.target import resolve


def replay(
    clause_id: str,
    *,
    target: str,
    backbone_id: str | None = None,
    weights: str = "probe",
    seed: int = 0,
    draws: Mapping[str, Any] | None = None,
) -> int:
    """Check one clause on a freshly built subject, on the drawn inputs alone if there are any.

    Prints the result and returns an exit status: 1 if the clause fails, 0 if it holds, 2 if it
    could not be judged.
    """
    from conformance.run.elsewhere import Elsewhere
    from conformance.run.in_process import in_process_session

    try:
        resolved = resolve(target, backbone_id)
        request = _request(
            clause_id, target=target, backbone_id=backbone_id, weights=weights, seed=seed
        )
        with (
            tempfile.TemporaryDirectory(prefix="conformance-") as folder,
            closing(Elsewhere(request, Path(folder))) as elsewhere,
            in_process_session(resolved, request, elsewhere=elsewhere) as session,
        ):
            session.construct()
            return _replayed(session.subject, clause_id, dict(draws or {}))
    except CannotAssess as refusal:
        print(f"{clause_id} could not be judged: {refusal}", file=sys.stderr)
        return 2


def _request(clause_id: str, *, weights: str, **asked: Any) -> RunRequest:
    """A request for the profile that holds the clause; only profile `scale` takes the run's
    weights."""
    clause = catalogue().get(clause_id)
    names = ("default",) if clause is None else (clause.profile,)
    return RunRequest(
        profiles=names,
        only=(clause_id,),
        weights=weights if STREAMING_PROFILE in names else "auto",
        **asked,
    )


def _replayed(subject: Any, clause_id: str, draws: dict[str, Any]) -> int:
    from conformance.assertions import Blocked, NotApplicable
    from conformance.suite.collection import clause_tests

    try:
        for test in clause_tests()[clause_id]:
            check = getattr(test, "check", None)
            if draws and check is not None:
                check(subject, **draws)
            elif not draws or check is None:
                test(subject)
    except (Blocked, NotApplicable) as reason:
        print(f"{clause_id} was not judged: {type(reason).__name__}: {reason}")
        return 2
    except Exception as failure:
        print(f"{clause_id} fails: {type(failure).__name__}: {failure}")
        return 1
    print(f"{clause_id} holds on these inputs")
    return 0

"""What the parent of a run makes of a child: a slow one is waited for, one that hangs is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from conformance.catalogue import expected_clauses
from conformance.run import events
from conformance.run.parent import Start, _shares, run
from conformance.run.request import RunRequest
from conformance.verdict.outcomes import Outcome

TIMEOUT = 0.4
BEGUN = events.line(events.Begin("CON-01", 0, 1))
SIGN_OF_LIFE = "os.write(pipe, b'\\n')"
SIGNS = f"[({SIGN_OF_LIFE}, time.sleep(0.1)) for _ in range(12)]"


def child_that_does(body: str) -> Start:
    """A child that writes `BEGUN` and goes on with this code, which has `pipe` to write to."""
    says = f"os.write(pipe, {BEGUN!r}.encode() + b'\\n')"
    code = f"import os, sys, time; pipe = int(sys.argv[1]); {says}; {body}"

    def start(
        arguments: Sequence[str], *, log: Path, environment: Mapping[str, str], pipes: Sequence[int]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=environment, pass_fds=pipes, start_new_session=True,
        )  # fmt: skip

    return start


def breakdown_of(body: str) -> str:
    request = RunRequest(target="mine.py:Mine", only=("CON-01",), timeout=TIMEOUT)
    assessment = run(request, lambda event: None, start=child_that_does(body))
    (outcome,) = assessment.outcomes
    assert outcome.outcome is Outcome.NOT_RUN
    assert assessment.breakdown is not None
    return assessment.breakdown


def test_a_step_in_which_nothing_happens_hangs() -> None:
    told = breakdown_of("time.sleep(60)")
    assert told.startswith("while judging CON-01, nothing happened for 0.4 s")


def test_a_step_that_shows_signs_of_life_is_waited_for() -> None:
    """Twelve of them, a quarter of the timeout apart."""
    told = breakdown_of(f"{SIGNS}; sys.exit(3)")
    assert told == "while judging CON-01, the subject's process exited with status 3"


def test_signs_of_life_do_not_go_on_for_ever() -> None:
    told = breakdown_of(f"[({SIGN_OF_LIFE}, time.sleep(0.1)) for _ in iter(int, 1)]")
    assert told.startswith("while judging CON-01, there was no end of it in 4 s")


def test_a_line_that_is_no_event_ends_the_run() -> None:
    told = breakdown_of("os.write(pipe, b'hello\\n'); time.sleep(60)")
    assert "garbled: b'hello'" in told


@pytest.mark.parametrize("jobs", [1, 2, 3, 200])
def test_clauses_are_dealt_out_once_and_in_order(jobs: int) -> None:
    expected = expected_clauses(("default",))
    dealt = _shares(expected, jobs)
    assert [clause for share in dealt for clause in share] == list(expected)
    assert 1 <= len(dealt) <= jobs
    assert all(dealt)


def test_what_takes_longest_is_not_in_the_longer_share() -> None:
    first, second = _shares(expected_clauses(("default",)), 2)
    assert "FWD-14" in second
    assert len(first) > 2 * len(second)

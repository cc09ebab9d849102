"""Properties: failures shrink to small inputs, seeds repeat, and shrinking ends."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st

from conformance.assertions import ClauseFailure, NotApplicable, require
from conformance.subject.budget import Budget
from conformance.suite.properties import ShrinkLimit, StepMachine, for_all, for_all_runs, step


def subject(seed: int = 0, budget: str = "standard") -> Any:
    return SimpleNamespace(seed=seed, budget=Budget(budget))


def fail_unless(holds: bool) -> None:
    require(holds, observed="seen", expected="wanted", mend="do")


def test_a_failure_carries_its_smallest_inputs() -> None:
    @for_all(number=lambda s: st.integers(0, 1000), text=lambda s: st.text())
    def test(subject: Any, number: int, text: str) -> None:
        """A statement."""
        fail_unless(number < 17)

    with pytest.raises(ClauseFailure) as failure:
        test(subject())
    assert failure.value.counterexample == {"number": 17, "text": ""}  # type: ignore[attr-defined]
    assert json.dumps(failure.value.counterexample)  # type: ignore[attr-defined]


def test_the_check_can_be_replayed_on_given_inputs() -> None:
    @for_all(number=lambda s: st.integers())
    def test(subject: Any, number: int) -> None:
        """A statement."""
        fail_unless(number < 17)

    test.check(subject(), number=16)  # type: ignore[attr-defined]
    with pytest.raises(ClauseFailure):
        test.check(subject(), number=17)  # type: ignore[attr-defined]


def test_edges_are_tried_first_and_reported_as_they_are() -> None:
    seen: list[int] = []

    @for_all(number=lambda s: st.integers(0, 9), edges=lambda s: [{"number": 50}, {"number": 99}])
    def test(subject: Any, number: int) -> None:
        """A statement."""
        seen.append(number)
        fail_unless(number < 99)

    with pytest.raises(ClauseFailure) as failure:
        test(subject())
    assert seen == [50, 99]
    assert failure.value.counterexample == {"number": 99}  # type: ignore[attr-defined]


def test_the_seed_decides_what_is_drawn() -> None:
    def drawn_with(seed: int) -> list[int]:
        seen: list[int] = []

        @for_all(number=lambda s: st.integers())
        def test(subject: Any, number: int) -> None:
            """A statement."""
            seen.append(number)

        test(subject(seed))
        return seen

    assert drawn_with(1) == drawn_with(1)
    assert drawn_with(1) != drawn_with(2)


def test_the_budget_decides_how_much_is_drawn() -> None:
    counts = []
    for budget in ("quick", "standard", "thorough"):
        seen: list[int] = []

        @for_all(examples=20, number=lambda s: st.integers())
        def test(subject: Any, number: int, seen: list[int] = seen) -> None:
            """A statement."""
            seen.append(number)

        test(subject(budget=budget))
        counts.append(len(seen))
    assert counts[0] < counts[1] == 20 < counts[2]


def test_what_fails_once_and_passes_again_is_reported_as_such() -> None:
    seen: list[int] = []

    @for_all(number=lambda s: st.integers())
    def test(subject: Any, number: int) -> None:
        """A statement."""
        seen.append(number)
        fail_unless(len(seen) != 3)

    with pytest.raises(ClauseFailure, match="failed once and passed the next time"):
        test(subject())


def test_shrinking_ends() -> None:
    limit = ShrinkLimit(seconds=0.0)
    assert not limit.skips({"number": 3})
    limit.failed_on({"number": 3})
    time.sleep(0.01)
    assert limit.skips({"number": 2}), "past the limit nothing new is tried"
    assert not limit.skips({"number": 3}), (
        "but the smallest failure must fail again when Hypothesis asks"
    )


def test_what_does_not_apply_is_not_shrunk() -> None:
    seen: list[int] = []

    @for_all(number=lambda s: st.integers())
    def test(subject: Any, number: int) -> None:
        """A statement."""
        seen.append(number)
        raise NotApplicable("never")

    with pytest.raises(NotApplicable, match="never"):
        test(subject())
    assert len(seen) == 1


def counting_to(limit: int) -> Any:
    @for_all_runs
    def test(subject: Any) -> type[StepMachine]:
        """A statement."""

        class Counter(StepMachine):
            def __init__(self) -> None:
                super().__init__()
                self.sum = 0

            @step(number=st.integers(0, 5))
            def add(self, number: int) -> None:
                self.sum += number
                fail_unless(self.sum < limit)

        return Counter

    return test


def test_a_failing_run_carries_its_steps_and_can_be_replayed() -> None:
    with pytest.raises(ClauseFailure) as failure:
        counting_to(7)(subject())
    steps = failure.value.counterexample["steps"]  # type: ignore[attr-defined]
    assert json.loads(json.dumps(steps)) == steps
    assert len(steps) == 2, "two numbers up to five make seven"
    with pytest.raises(ClauseFailure):
        counting_to(7).check(subject(), steps=steps)
    counting_to(8).check(subject(), steps=steps)


def test_shrinking_a_run_ends() -> None:
    limit = ShrinkLimit(seconds=0.0)
    limit.failed_on({"steps": [{"step": "add", "number": 5}, {"step": "add", "number": 3}]})
    time.sleep(0.01)
    assert not limit.skips({"steps": [{"step": "add", "number": 5}]}), (
        "the failing run goes this way"
    )
    assert limit.skips({"steps": [{"step": "add", "number": 4}]})

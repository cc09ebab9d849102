"""Properties: a clause that holds for all inputs a strategy can draw, bound to one subject.

Strategies depend on the subject (ordinary text is text without *its* special tokens), the number of examples on the
budget, and the draws on the seed; so the Hypothesis test is made when the clause runs, not when its module is imported.
"""

from __future__ import annotations

import functools
import inspect
import time
import zlib
from collections.abc import Callable
from typing import Any

from conformance.assertions import ClauseFailure
from conformance.subject import Subject

#: Examples drawn at the standard budget by a property that asks for no other number.
STANDARD_EXAMPLES = 30

Strategies = Callable[[Subject], Any]


def for_all(
    examples: int = STANDARD_EXAMPLES, **strategies: Strategies
) -> Callable[[Callable[..., None]], Callable[[Subject], None]]:
    """Run a clause for drawn inputs: each keyword is a function from the subject to a Hypothesis strategy.

    A failure carries the smallest inputs found as ``counterexample``; what is drawn must therefore be JSON values.
    The undecorated check stays reachable as ``check`` for replaying a counterexample.
    """

    def decorate(check: Callable[..., None]) -> Callable[[Subject], None]:
        @functools.wraps(check)
        def test(subject: Subject) -> None:
            drawn = {name: strategy(subject) for name, strategy in strategies.items()}
            _search(functools.partial(check, subject), drawn, subject, examples, check.__name__)

        test.check = check  # type: ignore[attr-defined]
        # pytest must see the subject alone, not what is drawn.
        test.__signature__ = inspect.Signature([inspect.Parameter("subject", inspect.Parameter.POSITIONAL_OR_KEYWORD)])  # type: ignore[attr-defined]
        return test

    return decorate


def settings_for(subject: Subject, examples: int, **overrides: Any) -> Any:
    """Hypothesis settings of one property: sized by the budget, no deadline, no database, first failure only."""
    from hypothesis import HealthCheck, Phase, settings

    return settings(
        max_examples=subject.budget.examples(examples),
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        **overrides,
    )


def seed_of(subject: Subject, name: str) -> int:
    """A seed of the property's own, so that clauses do not all draw the same texts."""
    return zlib.crc32(f"{subject.seed}:{name}".encode())


class ShrinkLimit:
    """Bounds the time spent on shrinking: past it, whatever is not the smallest failure so far counts as passing.

    Hypothesis has no such setting and would go on for five minutes.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first_failure: float | None = None
        self.smallest: dict[str, Any] | None = None

    def skips(self, drawn: dict[str, Any]) -> bool:
        return (
            self._first_failure is not None
            and time.monotonic() - self._first_failure > self._seconds
            and drawn != self.smallest
        )

    def failed_on(self, drawn: dict[str, Any]) -> None:
        self._first_failure = self._first_failure or time.monotonic()
        self.smallest = dict(drawn)


def not_deterministic(smallest: dict[str, Any] | None) -> ClauseFailure:
    """The failure for a subject that fails on an input once and passes on the same input the next time."""
    return ClauseFailure(
        observed="the same input failed once and passed the next time",
        expected="the same result for the same input",
        mend="look for state kept between calls, or for dropout left on",
        inputs=smallest,
    )


def _search(
    check: Callable[..., None], strategies: dict[str, Any], subject: Subject, examples: int, name: str
) -> None:
    from hypothesis import given, seed
    from hypothesis.errors import Flaky

    limit = ShrinkLimit(subject.budget.shrink_seconds)

    @seed(seed_of(subject, name))
    @settings_for(subject, examples)
    @given(**strategies)
    def body(**drawn: Any) -> None:
        if limit.skips(drawn):
            return
        try:
            check(**drawn)
        except Exception:
            limit.failed_on(drawn)
            raise

    try:
        body()
    except Flaky as error:
        raise not_deterministic(limit.smallest) from error
    except Exception as error:
        error.counterexample = limit.smallest  # type: ignore[attr-defined]
        raise


def run_machine(machine: type[Any], subject: Subject, name: str, examples: int = STANDARD_EXAMPLES) -> None:
    """Run a rule-based state machine as a property; a failure carries the steps taken as ``counterexample``."""
    from hypothesis import seed
    from hypothesis.errors import Flaky
    from hypothesis.stateful import run_state_machine_as_test

    try:
        run_state_machine_as_test(
            seed(seed_of(subject, name))(machine), settings=settings_for(subject, examples, stateful_step_count=12)
        )
    except Flaky as error:
        raise not_deterministic(None) from error
    except Exception as error:
        error.counterexample = {"steps": [note for note in getattr(error, "__notes__", [])]}  # type: ignore[attr-defined]
        raise

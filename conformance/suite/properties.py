"""Properties: a clause that holds for all inputs a strategy can draw, bound to one subject.

Strategies depend on the subject (ordinary text is text without *its* special tokens), the number of
examples on the budget, and the draws on the seed; so the Hypothesis test is made when the clause
runs, not when its module is imported. Everything drawn is a JSON value: a failure carries the
smallest inputs found as `counterexample`, and the `check` of a clause's test replays them.
"""

from __future__ import annotations

import functools
import inspect
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from conformance.assertions import Blocked, ClauseFailure, NotApplicable, NotRun, getting_on
from conformance.subject.subject import Subject

STANDARD_EXAMPLES = 30
"""Examples drawn at the standard budget by a property that sets no other number."""

STEPS = 12
"""Steps that one run of a state machine takes."""

Strategies = Callable[[Subject], Any]
Edges = Callable[[Subject], Iterable[Mapping[str, Any]]]
"""Inputs that a property tries before it draws any: what is known to be difficult must not depend
on luck. The simplest come first, for they are not shrunk."""


def for_all(
    examples: int = STANDARD_EXAMPLES, edges: Edges | None = None, **strategies: Strategies
) -> Callable[[Callable[..., None]], Callable[[Subject], None]]:
    """Run a clause for its edges, then for drawn inputs: each keyword is a function from the
    subject to a Hypothesis strategy."""

    def decorate(check: Callable[..., None]) -> Callable[[Subject], None]:
        @functools.wraps(check)
        def test(subject: Subject) -> None:
            limit = ShrinkLimit(subject.budget.shrink_seconds)
            ended: list[Blocked | NotApplicable | NotRun] = []

            @seed(_seed_of(subject, check.__name__))
            @_settings_for(subject, examples)
            @given(**{name: strategy(subject) for name, strategy in strategies.items()})
            def body(**drawn: Any) -> None:
                if limit.skips(drawn) or ended:
                    return
                getting_on()
                try:
                    check(subject, **drawn)
                except (Blocked, NotApplicable, NotRun) as reason:
                    ended.append(reason)
                except Exception:
                    limit.failed_on(drawn)
                    raise

            for edge in edges(subject) if edges else ():
                _try_edge(subject, check, edge)
            _report(body, limit)
            if ended:
                raise ended[0]

        test.check = check  # type: ignore[attr-defined]
        # For the clause's page, which says what is drawn.
        test.draws, test.edges = strategies, edges  # type: ignore[attr-defined]
        # pytest must see the subject alone, not what is drawn.
        test.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter("subject", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
        )
        return test

    return decorate


class StepMachine(RuleBasedStateMachine):
    """A state machine that records the steps it takes; its rules are made by `step`."""

    limit: ClassVar[ShrinkLimit]

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, Any]] = []


def step(**strategies: Any) -> Callable[[Callable[..., None]], Any]:
    """A rule of a `StepMachine`, with arguments that the strategies draw."""

    def decorate(take: Callable[..., None]) -> Any:
        @functools.wraps(take)
        def recorded(self: StepMachine, **drawn: Any) -> None:
            getting_on()
            self.steps.append({"step": take.__name__, **drawn})
            if self.limit.skips({"steps": self.steps}):
                return
            try:
                take(self, **drawn)
            except Exception:
                self.limit.failed_on({"steps": list(self.steps)})
                raise

        return rule(**strategies)(recorded)  # type: ignore[no-untyped-call]

    return decorate


def for_all_runs(machine_of: Callable[[Subject], type[StepMachine]]) -> Callable[[Subject], None]:
    """Run a clause for drawn sequences of steps: its function returns the machine whose rules take
    them."""

    def run(subject: Subject, drive: Callable[[type[StepMachine]], None]) -> None:
        machine = machine_of(subject)
        machine.limit = ShrinkLimit(subject.budget.shrink_seconds)
        _report(functools.partial(drive, machine), machine.limit)

    @functools.wraps(machine_of)
    def test(subject: Subject) -> None:
        chosen = _settings_for(subject, STANDARD_EXAMPLES, stateful_step_count=STEPS)
        seeded = seed(_seed_of(subject, machine_of.__name__))
        run(subject, lambda machine: run_state_machine_as_test(seeded(machine), settings=chosen))

    def check(subject: Subject, steps: list[dict[str, Any]]) -> None:
        def replay(machine: type[StepMachine]) -> None:
            state = machine()
            for taken in steps:
                getattr(state, taken["step"])(
                    **{name: value for name, value in taken.items() if name != "step"}
                )

        run(subject, replay)

    test.check = check  # type: ignore[attr-defined]
    return test


class ShrinkLimit:
    """Bounds the time spent on shrinking: past it, only what has failed before is tried again.

    Hypothesis has no such setting and would go on for five minutes.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first_failure: float | None = None
        self._failures: list[dict[str, Any]] = []

    @property
    def smallest(self) -> dict[str, Any] | None:
        """What failed last: Hypothesis ends on the smallest failure that it knows."""
        return self._failures[-1] if self._failures else None

    def skips(self, drawn: dict[str, Any]) -> bool:
        """Whether to count `drawn` as passing without running it: time for shrinking is up, and it
        does not repeat (or begin) an input that failed."""
        return (
            self._first_failure is not None
            and time.monotonic() - self._first_failure > self._seconds
            and not any(_leads_to(drawn, failure) for failure in self._failures)
        )

    def failed_on(self, drawn: dict[str, Any]) -> None:
        self._first_failure = self._first_failure or time.monotonic()
        self._failures.append(dict(drawn))


def _leads_to(drawn: dict[str, Any], failure: dict[str, Any]) -> bool:
    if drawn.keys() != {"steps"}:
        return drawn == failure
    return bool(failure["steps"][: len(drawn["steps"])] == drawn["steps"])


def _try_edge(subject: Subject, check: Callable[..., None], edge: Mapping[str, Any]) -> None:
    getting_on()
    try:
        check(subject, **edge)
    except Exception as error:
        error.counterexample = dict(edge)  # type: ignore[attr-defined]
        raise


def _report(search: Callable[[], None], limit: ShrinkLimit) -> None:
    """Run the search; its exception carries the smallest inputs found as `counterexample`."""
    try:
        search()
    except Exception as found:
        error = _not_deterministic() if isinstance(found, Flaky) else found
        error.counterexample = limit.smallest  # type: ignore[attr-defined]
        raise error from (found if error is not found else found.__cause__)


def _not_deterministic() -> Exception:
    return ClauseFailure(
        observed="the same input failed once and passed the next time",
        expected="the same result for the same input",
        mend="look for state kept between calls, or for dropout left on",
    )


def _settings_for(subject: Subject, examples: int, **overrides: Any) -> Any:
    """Hypothesis settings of one property: sized by the budget, no deadline, no database, first
    failure only."""
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


def _seed_of(subject: Subject, name: str) -> int:
    """A separate seed for each property, so that clauses do not all draw the same texts."""
    return zlib.crc32(f"{subject.seed}:{name}".encode())

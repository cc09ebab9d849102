"""How a clause reports: what was observed, what was expected, and how to mend it."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from conformance.places import is_ours

_told: ContextVar[dict[str, Any] | None] = ContextVar("told", default=None)
"""The evidence recorded so far by the clause being judged; None outside clauses."""

_refused: ContextVar[list[Exception] | None] = ContextVar("refused", default=None)
"""The last exception that the clause being judged collected with `refusal`; None outside
clauses."""

_getting_on: ContextVar[Callable[[], None]] = ContextVar("getting on", default=lambda: None)
"""What hears of each thing that the clause being judged has done."""

_TELLING_CHARACTERS = 40
"""As many of an exception's message tell it from others."""
BLOCKS_USERS_OF = "blocks users of"
"""Key of evidence: a failure that leaves this member of the contract unusable, so that clauses that
use it cannot be judged."""


class ClauseFailure(AssertionError):
    """The subject breaks the clause. `evidence` is what the certificate records (JSON values only).
    If `observed` names an exception that was collected just before, that is the failure's cause."""

    def __init__(self, observed: str, expected: str, mend: str, **measured: Any) -> None:
        super().__init__(f"{observed}, but should be {expected}. To mend it: {mend}.")
        self.evidence = {"observed": observed, "expected": expected, "mend": mend, **measured}
        self.__cause__ = next(
            (error for error in _refused.get() or () if _names(observed, error)), None
        )


class NotApplicable(Exception):
    """The clause has nothing to judge here; the reason is a declaration or a library too old for
    the feature."""


class NotRun(Exception):
    """The clause cannot be judged on this machine; the reason says what it lacks. It counts as not
    met."""


class Blocked(Exception):
    """The clause cannot be judged because of the outcome of the clause `cause`."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


def require(holds: bool, *, observed: str, expected: str, mend: str, **measured: Any) -> None:
    """Fail the clause unless `holds`; the three texts complete "observed …, but should be …. To
    mend it: …."."""
    if not holds:
        raise ClauseFailure(observed, expected, mend, **measured)


def within(
    quantity: str,
    value: float,
    bound: float,
    *,
    observed: str,
    expected: str,
    mend: str,
    conditions: Mapping[str, Any] = MappingProxyType({}),
    **found: Any,
) -> None:
    """Fail the clause unless `value` is at most `bound`; NaN never is.

    Whether it passes or not, the clause's evidence records under `measured` the largest value of
    each `quantity` relative to its bound, how many were measured, and the `conditions` (JSON
    values) of the last one.
    """
    told = _told.get()
    # JSON cannot express NaN and infinity.
    shown = value if math.isfinite(value) else str(value)
    if told is not None:
        worst = told.setdefault("measured", {}).setdefault(
            quantity, {"worst": shown, "bound": bound, "measured": 0}
        )
        worst.update(conditions, measured=worst["measured"] + 1)
        finite = isinstance(worst["worst"], (int, float))
        if finite and not value / bound <= worst["worst"] / worst["bound"]:
            worst.update(worst=shown, bound=bound)
    require(
        value <= bound,
        observed=observed,
        expected=expected,
        mend=mend,
        quantity=quantity,
        value=shown,
        bound=bound,
        **found,
    )


def tell(name: str, value: Any) -> None:
    """Put a JSON value into the clause's evidence, passing or not; a later value replaces it."""
    told = _told.get()
    if told is not None:
        told[name] = value


def getting_on() -> None:
    """Say that the clause being judged does: one that looks at hundreds of calls takes minutes on a
    busy machine, and whoever waits for it must not think that it hangs."""
    _getting_on.get()()


@contextmanager
def listening(on_progress: Callable[[], None] = lambda: None) -> Iterator[dict[str, Any]]:
    """Collect what `within` and `tell` record in the body; `on_progress` hears of `getting_on`."""
    heard: dict[str, Any] = {}
    token, collected = _told.set(heard), _refused.set([])
    heard_of = _getting_on.set(on_progress)
    try:
        yield heard
    finally:
        _getting_on.reset(heard_of)
        _refused.reset(collected)
        _told.reset(token)


@contextmanager
def refusal(*types: type[Exception]) -> Iterator[list[Exception]]:
    """Collect the exception that the body raises, if it is one of `types` (any Exception if none is
    given). A slip of ours is no refusal, and goes on."""
    caught: list[Exception] = []
    try:
        yield caught
    except Exception as error:
        if (types and not isinstance(error, types)) or is_slip_of_ours(error):
            raise
        caught.append(error)
        # The last alone, and without what its frames hold: models, and graphs that remember
        # parameters by their shape.
        traceback.clear_frames(error.__traceback__)
        if (collected := _refused.get()) is not None:
            collected[:] = [error]


def is_slip_of_ours(error: BaseException) -> bool:
    """Whether our own code used a name that is not bound. Where what a subject or the library
    refuses is passed over, that must not pass for it."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, NameError) and bool(frames) and is_ours(frames[-1].filename)


def _names(text: str, error: Exception) -> bool:
    told = str(error)[:_TELLING_CHARACTERS]
    return type(error).__name__ in text or (bool(told) and told in text)


def quoted(value: Any, limit: int = 120) -> str:
    """`repr` of a value, shortened in the middle so that a message stays readable."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"

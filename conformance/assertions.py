"""How a clause speaks: what was observed, what should have been, and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ClauseFailure(AssertionError):
    """The subject breaks the clause. ``evidence`` is what the certificate records (JSON values only)."""

    def __init__(self, observed: str, expected: str, mend: str, **measured: Any) -> None:
        super().__init__(f"{observed}, but should be {expected}. To mend it: {mend}.")
        self.evidence = {"observed": observed, "expected": expected, "mend": mend, **measured}


class NotApplicable(Exception):
    """The clause has nothing to judge here; the reason is a declaration or a library too old for the feature."""


class Blocked(Exception):
    """The clause cannot be judged because of what the clause ``cause`` found."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


def require(holds: bool, *, observed: str, expected: str, mend: str, **measured: Any) -> None:
    """Fail the clause unless ``holds``; the three texts complete "observed …, but should be …. To mend it: …."."""
    if not holds:
        raise ClauseFailure(observed, expected, mend, **measured)


@contextmanager
def refusal(*types: type[Exception]) -> Iterator[list[Exception]]:
    """Collect the exception that the body raises, if it is one of ``types`` (any Exception without them)."""
    caught: list[Exception] = []
    try:
        yield caught
    except Exception as error:
        if types and not isinstance(error, types):
            raise
        caught.append(error)


def quoted(value: Any, limit: int = 120) -> str:
    """``repr`` of a value, shortened in the middle so that a message stays readable."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"

"""Events from a subject's process to its parent, one JSON object per line;
`conformance/schemas/event.schema.json` describes them.

A `Footer` ends the stream. A stream without one was cut short, whatever came before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Union

from conformance.verdict.outcomes import ClauseOutcome


@dataclass(frozen=True)
class Phase:
    """A step is about to be taken: `resolving`, `loading`, `deriving recipe`, `building hub`,
    `constructing`, `judging`; and by `certify --download`, `fetching config and tokenizer`."""

    name: ClassVar = "phase"
    phase: str
    detail: str

    def __str__(self) -> str:
        return f"{self.phase} {self.detail}"


@dataclass(frozen=True)
class Facts:
    """The facts of the run that the certificate repeats: sent before the subject is constructed,
    and again after."""

    name: ClassVar = "facts"
    backbone_id: str
    environment: Mapping[str, Any]
    declarations: Mapping[str, Any]
    hub: Mapping[str, Mapping[str, Any]]
    sources: Mapping[str, str]


@dataclass(frozen=True)
class Begin:
    """A clause is about to be judged, the one after `index` others of `total`."""

    name: ClassVar = "begin"
    id: str
    index: int
    total: int


@dataclass(frozen=True)
class Judged:
    """A clause was judged."""

    name: ClassVar = "outcome"
    outcome: ClauseOutcome

    @property
    def id(self) -> str:
        return self.outcome.id


@dataclass(frozen=True)
class Refused:
    """The subject cannot be assessed; `message` is that of the `CannotAssess`. `unknown_model` is
    the hub id that has no recipe and no published files here, if that is why."""

    name: ClassVar = "cannot-assess"
    message: str
    unknown_model: str | None = None


@dataclass(frozen=True)
class Loaded:
    """What the subject's process has imported: files that are no library's, by their whole paths,
    and modules of transformers, by their names."""

    name: ClassVar = "loaded"
    files: Sequence[str]
    libraries: Sequence[str]


@dataclass(frozen=True)
class Footer:
    """The last line, with the number of outcomes that were sent."""

    name: ClassVar = "footer"
    outcomes: int


Event = Union[Phase, Facts, Begin, Judged, Refused, Loaded, Footer]
OnEvent = Callable[[Event], None]

_PLAIN = {kind.name: kind for kind in (Phase, Facts, Begin, Refused, Loaded, Footer)}


def line(event: Event) -> str:
    """The event as a line of the stream, without its end."""
    return json.dumps({"event": event.name, **_fields(event)}, default=repr)


def parse(text: str | bytes) -> Event:
    """The event that `line` wrote.

    Raises:
        ValueError: for anything else.
    """
    try:
        fields = json.loads(text)
        name = fields.pop("event")
        if name == Judged.name:
            return Judged(ClauseOutcome.from_json(fields))
        event: Event = _PLAIN[name](**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{text[:80]!r} is not an event") from error
    return event


def _fields(event: Event) -> dict[str, Any]:
    if isinstance(event, Judged):
        return {**event.outcome.as_json(), "root_cause": event.outcome.root_cause}
    return asdict(event)

"""What became of a clause: the vocabulary shared by the runner, the verdict and the reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol


class Outcome(str, Enum):
    """The outcome of one clause. The values are those written to certificates."""

    PASSED = "passed"
    FAILED = "failed"
    BLOCKED = "blocked"
    WAIVED = "waived"
    UPSTREAM = "upstream"
    NOT_APPLICABLE = "not-applicable"
    NOT_RUN = "not-run"
    ERROR = "error"

    def __str__(self) -> str:
        return self.value


UNMET = frozenset({Outcome.FAILED, Outcome.BLOCKED, Outcome.NOT_RUN, Outcome.ERROR})
"""Outcomes of a clause after which the clauses that need it cannot be judged."""


@dataclass(frozen=True)
class ClauseOutcome:
    """One clause, judged.

    `evidence` holds what was observed and expected, how to mend it and any measured numbers;
    `counterexample` the smallest drawn inputs that show a failure; `seconds` is wall-clock time.
    `root_cause` names the clause at the end of the chain of needs when the outcome is *blocked*.
    """

    id: str
    level: str
    profile: str
    outcome: Outcome
    summary: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    counterexample: Mapping[str, Any] | None = None
    seconds: float = 0.0
    root_cause: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields of a certificate's `requirements` entry."""
        return {
            "id": self.id,
            "level": self.level,
            "profile": self.profile,
            "outcome": self.outcome.value,
            "summary": self.summary,
            "evidence": dict(self.evidence),
            "needs": list(self.needs),
            "counterexample": None if self.counterexample is None else dict(self.counterexample),
            "seconds": round(self.seconds, 4),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ClauseOutcome:
        """The outcome that `as_json` wrote, with `root_cause` if it was sent along.

        Raises:
            ValueError: for an unknown outcome.
            KeyError, TypeError: for a record of anything else.
        """
        return cls(
            **{**record, "outcome": Outcome(record["outcome"]), "needs": tuple(record["needs"])}
        )


class Asked(Protocol):
    """The parts of its request that an assessment repeats."""

    @property
    def target(self) -> str: ...
    @property
    def backbone_id(self) -> str | None: ...
    @property
    def profiles(self) -> tuple[str, ...]: ...
    @property
    def weights(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def budget(self) -> str: ...


class Told(Protocol):
    """What a subject's process reports about itself."""

    @property
    def backbone_id(self) -> str: ...
    @property
    def environment(self) -> Mapping[str, Any]: ...
    @property
    def declarations(self) -> Mapping[str, Any]: ...
    @property
    def sources(self) -> Mapping[str, str]: ...
    @property
    def hub(self) -> Mapping[str, Mapping[str, Any]]: ...


@dataclass(frozen=True)
class Assessment:
    """Everything that one run of the suite found out about a subject, before the verdict.

    `outcomes` holds exactly the clauses that the profiles expect, in catalogue order. `sources`
    maps the subject's source files to their SHA-256; `hub` maps each hub id used to what stood in
    for it; `breakdown` says why the run ended early (crash, hang, memory), or is None.
    """

    target: str
    backbone_id: str
    profiles: tuple[str, ...]
    outcomes: tuple[ClauseOutcome, ...]
    environment: Mapping[str, Any]
    declarations: Mapping[str, Any]
    sources: Mapping[str, str]
    hub: Mapping[str, Mapping[str, Any]]
    weights: str
    device: str
    seed: int
    budget: str
    breakdown: str | None = None
    seconds: float = 0.0

    @classmethod
    def of(
        cls,
        request: Asked,
        facts: Told | None,
        outcomes: Iterable[ClauseOutcome],
        *,
        seconds: float,
        breakdown: str | None = None,
    ) -> Assessment:
        """The assessment of a run for `request`.

        `facts` are what the subject's process reported about itself; None if it ended before that.
        """
        return cls(
            target=request.target,
            backbone_id=(facts and facts.backbone_id) or request.backbone_id or request.target,
            profiles=request.profiles,
            outcomes=tuple(outcomes),
            environment=facts.environment if facts else {},
            declarations=facts.declarations if facts else {},
            sources=facts.sources if facts else {},
            hub=facts.hub if facts else {},
            weights=request.weights,
            device=request.device,
            seed=request.seed,
            budget=request.budget,
            breakdown=breakdown,
            seconds=seconds,
        )

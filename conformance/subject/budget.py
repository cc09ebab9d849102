"""How much a run may spend on drawing inputs."""

from __future__ import annotations

from dataclasses import dataclass

_SHARE = {"quick": 0.3, "standard": 1.0, "thorough": 10.0}
"""Share of a property's standard number of examples that each budget draws."""

SHRINK_SECONDS = {"quick": 2.0, "standard": 5.0, "thorough": 30.0}
"""A property that fails shrinks for at most this long before the smallest failure so far is
reported."""


@dataclass(frozen=True)
class Budget:
    """One of `quick`, `standard`, `thorough`."""

    name: str = "standard"

    def examples(self, standard: int) -> int:
        """How many examples to draw for a property that draws `standard` of them at the standard
        budget."""
        return max(min(standard, 3), round(standard * _SHARE[self.name]))

    @property
    def shrink_seconds(self) -> float:
        return SHRINK_SECONDS[self.name]

"""How often comparisons drawn from recorded pairs raise false alarms, and how often they find a
slow-down."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from conformance.bench.results.comparison import Pair, called_slower, tests_of
from conformance.errors import CannotAssess
from conformance.rates import rate_bounds

DRAWS = 1000
_ANY = "any"
"""The name under which a comparison that calls any benchmark slower is counted."""
Together = Mapping[str, list[Pair]]
"""The pairs of each benchmark that were measured together."""
Recorded = dict[float, list[Together]]
"""By slow-down, everything that was measured together."""


@dataclass(frozen=True)
class Rate:
    """The share of `draws` comparisons of `pairs` pairs that called a benchmark slower that had
    been slowed by `slowdown` (`measured`: as the `recorded` pairs show it).

    They are drawn from `together` groups of pairs that were measured together. The bounds are
    Clopper and Pearson's, one-sided, 95 %, and cover the drawing alone.
    """

    benchmark: str
    slowdown: float
    measured: float
    deviation: float
    recorded: int
    pairs: int
    draws: int
    together: int
    found: float
    at_least: float
    at_most: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Confirmation:
    """One end-to-end comparison: head's slow-down, the verdict, the benchmarks it called slower,
    its length."""

    slowdown: float
    pairs: int
    result: str
    slower: tuple[str, ...]
    minutes: float


@dataclass(frozen=True)
class PowerReport:
    """What comparisons of `pairs` pairs find on a machine: drawn from a recording, and confirmed
    end to end."""

    environment: Mapping[str, Any]
    pairs: int
    rates: tuple[Rate, ...]
    confirmations: tuple[Confirmation, ...]
    memory: Mapping[str, int] | None
    recorded: Recorded

    def as_json(self) -> dict[str, Any]:
        return {
            "environment": self.environment,
            "pairs": self.pairs,
            "rates": [rate.as_json() for rate in self.rates],
            "confirmations": [asdict(one) for one in self.confirmations],
            "memory": self.memory,
            "tooFewPairs": {
                str(share): most for share, most in too_few(self.recorded, self.pairs).items()
            },
            "logarithms": self._of_every_pair("logarithm"),
            "stalls": self._of_every_pair("stalls"),
            "means": self._of_every_pair("mean"),
        }

    def _of_every_pair(self, what: str) -> dict[str, Any]:
        """One number of every pair, by slow-down and benchmark; pairs measured together share a
        list."""

        def numbers(together: Together) -> dict[str, list[float]]:
            return {
                name: [round(getattr(pair, what), 6) for pair in own]
                for name, own in together.items()
            }

        return {str(share): [*map(numbers, every)] for share, every in self.recorded.items()}


def rates(
    recorded: Mapping[float, Sequence[Together]], pairs: int, *, draws: int = DRAWS, seed: int = 0
) -> Iterator[Rate]:
    """Draw comparisons of `pairs` recorded pairs for each slow-down, and count what they find.

    Without a slow-down, a comparison that calls any benchmark slower counts as one false alarm,
    under the name `any`.

    A comparison is drawn, with replacement, from pairs that were measured together: what they have
    in common belongs to a comparison's error, and would average out over pairs of many groups. A
    group of fewer pairs than a comparison takes was interrupted, and is left out; so is a slow-down
    with no other (`too_few` names them). Drawn comparisons share pairs, so the bounds cover the
    drawing alone; only fresh comparisons show how much recordings vary.

    Raises:
        CannotAssess: if no slow-down has as many pairs as a comparison takes.
    """
    source = random.Random(seed)
    missing = too_few(recorded, pairs)
    if missing.keys() >= recorded.keys():
        most = max(missing.values(), default=0)
        fewer = f", or draw comparisons of {most - most % 2} (--pairs)" if most >= 2 else ""
        raise CannotAssess(
            f"{most} pairs were recorded, and a comparison takes {pairs}: record more (--recorded)"
            f"{fewer}"
        )
    for share, every in recorded.items():
        if share in missing:
            continue
        groups = [group for group in every if _pairs_in(group) >= pairs]
        names = [name for name in groups[0] if all(name in group for group in groups)]
        values = {
            name: [pair.logarithm for group in groups for pair in group[name]] for name in names
        }
        found: Counter[str] = Counter()
        for _ in range(draws):
            group = source.choice(groups)
            chosen = source.choices(range(_pairs_in(group)), k=pairs)
            drawn = {name: tests_of([group[name][pair] for pair in chosen]) for name in names}
            slower = called_slower(drawn)
            found.update([*slower, _ANY] if slower else ())
        if not share:
            values = {_ANY: [value for own in values.values() for value in own]}
        for name, measured in values.items():
            lower, upper = rate_bounds(found[name], draws)
            yield Rate(
                benchmark=name,
                slowdown=share,
                measured=math.expm1(statistics.fmean(measured)),
                deviation=statistics.stdev(measured),
                recorded=len(measured) // (1 if share else len(names)),
                pairs=pairs,
                draws=draws,
                together=len(groups),
                found=found[name] / draws,
                at_least=lower,
                at_most=upper,
            )


def too_few(recorded: Mapping[float, Sequence[Together]], pairs: int) -> dict[float, int]:
    """The slow-downs without as many pairs as a comparison takes, and how many pairs each has:
    their recording was interrupted."""
    most = {share: max(map(_pairs_in, every), default=0) for share, every in recorded.items()}
    return {share: found for share, found in most.items() if found < pairs}


def _pairs_in(group: Together) -> int:
    return min(map(len, group.values()), default=0)

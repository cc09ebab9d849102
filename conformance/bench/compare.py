"""Compares two stored results, or two commits, which are measured in turns first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conformance.bench.parent.checkouts import sides
from conformance.bench.parent.recording import SideFailed, record_pairs
from conformance.bench.parent.workers import RunFailed
from conformance.bench.request import BenchRequest
from conformance.bench.results.comparable import in_turns
from conformance.bench.results.comparison import (
    Comparison,
    compare,
    head_failed,
    with_pairs_missing,
)
from conformance.bench.results.stored import Recording, read
from conformance.errors import CannotAssess


def are_stored(base: str, head: str | None) -> bool:
    """Whether the two are stored results rather than commits.

    Raises:
        CannotAssess: if one is and the other is not.
    """
    before, after = Path(base).exists(), head is not None and Path(head).exists()
    if before and head is None:
        raise CannotAssess(
            f"--base {base} is a stored result: name the one to compare it with as --head"
        )
    if before != after:
        there, missing = f"--base {base}", f"--head {head}"
        if after:
            there, missing = missing, there
        raise CannotAssess(
            f"{missing} does not exist as a file or folder, and {there} does: compare two stored "
            f"results, or two git refs"
        )
    return before


def compare_stored(
    base: Path, head: Path, targets: Sequence[str], workloads: Sequence[str], **how: Any
) -> tuple[Comparison, tuple[Recording, Recording]]:
    """The verdict on two stored results, in pairs if they were measured in turns; `how` goes to
    `conformance.bench.results.comparison.compare`."""
    before, after = (read(place).only(targets, workloads) for place in (base, head))
    taken = in_turns(before, after)
    if taken is None:
        return compare(before, after, paired=False, **how), (before, after)
    before, after, missing = taken
    comparison = compare(before, after, paired=True, **how)
    return with_pairs_missing(comparison, missing) if missing else comparison, (before, after)


def compare_commits(
    request: BenchRequest, base: str, head: str | None, how_measured: dict[str, Any], **how: Any
) -> tuple[Comparison, tuple[Recording, Recording] | None]:
    """The verdict on two git refs of the repository around the working directory, `head` None being
    the working tree; `how_measured` goes to `conformance.bench.parent.recording.record_pairs`.
    There are no recordings if head's process died.

    Raises:
        CannotAssess: if base's process died, or both were too slow.
    """
    with sides(base, head, Path.cwd()) as (one, other):
        try:
            recordings = record_pairs(request, one, other, **how_measured)
        except SideFailed as failure:
            if failure.side == "base":
                raise CannotAssess(f"nothing could be compared: {failure}") from failure
            return head_failed(one.label, other.label, str(failure), how["detectable"]), None
        except RunFailed as failure:
            raise CannotAssess(f"nothing could be compared: {failure}") from failure
    return compare(*recordings, paired=True, **how), recordings

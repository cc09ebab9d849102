from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from conformance.bench.points import labels
from conformance.bench.power import SLOWDOWNS, confirmations, memory_found, read_recording
from conformance.bench.report.charts import as_svg, power_curve
from conformance.bench.report.console import write_power
from conformance.bench.results.comparison import Pair
from conformance.bench.results.drawing import PowerReport, Recorded, rates, too_few
from conformance.errors import CannotAssess
from tests.bench.samples import DECODE, DEVICE, PREFILL, document, entry


def measured_together(
    share: float, stray: float = 0.01, recorded: int = 30, throughout: float = 0.0
) -> dict[str, list[Pair]]:
    """`recorded` pairs without stalls; `throughout` is what all of them have in common besides."""
    source = random.Random(int(1000 * share) + int(1e6 * throughout))
    return {
        name: [
            Pair(math.log1p(share) + throughout + source.gauss(0, stray), 0.0, 0.0)
            for _ in range(recorded)
        ]
        for name in (PREFILL, DECODE)
    }


def test_what_is_far_beyond_the_noise_is_found_and_nothing_else() -> None:
    found = {
        (rate.benchmark, rate.slowdown): rate
        for rate in rates({share: [measured_together(share)] for share in (0.0, 0.1)}, 12, draws=60)
    }
    assert set(found) == {("any", 0.0), (PREFILL, 0.1), (DECODE, 0.1)}
    assert found["any", 0.0].found == 0
    assert found["any", 0.0].at_most == pytest.approx(0.0487, abs=1e-4)  # 1 - 0.05 ** (1 / 60)
    assert found[PREFILL, 0.1].found == 1
    assert found[PREFILL, 0.1].measured == pytest.approx(0.1, abs=0.01)
    assert found[PREFILL, 0.1].deviation == pytest.approx(0.01, rel=0.3)
    assert {rate.recorded for rate in found.values()} == {30}
    assert "<svg" in as_svg(power_curve([rate.as_json() for rate in found.values()]))


def test_noise_hides_a_small_slowdown() -> None:
    (prefill, decode) = rates({0.005: [measured_together(0.005, stray=0.05)]}, 12, draws=60)
    assert max(prefill.found, decode.found) < 0.1


def test_what_strays_throughout_a_comparison_does_not_average_out() -> None:
    # Every other comparison is 5 % off, up or down, from end to end: one in four cries wolf. The
    # pairs of all of them mixed would show nothing.
    together = [measured_together(0.0, throughout=off) for off in (0.05, 0.0, -0.05, 0.0)]
    (rate,) = rates({0.0: together}, 12, draws=400)
    assert rate.found == pytest.approx(0.25, abs=0.07)
    assert rate.recorded == 120


def test_fewer_pairs_than_a_comparison_takes_are_refused() -> None:
    with pytest.raises(CannotAssess, match=r"5 pairs .* takes 12: .* of 4 \(--pairs\)"):
        list(rates({0.0: [measured_together(0.0, recorded=5)]}, 12))
    # Beside what suffices, an interrupted comparison is left out: its few pairs stray too little.
    (rate,) = rates(
        {0.0: [measured_together(0.0), measured_together(0.3, recorded=3)]}, 12, draws=60
    )
    assert (rate.recorded, rate.found) == (30, 0)


def test_an_interrupted_recording_is_drawn_from_where_it_suffices() -> None:
    recorded: Recorded = {
        0.0: [measured_together(0.0, recorded=12)],
        0.1: [measured_together(0.1, recorded=11)],
    }
    assert [rate.slowdown for rate in rates(recorded, 12, draws=20)] == [0.0]
    assert too_few(recorded, 12) == {0.1: 11}
    found = PowerReport(
        {"device": DEVICE}, 12, tuple(rates(recorded, 12, draws=20)), (), None, recorded
    )
    assert found.as_json()["tooFewPairs"] == {"0.1": 11}
    written = io.StringIO()
    write_power(Console(width=200, file=written), found)
    assert "slowed by 10 %: 11 pairs, too few for a comparison of 12" in written.getvalue()


def test_short_names_are_used_where_they_are_enough() -> None:
    assert labels([PREFILL, DECODE]) == {PREFILL: "prefill b1 s32", DECODE: "decode b1 s32"}
    other = "train[phi-2-probe-eager-b1-s16]"
    assert labels([PREFILL, other]) == {PREFILL: PREFILL, other: other}
    assert labels([PREFILL, "any"]) == {PREFILL: "prefill b1 s32", "any": "any"}


def store(folder: Path, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    for number, pair in enumerate(pairs):
        for side, made in zip(("base", "head"), pair, strict=True):
            request = {**made["conformance"]["request"], "pair": f"pair {number}"}
            stored = {**made, "conformance": {**made["conformance"], "request": request}}
            (folder / side).mkdir(parents=True, exist_ok=True)
            (folder / side / f"{number + 1:03d}.json").write_text(json.dumps(stored))


def slowed(share: float) -> str:
    return f"slowed-{1000 * share:02.0f}-per-mille"


def test_what_was_recorded_is_read_again(tmp_path: Path) -> None:
    base, head = document(entry(PREFILL, [1.0])), document(entry(PREFILL, [2.0]))
    for share in SLOWDOWNS:
        store(tmp_path / "runs" / slowed(share), [(base, head)])
    # Pairs of comparisons end to end are pairs; one that was interrupted is none.
    store(tmp_path / "runs" / "confirmation" / "001" / slowed(0.03), [(base, head), (base, head)])
    (tmp_path / "runs" / "confirmation" / "001" / slowed(0.03) / "base" / "003.json").write_text(
        json.dumps(base)
    )
    found = read_recording(tmp_path)
    twice = Pair(math.log(2), 1.0, math.log(2))
    assert found == {
        share: [{PREFILL: [twice]}, *([{PREFILL: [twice, twice]}] if share == 0.03 else [])]
        for share in SLOWDOWNS
    }
    with pytest.raises(CannotAssess, match="elsewhere is not a folder"):
        read_recording(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(CannotAssess, match="elsewhere holds no pairs of runs"):
        read_recording(tmp_path / "elsewhere")


def test_recordings_of_two_machines_are_not_read_together(tmp_path: Path) -> None:
    for name in ("one", "other"):
        environment = {"device": {**DEVICE, "name": name}, "python": "3.11", "packages": {}}
        both = [document(entry(PREFILL, [1.0]), environment=environment)] * 2
        store(tmp_path / name / slowed(0.0), [(both[0], both[1])])
    assert list(read_recording(tmp_path / "one")) == [0.0], (
        "one that lacks the slow-downs tells of the others"
    )
    with pytest.raises(CannotAssess, match="different devices"):
        read_recording(tmp_path / "one", tmp_path / "other")


def test_what_could_not_be_measured_keeps_no_rate_from_the_others(tmp_path: Path) -> None:
    absent = [(DECODE, "not-applicable", "no such attention")]
    for share in SLOWDOWNS:
        base, head = (
            document(entry(PREFILL, [seconds]), points=absent) for seconds in (1.0, 1 + share)
        )
        store(tmp_path / slowed(share), [(base, head)] * 4)
    found = read_recording(tmp_path, tmp_path)
    assert {len(together) for together in found.values()} == {2}
    assert {rate.benchmark for rate in rates(found, 4, draws=5)} == {"any", PREFILL}


def test_comparisons_end_to_end_are_judged_as_stored(tmp_path: Path) -> None:
    def pairs(factor: float) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        return [
            (
                document(entry(PREFILL, [1.0]), recorded=f"2026-01-01T00:0{minute}:00+00:00"),
                document(
                    entry(PREFILL, [factor * (1 + 0.001 * minute)]),
                    recorded=f"2026-01-01T00:0{minute}:00+00:00",
                ),
            )
            for minute in range(4)
        ]

    store(tmp_path / "confirmation" / "001" / slowed(0.0), pairs(1.0))
    (tmp_path / "confirmation" / "001" / ".DS_Store").write_text("not ours")
    store(tmp_path / "confirmation" / "002" / slowed(0.05), pairs(1.05))
    clean, slow = confirmations(tmp_path)
    assert (clean.slowdown, clean.result, clean.slower, clean.pairs) == (
        0.0,
        "NO REGRESSION",
        (),
        4,
    )
    assert (slow.slowdown, slow.result, slow.slower) == (0.05, "REGRESSION", (PREFILL,))
    # Three minutes between the ends of the first and the last, and the first took one as well.
    assert clean.minutes == 4.0


def test_memory_that_was_found(tmp_path: Path) -> None:
    assert memory_found(tmp_path) is None
    base = document(entry(PREFILL, [1.0], memory=1000), entry(DECODE, [1.0], memory=500_000))
    head = document(entry(PREFILL, [1.0], memory=1010), entry(DECODE, [1.0], memory=500_010))
    head["conformance"]["request"] = {"injected_bytes": 10}
    store(tmp_path / "more-memory", [(base, head)])
    assert memory_found(tmp_path) == {"injectedBytes": 10, "found": 1, "of": 2}

"""Each finding from numbers that leave no other."""

from __future__ import annotations

import io
import json
import random
import re
from typing import Any

import pytest
from rich.console import Console

from conformance.bench.report.console import write_comparison, write_measured
from conformance.bench.report.html import comparison_page
from conformance.bench.report.markdown import summary
from conformance.bench.report.rows import compared_rows, headline
from conformance.bench.results.comparison import Comparison, Finding, compare, with_pairs_missing
from conformance.bench.results.stored import Recording
from tests.bench.samples import (
    DECODE,
    DEVICE,
    PREFILL,
    compared_recordings,
    document,
    entry,
    recording,
    runs,
)

STEADY = [1.0, 1.001, 0.999, 1.0, 1.002, 0.998]


def only(comparison: Comparison) -> Finding:
    (one,) = comparison.benchmarks
    return one.finding


@pytest.mark.parametrize(
    ("head", "finding", "status"),
    [
        ([1.0005, 1.0, 1.0, 1.001, 1.0, 1.0], Finding.SAME, 0),
        ([1.05 * value for value in STEADY], Finding.SLOWER, 1),
        ([0.9 * value for value in STEADY], Finding.FASTER, 0),
        # Certainly a little faster, but no more than is negligible the other way.
        ([0.998 * value for value in STEADY], Finding.SAME, 0),
        ([1.3, 0.8, 1.2, 0.7, 1.25, 0.9], Finding.INCONCLUSIVE, 2),
        # Three per cent, but it strays: neither a regression nor the absence of one.
        ([1.06, 1.0, 1.07, 1.01, 1.05, 0.99], Finding.INCONCLUSIVE, 2),
    ],
)
def test_times(head: list[float], finding: Finding, status: int) -> None:
    comparison = compare(runs("base", STEADY), runs("head", head), paired=True)
    assert (only(comparison), comparison.exit_status) == (finding, status)


def test_what_slows_both_of_a_pair_cancels() -> None:
    """Round by round: the machine ran at half its speed for every other round, and head is slower
    by a tenth."""
    drift = [1.0, 2.0] * 10
    base = recording("base", *(document(entry(PREFILL, drift)) for _ in range(4)))
    head = recording(
        "head",
        *(
            document(entry(PREFILL, [value * (1.1 + tiny) for value in drift]))
            for tiny in (0, 1e-3, 2e-3, 1e-3)
        ),
    )
    comparison = compare(base, head, paired=True)
    assert only(comparison) is Finding.SLOWER
    assert comparison.benchmarks[0].ratio == pytest.approx(1.101, abs=1e-3)


def test_rounds_before_either_ran_steadily_do_not_count() -> None:
    base = recording("base", *(document(entry(PREFILL, [1.0] * 9)) for _ in range(3)))
    late = [9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0, 1.0]
    head = recording("head", *(document(entry(PREFILL, late, rounds_left_out=5)) for _ in range(3)))
    assert only(compare(base, head, paired=True)) is Finding.SAME


@pytest.mark.parametrize(
    ("more", "finding"), [(0, Finding.SAME), (1, Finding.SAME), (2, Finding.HUNGRIER)]
)
def test_memory_is_gated_nearly_exactly(more: int, finding: Finding) -> None:
    base, head = runs("base", STEADY, memory=1000), runs("head", STEADY, memory=1000 + more)
    comparison = compare(base, head, paired=True)
    assert only(comparison) is finding
    assert comparison.exit_status == (1 if finding is Finding.HUNGRIER else 0)


def test_a_renamed_benchmark_fails_and_a_new_one_does_not() -> None:
    both = [document(entry(PREFILL, [value])) for value in STEADY]
    more = [document(entry(PREFILL, [value]), entry(DECODE, [value])) for value in STEADY]
    gone = compare(recording("base", *more), recording("head", *both), paired=True)
    assert {one.name: one.finding for one in gone.benchmarks} == {
        PREFILL: Finding.SAME,
        DECODE: Finding.MISSING,
    }
    assert gone.exit_status == 1
    new = compare(recording("base", *both), recording("head", *more), paired=True)
    assert {one.name: one.finding for one in new.benchmarks} == {
        PREFILL: Finding.SAME,
        DECODE: Finding.NEW,
    }
    assert new.exit_status == 0


@pytest.mark.parametrize(
    ("base", "head", "finding"),
    [
        ("measured", "out-of-memory", Finding.BROKEN),
        ("out-of-memory", "measured", Finding.NEW),
        ("failed", "measured", Finding.INCONCLUSIVE),
        ("out-of-memory", "out-of-memory", Finding.INCONCLUSIVE),
        ("not-applicable", "not-applicable", Finding.INCONCLUSIVE),
    ],
)
def test_a_point_that_could_not_be_measured(base: str, head: str, finding: Finding) -> None:
    def side(label: str, status: str) -> Recording:
        measured = [document(entry(PREFILL, [1.0]), entry(DECODE, [1.0])) for _ in range(3)]
        failed = [
            document(entry(PREFILL, [1.0]), points=[(DECODE, status, "no room")]) for _ in range(3)
        ]
        return recording(label, *(measured if status == "measured" else failed))

    comparison = compare(side("base", base), side("head", head), paired=True)
    findings = {one.name: one.finding for one in comparison.benchmarks}
    assert findings == {PREFILL: Finding.SAME, DECODE: finding}, "the other results are kept"


@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_a_disturbed_run_is_no_evidence(factor: float) -> None:
    base = runs("base", STEADY)
    disturbed = [
        document(
            entry(PREFILL, [factor * value]), points=[(PREFILL, "measured", "throttled: thermal")]
        )
        for value in STEADY
    ]
    comparison = compare(base, recording("head", *disturbed), paired=True)
    assert (only(comparison), comparison.exit_status) == (Finding.INCONCLUSIVE, 2)
    assert "thermal" in comparison.benchmarks[0].why


def test_memory_that_one_side_did_not_record_is_not_the_same() -> None:
    comparison = compare(runs("base", STEADY), runs("head", STEADY, memory=None), paired=True)
    assert (only(comparison), comparison.exit_status) == (Finding.INCONCLUSIVE, 2)


def test_memory_that_nobody_recorded_is_not_known() -> None:
    both = [runs(label, STEADY, memory=None) for label in ("base", "head")]
    comparison = compare(both[0], both[1], paired=True)
    assert (only(comparison), comparison.exit_status) == (Finding.INCONCLUSIVE, 2)


def test_what_one_of_two_in_turns_does_not_have() -> None:
    """Measured in neither, as there is nobody to take turns with: gone if base has it, new if head
    has."""

    def side(label: str, *points: tuple[str, str, str]) -> Recording:
        return recording(label, *(document(entry(PREFILL, [1.0]), points=points) for _ in range(3)))

    alone = (DECODE, "alone", "the other version has no such benchmark")
    gone = compare(side("base", alone), side("head"), paired=True)
    assert [one.finding for one in gone.benchmarks] == [Finding.SAME, Finding.MISSING]
    new = compare(side("base"), side("head", alone), paired=True)
    assert [one.finding for one in new.benchmarks] == [Finding.SAME, Finding.NEW]


@pytest.mark.parametrize(("broken", "status"), [("base", 2), ("head", 1)])
def test_a_version_that_cannot_be_built(broken: str, status: int) -> None:
    alone = [document(points=[(PREFILL, "alone", "the other version has no such benchmark")])]
    failed = [document(points=[("build[x]", "failed", "RuntimeError: no")])]
    sides = {
        name: recording(name, *(failed if name == broken else alone)) for name in ("base", "head")
    }
    comparison = compare(sides["base"], sides["head"], paired=True)
    assert comparison.exit_status == status
    assert "RuntimeError: no" in " ".join(one.why for one in comparison.benchmarks)


def test_single_stored_runs_are_inconclusive_and_several_are_compared() -> None:
    one = compare(runs("base", [1.0]), runs("head", [1.0]), paired=False)
    assert (only(one), one.exit_status) == (Finding.INCONCLUSIVE, 2)
    assert "--runs" in one.benchmarks[0].why
    several = compare(
        runs("base", STEADY), runs("head", [1.1 * value for value in STEADY]), paired=False
    )
    assert only(several) is Finding.SLOWER


def test_nothing_compared_is_no_pass() -> None:
    assert (
        compare(
            recording("base", document()), recording("head", document()), paired=True
        ).exit_status
        == 2
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"device": {**DEVICE, "name": "another"}},
            "different devices (name a processor and another)",
        ),
        ({"device": {**DEVICE, "threads": 2}}, "different devices"),
        ({"packages": {"torch": "2.14.0"}}, "torch 2.13.0 and 2.14.0"),
        ({"python": "3.12"}, "python 3.11 and 3.12"),
    ],
)
def test_other_conditions_are_not_compared(changed: dict[str, Any], told: str) -> None:
    base = runs("base", STEADY)
    environment = {**base.runs[0].environment, **changed}
    head = recording(
        "head",
        *(document(entry(PREFILL, [value] * 3), environment=environment) for value in STEADY),
    )
    refused = compare(base, head, paired=True)
    assert refused.refusal is not None
    assert told in refused.refusal
    assert refused.exit_status == 2
    allowed = compare(base, head, paired=True, allow_environment_change=True)
    assert (allowed.exit_status == 0) == ("device" not in changed)
    if "device" not in changed:
        assert told in allowed.environment_change, "what was allowed stands in the verdict"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rounds": 30}, "rounds 90 and 30"),
        ({"seed": 1}, "seed 0 and 1"),
        (
            {"backbone_id": "llama2-13b-pure"},
            "backbone_id the target's default and llama2-13b-pure",
        ),
    ],
)
def test_runs_that_were_asked_for_different_things_are_not_compared(
    changed: dict[str, Any], told: str
) -> None:
    asked = {"backbone_id": None, "rounds": 90, "seed": 0}
    sides = [
        recording(label, *(document(entry(PREFILL, [value] * 3), asked=own) for value in STEADY))
        for label, own in (("base", asked), ("head", {**asked, **changed}))
    ]
    refusal = compare(*sides, paired=False).refusal
    assert refusal is not None
    assert told in refusal


def test_runs_in_turns_are_not_held_against_runs_alone() -> None:
    """A process that takes turns keeps to one processor, and meets caches that the other has
    used."""
    comparison = compare(runs("base", STEADY), runs("head", STEADY, in_turns=False), paired=False)
    assert comparison.exit_status == 2
    assert "in turns True and False" in str(comparison.refusal)


@pytest.mark.parametrize("every", [5, 20])
def test_a_slow_down_of_few_rounds_is_found(every: int) -> None:
    """Three times as long, every fifth or twentieth time: the centre of a pair does not move, and
    users wait."""
    source = random.Random(every)

    def side(label: str, slow: bool) -> Recording:
        return recording(
            label,
            *(
                document(
                    entry(
                        PREFILL,
                        [
                            source.gauss(1, 0.02) * (3 if slow and number % every == 0 else 1)
                            for number in range(80)
                        ],
                    )
                )
                for _ in range(16)
            ),
        )

    clean = compare(side("base", False), side("head", False), paired=True)
    assert only(clean) is Finding.SAME
    comparison = compare(side("base", False), side("head", True), paired=True)
    assert only(comparison) is Finding.SLOWER
    assert "of its rounds stall" in comparison.benchmarks[0].why
    gone = compare(side("head", True), side("base", False), paired=True)
    assert gone.exit_status == 0, "stalls that are gone are none"


@pytest.mark.parametrize(("usual", "finding"), [(0.99, Finding.SLOWER), (0.5, Finding.FASTER)])
def test_stalls_are_excused_by_less_time_all_in_all(usual: float, finding: Finding) -> None:
    """Every tenth round four times as long as before: hardly any faster otherwise, or twice as
    fast."""
    stalling = [4.0 if number % 10 == 0 else usual for number in range(80)]
    base = recording("base", *(document(entry(PREFILL, [value] * 80)) for value in STEADY))
    head = recording(
        "head", *(document(entry(PREFILL, [value * one for one in stalling])) for value in STEADY)
    )
    assert only(compare(base, head, paired=True)) is finding


@pytest.mark.parametrize("pairs", [2, 4, 6])
def test_few_interruptions_are_no_stalls(pairs: int) -> None:
    """By chance a few pairs have the same count of interrupted rounds, and no deviation."""
    source = random.Random(pairs)

    def side(label: str) -> Recording:
        rounds = ([3.0 if source.random() < 0.01 else 1.0 for _ in range(90)] for _ in range(pairs))
        return recording(label, *(document(entry(PREFILL, own)) for own in rounds))

    alarms = sum(
        compare(side("base"), side("head"), paired=True).exit_status == 1 for _ in range(300)
    )
    assert alarms <= 1


def test_pairs_that_are_missing_are_told() -> None:
    clean = compare(runs("base", STEADY), runs("head", STEADY), paired=True)
    comparison = with_pairs_missing(clean, 3)
    assert (clean.exit_status, comparison.exit_status) == (0, 2)
    assert "3 pairs" in comparison.benchmarks[-1].why


def test_a_difference_is_seen_behind_what_is_not_known() -> None:
    drivers = [None, "550", "560"]
    base, head = (
        recording(
            "x",
            *(
                document(
                    entry(PREFILL, [1.0]),
                    environment={"device": DEVICE, "driver": driver, "packages": {}},
                )
                for driver in own
            ),
        )
        for own in (drivers[:2], drivers[2:])
    )
    assert "driver 550 and 560" in str(compare(base, head, paired=False).refusal)


def test_memory_does_not_hide_what_became_of_time() -> None:
    head = [*STEADY[:5], 1.4]
    found = compare(
        runs("base", STEADY, memory=1000), runs("head", head, memory=2000), paired=True
    ).benchmarks[0]
    assert (found.finding, found.time) == (Finding.HUNGRIER, Finding.INCONCLUSIVE)
    rows = compared_rows(compared_recordings()[0])
    assert ("no regression", 1) in [(row.time, row.memory_status) for row in rows]
    assert ("slower", 1) in [(row.time, row.memory_status) for row in rows]


def test_table_and_chart_have_one_order() -> None:
    comparison, base, head = compared_recordings()
    page = comparison_page(comparison, base, head)
    chart = page[page.index("<svg") : page.index("</svg>")]
    drawn = re.findall(r">([^<]*\[[^<]*\])[^<]*</text>", chart)
    assert drawn[::-1] == [row.benchmark for row in compared_rows(comparison)]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_comparison_fits_the_terminal_and_breaks_no_word(width: int) -> None:
    comparison, _, head = compared_recordings()
    stream = io.StringIO()
    console = Console(file=stream, width=width, highlight=False, markup=False)
    write_comparison(console, comparison)
    write_measured(console, head)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    told = " ".join(stream.getvalue().split())
    assert all(one in told for one in ("no regression", "head / base"))
    if width >= 80:
        assert "1.2 MB (+20.0 %)" in told
        assert all(one.name in told for one in comparison.benchmarks)


def test_slices_of_a_device_are_not_compared() -> None:
    environment = {"device": {**DEVICE, "mig": True}}
    slices = recording("base", document(entry(PREFILL, [1.0]), environment=environment))
    assert "MIG" in str(compare(slices, slices, paired=True).refusal)


def test_reports_say_what_was_found() -> None:
    base, head = runs("base", STEADY), runs("<head>", [1.05 * value for value in STEADY])
    comparison = compare(base, head, paired=True)
    text, page = summary(comparison), comparison_page(comparison, base, head)
    assert text.startswith("## Regression\n")
    assert (
        "| `prefill b1 s32` | slower | 1 s | 1.05 s | 1.050 | slower | 1 kB | 5.0 % slower" in text
    )
    assert "a processor, torch 2.13.0" in summary(comparison, headline(head))
    assert "&lt;head&gt;" in page
    assert "<head>" not in page.split("</head>")[1]
    assert "style=" not in page, "the page's own policy would not let it"
    assert not re.search(r"""(src|href|url)\W{1,3}http""", page), "a page stands alone"
    assert json.loads(json.dumps(comparison.as_json()))["result"] == "REGRESSION"

from __future__ import annotations

import contextlib
import copy
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.bench.report.html import history_page
from conformance.bench.report.markdown import summary
from conformance.bench.report.rows import headline, measured_rows
from conformance.bench.results.comparable import in_turns
from conformance.bench.results.comparison import compare
from conformance.bench.results.history import history, steps
from conformance.bench.results.stored import InvalidResults, Recording, read
from conformance.errors import CannotAssess
from conformance.rates import rate_bounds
from tests.bench.samples import DEVICE, PREFILL, document, entry, recording


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_a_folder_is_read_in_the_order_of_time(tmp_path: Path) -> None:
    write(
        tmp_path / "a.json", document(entry(PREFILL, [2.0]), recorded="2026-01-02T00:00:00+00:00")
    )
    write(
        tmp_path / "b.json", document(entry(PREFILL, [1.0]), recorded="2026-01-01T00:00:00+00:00")
    )
    assert read(tmp_path).seconds(PREFILL) == [1.0, 2.0]


def test_stored_pairs_are_pairs_again() -> None:
    """By what they were called when they were measured; an interrupted pair left only one half,
    which is none."""

    def side(label: str, *runs: tuple[str | None, float]) -> Recording:
        return recording(
            label, *(document(entry(PREFILL, [seconds]), pair=pair) for pair, seconds in runs)
        )

    base = side("base", ("x-1", 1.0), ("x-2", 2.0), ("x-3", 3.0))
    head = side("head", ("x-3", 30.0), ("x-1", 10.0))
    both = in_turns(base, head)
    assert both is not None
    *sides, missing = both
    assert [one.seconds(PREFILL) for one in sides] == [[1.0, 3.0], [10.0, 30.0]]
    assert [one.label for one in sides] == ["base", "head"]
    assert missing == 1, "base's second"
    assert in_turns(base, side("head", ("y-1", 1.0), (None, 2.0))) is None
    assert in_turns(*(side(label, (None, 1.0)) for label in ("base", "head"))) is None
    meant = [
        recording(
            label,
            *(document(entry(PREFILL, [1.0]), pair=name, asked={"pairs": 16}) for name in "ab"),
        )
        for label in ("base", "head")
    ]
    both = in_turns(*meant)
    assert both is not None
    assert both[2] == 14, "a comparison that broke off"


def test_what_could_not_be_built_is_of_every_workload() -> None:
    stored = recording(
        "base", document(entry(PREFILL, [1.0]), points=[("build[mistral]", "failed", "no")])
    )
    assert stored.only(["mistral"], ["prefill"]).names == [PREFILL, "build[mistral]"]
    with pytest.raises(CannotAssess, match="holds no benchmark of other"):
        stored.only(["other"], [])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"benchmarks": []}, "without the environment"),
        ([], "not a result of pytest-benchmark"),
        (
            {"benchmarks": [], "inTurns": True},
            "is the verdict of a comparison: name the runs beside it",
        ),
        (
            document({**entry(PREFILL, [1.0]), "stats": {"median": 1.0, "data": []}}),
            "without rounds",
        ),
        (
            document({**entry(PREFILL, [1.0]), "stats": {"median": 1.0, "data": [0.0]}}),
            "a round of 0.0 s",
        ),
        (
            {**document(), "conformance": {"schema": 0}},
            "schema 0, and this release reads 1: record it again",
        ),
        (
            {**document(), "conformance": {"schema": 99}},
            "schema 99, and this release reads 1: use a newer release",
        ),
        (document({**entry(PREFILL, [1.0]), "stats": {"median": 0}}), "a median of 0.0 s"),
        (document({**entry(PREFILL, [1.0]), "extra_info": {}}), "without batch"),
    ],
)
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, value: object, told: str) -> None:
    place = write(tmp_path / "x.json", value)
    with pytest.raises(InvalidResults) as refusal:
        read(place)
    assert str(place) in str(refusal.value)
    assert told in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InvalidResults, match=r"x\.json is no"):
        read(tmp_path / "x.json")


def test_an_empty_folder_says_what_writes_results(tmp_path: Path) -> None:
    with pytest.raises(InvalidResults, match="bench run --out"):
        read(tmp_path)


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield from places_in(inner, (*path, key))


@pytest.mark.parametrize("odd", [None, [], {}, "x", -1, 0, 1e999, [0.0], {"x": {}}, True], ids=repr)
def test_whatever_stands_in_a_result_it_is_compared_or_refused(tmp_path: Path, odd: Any) -> None:
    """At every place of it: nothing that is read breaks what is made of it later."""
    asked = {"backbone_id": None, "rounds": 90, "seed": 0}
    whole = document(
        entry(PREFILL, [1.0, 2.0, 1.5]), points=[(PREFILL, "measured", "")], asked=asked, pair="x"
    )
    sound = read(write(tmp_path / "sound.json", whole))
    for number, path in enumerate(places_in(whole)):
        broken = copy.deepcopy(whole)
        inner: Any = broken
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = odd
        place = write(tmp_path / f"{number}.json", broken)
        with contextlib.suppress(InvalidResults):
            found = read(place)
            for before, after in ((sound, found), (found, sound), (found, found)):
                taken = in_turns(before, after)
                comparison = compare(
                    *(taken[:2] if taken else (before, after)), paired=taken is not None
                )
                summary(comparison, headline(after))
            comparison_rows = measured_rows(found)
            assert len(comparison_rows) == len(found.names), path
        with contextlib.suppress(InvalidResults):
            history([place, tmp_path / "sound.json"])


def test_whatever_happens_to_a_result_it_is_read_or_refused(tmp_path: Path) -> None:
    whole = json.dumps(document(entry(PREFILL, [1.0, 2.0]))).encode()
    source, path, refused = random.Random(0), tmp_path / "x.json", 0
    for _ in range(400):
        broken = bytearray(whole)
        for _ in range(source.randint(1, 3)):
            at = source.randrange(len(broken))
            broken[at : at + source.randint(0, 30)] = source.choice(
                [b"", b"null", b"[]", b'"x"', b"1e999", b"{}"]
            )
        path.write_bytes(broken)
        with contextlib.suppress(InvalidResults):
            read(path)
            continue
        refused += 1
    assert refused > 100


def test_steps_are_found_where_they_are_and_not_in_noise() -> None:
    source = random.Random(3)
    noise = [source.gauss(0, 0.01) for _ in range(30)]
    assert steps(noise) == []
    up = [value + (0.05 if place >= 12 else 0) for place, value in enumerate(noise)]
    assert steps(up) == [12]
    back = [value + (0.05 if 8 <= place < 20 else 0) for place, value in enumerate(noise)]
    assert steps(back) == [8, 20]
    assert steps([0.0, 0.0, 1.0, 1.0]) == [], "two recordings have no level"
    for count in range(6, 13):
        assert steps([math.log(0.1 * count)] * count) == [], "what is all the same has no steps"
    assert steps([math.log(0.1)] * 7 + [math.log(0.3)] * 7) == [7]


@pytest.mark.parametrize("count", range(6, 31))
def test_a_large_step_is_found_among_few_and_many(count: int) -> None:
    source = random.Random(count)
    levels = [source.gauss(0, 0.01) + (0.4 if place >= count // 2 else 0) for place in range(count)]
    assert steps(levels) == [count // 2]


@pytest.mark.parametrize("heavy", [False, True])
def test_chance_makes_a_step_in_one_of_a_thousand_series(heavy: bool) -> None:
    """Also where single recordings stray far (Student's t with three degrees of freedom)."""
    source = random.Random(heavy)

    def stray() -> float:
        return source.gauss(0, 1) / (math.sqrt(source.gammavariate(1.5, 2) / 3) if heavy else 1)

    series = 1500
    found = sum(
        bool(steps([stray() for _ in range(source.randrange(6, 40))])) for _ in range(series)
    )
    lower, _ = rate_bounds(found, series, 0.999)
    assert lower <= 0.001


def test_every_change_of_memory_is_a_step_and_labels_differ(tmp_path: Path) -> None:
    places = []
    for day, memory in enumerate([10000, 10000, 12000, 12009, None, 12018, 10000]):
        place = tmp_path / f"day-{day}" / "base"
        place.mkdir(parents=True)
        recorded = f"2026-01-0{day + 1}T00:00:00+00:00"
        write(place / "001.json", document(entry(PREFILL, [1.0], memory=memory), recorded=recorded))
        places.append(place)
    found = history(places)
    assert found.memory_steps == {PREFILL: [2, 5, 6]}, "nor does it creep up unseen"
    assert [row["label"] for row in found.rows[PREFILL]] == [f"day-{day}/base" for day in range(7)]
    assert "Dotted" in history_page(found)


def test_history_orders_recordings_by_time(tmp_path: Path) -> None:
    for day, seconds in ((2, 4.0), (1, 2.0)):
        recorded = f"2026-01-0{day}T00:00:00+00:00"
        write(tmp_path / f"day-{day}.json", document(entry(PREFILL, [seconds]), recorded=recorded))
    found = history(sorted(tmp_path.glob("*.json"), reverse=True))
    assert [(row["label"], row["seconds"]) for row in found.rows[PREFILL]] == [
        ("day-1", pytest.approx(2.0)),
        ("day-2", pytest.approx(4.0)),
    ]


def test_two_devices_make_no_history(tmp_path: Path) -> None:
    write(tmp_path / "a.json", document(entry(PREFILL, [1.0])))
    other = {"device": {**DEVICE, "name": "another"}}
    write(tmp_path / "b.json", document(entry(PREFILL, [1.0]), environment=other))
    with pytest.raises(InvalidResults, match="different devices"):
        history([tmp_path / "a.json", tmp_path / "b.json"])

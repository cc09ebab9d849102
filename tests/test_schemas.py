"""The JSON Schemas that are shipped: of every kind of file that is written, and of what is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from conformance.bench.results.comparison import Comparison, compare, head_failed
from conformance.places import fixtures_directory
from conformance.run import events
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from tests import schemas
from tests.bench.samples import DECODE, document, entry, recording, runs

OUTCOME = ClauseOutcome(
    "PAD-03",
    "MUST",
    "core",
    Outcome.BLOCKED,
    "because",
    {"observed": "é"},
    ("CON-01",),
    {"text": "\ud800"},
    1.5,
    "CON-01",
)
EVENTS = [
    events.Phase("constructing", "an-id"),
    events.Facts("an-id", {"cpus": 2}, {}, {"org/name": {"digest": "0" * 64}}, {"m.py": "a" * 64}),
    events.Begin("PAD-03", 0, 90),
    events.Judged(OUTCOME),
    events.Judged(ClauseOutcome("PAD-03", "MUST", "core", Outcome.PASSED)),
    events.Refused("no recipe"),
    events.Footer(90),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.name)
def test_an_event_is_described_and_comes_back(event: events.Event) -> None:
    line = events.line(event)
    schemas.check("event", json.loads(line))
    assert events.parse(line) == event


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"event": "footer"}',
        b'{"event": "footer", "outcomes": 1, "more": 2}',
        b'{"event": "outcome", "id": "PAD-03"}',
        b'{"event": "outcome", "outcome": "splendid", "needs": []}',
        b'{"event": "unheard-of"}',
    ],
)
def test_what_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="is not an event"):
        events.parse(line)


def verdicts() -> Mapping[str, Comparison]:
    base = runs("base", [1.0, 1.01, 0.99, 1.0])
    return {
        "same": compare(base, base, paired=True),
        "slower": compare(base, runs("head", [2.0, 2.02, 1.98, 2.0]), paired=True),
        "missing": compare(base, recording("head", document(entry(DECODE, [1.0]))), paired=False),
        "head failed": head_failed("base", "head", "it died"),
        "refused": compare(
            base,
            recording("head", document(environment={"device": {"kind": "cpu", "name": "other"}})),
            paired=False,
        ),
    }


@pytest.mark.parametrize("name", list(verdicts()))
def test_verdicts_of_benchmarks_are_described(name: str) -> None:
    schemas.check("bench-verdict", verdicts()[name].as_json())


@pytest.mark.parametrize(
    "path", sorted((fixtures_directory() / "bench").glob("*/power.json")), ids=str
)
def test_recorded_power_is_described(path: Path) -> None:
    schemas.check("bench-power", json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("schema", "wrong"),
    [
        ("event", {"event": "footer"}),
        ("certificate", {"_type": "https://in-toto.io/Statement/v1"}),
        ("bench-run", {"benchmarks": []}),
        ("bench-verdict", {"result": "PASSED"}),
        ("bench-power", {}),
        ("doctor", {"assessable": True}),
        ("drift", {"changed": False}),
    ],
)
def test_a_schema_refuses_something(schema: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        schemas.check(schema, wrong)


def test_files_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("verdict.json", "runs/base/001.json", "other.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        with pytest.raises(jsonschema.ValidationError) if name != "other.json" else _nothing():
            schemas.check_written(tmp_path)
        path.unlink()


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()

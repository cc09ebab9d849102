"""Assessments to judge, over a catalogue of seven clauses that stays as it is when the real one
grows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest.mock import patch

from conformance import catalogue
from conformance.verdict import upstream
from conformance.verdict.outcomes import Assessment, ClauseOutcome, Outcome
from conformance.verdict.reaching import reach_verdict
from conformance.verdict.verdict import Verdict

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=timezone.utc)

CLAUSES: dict[str, tuple[str, tuple[str, ...]]] = {
    "CON-01": ("MUST", ()),
    "PAD-01": ("MUST", ("CON-01",)),
    "PAD-02": ("MUST", ("PAD-01",)),
    "PAD-03": ("MUST", ("PAD-01",)),
    "PAD-04": ("SHOULD", ("PAD-02",)),
    "EMB-01": ("MUST", ("CON-01",)),
    "EMB-11": ("SHOULD", ("CON-01",)),
}
"""ID to level and needs."""

NASTY = '\x1b[31m\x00\ud800\u202e <script>alert(1)</script> <b>&amp;</b> ]]> | `tick` """ \\ é ▁'
"""Text that terminals, XML, HTML, Markdown and encodings each have reason to dislike."""


@contextmanager
def small_catalogue(folder: Path) -> Iterator[None]:
    """Profiles `core` (all but EMB-11) and `training` (EMB-11), in place of the real catalogue."""
    entries = [
        {
            "id": clause,
            "level": level,
            "profile": "training" if clause == "EMB-11" else "core",
            "needs": list(needs),
            "uses": [],
            "statement": f"The statement of {clause}.",
            "test": "conformance.suite.test_x:test_y",
        }
        for clause, (level, needs) in CLAUSES.items()
    ]
    core = [clause for clause in CLAUSES if clause != "EMB-11"]
    (folder / "catalogue.json").write_text(json.dumps(entries))
    (folder / "profiles.toml").write_text(
        f"[profiles]\ncore = {json.dumps(core)}\ntraining = ['EMB-11']\n"
    )
    with (
        patch.object(catalogue, "CATALOGUE_FILE", folder / "catalogue.json"),
        patch.object(catalogue, "PROFILES_FILE", folder / "profiles.toml"),
        patch.object(
            upstream, "known_defects", tuple
        ),  # the project's own are about clauses of its own
    ):
        _forget_catalogue()
        yield
    _forget_catalogue()


def outcome(clause: str, outcome: str = "passed", **fields: Any) -> ClauseOutcome:
    level, needs = CLAUSES.get(clause, ("MUST", ()))
    return ClauseOutcome(
        id=clause, level=level, profile="core", outcome=Outcome(outcome), needs=needs, **fields
    )


def assessment(
    *departures: ClauseOutcome, without: tuple[str, ...] = (), **fields: Any
) -> Assessment:
    """Everything passed but for `departures`; the clauses in `without` said nothing."""
    by_id = {departure.id: departure for departure in departures}
    outcomes = [by_id.pop(clause, outcome(clause)) for clause in CLAUSES if clause not in without]
    return Assessment(
        **{
            "target": "mistral-v0.1-7b-instruct",
            "backbone_id": "mistral-v0.1-7b-instruct",
            "profiles": ("core", "training"),
            "outcomes": (*outcomes, *by_id.values()),
            "environment": {
                "packages": {"transformers": "4.40.1"},
                "model_class": "MistralForCausalLM",
            },
            "declarations": {"bos": "auto"},
            "sources": {"backbones/mistral.py": "ab" * 32},
            "hub": {"mistralai/Mistral-7B-v0.1": {"tokenizer": "real", "digest": "cd" * 32}},
            "weights": "probe",
            "device": "cpu",
            "seed": 0,
            "budget": "standard",
            "seconds": 12.5,
            **fields,
        }
    )


def verdict(*departures: ClauseOutcome, **fields: Any) -> Verdict:
    return reach_verdict(assessment(*departures, **fields), now=NOW)


def nasty() -> Verdict:
    """A failure in which the subject has chosen every text."""
    evidence = {
        "observed": NASTY,
        "expected": NASTY,
        "mend": NASTY,
        "traceback": f"Traceback\n{NASTY}",
        "code": [{"where": NASTY, "in": NASTY, "source": NASTY}],
        "tokens": {"observed": [[NASTY, NASTY]], "expected": [[1, NASTY], NASTY]},
        "measured": {NASTY: {"worst": NASTY, "bound": 1.0, "calibrated on": "../*"}},
        "wrap units": [{"unit": NASTY, "class": NASTY, "parameters": NASTY}],
        "states": {NASTY: {NASTY: 1}},
        "state": {NASTY: NASTY},
        NASTY: [NASTY],
    }
    failed = outcome(
        "PAD-03",
        "failed",
        summary=NASTY,
        evidence=evidence,
        counterexample={"text": NASTY, "ids": [1]},
    )
    return verdict(
        failed,
        target=NASTY,
        backbone_id=NASTY,
        sources={NASTY: "00"},
        hub={NASTY: {"digest": "x"}},
        breakdown=NASTY,
    )


def one_cause_that_blocks() -> Verdict:
    evidence = {
        "observed": "the pad id is 2, which is also the eos id",
        "expected": "an id of its own",
        "mend": "add a pad token before the resize",
        "pad_id": 2,
    }
    return verdict(
        outcome(
            "PAD-01",
            "failed",
            summary="the pad id is 2",
            evidence=evidence,
            counterexample={"text": NASTY, "n": 3},
        ),
        outcome("PAD-02", "blocked", root_cause="PAD-01"),
        outcome("PAD-03", "blocked", root_cause="PAD-01"),
        outcome("PAD-04", "blocked", root_cause="PAD-01"),
    )


def hang() -> Verdict:
    message = "while judging PAD-03, nothing happened for 120 s"
    return verdict(
        outcome("PAD-03", "not-run", summary=message, evidence={"log": "loading\nstuck here"}),
        outcome("PAD-04", "not-run", summary=message),
        breakdown=message,
    )


def _forget_catalogue() -> None:
    catalogue.catalogue.cache_clear()
    catalogue.profiles.cache_clear()

"""The covering array covers what it says, and a failure is told by its plainest row."""

from __future__ import annotations

from itertools import combinations

from transformers import GenerationConfig

from conformance.control import DEFAULTS, FACTORS, covering_rows, described, with_gradients
from conformance.control.model import greedy


def test_every_pair_of_values_that_can_occur_occurs() -> None:
    rows = list(covering_rows())
    seen = {frozenset(pair) for row in rows for pair in combinations(row.items(), 2)}
    missing = [
        (one, a, other, b)
        for one, other in combinations(FACTORS, 2)
        for a in FACTORS[one]
        for b in FACTORS[other]
        if frozenset({(one, a), (other, b)}) not in seen
        # The longest sequences are tried where they make a difference, for time.
        and ("length", 513) not in ((one, a), (other, b))
        and ("length", 2100) not in ((one, a), (other, b))
    ]
    # What no library can be asked for, by name.
    assert {(one, a, other, b) for one, a, other, b in missing} == {
        ("build", "checkpointed", "history", "after copying"),
        ("build", "checkpointed", "history", "after assigning"),
        ("mask", "holes", "positions", "none"),
        ("mask", "gap", "positions", "none"),
        *(
            ("mask", mask, "cache", cache)
            for mask in ("none", "right", "holes", "gap")
            for cache in ("in chunks", "token by token")
        ),
        *(
            ("cache", cache, "labels", labels)
            for cache in ("in chunks", "token by token")
            for labels in ("all", "some ignored", "a row ignored")
        ),
        *(
            ("mask", mask, "positions", "packed")
            for mask in set(FACTORS["mask"]) - {"ones", "none"}
        ),
        *(("positions", "packed", "cache", cache) for cache in FACTORS["cache"][1:]),
        ("attention", "eager", "mask", "pairs"),
        ("mask", "pairs", "output", "attentions"),
        ("labels", "a row ignored", "batch", 1),
        *(("labels", "a row ignored", "length", length) for length in (65, 131)),
        *(("cache", cache, "length", 2) for cache in ("in chunks", "token by token")),
        *(("mask", mask, "length", 2) for mask in ("right", "ragged left", "holes", "gap")),
        *(("batch", batch, "length", length) for batch in (2, 3, 8) for length in (65, 131)),
        *(("batch", 8, "length", length) for length in ("window", "window+1")),
    }


def test_long_sequences_meet_every_mode_cache_and_form() -> None:
    long = [row for row in covering_rows() if row["length"] == 513]
    for name in ("mode", "precision", "form", "positions", "cache"):
        assert {row[name] for row in long} == set(FACTORS[name]), name
    assert {row["build"] for row in long} == {"training", "inference", "long"}
    assert any(row["length"] == 2100 for row in covering_rows())


def test_every_pair_that_has_gradients_occurs() -> None:
    factors = with_gradients()
    rows = list(covering_rows(factors))
    seen = {frozenset(pair) for row in rows for pair in combinations(row.items(), 2)}
    missing = {
        (one, a, other, b)
        for one, other in combinations(factors, 2)
        for a in factors[one]
        for b in factors[other]
        if frozenset({(one, a), (other, b)}) not in seen
    }
    assert missing == {
        ("form", "ids", "trained", "nothing"),
        ("form", "embeddings", "trained", "nothing"),
        ("build", "checkpointed", "history", "after copying"),
        ("build", "checkpointed", "history", "after assigning"),
        ("mask", "holes", "positions", "none"),
        *(("mask", mask, "positions", "packed") for mask in ("right", "ragged left", "holes")),
        *(("mask", mask, "length", 2) for mask in ("right", "ragged left", "holes")),
        ("batch", 3, "length", 65),
    }
    assert all(row["gradients"] and row["cache"] == "none" for row in rows)


def test_the_rows_are_few_and_always_the_same() -> None:
    assert list(covering_rows()) == list(covering_rows())
    assert len(list(covering_rows())) + len(list(covering_rows(with_gradients()))) < 165


def test_a_row_is_told_by_what_is_not_plain() -> None:
    assert described(dict(DEFAULTS)) == "in the plainest state, by the plainest call"
    row = {**DEFAULTS, "build": "inference", "batch": 3, "mask": "boolean"}
    assert described(row) == (
        "built with inference_mode=True, with a mask of kind `boolean`, in a batch of 3"
    )


def test_the_controls_own_generation_is_what_greedy_means() -> None:
    """Qwen2.5 publishes a repetition penalty, which `do_sample=False` leaves in force."""
    published = GenerationConfig(
        eos_token_id=[1, 2], max_length=64, do_sample=True, temperature=0.7, repetition_penalty=1.1
    )
    kept = greedy(published)
    assert (kept.eos_token_id, kept.max_length, kept.do_sample) == ([1, 2], 64, False)
    assert {kept.temperature, kept.repetition_penalty} <= {None, 1.0}


def test_values_that_a_library_lacks_leave_the_other_rows() -> None:
    """Where nothing can be cached, the longest prompt, which fills a cache, has no row."""
    rows = list(covering_rows({**FACTORS, "cache": ("none",)}))
    assert {row["cache"] for row in rows} == {"none"}
    assert {row["mask"] for row in rows} == set(FACTORS["mask"])

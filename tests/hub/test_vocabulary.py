"""Tokenizer files: `tokenizer.json` gives the ids of encoders that share no code with the
tokenizers library."""

from __future__ import annotations

import json
import random

import pytest
from tokenizers import Tokenizer

from conformance.hub import recipe_for
from conformance.hub.golden import TEXTS, golden_document, independent_encoder
from conformance.hub.vocabulary import VocabularyUnavailable, byte_level_pieces, vocabulary_source
from conformance.places import fixtures_directory

from .conftest import HUB_IDS, MISTRAL, SnapshotOf

ALPHABETS = (
    "abcdefghij ABC",
    " \t\n\r",
    "0123456789.-,",
    "ab  \n\té漢字🤖\x00\x07\u0301\u200d\u00a0",
    "(){}[]<>/*+=!?'\"_:;",
    "".join(chr(code) for code in range(0x20, 0x250)),
    "".join(
        chr(code)
        for code in (*range(0x400, 0x460), *range(0x4E00, 0x4E80), *range(0x1F600, 0x1F640))
    ),
)


def random_texts(count: int) -> list[str]:
    source = random.Random(1)
    return [
        "".join(source.choice(source.choice(ALPHABETS)) for _ in range(source.randint(1, 60)))
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "hub_id", [MISTRAL, "meta-llama/Llama-2-7b-hf", "lmsys/vicuna-7b-v1.5", "microsoft/phi-2"]
)
def test_ids_are_those_of_an_independent_encoder(hub_id: str, snapshot_of: SnapshotOf) -> None:
    tokenizer = Tokenizer.from_file(str(snapshot_of(hub_id) / "tokenizer.json"))
    encode = independent_encoder(recipe_for(hub_id).tokenizer)
    for text in (*TEXTS, *random_texts(2000)):
        assert tokenizer.encode(text, add_special_tokens=False).ids == encode(text), repr(text)


@pytest.mark.parametrize("hub_id", HUB_IDS)
def test_the_recorded_golden_ids_are_what_the_encoder_gives(hub_id: str) -> None:
    tokenizer = recipe_for(hub_id).tokenizer
    assert tokenizer.golden is not None
    recorded = json.loads(
        (fixtures_directory() / "golden" / tokenizer.golden).read_text(encoding="utf-8")
    )
    assert recorded == golden_document(tokenizer)
    assert len(recorded["cases"]) >= 50


def test_phi_has_the_published_layout_of_added_tokens(snapshot_of: SnapshotOf) -> None:
    tokenizer = Tokenizer.from_file(str(snapshot_of("microsoft/phi-2") / "tokenizer.json"))
    assert tokenizer.token_to_id("<|endoftext|>") == 50256
    assert [tokenizer.token_to_id(" " * count) for count in (31, 30, 2)] == [50257, 50258, 50286]
    assert [tokenizer.token_to_id("\t" * count) for count in (9, 2)] == [50287, 50294]
    assert tokenizer.get_vocab_size() == 50295
    for word in ("True", "False", "Yes", "No", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        assert len(tokenizer.encode(word).ids) == 1


def test_merges_of_ranks_are_the_pairs_that_lower_ranks_leave() -> None:
    tokens = [bytes([byte]) for byte in b"abc "] + [b"ab", b"bc", b"abc", b" abc"]
    vocabulary, merges = byte_level_pieces(tokens)
    assert merges == [("a", "b"), ("b", "c"), ("ab", "c"), ("Ġ", "abc")]
    assert vocabulary["Ġabc"] == 7
    with pytest.raises(ValueError, match="rank 2"):
        byte_level_pieces([b"a", b"b", b"abab"])


def test_another_vocabulary_than_the_recipes_is_refused() -> None:
    from dataclasses import replace

    tokenizer = recipe_for(MISTRAL).tokenizer
    with pytest.raises(VocabularyUnavailable, match="0" * 64):
        vocabulary_source(replace(tokenizer, sha256="0" * 64))
    with pytest.raises(VocabularyUnavailable, match=r"absent\.model"):
        vocabulary_source(replace(tokenizer, source="absent.model"))

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

from .conftest import HUB_IDS, MISTRAL, MISTRAL_V3, NEMO, SnapshotOf

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
    "hub_id",
    [
        MISTRAL,
        MISTRAL_V3,
        NEMO,
        "meta-llama/Llama-2-7b-hf",
        "lmsys/vicuna-7b-v1.5",
        "microsoft/phi-2",
    ],
)
def test_ids_are_those_of_an_independent_encoder(hub_id: str, snapshot_of: SnapshotOf) -> None:
    tokenizer = Tokenizer.from_file(str(snapshot_of(hub_id) / "tokenizer.json"))
    encode = independent_encoder(recipe_for(hub_id))
    for text in (*TEXTS, *random_texts(2000)):
        assert tokenizer.encode(text, add_special_tokens=False).ids == encode(text), repr(text)


@pytest.mark.parametrize("hub_id", HUB_IDS)
def test_the_recorded_golden_ids_are_what_the_encoder_gives(hub_id: str) -> None:
    tokenizer = recipe_for(hub_id).tokenizer
    assert tokenizer.golden is not None
    recorded = json.loads(
        (fixtures_directory() / "golden" / tokenizer.golden).read_text(encoding="utf-8")
    )
    assert recorded == golden_document(recipe_for(hub_id))
    assert len(recorded["cases"]) >= 50


def test_phi_has_the_published_layout_of_added_tokens(snapshot_of: SnapshotOf) -> None:
    tokenizer = Tokenizer.from_file(str(snapshot_of("microsoft/phi-2") / "tokenizer.json"))
    assert tokenizer.token_to_id("<|endoftext|>") == 50256
    assert [tokenizer.token_to_id(" " * count) for count in (31, 30, 2)] == [50257, 50258, 50286]
    assert [tokenizer.token_to_id("\t" * count) for count in (9, 2)] == [50287, 50294]
    assert tokenizer.get_vocab_size() == 50295
    for word in ("True", "False", "Yes", "No", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"):
        assert len(tokenizer.encode(word).ids) == 1


def test_mistral_v3_has_the_published_control_tokens(snapshot_of: SnapshotOf) -> None:
    """771 special tokens and 58,980 merges, as in the published tokenizer.json."""
    directory = snapshot_of(MISTRAL_V3)
    document = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    assert [token["id"] for token in document["added_tokens"]] == list(range(771))
    assert all(token["special"] for token in document["added_tokens"])
    assert len(document["model"]["merges"]) == 58_980
    config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    named = config["added_tokens_decoder"]
    assert [named[index]["content"] for index in ("3", "4", "10")] == [
        "[INST]",
        "[/INST]",
        "[control_8]",
    ]


def test_mistral_v3_puts_a_prefix_before_the_text_alone(snapshot_of: SnapshotOf) -> None:
    tokenizer = Tokenizer.from_file(str(snapshot_of(MISTRAL_V3) / "tokenizer.json"))

    def pieces(text: str) -> list[str]:
        return tokenizer.encode(text, add_special_tokens=False).tokens

    assert pieces("a[INST]a") == ["▁a", "[INST]", "a"]
    assert pieces("[INST]a") == ["[INST]", "a"]
    assert pieces(" a") == pieces("a")
    assert pieces("  a") == ["▁", "▁a"]


def test_nemo_has_its_special_tokens_before_the_ranks(snapshot_of: SnapshotOf) -> None:
    directory = snapshot_of(NEMO)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 131_072
    assert [tokenizer.id_to_token(index) for index in (2, 3, 4, 10, 999)] == [
        "</s>",
        "[INST]",
        "[/INST]",
        "<pad>",
        "<SPECIAL_999>",
    ]
    assert tokenizer.encode("\x00", add_special_tokens=False).ids == [1000]
    config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert len(config["added_tokens_decoder"]) == 1000


def test_the_two_files_of_the_third_vocabulary_differ_in_names_alone() -> None:
    """The published tokenizer is mistral-common's v2 file; its v3 file, which the oracle encodes
    with, names some control tokens otherwise."""
    import sentencepiece

    published = recipe_for(MISTRAL_V3).tokenizer
    source = vocabulary_source(published)
    own = source.with_name("mistral_instruct_tokenizer_240323.model.v3")
    first, second = (sentencepiece.SentencePieceProcessor(model_file=str(p)) for p in (source, own))
    size = first.get_piece_size()
    differing = [i for i in range(size) if first.id_to_piece(i) != second.id_to_piece(i)]
    assert second.get_piece_size() == size == 32_768
    assert len(differing) == 24
    assert all(3 < index < 771 and first.is_control(index) for index in differing)
    assert all(first.get_score(index) == second.get_score(index) for index in range(size))


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

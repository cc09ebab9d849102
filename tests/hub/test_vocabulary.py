"""Tokenizer files: `tokenizer.json` gives the ids of encoders that share no code with the
tokenizers library."""

from __future__ import annotations

import json
import random
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from conformance.hub import recipe_for
from conformance.hub.golden import TEXTS, golden_document, independent_encoder, with_stand_in
from conformance.hub.recipe import Recipe
from conformance.hub.vocabulary import (
    VocabularyUnavailable,
    byte_level_pieces,
    ranked_tokens,
    vocabulary_source,
    write_tokenizer,
)
from conformance.places import fixtures_directory

from .conftest import (
    GEMMA,
    GEMMA3,
    HUB_IDS,
    LLAMA31,
    MISTRAL,
    MISTRAL_V3,
    NEMO,
    PHI3,
    QWEN,
    SMOLLM2,
    SnapshotOf,
)

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
    _encodes_independently(recipe_for(hub_id), snapshot_of(hub_id))


@pytest.mark.parametrize("hub_id", [QWEN, LLAMA31, GEMMA, GEMMA3, PHI3, SMOLLM2])
def test_ids_of_newer_families_are_too(hub_id: str, tmp_path: Path) -> None:
    """With the package that ships the vocabulary, where it is installed, and without."""
    for recipe in with_stand_in(recipe_for(hub_id)):
        directory = tmp_path / recipe.tokenizer.kind
        directory.mkdir()
        write_tokenizer(recipe, directory)
        _encodes_independently(recipe, directory)


def _encodes_independently(recipe: Recipe, directory: Path) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    encode = independent_encoder(recipe)
    for text in (*TEXTS, *random_texts(2000)):
        assert tokenizer.encode(text, add_special_tokens=False).ids == encode(text), repr(text)


def test_the_recorded_golden_ids_are_what_the_encoder_gives() -> None:
    recipes = [one for hub_id in HUB_IDS for one in with_stand_in(recipe_for(hub_id))]
    by_name = {recipe.tokenizer.golden: recipe for recipe in recipes}
    assert None not in by_name
    for name, recipe in by_name.items():
        recorded = json.loads(
            (fixtures_directory() / "golden" / str(name)).read_text(encoding="utf-8")
        )
        assert recorded == golden_document(recipe), name
        assert len(recorded["cases"]) >= 50


def test_special_tokens_have_the_published_ids(tmp_path: Path) -> None:
    """As the models' own configs and prompts have them, whatever vocabulary stands in."""
    published = {
        QWEN: {151643: "<|endoftext|>", 151645: "<|im_end|>", 151664: "<|file_sep|>"},
        LLAMA31: {
            128000: "<|begin_of_text|>", 128005: "<|reserved_special_token_2|>",
            128009: "<|eot_id|>", 128255: "<|reserved_special_token_247|>",
        },
        GEMMA: {2: "<bos>", 7: "<unused0>", 107: "<end_of_turn>", 108: "\n", 227: "<0x0A>"},
        GEMMA3: {2: "<bos>", 106: "<end_of_turn>", 107: "\n", 248: "<0x0A>"},
        PHI3: {32000: "<|endoftext|>", 32007: "<|end|>", 32010: "<|user|>"},
        SMOLLM2: {0: "<|endoftext|>", 1: "<|im_start|>", 2: "<|im_end|>", 16: "<empty_output>"},
    }  # fmt: skip
    for number, (hub_id, tokens) in enumerate(published.items()):
        recipe = with_stand_in(recipe_for(hub_id))[-1]
        assert recipe.tokenizer.kind == "stand-in"
        directory = tmp_path / str(number)
        directory.mkdir()
        write_tokenizer(recipe, directory)
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        assert {index: tokenizer.id_to_token(index) for index in tokens} == tokens


def test_llama3_has_the_published_number_of_merges(tmp_path: Path) -> None:
    """280,147: a merge for each two tokens that make up a third."""
    if recipe_for(LLAMA31).tokenizer.kind != "real":
        pytest.skip("llama-models is not installed")
    write_tokenizer(recipe_for(LLAMA31), tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert (len(model["merges"]), model["ignore_merges"]) == (280_147, True)


def test_a_stand_in_has_as_many_ranks_and_ends_in_ordinary_ones() -> None:
    stand_in = with_stand_in(recipe_for(QWEN))[-1].tokenizer
    tokens = ranked_tokens(vocabulary_source(stand_in), 151_643)
    assert len(tokens) == len(set(tokens)) == 151_643
    assert all(token[:1] == b"\xc0" or token[:1] > b"\xc0" for token in tokens[256:1899])
    assert tokens[-256:] == ranked_tokens(vocabulary_source(stand_in), 150_000)[-256:]


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


def test_a_package_that_is_missing_is_named_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dataclasses import replace

    from conformance.hub import vocabulary

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(vocabulary, "distribution", missing)
    tokenizer = replace(recipe_for(MISTRAL).tokenizer, package="dashscope")
    with pytest.raises(VocabularyUnavailable, match="pip install --no-deps dashscope"):
        vocabulary_source(tokenizer)

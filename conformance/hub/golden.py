"""Golden token ids of awkward texts, by encoders that share no code with the tokenizers library.

    python -m conformance.hub.golden        rewrites fixtures/golden

SentencePiece encodes for its own models, around control tokens that a text contains (`[INST]`);
tiktoken, with GPT-2's pattern or the file's own, encodes for a prefix of ranks, around the tokens
that the tokenizer adds. Ids are without the special tokens that a tokenizer puts around a text.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from conformance.hub.recipe import LAYOUTS, Recipe, TokenizerRecipe
from conformance.hub.recipes import known_recipes
from conformance.hub.vocabulary import (
    SENTENCEPIECE_CONTROLS,
    control_tokens,
    marks_before_pieces,
    ranked_tokens,
    tekken_pattern,
    vocabulary_source,
)
from conformance.places import fixtures_directory

Encoder = Callable[[str], list[int]]

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""How GPT-2 cuts a text before joining bytes (Radford et al. 2019, the released encoder)."""

_UNMERGED = "\n"
"""Encoded as a byte, so that nothing joins it: what follows is encoded without a prefix."""

TEXTS = (
    "",
    "Hello world",
    "What action should the robot take to pick up the red cup?",
    "In: What is in the image?\nOut: A cup, a plate and two spoons.",
    "[INST] Describe the scene. [/INST] It is a kitchen.",
    "USER: Where is the mug? ASSISTANT: On the left.",
    "Instruct: Count the blocks.\nOutput: Seven.",
    "it's we're I'd they'll can't I've I'm O'Brien 'tis",
    "True False Yes No A B C Z",
    "ALL CAPS MiXeD cAsE camelCase snake_case kebab-case SCREAMING_SNAKE",
    "0 1 12 123 1234 12345 3.14159 -42 1e-05 0xdeadbeef 1,000,000",
    "-0.0123 0.9961 -1 0 1 0.25",
    " leading",
    "  two leading",
    "trailing ",
    "trailing two  ",
    "inner  double   triple    quadruple",
    " ",
    "  ",
    "     ",
    "\n",
    "\n\n",
    "line\nbreak\n\nparagraph\n\n\nmore",
    "windows\r\nline\r\n",
    "\ttab\t\ttwo tabs\t \t mixed",
    "a" + " " * 31 + "b" + " " * 32 + "c" + " " * 40 + "d",
    "x" + "\t" * 9 + "y" + "\t" * 10 + "z",
    "def forward(self, x):\n    return self.layers(x) + x  # residual\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i] * b[i];\n}",
    "https://example.org/path?query=1&other=%20#fragment",
    '<div class="a">&amp;</div>',
    '{"key": [1, 2.5, null, true], "nested": {"empty": ""}}',
    "naïve café Zürich Øresund Łódź señor",
    "cafe\u0301 versus caf\u00e9",
    "ﬁnance ﬂow ½ ² ™ ①",
    "Привет, как дела? Ελληνικά κείμενα",
    "漢字とかな混じりの文。你好，世界！안녕하세요",
    "مرحبا بالعالم שלום עולם",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "🤖🦾 grasp 👍🏽 👩‍👩‍👧‍👦 🇨🇭",
    "a\u200bb\u200dc\ufeffd\u00adsoft",
    "no-break\u00a0space thin\u2009space ideographic\u3000space",
    "line\u2028separator\u2029paragraph\u0085next",
    "\x00\x01\x07\x08\x1b[31mred\x1b[0m\x7f",
    "\U0001f9ff\U000e0041\U0010ffff",
    "“curly” ‘quotes’ — dash – en … ellipsis",
    "∑∫√∞ ≤≥≠ ∀x∈ℝ: x²≥0",
    "!!!???...,,,;;;:::---___***###@@@",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Donaudampfschifffahrtsgesellschaftskapitän antidisestablishmentarianism",
    "<0x0A> <0xFF> are spelled out, not bytes",
)


def main() -> None:
    """Writes every golden file that a built-in recipe names, and prints its path."""
    written: dict[str, Recipe] = {}
    for recipe in chain.from_iterable(map(with_stand_in, known_recipes().values())):
        name = recipe.tokenizer.golden
        if name is not None and name not in written:
            written[name] = recipe
            path = fixtures_directory() / "golden" / name
            path.write_text(_as_text(golden_document(recipe)), encoding="utf-8")
            print(f"wrote {path}: {len(TEXTS)} texts")


def with_stand_in(recipe: Recipe) -> list[Recipe]:
    """The recipe, and the same over the vocabulary that would stand in for its own here."""
    stand_in = recipe.tokenizer.stand_in
    return [recipe, *([replace(recipe, tokenizer=stand_in)] if stand_in else [])]


def golden_document(recipe: Recipe) -> dict[str, Any]:
    """The content of a golden file: vocabulary, encoder, and `cases`, each a text with its ids."""
    tokenizer, encode = recipe.tokenizer, independent_encoder(recipe)
    return {
        "vocabulary": {
            "source": tokenizer.source,
            "sha256": tokenizer.sha256,
            "ranks": tokenizer.ranks,
        },
        "encoder": LAYOUTS[tokenizer.layout].encoder,
        "cases": [{"text": text, "ids": encode(text)} for text in TEXTS],
    }


def independent_encoder(recipe: Recipe) -> Encoder:
    """A function from text to ids without special tokens that does not use the tokenizers library.

    Raises:
        VocabularyUnavailable: the vocabulary's source is not installed.
    """
    return _ENCODERS[recipe.tokenizer.layout](vocabulary_source(recipe.tokenizer), recipe)


def _sentencepiece_encoder(source: Path, recipe: Recipe) -> Encoder:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(source)).encode


def _metaspace_encoder(source: Path, recipe: Recipe) -> Encoder:
    """SentencePiece between control tokens, its dummy prefix at the beginning of the text alone."""
    whole = _sentencepiece_encoder(source, recipe)
    prefix = whole(_UNMERGED)

    def without_prefix(text: str) -> list[int]:
        return whole(_UNMERGED + text)[len(prefix) :]

    def encode(text: str) -> list[int]:
        begins = bool(text) and not text.startswith((" ", "\u2581", *special))
        return around(f" {text}" if begins else text)

    special = control_tokens(recipe)
    around = _around(special, without_prefix)
    return encode


def _gemma_encoder(source: Path, recipe: Recipe) -> Encoder:
    """SentencePiece without its dummy prefix between marks, its pieces renumbered."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(source))
    prefix = processor.encode(_UNMERGED)
    size = processor.get_piece_size()
    marks = {
        token["content"]: int(index)
        for index, token in marks_before_pieces(recipe.tokenizer).items()
    }
    ids, pieces = dict(marks), [processor.id_to_piece(index) for index in range(size)]
    as_bytes = [piece for index, piece in enumerate(pieces) if processor.is_byte(index)]
    for piece in (*as_bytes, *pieces):
        if piece not in SENTENCEPIECE_CONTROLS:
            ids.setdefault(piece, len(ids))

    def between(text: str) -> list[int]:
        found = processor.encode(_UNMERGED + text)[len(prefix) :]
        return [ids[pieces[index]] for index in found]

    return _around(marks, between)


def _around(added: Mapping[str, int], encode_part: Encoder) -> Encoder:
    """Give added tokens their ids, and have `encode_part` encode what lies between them."""
    longest_first = "|".join(re.escape(content) for content in sorted(added, key=len, reverse=True))
    separators = re.compile(f"({longest_first})")

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for part in separators.split(text):
            ids += [added[part]] if part in added else encode_part(part)
        return ids

    return encode


def _byte_level_encoder(source: Path, recipe: Recipe) -> Encoder:
    added = {
        token["content"]: int(index)
        for index, token in recipe.tokenizer.config["added_tokens_decoder"].items()
    }
    return _around(added, _ranked_encoder(source, recipe.tokenizer, GPT2_PATTERN))


def _split_encoder(source: Path, recipe: Recipe) -> Encoder:
    layout = LAYOUTS[recipe.tokenizer.layout]
    ranks = _ranked_encoder(source, recipe.tokenizer, layout.pattern or "")
    listed = recipe.tokenizer.config.get("added_tokens_decoder", {})
    added = (
        control_tokens(recipe)
        if layout.has_control_tokens
        else {token["content"]: int(index) for index, token in listed.items()}
    )
    if not layout.nfc:
        return _around(added, ranks)
    return _around(added, lambda text: ranks(unicodedata.normalize("NFC", text)))


def _digits_apart_encoder(source: Path, recipe: Recipe) -> Encoder:
    ranks = _ranked_encoder(source, recipe.tokenizer, GPT2_PATTERN)
    special = control_tokens(recipe)

    def encode(text: str) -> list[int]:
        parts: list[str] = []
        for number, characters in groupby(text, lambda c: unicodedata.category(c)[0] == "N"):
            together = "".join(characters)
            parts += together if number else [together]
        return [len(special) + rank for part in parts for rank in ranks(part)]

    return _around(special, encode)


def _tekken_encoder(source: Path, recipe: Recipe) -> Encoder:
    ranks = _ranked_encoder(source, recipe.tokenizer, tekken_pattern(source))
    special = control_tokens(recipe)
    return _around(special, lambda text: [len(special) + rank for rank in ranks(text)])


def _ranked_encoder(source: Path, tokenizer: TokenizerRecipe, pattern: str) -> Encoder:
    import tiktoken

    tokens = ranked_tokens(source, tokenizer.ranks or 0)
    return tiktoken.Encoding(
        "ranks",
        pat_str=pattern,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={},
    ).encode_ordinary


_ENCODERS: dict[str, Callable[[Path, Recipe], Encoder]] = {
    "sentencepiece-bpe": _sentencepiece_encoder,
    "metaspace-bpe": _metaspace_encoder,
    "byte-level-bpe": _byte_level_encoder,
    "gemma-bpe": _gemma_encoder,
    "phi3-bpe": _sentencepiece_encoder,
    "smollm-bpe": _digits_apart_encoder,
    "tekken-bpe": _tekken_encoder,
    "qwen-bpe": _split_encoder,
    "llama3-bpe": _split_encoder,
}


def _as_text(document: dict[str, Any]) -> str:
    """JSON with one case per line, so that a diff shows the texts concerned."""
    cases = ",\n".join("    " + json.dumps(case) for case in document["cases"])
    head = json.dumps({**document, "cases": []}, indent=2)
    return head.replace('"cases": []', f'"cases": [\n{cases}\n  ]') + "\n"


if __name__ == "__main__":
    main()

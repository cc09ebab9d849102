"""The files of a tokenizer, written without the tokenizers library.

`tokenizer.json` is plain JSON, and its merges are written as `"left right"`: the one form that
tokenizers 0.19 (the pin of transformers 4.40.1) and every later release read alike. The vocabulary
comes from a file that a package ships (mistral-common, and where they are installed dashscope and
llama-models), which is found by the package's metadata: none is imported. Those packages, and
sentencepiece, are needed here and nowhere else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from itertools import count, islice
from pathlib import Path
from typing import Any

from conformance.hub.consistency import check_tokenizer
from conformance.hub.published import copy_tokenizer, digest_of
from conformance.hub.recipe import (
    LAYOUTS,
    PUBLISHED_LAYOUT,
    VOCABULARY_PACKAGES,
    Recipe,
    TokenizerRecipe,
)

Merge = tuple[str, str]

_SPECIAL = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
"""The flags of a special token for which nothing else is published."""

_HOW_TO_GO_ON = "or copy a hub that was built elsewhere and name it with `--hub DIR`"


class VocabularyUnavailable(RuntimeError):
    """The source of a tokenizer is not installed, or is not the one the recipe was written for."""


def write_tokenizer(recipe: Recipe, directory: Path) -> None:
    """Writes the tokenizer's files into `directory`: `tokenizer.json`, `tokenizer_config.json`,
    `special_tokens_map.json`, and with them `tokenizer.model` (SentencePiece) or `vocab.json` and
    `merges.txt`.

    Raises:
        VocabularyUnavailable: the package that ships the vocabulary (or sentencepiece, where
            needed) is not installed, or it has another file than the recipe was written for.
        ContradictsRecipe: what would be written has other ids, rows or another bos than the recipe.
        OSError: a published file cannot be read.
    """
    tokenizer = recipe.tokenizer
    if tokenizer.layout == PUBLISHED_LAYOUT:
        _copy_published(tokenizer, directory)
        return
    source = vocabulary_source(tokenizer)
    config = dict(tokenizer.config)
    if LAYOUTS[tokenizer.layout].has_control_tokens:
        config["added_tokens_decoder"] = _listed(control_tokens(recipe))
    if LAYOUTS[tokenizer.layout].has_marks_first:
        config["added_tokens_decoder"] = marks_before_pieces(tokenizer)
    document = _DOCUMENTS[tokenizer.layout](recipe, source, config, directory)
    _write_json(directory / "tokenizer.json", document, indent=None)

    if tokenizer.ships_chat_template:
        config["chat_template"] = recipe.chat_template
    _write_json(directory / "tokenizer_config.json", config)
    _write_json(directory / "special_tokens_map.json", tokenizer.special_tokens_map)


def _byte_level(
    recipe: Recipe, source: Path, config: Mapping[str, Any], directory: Path
) -> dict[str, Any]:
    vocabulary, merges = byte_level_pieces(ranked_tokens(source, recipe.tokenizer.ranks or 0))
    _write_vocabulary(vocabulary, merges, directory)
    added_tokens = _added_tokens(config, vocabulary)
    check_tokenizer(recipe, vocabulary, added_tokens)
    # The published file lists its special token in the vocabulary too.
    vocabulary.update({token["content"]: token["id"] for token in added_tokens if token["special"]})
    return _byte_level_document(vocabulary, merges, added_tokens)


def _write_vocabulary(
    vocabulary: Mapping[str, int], merges: Sequence[Merge], directory: Path
) -> None:
    _write_json(directory / "vocab.json", vocabulary, indent=None)
    merges_text = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges)
    (directory / "merges.txt").write_text(merges_text, encoding="utf-8")


def _behind_special_tokens(recipe: Recipe, source: Path) -> tuple[dict[str, int], list[Merge]]:
    """A ranked vocabulary that begins with the recipe's special tokens, and its merges."""
    ranked, merges = byte_level_pieces(ranked_tokens(source, recipe.tokenizer.ranks or 0))
    special = control_tokens(recipe)
    return {**special, **{text: len(special) + rank for text, rank in ranked.items()}}, merges


def _tekken(
    recipe: Recipe, source: Path, config: Mapping[str, Any], directory: Path
) -> dict[str, Any]:
    vocabulary, merges = _behind_special_tokens(recipe, source)
    added_tokens = _added_tokens(config, vocabulary)
    check_tokenizer(recipe, vocabulary, added_tokens)
    split = {
        "type": "Split",
        "pattern": {"Regex": tekken_pattern(source)},
        "behavior": "Isolated",
        "invert": False,
    }
    to_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return {
        **_byte_level_document(vocabulary, merges, added_tokens),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": _bos_first(vocabulary),
    }


def _digits_apart(
    recipe: Recipe, source: Path, config: Mapping[str, Any], directory: Path
) -> dict[str, Any]:
    vocabulary, merges = _behind_special_tokens(recipe, source)
    _write_vocabulary(vocabulary, merges, directory)
    added_tokens = _added_tokens(config, vocabulary)
    check_tokenizer(recipe, vocabulary, added_tokens)
    document = _byte_level_document(vocabulary, merges, added_tokens)
    digits = {"type": "Digits", "individual_digits": True}
    return {
        **document,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [digits, document["pre_tokenizer"]],
        },
        "post_processor": None,
    }


def _split_by_pattern(
    recipe: Recipe, source: Path, config: Mapping[str, Any], directory: Path
) -> dict[str, Any]:
    layout = LAYOUTS[recipe.tokenizer.layout]
    vocabulary, merges = byte_level_pieces(
        ranked_tokens(source, recipe.tokenizer.ranks or 0), every_split=layout.joins_by_rank
    )
    if not layout.has_control_tokens:  # Llama 3's repositories have no such files.
        _write_vocabulary(vocabulary, merges, directory)
    added_tokens = _added_tokens(config, vocabulary)
    check_tokenizer(recipe, vocabulary, added_tokens)
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    document = _byte_level_document(vocabulary, merges, added_tokens)
    split = {
        "type": "Split",
        "pattern": {"Regex": layout.pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    ids = {token["content"]: token["id"] for token in added_tokens}
    steps = [{**to_bytes, "use_regex": False}]
    if layout.puts_bos_first:
        steps.append(_bos_first(ids, str(config["bos_token"])))
    # A word that is a token as it stands need not be made of others.
    document["model"]["ignore_merges"] = layout.joins_by_rank
    return {
        **document,
        "normalizer": {"type": "NFC"} if layout.nfc else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, {**to_bytes, "use_regex": False}],
        },
        "post_processor": {"type": "Sequence", "processors": steps},
    }


def _sentencepiece(
    recipe: Recipe, source: Path, config: Mapping[str, Any], directory: Path
) -> dict[str, Any]:
    vocabulary, merges = sentencepiece_pieces(source)
    shutil.copyfile(source, directory / "tokenizer.model")
    added_tokens = _added_tokens(config, vocabulary)
    check_tokenizer(recipe, vocabulary, added_tokens)
    return _sentencepiece_document(recipe.tokenizer.layout, vocabulary, merges, added_tokens)


def _gemma(
    recipe: Recipe, source: Path, config: Mapping[str, Any], directory: Path
) -> dict[str, Any]:
    pieces, merges = sentencepiece_pieces(source)
    marks = [token["content"] for token in config["added_tokens_decoder"].values()]
    listed = {*marks, *SENTENCEPIECE_CONTROLS}
    bytes_first = sorted(pieces, key=lambda piece: (not _is_byte(piece), pieces[piece]))
    ordered = [*marks, *(piece for piece in bytes_first if piece not in listed)]
    # As many tokens as rows, as published.
    rows = recipe.probe_config()["vocab_size"]
    ordered += [f"<unused__{n}>" for n in range(rows - len(ordered))]
    vocabulary = {piece: index for index, piece in enumerate(ordered)}
    added_tokens = _added_tokens(config, vocabulary)
    check_tokenizer(recipe, vocabulary, added_tokens)
    document = _sentencepiece_document(recipe.tokenizer.layout, vocabulary, merges, added_tokens)
    decoders = document["decoder"]["decoders"][:3]  # No `▁` comes before a text.
    return {**document, "decoder": {"type": "Sequence", "decoders": decoders}}


_DOCUMENTS = {
    "sentencepiece-bpe": _sentencepiece,
    "metaspace-bpe": _sentencepiece,
    "phi3-bpe": _sentencepiece,
    "gemma-bpe": _gemma,
    "smollm-bpe": _digits_apart,
    "byte-level-bpe": _byte_level,
    "tekken-bpe": _tekken,
    "qwen-bpe": _split_by_pattern,
    "llama3-bpe": _split_by_pattern,
}
"""What writes a layout's other files and returns its `tokenizer.json`."""


def _copy_published(tokenizer: TokenizerRecipe, directory: Path) -> None:
    found = digest_of(tokenizer.files)
    if found != tokenizer.sha256:
        raise VocabularyUnavailable(
            f"the tokenizer's files in {tokenizer.source} have the SHA-256 {found}, but the recipe "
            f"was written for {tokenizer.sha256}; put the published files back, or write the "
            f"recipe anew with `conformance hub add`"
        )
    copy_tokenizer(tokenizer.files, directory)


def vocabulary_source(tokenizer: TokenizerRecipe) -> Path:
    """The path of the vocabulary inside the installed package, its digest checked.

    Raises:
        VocabularyUnavailable: as for `write_tokenizer`.
    """
    package = tokenizer.package
    try:
        installed = distribution(package)
    except PackageNotFoundError:
        raise VocabularyUnavailable(
            f"building this tokenizer needs {tokenizer.source} of the package {package}, which is "
            f"not installed; run `pip install {_INSTALLED_BY.get(package, package)}`, "
            f"{_HOW_TO_GO_ON}"
        ) from None
    path = Path(str(installed.locate_file(f"{VOCABULARY_PACKAGES[package]}/{tokenizer.source}")))
    if not path.is_file():
        raise VocabularyUnavailable(
            f"the installed {package} {installed.version} has no {path}; install the release that "
            f"the project's constraints name"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != tokenizer.sha256:
        raise VocabularyUnavailable(
            f"{path} has the SHA-256 {digest}, but the recipe was written for {tokenizer.sha256}; "
            f"install the {package} release that the project's constraints name"
        )
    return path


_INSTALLED_BY = {
    "mistral-common": "mistral-common sentencepiece",
    "dashscope": "--no-deps dashscope",
    "llama-models": "--no-deps llama-models",
}
"""What a package is installed by, for its vocabulary alone."""


def sentencepiece_pieces(model: Path) -> tuple[dict[str, int], list[Merge]]:
    """The vocabulary of a SentencePiece BPE model, and the merges that reproduce it.

    SentencePiece joins whichever neighbours form the piece of the best score. As a list of merges:
    every way to split a piece into two pieces, ordered by the joined piece's score, then by the ids
    of the parts.
    """
    processor = _processor(model)
    size = processor.get_piece_size()
    pieces = processor.id_to_piece(list(range(size)))
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    scores = processor.get_score(list(range(size)))
    splits: list[tuple[float, int, int, int]] = []
    for index, piece in enumerate(pieces):
        if (
            len(piece) < 2
            or processor.is_byte(index)
            or processor.is_control(index)
            or processor.is_unknown(index)
        ):
            continue
        for cut in range(1, len(piece)):
            left = vocabulary.get(piece[:cut])
            if left is None:
                continue
            right = vocabulary.get(piece[cut:])
            if right is not None:
                splits.append((-scores[index], index, left, right))
    splits.sort()
    return vocabulary, [(pieces[left], pieces[right]) for _, _, left, right in splits]


def control_tokens(recipe: Recipe) -> dict[str, int]:
    """Every special token of a vocabulary that has hundreds, with its id: the unknown and the
    control pieces of a SentencePiece model; around ranks, where they have no names, those that the
    config lists, and numbered ones for the others: before the first rank in a tekken file, where
    the number is the id, behind the last one in Llama 3's."""
    tokenizer = recipe.tokenizer
    layout = LAYOUTS[tokenizer.layout]
    if layout.encoder == "tiktoken":
        named = {
            int(index): token["content"]
            for index, token in tokenizer.config.get("added_tokens_decoder", {}).items()
        }
        rows, ranks = recipe.config["vocab_size"], tokenizer.ranks or 0
        if layout.special_first:
            ids = range(rows - ranks)
            return {named.get(n, layout.unnamed.format(n)): n for n in ids}
        numbers = count()
        return {
            named[n] if n in named else layout.unnamed.format(next(numbers)): n
            for n in range(ranks, rows)
        }
    processor = _processor(vocabulary_source(tokenizer))
    return {
        processor.id_to_piece(index): index
        for index in range(processor.get_piece_size())
        if processor.is_control(index) or processor.is_unknown(index)
    }


SENTENCEPIECE_CONTROLS = ("<unk>", "<s>", "</s>")
"""The control pieces of mistral-common's first model; Gemma has others."""


def marks_before_pieces(tokenizer: TokenizerRecipe) -> dict[str, dict[str, Any]]:
    """What stands before a Gemma's pieces, as its config lists it: flags by id. The recipe names
    the control tokens; those without a name are unused ones, and behind `<end_of_turn>` stand runs
    of line breaks and spaces and HTML marks, up to the bytes."""
    named = {int(index): token for index, token in tokenizer.config["added_tokens_decoder"].items()}
    runs = next(i for i, token in named.items() if token["content"] == "<end_of_turn>") + 1
    made = dict(enumerate((*_RUNS_OF_BLANKS, *_HTML_MARKS), runs))
    last = max(*named, *made)
    between = count()
    unused = count()
    tokens = {
        n: made[n]
        if n in made
        else f"<unused{next(unused)}>"
        if n < runs
        else f"<unused_{next(between)}>"
        for n in range(last + 1)
        if n not in named
    }
    listed = {
        n: {"content": content, **_SPECIAL, "special": False} for n, content in tokens.items()
    }
    return {str(n): {**listed, **named}[n] for n in range(last + 1)}


_RUNS_OF_BLANKS = (*("\n" * n for n in range(1, 32)), *("\u2581" * n for n in range(2, 32)))

_HTML_ELEMENTS = (
    ("table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td"),
    ("h1", "h2", "h3", "h4", "h5", "h6", "blockquote"),
    ("strong", "em", "b", "i", "u", "s", "sub", "sup", "code"),
)
_HTML_MARKS = tuple(
    f"<{end}{name}>" for names in _HTML_ELEMENTS for end in ("", "/") for name in names
)


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x")


def _processor(model: Path) -> Any:
    try:
        import sentencepiece
    except ModuleNotFoundError:
        raise VocabularyUnavailable(
            f"building this tokenizer needs the package sentencepiece, which is not "
            f"installed; run `pip install sentencepiece`, {_HOW_TO_GO_ON}"
        ) from None
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


def ranked_tokens(source: Path, ranks: int) -> list[bytes]:
    """The first `ranks` tokens of a file by rank: tekken's JSON, or tiktoken's lines. A prefix of
    the ranks of a BPE is itself a BPE.

    A file with fewer has pairs of bytes that no text holds behind the single bytes, so that a
    stand-in has as many ranks as what it stands for, and the last ones are ordinary tokens.
    """
    if source.suffix == ".json":
        entries = json.loads(source.read_text(encoding="utf-8"))["vocab"][:ranks]
        tokens = [base64.b64decode(entry["token_bytes"]) for entry in entries]
    else:
        lines = source.read_bytes().split(b"\n")[:ranks]
        tokens = [base64.b64decode(line.split()[0]) for line in lines if line]
    return tokens[:256] + _unread_pairs(ranks - len(tokens)) + tokens[256:]


_NEVER_IN_UTF8 = (0xC0, 0xC1, *range(0xF5, 0x100))


def _unread_pairs(number: int) -> list[bytes]:
    pairs = (bytes((first, second)) for first in _NEVER_IN_UTF8 for second in range(256))
    return list(islice(pairs, max(number, 0)))


def tekken_pattern(source: Path) -> str:
    """How a tekken file cuts a text before joining bytes."""
    return str(json.loads(source.read_text(encoding="utf-8"))["config"]["pattern"])


def byte_level_pieces(
    tokens: Sequence[bytes], *, every_split: bool = False
) -> tuple[dict[str, int], list[Merge]]:
    """Ranked tokens as GPT-2 writes them: bytes as printable characters, and one merge for each
    longer token.

    The merge of a token is the pair that remains when the token's bytes are joined by lower ranks
    alone. Where ranks were added to a BPE by hand (Llama 3's), there are tokens without such a
    pair: `every_split` has a merge for each two tokens that make up a third, as Llama 3's published
    file does.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    characters = _printable_bytes()
    spelled = [token.decode("latin-1").translate(characters) for token in tokens]
    merges: list[Merge] = []
    if every_split:
        for token in tokens:
            splits = ((ranks.get(token[:c]), ranks.get(token[c:])) for c in range(1, len(token)))
            whole = sorted((a, b) for a, b in splits if a is not None and b is not None)
            merges += [(spelled[a], spelled[b]) for a, b in whole]
        return {text: rank for rank, text in enumerate(spelled)}, merges
    for rank, token in enumerate(tokens):
        if len(token) == 1:
            continue
        left = _last_cut(token, ranks, rank)
        merges.append((spelled[ranks[token[:left]]], spelled[ranks[token[left:]]]))
    return {text: rank for rank, text in enumerate(spelled)}, merges


def _last_cut(token: bytes, ranks: Mapping[bytes, int], limit: int) -> int:
    cuts = list(range(len(token) + 1))
    while len(cuts) > 3:
        best, at = limit, 0
        for index in range(len(cuts) - 2):
            rank = ranks.get(token[cuts[index] : cuts[index + 2]], limit)
            if rank < best:
                best, at = rank, index + 1
        if not at:
            raise ValueError(
                f"token {token!r} of rank {limit} is not a join of two tokens of lower rank"
            )
        del cuts[at]
    return cuts[1]


def _printable_bytes() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others are chr(256) and
    up."""
    printing = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printing)
    return {byte: chr(byte) for byte in printing} | {
        byte: chr(256 + index) for index, byte in enumerate(others)
    }


def _listed(special: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """Special tokens as a tokenizer config lists them: flags by id, each written out."""
    return {str(index): {"content": content, **_SPECIAL} for content, index in special.items()}


def _added_tokens(config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> list[dict[str, Any]]:
    published = config.get("added_tokens_decoder")
    if published is not None:
        return [{"id": int(index), **token} for index, token in published.items()]
    tokens = {}
    for key in ("unk_token", "bos_token", "eos_token"):
        given = config[key]
        flags = given if isinstance(given, Mapping) else {"content": given}
        content = flags["content"]
        tokens[content] = {
            "id": vocabulary[content],
            "content": content,
            **{flag: flags.get(flag, default) for flag, default in _SPECIAL.items()},
        }
    return sorted(tokens.values(), key=lambda token: token["id"])


_SPACE = "\u2581"

_PREPENDED = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": _SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        ],
    },
    "pre_tokenizer": None,
}

_BEFORE_THE_MERGES: dict[str, dict[str, Any]] = {
    "sentencepiece-bpe": _PREPENDED,
    "phi3-bpe": _PREPENDED,
    "gemma-bpe": {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
    },
    "metaspace-bpe": {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": _SPACE,
            "prepend_scheme": "first",
            "split": False,
        },
    },
}
"""What becomes of a text, by layout, before its pieces are joined."""


def _sentencepiece_document(
    layout: str,
    vocabulary: Mapping[str, int],
    merges: Sequence[Merge],
    added_tokens: list[dict[str, Any]],
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        **_BEFORE_THE_MERGES[layout],
        "post_processor": (
            _bos_first(vocabulary, LAYOUTS[layout].bos) if LAYOUTS[layout].puts_bos_first else None
        ),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def _bos_first(vocabulary: Mapping[str, int], bos: str = "<s>") -> dict[str, Any]:
    return {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [
            {"SpecialToken": {"id": bos, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": bos, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {bos: {"id": bos, "ids": [vocabulary[bos]], "tokens": [bos]}},
    }


def _byte_level_document(
    vocabulary: Mapping[str, int], merges: Sequence[Merge], added_tokens: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": True,
        },
        "post_processor": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        },
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def _write_json(path: Path, document: Any, indent: int | None = 2) -> None:
    path.write_text(
        json.dumps(document, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8"
    )

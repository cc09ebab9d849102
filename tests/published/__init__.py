"""Folders as models are published in, made for tests: real tokenizers over real ranks, and the
configs of families that no recipe knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformance.hub.recipes import known_recipes
from conformance.hub.vocabulary import byte_level_pieces, ranked_tokens, vocabulary_source

RANKS = 12_000
ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content "
    "+ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The format of https://github.com/openai/openai-python/blob/v0.28.1/chatml.md, as Qwen has it."""
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2 and GPT-4 cut a text (tiktoken's `cl100k_base`, with single digits)."""

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
        "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "max_position_embeddings": 32768,
        "max_window_layers": 21, "sliding_window": 32768, "use_sliding_window": False,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "tie_word_embeddings": True,
        "attention_dropout": 0.0, "initializer_range": 0.02, "bos_token_id": RANKS,
        "eos_token_id": RANKS + 2, "torch_dtype": "bfloat16", "transformers_version": "4.43.1",
        "use_cache": True, "vocab_size": RANKS + 32,
    },
    "gpt_neox": {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_act": "gelu",
        "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
        "num_hidden_layers": 6, "max_position_embeddings": 2048, "layer_norm_eps": 1e-05,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False,
        "use_parallel_residual": True, "initializer_range": 0.02, "bos_token_id": RANKS,
        "eos_token_id": RANKS, "torch_dtype": "float16", "transformers_version": "4.24.0",
        "use_cache": True, "vocab_size": RANKS + 64,
    },
}  # fmt: skip
"""Published configs (Qwen2.5-0.5B-Instruct, Pythia-70m) with the ids and rows of the small
vocabulary."""


_CLASSES = {"qwen2": "Qwen2Tokenizer", "gpt_neox": "GPTNeoXTokenizer"}


def write_published(
    folder: Path,
    family: str = "qwen2",
    *,
    template: str | None = CHATML,
    pairs: bool = False,
    **config: Any,
) -> Path:
    """A folder of this family's published files, `config` on top of its config; returns `folder`.

    `pairs` writes merges as newer releases of tokenizers do. There are no weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "config.json", {**CONFIGS[family], **config})
    ends = RANKS + 2 if template else RANKS
    _write(
        folder / "generation_config.json",
        {"bos_token_id": RANKS, "eos_token_id": [ends, RANKS], "pad_token_id": RANKS},
    )
    tekken = known_recipes()["microsoft/phi-2"].tokenizer
    vocabulary, merges = byte_level_pieces(ranked_tokens(vocabulary_source(tekken), RANKS))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = {RANKS + i: {"content": text, **flags, "special": True} for i, text in enumerate(ADDED)}
    _write(folder / "tokenizer.json", _document(vocabulary, merges, added, pairs))
    _write(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False, "add_prefix_space": False,
            "added_tokens_decoder": {str(index): token for index, token in added.items()},
            "bos_token": None, "clean_up_tokenization_spaces": False,
            "eos_token": ADDED[2] if template else ADDED[0], "errors": "replace",
            "model_max_length": 32768, "pad_token": ADDED[0], "split_special_tokens": False,
            "tokenizer_class": _CLASSES[family], "unk_token": None,
        }
        | ({"chat_template": template} if template else {}),
    )  # fmt: skip
    return folder


def _document(
    vocabulary: Mapping[str, int],
    merges: list[tuple[str, str]],
    added: Mapping[int, Mapping[str, Any]],
    pairs: bool,
) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": index, **token} for index, token in added.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated",
                 "invert": False},
                {**byte_level, "use_regex": False},
            ],
        },
        "post_processor": {**byte_level, "use_regex": False},
        "decoder": {**byte_level, "use_regex": False},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
            "end_of_word_suffix": "", "fuse_unk": False, "byte_fallback": False,
            "vocab": vocabulary,
            "merges": [list(pair) if pairs else " ".join(pair) for pair in merges],
        },
    }  # fmt: skip


def _write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")

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
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
        "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "head_dim": 128,
        "attention_bias": False, "max_position_embeddings": 40960, "max_window_layers": 28,
        "sliding_window": None, "use_sliding_window": False, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000, "rope_scaling": None, "tie_word_embeddings": True,
        "bos_token_id": RANKS, "eos_token_id": RANKS + 2, "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0", "vocab_size": RANKS + 32,
    },
    "llama3": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_hidden_layers": 16, "num_key_value_heads": 8, "head_dim": 64,
        "attention_bias": False, "mlp_bias": False, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
        "bos_token_id": RANKS, "eos_token_id": RANKS + 2, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "vocab_size": RANKS + 32,
    },
    "gemma": {
        "architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_act": "gelu",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2048, "head_dim": 256,
        "intermediate_size": 16384, "num_attention_heads": 8, "num_hidden_layers": 18,
        "num_key_value_heads": 1, "max_position_embeddings": 8192, "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0, "pad_token_id": RANKS, "bos_token_id": RANKS,
        "eos_token_id": RANKS + 2, "torch_dtype": "bfloat16", "vocab_size": RANKS + 32,
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_act":
        "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304,
        "head_dim": 256, "intermediate_size": 9216, "num_attention_heads": 8,
        "num_hidden_layers": 26, "num_key_value_heads": 4, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "cache_implementation": "hybrid", "max_position_embeddings": 8192, "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0, "pad_token_id": RANKS, "bos_token_id": RANKS,
        "eos_token_id": RANKS + 2, "torch_dtype": "bfloat16", "vocab_size": RANKS + 32,
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "head_dim": 256,
        "intermediate_size": 6912, "num_attention_heads": 4, "num_hidden_layers": 26,
        "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "sliding_window": 512,
        "sliding_window_pattern": 6, "rope_local_base_freq": 10000, "rope_theta": 1000000,
        "rope_scaling": None, "attn_logit_softcapping": None, "final_logit_softcapping": None,
        "cache_implementation": "hybrid", "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-06, "pad_token_id": RANKS, "bos_token_id": RANKS,
        "eos_token_id": [RANKS + 2, RANKS], "torch_dtype": "bfloat16", "vocab_size": RANKS + 32,
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_act": "silu",
        "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "sliding_window": 2047,
        "attention_bias": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attention_dropout": 0.0,
        "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "rope_scaling": None,
        "tie_word_embeddings": False, "bos_token_id": RANKS, "eos_token_id": RANKS,
        "pad_token_id": RANKS, "torch_dtype": "bfloat16", "vocab_size": RANKS + 64,
    },
    "olmo2": {
        "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16,
        "num_hidden_layers": 16, "num_key_value_heads": 16, "attention_bias": False,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-06, "rope_theta": 500000,
        "rope_scaling": None, "tie_word_embeddings": False, "eos_token_id": RANKS,
        "pad_token_id": RANKS + 1, "torch_dtype": "float32", "vocab_size": RANKS + 64,
    },
    "stablelm": {
        "architectures": ["StableLmForCausalLM"], "model_type": "stablelm", "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32,
        "num_hidden_layers": 24, "num_key_value_heads": 32, "partial_rotary_factor": 0.25,
        "use_qkv_bias": True, "layer_norm_eps": 1e-05, "max_position_embeddings": 4096,
        "rope_theta": 10000, "tie_word_embeddings": False, "bos_token_id": RANKS,
        "eos_token_id": RANKS, "torch_dtype": "bfloat16", "vocab_size": RANKS + 64,
    },
    "llava": {
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
        "ignore_index": -100, "image_token_index": RANKS + 1, "pad_token_id": RANKS,
        "projector_hidden_act": "gelu", "tie_word_embeddings": False, "torch_dtype": "float16",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05,
            "torch_dtype": "float16", "vocab_size": RANKS + 64,
        },
        "vision_config": {
            "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
            "model_type": "clip_vision_model", "num_attention_heads": 16,
            "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        "transformers_version": "4.36.0.dev0",
    },
    "paligemma": {
        "architectures": ["PaliGemmaForConditionalGeneration"], "model_type": "paligemma",
        "bos_token_id": RANKS, "eos_token_id": RANKS, "pad_token_id": RANKS, "hidden_size": 2048,
        "ignore_index": -100, "image_token_index": RANKS + 1, "projection_dim": 2048,
        "torch_dtype": "float32",
        "text_config": {
            "hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma",
            "num_attention_heads": 8, "num_hidden_layers": 18, "num_image_tokens": 256,
            "num_key_value_heads": 1, "torch_dtype": "float32", "vocab_size": RANKS + 64,
        },
        "vision_config": {
            "hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 27, "num_image_tokens": 256,
            "patch_size": 14, "projection_dim": 2048, "projector_hidden_act": "gelu_fast",
            "torch_dtype": "float32", "vision_use_head": False,
        },
    },
    "blip2": {
        "architectures": ["Blip2ForConditionalGeneration"], "model_type": "blip-2",
        "initializer_factor": 1.0, "initializer_range": 0.02, "num_query_tokens": 32,
        "tie_word_embeddings": False, "torch_dtype": "float16",
        "use_decoder_only_language_model": True,
        "qformer_config": {"model_type": "blip_2_qformer", "vocab_size": 30523},
        "text_config": {
            "activation_function": "relu", "bos_token_id": RANKS, "do_layer_norm_before": True,
            "dropout": 0.1, "eos_token_id": RANKS, "ffn_dim": 10240, "hidden_size": 2560,
            "layerdrop": 0.0, "max_position_embeddings": 2048, "model_type": "opt",
            "num_attention_heads": 32, "num_hidden_layers": 32, "pad_token_id": RANKS + 1,
            "prefix": "</s>", "torch_dtype": "float16", "vocab_size": RANKS + 64,
            "word_embed_proj_dim": 2560,
        },
        "vision_config": {"model_type": "blip_2_vision_model"},
    },
    "qwen25_vl": {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0, "bos_token_id": RANKS, "eos_token_id": RANKS + 2,
        "hidden_act": "silu", "hidden_size": 2048, "image_token_id": RANKS + 6,
        "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 128000,
        "max_window_layers": 70, "num_attention_heads": 16, "num_hidden_layers": 36,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "use_sliding_window": False, "video_token_id": RANKS + 7,
        "vision_end_token_id": RANKS + 4, "vision_start_token_id": RANKS + 3,
        "vision_token_id": RANKS + 5, "vocab_size": RANKS + 64,
        "vision_config": {
            "depth": 32, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu",
            "hidden_size": 1280, "in_chans": 3, "intermediate_size": 3420, "num_heads": 16,
            "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2,
            "spatial_patch_size": 14, "temporal_patch_size": 2, "tokens_per_second": 2,
            "window_size": 112,
        },
    },
    "qwen3_vl": {
        "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
        "image_token_id": RANKS + 6, "tie_word_embeddings": True, "video_token_id": RANKS + 7,
        "vision_end_token_id": RANKS + 4, "vision_start_token_id": RANKS + 3,
        "transformers_version": "4.57.0.dev0",
        "text_config": {
            "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": RANKS,
            "dtype": "bfloat16", "eos_token_id": RANKS + 2, "head_dim": 128, "hidden_act": "silu",
            "hidden_size": 2560, "initializer_range": 0.02, "intermediate_size": 9728,
            "max_position_embeddings": 262144, "model_type": "qwen3_vl_text",
            "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06, "rope_theta": 5000000, "tie_word_embeddings": True,
            "rope_scaling": {
                "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default",
            },
            "use_cache": True, "vocab_size": RANKS + 64,
        },
        "vision_config": {
            "deepstack_visual_indexes": [5, 11, 17], "depth": 24,
            "hidden_act": "gelu_pytorch_tanh", "hidden_size": 1024, "in_channels": 3,
            "initializer_range": 0.02, "intermediate_size": 4096, "model_type": "qwen3_vl",
            "num_heads": 16, "num_position_embeddings": 2304, "out_hidden_size": 2560,
            "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
    },
    "smolvlm": {
        "architectures": ["SmolVLMForConditionalGeneration"], "model_type": "smolvlm",
        "image_token_id": RANKS + 1, "pad_token_id": RANKS, "scale_factor": 4,
        "tie_word_embeddings": False, "torch_dtype": "float32", "vocab_size": RANKS + 64,
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"], "head_dim": 64, "hidden_size": 960,
            "intermediate_size": 2560, "max_position_embeddings": 8192, "model_type": "llama",
            "num_attention_heads": 15, "num_hidden_layers": 32, "num_key_value_heads": 5,
            "pad_token_id": RANKS, "rms_norm_eps": 1e-05, "rope_theta": 100000,
            "torch_dtype": "bfloat16", "vocab_size": RANKS + 64,
        },
        "vision_config": {
            "hidden_size": 768, "image_size": 512, "max_image_size": {"longest_edge": 512},
            "model_type": "smolvlm_vision", "num_attention_heads": 12, "patch_size": 16,
            "size": {"longest_edge": 2048},
        },
    },
}  # fmt: skip
"""Published configs (Qwen2.5-0.5B-Instruct, Pythia-70m, Qwen3-0.6B, Llama-3.2-1B-Instruct,
gemma-2b-it, gemma-2-2b-it, gemma-3-1b-it, Phi-3-mini-4k-instruct, OLMo-2-1B, stablelm-2-1_6b,
llava-1.5-7b-hf, paligemma-3b-pt-224, blip2-opt-2.7b, Qwen2.5-VL-3B-Instruct, Qwen3-VL-4B-Instruct,
SmolVLM2-500M) with the ids and rows of the small vocabulary."""


_CLASSES = {"qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer", "gpt_neox": "GPTNeoXTokenizer"}


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
            "tokenizer_class": _CLASSES.get(family, "PreTrainedTokenizerFast"),
            "model_input_names": ["input_ids", "attention_mask"], "unk_token": None,
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

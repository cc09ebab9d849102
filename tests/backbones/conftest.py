"""A family of one tiny model, in a directory of its own: what the references do, without any
hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from backbones.huggingface import HFCausalLLMBackbone
from backbones.prompting import PurePromptBuilder

ROWS = 250
CONFIG: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GENERATION_CONFIG = {
    "bos_token_id": 1,
    "eos_token_id": [2, 7],
    "pad_token_id": 0,
    "do_sample": True,
    "temperature": 0.6,
    "repetition_penalty": 1.3,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A published checkpoint: float16 weights, a tokenizer without a pad token, a sampling
    config."""
    torch.manual_seed(0)
    llm = LlamaForCausalLM(LlamaConfig(**CONFIG))
    llm.config.save_pretrained(tmp_path)
    weights = {name: parameter.detach().half() for name, parameter in llm.named_parameters()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG))

    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(ROWS - 5)), "Test", "123"]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special})
    )
    return tmp_path


@pytest.fixture
def family(checkpoint: Path) -> type[HFCausalLLMBackbone]:
    table: dict[str, Any] = {
        "tiny-pure": {
            "llm_family": "tiny",
            "llm_cls": LlamaForCausalLM,
            "hf_hub_path": str(checkpoint),
        },
    }

    class TinyBackbone(HFCausalLLMBackbone):
        models = table
        prompt_builders = (("*-pure", PurePromptBuilder),)
        transformer_layer_cls = LlamaDecoderLayer
        half_precision_dtype = torch.bfloat16

    return TinyBackbone


@pytest.fixture
def backbone(family: type[HFCausalLLMBackbone]) -> HFCausalLLMBackbone:
    return family("tiny-pure", use_flash_attention_2=False)

"""The shared class: construction in both modes, vocabulary, gradients, refusals."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from backbones.loading import CheckpointError


def test_both_modes_have_the_same_tensors_in_the_master_dtype(family):
    trained = family("tiny-pure", use_flash_attention_2=False).state_dict()
    empty = family("tiny-pure", inference_mode=True, use_flash_attention_2=False).state_dict()
    assert {n: (t.shape, t.dtype) for n, t in trained.items()} == {
        n: (t.shape, t.dtype) for n, t in empty.items()
    }
    assert {t.dtype for t in trained.values()} == {torch.float32}


def test_inference_mode_reads_no_weight_file(family, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    family("tiny-pure", inference_mode=True, use_flash_attention_2=False)


def test_construction_draws_no_random_numbers(family):
    for inference_mode in (False, True):
        before = torch.get_rng_state()
        family("tiny-pure", inference_mode=inference_mode, use_flash_attention_2=False)
        assert torch.equal(before, torch.get_rng_state())


def test_new_rows_are_of_the_trained_scale_distinct_and_never_the_argmax(backbone, checkpoint):
    published = load_file(checkpoint / "model.safetensors")
    for name, module in (
        ("model.embed_tokens", backbone.llm.get_input_embeddings()),
        ("lm_head", backbone.llm.lm_head),
    ):
        old, weight = published[f"{name}.weight"].float(), module.weight.detach()
        assert weight.shape[0] == 256
        assert torch.equal(weight[: len(old)], old)
        new = weight[len(old) :]
        assert 0.1 < new.norm(dim=1).median() / old.norm(dim=1).median() < 10
        assert torch.pdist(new).min() > 0.1 * old.norm(dim=1).median()
    logits = (
        torch.randn(1000, 32, generator=torch.Generator().manual_seed(0))
        @ backbone.llm.lm_head.weight.T
    )
    assert logits.argmax(-1).max() < len(old)


def test_everyone_agrees_on_the_pad_id_and_it_takes_no_gradient(backbone):
    llm, pad = backbone.llm, backbone.pad_token_id
    assert (
        pad
        == backbone.tokenizer.pad_token_id
        == llm.config.pad_token_id
        == llm.generation_config.pad_token_id
        == 250
    )
    ids = torch.tensor([[1, 5, 6, pad, pad]])
    backbone(
        input_ids=ids, attention_mask=(ids != pad).long(), labels=ids.masked_fill(ids == pad, -100)
    ).loss.backward()
    gradient = llm.get_input_embeddings().weight.grad
    assert gradient[pad].count_nonzero() == 0
    assert gradient[5].count_nonzero() > 0


def test_generation_is_greedy_and_stops_where_the_publisher_says(family, tmp_path):
    for inference_mode in (False, True):
        llm = family("tiny-pure", inference_mode=inference_mode, use_flash_attention_2=False).llm
        assert llm.generation_config.eos_token_id == [2, 7]
        assert not llm.generation_config.do_sample
        assert not (llm.generation_config.repetition_penalty or 1) > 1
        llm.save_pretrained(tmp_path / str(inference_mode))


def test_what_is_saved_reloads_to_the_same(family, backbone, tmp_path):
    backbone.llm.save_pretrained(tmp_path / "saved")
    backbone.tokenizer.save_pretrained(tmp_path / "saved")
    family.models["tiny-pure"]["hf_hub_path"] = str(tmp_path / "saved")
    again = family("tiny-pure", use_flash_attention_2=False)
    assert again.pad_token_id == backbone.pad_token_id
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_a_frozen_model_trains_its_last_layer_under_checkpointing(backbone):
    backbone.requires_grad_(False)
    _, layer, _ = backbone.last_layer_finetune_modules
    layer.requires_grad_(True)
    backbone.train().gradient_checkpointing_enable()
    ids = torch.tensor([[1, 5, 6]])
    assert backbone.embed_input_ids(ids).requires_grad
    backbone(inputs_embeds=backbone.embed_input_ids(ids), labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("outside", [-1, 256])
def test_an_id_out_of_range_is_named(backbone, outside):
    with pytest.raises(IndexError, match=f"token id {outside} is outside the 256 rows"):
        backbone.embed_input_ids(torch.tensor([[3, outside]]))


def test_an_unknown_id_is_refused_before_anything_is_loaded(family, checkpoint):
    for file in checkpoint.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"'tiny-chat'.*known ids: tiny-pure"):
        family("tiny-chat")


def test_a_release_that_is_too_old_is_refused_before_anything_is_loaded(family, checkpoint):
    for file in checkpoint.iterdir():
        file.unlink()
    family.models["tiny-pure"]["since"] = "99.1"
    with pytest.raises(RuntimeError, match=r"tiny-pure needs transformers 99\.1 or later"):
        family("tiny-pure")


def test_an_identifier_without_a_format_is_named(backbone):
    backbone.identifier = "tiny-chat"
    with pytest.raises(ValueError, match="No PromptBuilder defined for LLM Backbone `tiny-chat`"):
        _ = backbone.prompt_builder_fn


def test_a_tokenizer_at_odds_with_the_bos_convention_is_refused(family):
    family.bos_convention = "prompt"
    with pytest.raises(ValueError, match="bos convention 'prompt'"):
        family("tiny-pure")


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash-attention may be there")
def test_flash_attention_falls_back_with_a_warning_and_the_caller_is_named(family):
    with pytest.warns(UserWarning, match="flash-attention 2 was requested") as caught:
        backbone = family("tiny-pure")
    assert caught[-1].filename == __file__
    assert backbone.attn_implementation in ("eager", "sdpa")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="flash-attention")
        family("tiny-pure", use_flash_attention_2=False)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:5000])


def _drop_a_tensor(path):
    save_file(
        {n: t for n, t in load_file(path).items() if n != "model.norm.weight"},
        path,
        {"format": "pt"},
    )


def _reshape_a_tensor(path):
    save_file(load_file(path) | {"model.norm.weight": torch.ones(31)}, path, {"format": "pt"})


def _leave_a_tensor_over(path):
    save_file(load_file(path) | {"model.norm.bias": torch.ones(32)}, path, {"format": "pt"})


def _pickle(path):
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_truncate, "file model.safetensors cannot be read"),
        (_drop_a_tensor, "tensor model.norm.weight is missing"),
        (_reshape_a_tensor, r"tensor model.norm.weight in model.safetensors has shape \[31\]"),
        (_leave_a_tensor_over, "tensor model.norm.bias in model.safetensors has no place"),
        (_pickle, "pickled weights are not read"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_file_and_tensor(family, checkpoint, damage, named):
    damage(checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=named):
        family("tiny-pure", use_flash_attention_2=False)


def test_old_rotary_buffers_are_no_damage(family, checkpoint):
    path = checkpoint / "model.safetensors"
    save_file(
        load_file(path) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)},
        path,
        {"format": "pt"},
    )
    family("tiny-pure", use_flash_attention_2=False)


def test_the_token_stays_nowhere(family):
    backbone = family("tiny-pure", hf_token="hf_not_to_be_seen", use_flash_attention_2=False)
    holders = (
        backbone,
        backbone.tokenizer,
        backbone.llm,
        backbone.llm.config,
        backbone.llm.generation_config,
    )
    assert not any("hf_not_to_be_seen" in repr(holder) + repr(vars(holder)) for holder in holders)

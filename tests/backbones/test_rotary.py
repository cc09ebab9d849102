"""Rotary frequencies stay float32 through every way of casting."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch


def _frequencies(module):
    return {name: buffer for name, buffer in module.named_buffers() if name.endswith("inv_freq")}


@pytest.fixture
def exact(backbone):
    return copy.deepcopy(_frequencies(backbone))


def _assert_exact(module, exact):
    found = _frequencies(module)
    assert found.keys() == exact.keys()
    assert len(exact) > 0
    for name, buffer in found.items():
        assert buffer.dtype == torch.float32
        assert torch.equal(buffer, exact[name]), name


@pytest.mark.parametrize(
    "cast", [lambda b: b.to(torch.bfloat16), lambda b: b.llm.to(torch.bfloat16), lambda b: b.half()]
)
def test_a_cast_leaves_them_alone(backbone, exact, cast):
    cast(backbone)
    assert backbone.llm.lm_head.weight.dtype != torch.float32
    _assert_exact(backbone, exact)


def test_an_overwritten_buffer_is_restored_before_the_next_forward(backbone, exact):
    backbone.to(torch.bfloat16)
    for buffer in backbone.buffers():  # As FSDP's buffer_dtype does it.
        buffer.data = buffer.to(torch.bfloat16)
    backbone(input_ids=torch.tensor([[1, 5, 6]]))
    _assert_exact(backbone, exact)


def test_a_move_moves_them(backbone):
    backbone.to("meta")
    assert {buffer.device.type for buffer in _frequencies(backbone).values()} == {"meta"}


def test_the_state_dict_has_none_and_a_copy_is_independent(family, exact):
    original = family("tiny-pure", inference_mode=True, use_flash_attention_2=False)
    assert not any("inv_freq" in name for name in original.state_dict())
    for clone in (copy.deepcopy(original.llm), pickle.loads(pickle.dumps(original.llm))):
        clone.to(torch.bfloat16)
        assert {buffer.dtype for buffer in _frequencies(clone).values()} == {torch.float32}
    assert original.llm.lm_head.weight.dtype == torch.float32
    _assert_exact(original, exact)

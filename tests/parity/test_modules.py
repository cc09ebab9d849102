"""Whether an error is found in the module that makes it, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from conformance.oracle import BFLOAT16, InvalidConfig, Place
from conformance.parity.gates import MODULE_RATIO, SEMANTICS
from conformance.parity.library import cast_parameters
from conformance.parity.modules import first_outside, module_errors
from conformance.parity.probes import drawn_ids, untrained
from conformance.parity.receptive_field import keys_seen
from conformance.parity.reference import Reference
from tests.oracle.test_families import LLAMA, PHI

IDS = drawn_ids(64, 48, seed=1)
LAYER = "model.layers.1"


def errors(llm: Any, config: dict[str, Any], precision: Any = None) -> dict[str, float]:
    reference = Reference.of(llm, config)
    embedded = reference.decoder().embed(IDS)
    return module_errors(
        llm,
        reference,
        lambda: llm(input_ids=IDS),
        embedded,
        Place.of(torch.ones_like(IDS)),
        precision,
    )


def model(config: dict[str, Any]) -> Any:
    name = {"llama": "LlamaForCausalLM", "phi": "PhiForCausalLM"}[config["model_type"]]
    return untrained(getattr(transformers, name), config, "eager", seed=2)


def scale_output(module: torch.nn.Module, factor: float) -> None:
    module.register_forward_hook(
        lambda module, args, out: (
            (out[0] * factor, *out[1:]) if isinstance(out, tuple) else out * factor
        )
    )


@pytest.mark.parametrize("config", [LLAMA, PHI], ids=["llama", "phi"])
def test_a_sound_model_is_within_everywhere(config: dict[str, Any]) -> None:
    llm = model(config)
    exact = errors(llm, config)
    assert len(exact) == 2 * (5 if config is LLAMA else 4) + 1
    assert first_outside(exact, SEMANTICS) is None
    cast_parameters(llm, torch.bfloat16)  # not the rotary frequencies, whose rounding the gate sees
    assert first_outside(errors(llm, config, BFLOAT16), MODULE_RATIO) is None


def test_rounded_frequencies_show_in_attention() -> None:
    llm = model(LLAMA).to(torch.bfloat16)
    outside = {name for name, error in errors(llm, LLAMA, BFLOAT16).items() if error > MODULE_RATIO}
    assert outside
    assert {name.rpartition(".")[2] for name in outside} <= {"self_attn", "0", "1"}


@pytest.mark.parametrize(
    "path", ["self_attn", "mlp", "input_layernorm", "post_attention_layernorm"]
)
def test_an_error_is_found_in_its_module(path: str) -> None:
    llm = model(LLAMA)
    scale_output(llm.get_submodule(f"{LAYER}.{path}"), 1.001)
    outside = {name for name, error in errors(llm, LLAMA).items() if error > SEMANTICS}
    # The layer that holds the module is off with it; no other is, as each is given the reference's
    # input.
    assert outside == {f"{LAYER}.{path}", LAYER}
    assert first_outside(errors(llm, LLAMA), SEMANTICS)[0] == f"{LAYER}.{path}"  # type: ignore[index]


def test_an_error_of_the_residual_is_the_layers() -> None:
    llm = model(LLAMA)
    scale_output(llm.get_submodule(LAYER), 1.001)
    assert {name for name, error in errors(llm, LLAMA).items() if error > SEMANTICS} == {LAYER}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda config: config.update(num_key_value_heads=2),
            r"asks for a tensor `model.layers.0.self_attn.k_proj.weight` of shape \(24, 48\)",
        ),
        (lambda config: config.update(num_hidden_layers=3), "and the model has none of that name"),
    ],
)
def test_a_config_that_contradicts_the_tensors(
    spoil: Callable[[dict[str, Any]], None], message: str
) -> None:
    config = dict(LLAMA)
    spoil(config)
    with pytest.raises(InvalidConfig, match=message):
        Reference.of(model(LLAMA), config)


def test_names_may_stand_under_a_prefix() -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.language_model = model(LLAMA)

    assert Reference.of(Wrapped(), LLAMA).prefix == "language_model."


class Shift(torch.nn.Module):
    """Adds to each position what stood two before it."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return (
            hidden_states
            + hidden_states.roll(2, dims=1) * (torch.arange(hidden_states.shape[1]) >= 2)[:, None]
        )


def test_the_receptive_field_is_found_by_its_gradient() -> None:
    layer = Shift()
    table = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    assert keys_seen(
        lambda ids: layer(hidden_states=table[ids]), [layer], torch.arange(8)[None]
    ) == ((0, 2),)

"""Defects in the arithmetic: every attribute is right, nothing crashes, and the logits are those of
another model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import LlamaForCausalLM, MistralForCausalLM

from backbones.huggingface import HFCausalLLMBackbone
from backbones.llama2 import LLAMA2_MODELS, LLaMa2LLMBackbone
from backbones.mistral import MISTRAL_MODELS, MistralLLMBackbone
from backbones.phi import PhiLLMBackbone
from tests.mutants import INSTRUCT, LLAMA_CHAT, PHI, planted
from tests.mutants.steps import same_class_but

ROTARY_SCALE = 10_000.0
"""The theta of the first rotary models (https://arxiv.org/abs/2104.09864), and every config's
default."""


class Edited(HFCausalLLMBackbone):
    """Constructs what the reference constructs, and then spoils the model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.edit(self.llm)

    def edit(self, llm: Any) -> None:
        raise NotImplementedError


class EditedMistral(Edited, MistralLLMBackbone):
    pass


class EditedLlama2(Edited, LLaMa2LLMBackbone):
    pass


class EditedPhi(Edited, PhiLLMBackbone):
    pass


@planted("FWD-01", module="model.layers.0.input_layernorm")
class EpsTenTimes(EditedMistral):
    """The norms' epsilon is 1e-4 for 1e-5: a zero was dropped in the port, and only small
    activations show it."""

    def edit(self, llm: Any) -> None:
        for norm in _norms(llm):
            norm.variance_epsilon *= 10


@planted("FWD-01", module="model.norm")
class EpsHalfAgain(EditedMistral):
    """The last norm's epsilon is half as large again as the config's: the smallest error that
    anyone would type."""

    def edit(self, llm: Any) -> None:
        llm.model.norm.variance_epsilon *= 1.5


@planted("FWD-01", module="model.layers.0.self_attn")
class ThetaOfTheDefault(EditedMistral):
    """Theta is 10,000 whatever the config says: the key was renamed, and the default stepped in."""

    def edit(self, llm: Any) -> None:
        _change_frequencies(llm, lambda frequencies: ROTARY_SCALE ** -_exponents(frequencies))


@planted("FWD-01", module="model.layers.0.self_attn")
class ThetaOnePercent(EditedMistral):
    """Theta is one percent too large: near tokens are turned as before, far ones are not."""

    def edit(self, llm: Any) -> None:
        _change_frequencies(llm, lambda frequencies: frequencies * 1.01 ** -_exponents(frequencies))


@planted("FWD-01", defects=("D31",), module="model.layers.0.self_attn")
class InvFreqCastToBfloat16(EditedMistral):
    """The constructor builds the rotary frequencies in bfloat16: in float32, too, far positions are
    turned wrongly."""

    def edit(self, llm: Any) -> None:
        _change_frequencies(llm, lambda frequencies: frequencies.to(torch.bfloat16))


@planted("FWD-01", "FWD-09", defects=("D39",), module="model.layers.0.self_attn")
class RotaryAnglesInBfloat16(EditedMistral):
    """Position times frequency is rounded to bfloat16 before sine and cosine: 300 radians come in
    steps of two."""

    def edit(self, llm: Any) -> None:
        for rotary in _rotaries(llm):
            rotary.register_forward_hook(_of_rounded_angles, with_kwargs=True)


@planted("FWD-01", module="model.layers.0.self_attn")
class NoAttentionScale(EditedMistral):
    """The scores are not divided by the square root of the head's width: it was thought to be in
    the weights."""

    def edit(self, llm: Any) -> None:
        for attention in _attentions(llm):
            _scale(attention, attention.head_dim**0.5)


@planted("FWD-01", module="model.layers.1.self_attn")
class AttentionScaleTwoPercent(EditedMistral):
    """One layer's scores are two percent too large."""

    def edit(self, llm: Any) -> None:
        _scale(_attentions(llm)[1], 1.02)


@planted("FWD-01", module="model.layers.0.self_attn")
class GroupedHeadsWrongOrder(EditedMistral):
    """Key and value heads are tiled (0 1 0 1) and not repeated (0 0 1 1): `repeat` for
    `repeat_interleave`."""

    def edit(self, llm: Any) -> None:
        for attention in _attentions(llm):
            heads = attention.q_proj.out_features // attention.head_dim
            groups = attention.k_proj.out_features // attention.head_dim
            tiled = torch.arange(heads).view(-1, groups).T.flatten()
            attention.q_proj.register_forward_hook(functools.partial(_with_heads_reordered, tiled))
            attention.o_proj.register_forward_pre_hook(
                functools.partial(_with_heads_restored, tiled.argsort())
            )


@planted("FWD-02", "CON-08")
class PaddingMaskIgnored(MistralLLMBackbone):
    """The forward takes an attention mask and forgets to pass it on: padding is read as text."""

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        return super().forward(input_ids, None, *args, **kwargs)


@planted("FWD-02", defects=("D36",))
class RightPaddedGeneration(EditedMistral):
    """Generation moves padding to the right, as in training: it continues the padding and not the
    prompt."""

    def edit(self, llm: Any) -> None:
        generate = llm.generate

        def right_padded(input_ids: Any, attention_mask: Any, **options: Any) -> Any:
            order = (attention_mask == 0).int().argsort(dim=1, stable=True)
            return generate(
                input_ids=input_ids.gather(1, order),
                attention_mask=attention_mask.gather(1, order),
                **options,
            )

        llm.generate = right_padded


@planted("FWD-03", defects=("D58",))
class CausalMaskLeaksOneToken(EditedMistral):
    """The first layer's mask is one diagonal too wide: every token sees the one that it is to
    predict."""

    def edit(self, llm: Any) -> None:
        _attentions(llm)[0].register_forward_pre_hook(_seeing_the_next, with_kwargs=True)


@planted("FWD-04", defects=("D32",))
class WindowOneWider(EditedMistral):
    """A token sees one more token than the window has: `<=` for `<`."""

    def edit(self, llm: Any) -> None:
        _apply_another_window(llm.model, llm.config.sliding_window + 1)


@planted("FWD-04", defects=("D32",))
class WindowOneNarrower(EditedMistral):
    """The token itself was not counted: a token sees one fewer than the window has."""

    def edit(self, llm: Any) -> None:
        _apply_another_window(llm.model, llm.config.sliding_window - 1)


@planted("FWD-05", defects=("D39",))
class EmbeddingScaleInOnePath(EditedMistral):
    """The model scales the embeddings of ids by eight, and `embed_input_ids` does not: text beside
    patches is too small."""

    def edit(self, llm: Any) -> None:
        _change_output(llm.get_input_embeddings(), lambda embedded: embedded * 8)

    def embed_input_ids(self, input_ids: Any) -> Any:
        return super().embed_input_ids(input_ids) / 8


@planted("FWD-06")
class CachePositionOff(EditedMistral):
    """From eight cached tokens on, the next position is the last one's: the cache is counted from
    one."""

    def edit(self, llm: Any) -> None:
        llm.model.register_forward_pre_hook(_one_position_back, with_kwargs=True)


@planted("FWD-07", "PAD-09")
class RowsMixed(EditedMistral):
    """A thousandth of the neighbouring row leaks into each row of a batch: a reduction ran over the
    wrong axis."""

    def edit(self, llm: Any) -> None:
        _change_output(
            llm.model.layers[0], lambda hidden: hidden + 1e-3 * (hidden.roll(1, 0) - hidden)
        )


@planted("FWD-08", defects=("D33",))
class WindowIgnoredInEager(MistralLLMBackbone):
    """Eager attention ignores the window, sdpa keeps it: whoever looks at attention weights looks
    at another model."""

    class WithoutWindowInEager(MistralForCausalLM):
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            _apply_another_window(self.model, None, only_in="eager")

    models = {INSTRUCT: {**MISTRAL_MODELS[INSTRUCT], "llm_cls": WithoutWindowInEager}}


@planted("FWD-09")
class PositionIdsIgnored(MistralLLMBackbone):
    """The model drops the position ids that it is given: packed sequences attend from the wrong
    places."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        forward = self.llm.forward

        def without_positions(*args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
            return forward(*args, **kwargs)

        self.llm.forward = without_positions


@planted("FWD-10")
class LastLayerSkipped(EditedMistral):
    """The loop over the layers ends one too early: the last layer's result is thrown away."""

    def edit(self, llm: Any) -> None:
        llm.model.layers[-1].register_forward_hook(_skip)


@planted("FWD-10")
class DeadMlp(EditedMistral):
    """The second layer's MLP adds nothing: its output was set to zero for an ablation, and stayed
    so."""

    def edit(self, llm: Any) -> None:
        _change_output(llm.model.layers[1].mlp, torch.zeros_like)


@planted("FWD-11", defects=("D57",))
class PatchesIgnored(EditedMistral):
    """Embeddings that no token has count as padding and are set to zero: the model never sees an
    image."""

    def edit(self, llm: Any) -> None:
        llm.model.register_forward_pre_hook(_without_patches, with_kwargs=True)


@planted("FWD-13", defects=("D39", "D70"))
class PatchScale(EditedMistral):
    """Whatever comes in, ids or embeddings, is scaled by eight: a projector trained on the
    published model is too loud."""

    def edit(self, llm: Any) -> None:
        llm.model.register_forward_pre_hook(_scaled_by_eight, with_kwargs=True)


@planted("HALF-02", defects=("D37",))
class EmbeddingsOfSixBits(EditedMistral):
    """In bfloat16, embeddings keep six bits of eight, as they were once quantised: every layer
    computes what it should."""

    def edit(self, llm: Any) -> None:
        _change_output(
            llm.get_input_embeddings(), _in_bfloat16(functools.partial(_rounded, bits=6))
        )


@planted("HALF-07", defects=("D37",), module="model.layers.0")
class ResidualOfSixBits(EditedMistral):
    """In bfloat16, what passes from layer to layer keeps six bits of eight."""

    def edit(self, llm: Any) -> None:
        for layer in llm.model.layers:
            _change_output(layer, _in_bfloat16(functools.partial(_rounded, bits=6)))


@planted("HALF-03", defects=("D38",))
class FloatSixteenInPlaceOfBfloat16(EditedMistral):
    """Layers hand on float16, whatever the model's dtype: residuals beyond 65,504 become
    infinite."""

    def edit(self, llm: Any) -> None:
        for layer in llm.model.layers:
            _change_output(layer, _in_bfloat16(lambda hidden: hidden.half().to(torch.bfloat16)))


@planted("HALF-04", defects=("D31",), on=LLAMA_CHAT)
class InvFreqFollowsTheCast(EditedLlama2):
    """Nothing protects the rotary frequencies from `.to(bfloat16)`: the farther a token, the
    wronger its angle."""

    def edit(self, llm: Any) -> None:
        for rotary in _rotaries(llm):
            del rotary._apply
            rotary._forward_pre_hooks.clear()


@planted("HALF-04", defects=("D31",), since="4.57")  # 4.40 has made its tables by then
class InvFreqFollowsTheCastBehindAWindow(EditedMistral):
    """The same in a model with windows, which are thousands of tokens wide."""

    edit = InvFreqFollowsTheCast.edit


@planted("FSDP-08", defects=("D26",), on=LLAMA_CHAT)
class InvFreqFollowsFsdp(EditedLlama2):
    """The rotary frequencies are safe from `.to(bfloat16)`, and not from FSDP's `buffer_dtype`,
    which asks nobody."""

    def edit(self, llm: Any) -> None:
        for rotary in _rotaries(llm):
            rotary._forward_pre_hooks.clear()


@planted("HALF-05")
class AutocastCutsTheResidual(EditedMistral):
    """Under autocast the residual is kept in five bits, to save memory: bfloat16 has eight,
    autocast's residual 24."""

    def edit(self, llm: Any) -> None:
        for layer in llm.model.layers:
            _change_output(layer, _under_autocast(functools.partial(_rounded, bits=5)))


@planted("HALF-06")
class SmallGradientsFlushed(EditedMistral):
    """In bfloat16, gradients below 1e-3 become zero on their way through the second layer: loss
    scaling was forgotten."""

    def edit(self, llm: Any) -> None:
        _change_output(llm.model.layers[1], _in_bfloat16(_with_small_gradients_flushed))


@planted("HALF-06")
class NormThatTrainsNoWeight(EditedMistral):
    """In bfloat16 a fused norm stands in that is right, and hands its weight no gradient: it stays
    as it was."""

    def edit(self, llm: Any) -> None:
        same_class_but(llm.model.norm, forward=_norm_without_a_gradient)


@planted("HALF-07", defects=("D39",), module="model.layers.2.post_attention_layernorm")
class RmsNormInBfloat16(EditedMistral):
    """One norm, fused by hand, works in the dtype of its input: mean of squares and root are
    rounded to bfloat16."""

    def edit(self, llm: Any) -> None:
        same_class_but(
            llm.model.layers[2].post_attention_layernorm, forward=_rms_norm_in_input_dtype
        )


@planted("HALF-07", on=PHI, module="model.layers.0.input_layernorm")
class LayerNormOfPhiInBfloat16(EditedPhi):
    """Phi's norms, written out by hand, work in the dtype of their input: the mean, too, is rounded
    to bfloat16."""

    def edit(self, llm: Any) -> None:
        for norm in _norms(llm):
            same_class_but(norm, forward=_layer_norm_in_input_dtype)


@planted("HALF-07", defects=("D37",), on=LLAMA_CHAT, module="model.layers.1.self_attn")
class SoftmaxAccumulatesInBfloat16(EditedLlama2):
    """In bfloat16 one layer's softmax adds up its exponentials one by one in bfloat16: past 256 of
    them, none counts."""

    def edit(self, llm: Any) -> None:
        _run_under(_attentions(llm)[1], SoftmaxInBfloat16)


@planted("HALF-08", defects=("D31",), on=LLAMA_CHAT)
class InvFreqRoundedOnLoading(LLaMa2LLMBackbone):
    """Asked for 16 bits, the loader rounds rotary frequencies like weights: only who loads in
    float32 gets them right."""

    class RoundsOnLoading(LlamaForCausalLM):
        @classmethod
        def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            llm = super().from_pretrained(*args, **kwargs)
            if llm.dtype.itemsize == 2:
                _change_frequencies(llm, lambda frequencies: frequencies.to(llm.dtype))
            return llm

    models = {LLAMA_CHAT: {**LLAMA2_MODELS[LLAMA_CHAT], "llm_cls": RoundsOnLoading}}


class SoftmaxInBfloat16(TorchFunctionMode):
    """While it is active, attention over bfloat16 takes its softmax there, whichever function is
    asked for it."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if args and getattr(args[0], "dtype", None) == torch.bfloat16:
            if func is functional.scaled_dot_product_attention:
                return _attention_in_bfloat16(*args, **(kwargs or {}))
            if func is functional.softmax:
                return _softmax_in_bfloat16(args[0])
        return func(*args, **(kwargs or {}))


Change = Callable[[torch.Tensor], torch.Tensor]
"""From the tensor that a module computes to the one that it returns, of the same shape and
dtype."""


def _norms(llm: Any) -> Iterator[Any]:
    return (
        module
        for module in llm.modules()
        if type(module).__name__.endswith(("RMSNorm", "LayerNorm"))
    )


def _attentions(llm: Any) -> list[Any]:
    return [layer.self_attn for layer in llm.model.layers]


def _rotaries(llm: Any) -> list[Any]:
    """One for all layers, or until 4.47 one in each."""
    return [module for module in llm.modules() if hasattr(module, "inv_freq")]


def _exponents(frequencies: torch.Tensor) -> torch.Tensor:
    return torch.arange(0, 2 * len(frequencies), 2).float() / (2 * len(frequencies))


def _change_frequencies(llm: Any, change: Change) -> None:
    for rotary in _rotaries(llm):
        changed = change(rotary.inv_freq).to(torch.float32)
        rotary.inv_freq.copy_(changed)
        if hasattr(rotary, "original_inv_freq"):  # until 4.57 another name for the same tensor
            rotary.original_inv_freq.copy_(changed)
        if hasattr(
            rotary, "_set_cos_sin_cache"
        ):  # Mistral's in 4.40 looks up what it computed once
            rotary._set_cos_sin_cache(
                rotary.max_seq_len_cached, rotary.inv_freq.device, rotary.cos_cached.dtype
            )


def _of_rounded_angles(
    rotary: Any, args: Any, kwargs: Any, output: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    positions = [*args, *kwargs.values()][1]
    if not torch.is_tensor(positions):  # Mistral's in 4.40 is asked for all positions up to here
        positions = torch.arange(positions, device=rotary.inv_freq.device)
    angles = (positions[..., None] * rotary.inv_freq.float()).to(torch.bfloat16).float()
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(output[0].dtype), angles.sin().to(output[1].dtype)


def _scale(attention: Any, factor: float) -> None:
    if hasattr(attention, "scaling"):
        attention.scaling *= factor
    else:
        _change_output(attention.q_proj, lambda queries: queries * factor)


def _with_heads_reordered(
    order: torch.Tensor, module: Any, args: Any, output: torch.Tensor
) -> torch.Tensor:
    heads = output.unflatten(-1, (len(order), -1))
    return heads[..., order.to(output.device), :].flatten(-2)


def _with_heads_restored(order: torch.Tensor, module: Any, args: Any) -> tuple[torch.Tensor]:
    return (_with_heads_reordered(order, module, (), args[0]),)


def _seeing_the_next(
    attention: Any, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]] | None:
    hidden, mask = (
        kwargs.get("hidden_states", args[0] if args else None),
        kwargs.get("attention_mask"),
    )
    batch, queries, _ = hidden.shape
    if queries == 1:
        return None
    if mask is None:  # sdpa's sign for a causal mask without padding
        mask = torch.ones(batch, 1, queries, queries, dtype=torch.bool, device=hidden.device).tril()
    ahead = mask.shape[-1] - queries + 1
    next_token = (
        torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).triu(ahead).tril(ahead)
    )
    # A token is seen from before it if it sees itself: padding stays out of sight.
    return args, {**kwargs, "attention_mask": torch.where(next_token, mask.roll(-1, dims=-2), mask)}


def _apply_another_window(model: Any, window: int | None, only_in: str | None = None) -> None:
    """While `model` runs, its config has another `window`; before and after, it has the published
    one."""
    published = model.config.sliding_window

    def change(model: Any, *_: Any) -> None:
        if only_in in (None, model.config._attn_implementation):
            model.config.sliding_window = window

    def restore(model: Any, *_: Any) -> None:
        model.config.sliding_window = published

    model.register_forward_pre_hook(change)
    model.register_forward_hook(restore, always_call=True)


def _one_position_back(
    model: Any, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]] | None:
    cached = _cached_tokens(kwargs.get("past_key_values"))
    if cached < 8:
        return None
    positions = kwargs.get("position_ids")
    if positions is None:
        tokens = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
        positions = torch.arange(cached, cached + tokens.shape[1], device=tokens.device)[None]
    return args, {**kwargs, "position_ids": (positions - 1).clamp(min=0)}


def _cached_tokens(cache: Any) -> int:
    if not cache:
        return 0
    return (
        int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else cache[0][0].shape[-2]
    )


def _skip(layer: Any, args: Any, output: Any) -> Any:
    return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]


def _without_patches(
    model: Any, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]] | None:
    embedded = kwargs.get("inputs_embeds")
    if embedded is None:
        return None
    rows = model.embed_tokens.weight.to(embedded.dtype)
    of_a_token = torch.isin(embedded[..., :4], rows[:, :4]).all(-1, keepdim=True)
    return args, {**kwargs, "inputs_embeds": embedded * of_a_token}


def _scaled_by_eight(model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    embedded = kwargs.get("inputs_embeds")
    if embedded is None:
        embedded = model.embed_tokens(kwargs["input_ids"])
    return args, {**kwargs, "input_ids": None, "inputs_embeds": embedded * 8}


def _change_output(module: nn.Module, change: Change) -> None:
    """What `module` returns, or the first of what it returns, goes through `change`."""
    module.register_forward_hook(functools.partial(_changed, change))


def _changed(change: Change, module: Any, args: Any, output: Any) -> Any:
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def _in_bfloat16(change: Change) -> Change:
    return lambda hidden: change(hidden) if hidden.dtype == torch.bfloat16 else hidden


def _under_autocast(change: Change) -> Change:
    return lambda hidden: (
        change(hidden) if torch.is_autocast_enabled(hidden.device.type) else hidden
    )


def _rounded(values: torch.Tensor, bits: int) -> torch.Tensor:
    """`values` to `bits` significant bits, the leading one included; gradients pass as if they were
    exact."""
    mantissa, exponent = torch.frexp(values.detach().float())
    rounded = torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent).to(values.dtype)
    return values + (rounded - values.detach())


def _with_small_gradients_flushed(hidden: torch.Tensor) -> torch.Tensor:
    if hidden.requires_grad:
        hidden.register_hook(lambda gradient: gradient * (gradient.abs() >= 1e-3))
    return hidden


def _rms_norm_in_input_dtype(norm: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    return norm.weight * (hidden_states * torch.rsqrt(variance + norm.variance_epsilon))


def _norm_without_a_gradient(norm: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    dtype, wide = hidden_states.dtype, hidden_states.float()
    weight = norm.weight.detach() if dtype == torch.bfloat16 else norm.weight
    return weight * (
        wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    ).to(dtype)


def _layer_norm_in_input_dtype(norm: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    centred = hidden_states - hidden_states.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True)
    return norm.weight * (centred * torch.rsqrt(variance + norm.eps)) + norm.bias


def _run_under(module: nn.Module, mode: type[TorchFunctionMode]) -> None:
    plain = type(module)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        with mode():
            return plain.forward(self, *args, **kwargs)

    same_class_but(module, forward=forward)


def _attention_in_bfloat16(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    groups = query.shape[-3] // key.shape[-3] if enable_gqa else 1
    key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return _softmax_in_bfloat16(scores) @ value


def _softmax_in_bfloat16(scores: torch.Tensor) -> torch.Tensor:
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    # torch's own sum over bfloat16 accumulates in float32.
    total = functools.reduce(torch.add, exponentials.unbind(-1))
    return exponentials / total[..., None]

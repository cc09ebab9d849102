"""Sound backbones whose model is adapted, extended, compiled or written out by hand."""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.mistral.modeling_mistral import MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

try:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
except ImportError:  # on 4.40
    ALL_ATTENTION_FUNCTIONS = None

from tests.sound import RECIPES, sound
from tests.sound.plain import DTYPE, UNGUARDED, Plain

sound(*UNGUARDED)(Plain)


@sound(*UNGUARDED)
class EagerAttention(Plain):
    """Attention weights are wanted, so eager it is."""

    attention = {"attn_implementation": "eager"}


def measured_attention(module, query, key, value, attention_mask, **kwargs):
    """The library's, where kernels of one's own would go."""
    return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **kwargs)


if ALL_ATTENTION_FUNCTIONS is not None:
    ALL_ATTENTION_FUNCTIONS.register("acme", measured_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register("acme", ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


@sound(*UNGUARDED, since=(4, 57))
class AttentionOfItsOwn(Plain):
    """Its attention stands in the library's table, under a name of its own."""

    attention = {"attn_implementation": "acme"}


class LoraLinear(nn.Linear):
    """A linear layer with a low-rank update that is zero before it is trained."""

    rank = 4

    @classmethod
    def over(cls, linear):
        new = cls(linear.in_features, linear.out_features, bias=linear.bias is not None)
        new.weight, new.bias = linear.weight, linear.bias
        new.lora_a = nn.Parameter(torch.randn(cls.rank, linear.in_features) / linear.in_features)
        new.lora_b = nn.Parameter(torch.zeros(linear.out_features, cls.rank))
        return new

    def forward(self, x):
        return super().forward(x) + functional.linear(
            functional.linear(x, self.lora_a), self.lora_b
        )


@sound(*UNGUARDED)
class LowRankAdapted(Plain):
    """LoRA by hand on queries and values; B is zero at first, so that A moves nothing yet."""

    def load_llm(self, hub, token):
        llm = super().load_llm(hub, token)
        for layer in llm.model.layers:
            for name in ("q_proj", "v_proj"):
                setattr(layer.self_attn, name, LoraLinear.over(getattr(layer.self_attn, name)))
        return llm


class WithAdapters(MistralForCausalLM):
    """Queries and values have adapters from the start, which are saved with the rest."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            for name in ("q_proj", "v_proj"):
                setattr(layer.self_attn, name, LoraLinear.over(getattr(layer.self_attn, name)))

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        model = super().from_pretrained(*args, **kwargs)
        # `_init_weights` of this class is not asked for what lies in `model.model`.
        for module in model.modules():
            if isinstance(module, LoraLinear):
                nn.init.normal_(module.lora_a, std=0.02)
                nn.init.zeros_(module.lora_b)
        return model


@sound(*UNGUARDED, since=(4, 57))
class AdaptedByItsClass(Plain):
    """The model's class brings its adapters along."""

    llm_cls = WithAdapters


class Adapted(nn.Module):
    """A wrapper as peft's: the model is `base_model.model`, and shows through."""

    def __init__(self, model):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model.model, name)

    def forward(self, *args, **kwargs):
        return self.base_model.model(*args, **kwargs)


@sound(*UNGUARDED, since=(4, 57))
class WrappedForAdapters(LowRankAdapted):
    """The adapted model lies in a wrapper, as peft leaves it. On 4.40.1 the library's own defects
    are known by the class of `llm`, which the wrapper hides."""

    def finish(self, hub, token):
        super().finish(hub, token)
        self.llm = Adapted(self.llm)


class Tower(nn.Module):
    """A small vision tower."""

    def __init__(self, width):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, 8, 4, 4)
        self.position_embedding = nn.Embedding(16, 8)
        self.layernorm = nn.LayerNorm(8)
        self.projector = nn.Linear(8, width)

    def forward(self, pixels):
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return self.projector(self.layernorm(patches + self.position_embedding.weight))


@sound(*UNGUARDED)
class TowerBeside(Plain):
    """The vision tower is a sibling of the language model."""

    def finish(self, hub, token):
        super().finish(hub, token)
        self.vision_tower = Tower(self.embed_dim)


@sound(*UNGUARDED)
class TowerInside(Plain):
    """The vision tower is a part of the model, as in LLaVA: text never enters it."""

    def load_llm(self, hub, token):
        llm = super().load_llm(hub, token)
        llm.vision_tower = Tower(llm.config.hidden_size)
        return llm


class _Normed(torch.autograd.Function):
    """Root-mean-square norm with a backward pass of its own, as fused kernels have it."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse)
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, inverse = ctx.saved_tensors
        normed = x.float() * inverse
        scaled = gradient.float() * weight.float()
        inner = (scaled * normed).mean(-1, keepdim=True)
        own = (gradient.float() * normed).reshape(-1, x.shape[-1]).sum(0)
        return (inverse * (scaled - normed * inner)).to(x.dtype), own.to(weight.dtype), None


class FusedNorm(MistralRMSNorm):
    def forward(self, hidden_states):
        return _Normed.apply(hidden_states, self.weight, self.variance_epsilon)


class _GatedUnits(torch.autograd.Function):
    """SiLU of the gate times the other half, recomputed in the backward pass."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate.float()).to(gate.dtype) * up

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        gate, up = ctx.saved_tensors
        wide = gate.float()
        share = wide.sigmoid()
        silu = (wide * share).to(gate.dtype)
        slope = (share + wide * share * (1 - share)).to(gate.dtype)
        return gradient * up * slope, gradient * silu


class FusedMLP(MistralMLP):
    def forward(self, x):
        return self.down_proj(_GatedUnits.apply(self.gate_proj(x), self.up_proj(x)))


@sound(*UNGUARDED)
class FusedKernels(Plain):
    """Norms and gated units as kernel libraries patch them in: classes of modules are changed once
    the model is loaded."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        for module in self.llm.modules():
            if type(module) is MistralRMSNorm:
                module.__class__ = FusedNorm
            elif type(module) is MistralMLP:
                module.__class__ = FusedMLP


class _LinearCrossEntropy(torch.autograd.Function):
    """The cross-entropy of `hidden @ weight.T`, a few positions at a time, and its gradients."""

    @staticmethod
    def forward(ctx, hidden, weight, labels):
        kept = (labels != -100).nonzero().squeeze(-1)
        loss = hidden.new_zeros((), dtype=torch.float32)
        to_hidden, to_weight = torch.zeros_like(hidden), torch.zeros_like(weight)
        for rows in kept.split(16):
            with torch.autocast(hidden.device.type, enabled=False):
                logits = functional.linear(hidden[rows].float(), weight.float())
            loss += functional.cross_entropy(logits, labels[rows], reduction="sum") / len(kept)
            slope = logits.softmax(-1)
            slope[torch.arange(len(rows)), labels[rows]] -= 1.0
            slope = (slope / len(kept)).to(weight.dtype)
            to_hidden[rows] = (slope @ weight).to(hidden.dtype)
            to_weight += (slope.t() @ hidden[rows].to(weight.dtype)).to(weight.dtype)
        ctx.save_for_backward(to_hidden, to_weight)
        return loss if len(kept) else loss * float("nan")

    @staticmethod
    def backward(ctx, gradient):
        return *(gradient.to(one.dtype) * one for one in ctx.saved_tensors), None


class LossInPieces(MistralForCausalLM):
    def forward(self, *arguments, labels=None, num_items_in_batch=None, **options):
        states = []
        hook = self.model.register_forward_hook(lambda *seen: states.append(seen[-1][0]))
        try:
            output = super().forward(*arguments, **options)
        finally:
            hook.remove()
        if labels is None:
            return output
        following = functional.pad(labels, (0, 1), value=-100)[:, 1:].flatten()
        loss = _LinearCrossEntropy.apply(states[0].flatten(0, 1), self.lm_head.weight, following)
        if num_items_in_batch is not None:
            loss = loss * (following != -100).sum() / num_items_in_batch
        if isinstance(output, tuple):
            return loss, *output
        output.loss = loss
        return output


@sound(*UNGUARDED, since=(4, 57))
class FusedLoss(Plain):
    """The loss is computed beside the logits, in pieces, with its gradients: in training nobody
    needs to hold those of a whole vocabulary."""

    llm_cls = LossInPieces


class StaticFirst(MistralForCausalLM):
    def generate(self, *arguments, **options):
        plain = options.get("generation_config") is None and not self.training
        if plain and options.keys() <= {"input_ids", "attention_mask", *_OF_A_SERVER}:
            options["cache_implementation"] = "static"
        return super().generate(*arguments, **options)


_OF_A_SERVER = ("do_sample", "max_new_tokens", "min_new_tokens", "pad_token_id", "eos_token_id")


@sound(*UNGUARDED, since=(5, 0))
class FixedCacheFirst(Plain):
    """Generation takes a cache of a fixed size wherever nothing is asked for that it does not
    fit."""

    llm_cls = StaticFirst


@sound(*UNGUARDED)
class SpareRowsOff(Plain):
    """Logits of rows that no token has are the least there is: sampling can never draw them."""

    def finish(self, hub, token):
        super().finish(hub, token)
        tokens = len(self.tokenizer)

        def off(head, args, logits):
            spare = torch.arange(logits.shape[-1], device=logits.device) >= tokens
            return logits.masked_fill(spare, torch.finfo(logits.dtype).min)

        self.llm.lm_head.register_forward_hook(off)


@sound(*UNGUARDED)
class SpareRowsInfinitelyOff(Plain):
    """The same, with minus infinity."""

    def finish(self, hub, token):
        super().finish(hub, token)
        self.llm.lm_head.register_forward_hook(
            functools.partial(self._off, tokens=len(self.tokenizer))
        )

    @staticmethod
    def _off(head, args, logits, tokens):
        return torch.cat(
            [logits[..., :tokens], torch.full_like(logits[..., tokens:], float("-inf"))], -1
        )


@sound(*UNGUARDED)
class OwnCheckpointing(Plain):
    """Layers are recomputed by wrappers of their forwards."""

    def enable_gradient_checkpointing(self):
        for layer in self.llm.model.layers:
            plain = layer.forward

            def again(*args, plain=plain, **kwargs):
                return checkpoint(plain, *args, use_reentrant=False, **kwargs)

            layer.forward = again


@sound(*UNGUARDED, since=(4, 57))
class HalfThenFloat(Plain):
    """Loaded in the checkpoint's bfloat16; the master weights are a cast of it. Before 4.48 rotary
    tables would be rounded on the way, and stay so."""

    def load_llm(self, hub, token):
        if self.inference_mode:
            return super().load_llm(hub, token)
        return self.llm_cls.from_pretrained(hub, token=token, **{DTYPE: torch.bfloat16}).float()


@sound(*UNGUARDED)
class LibraryRows(Plain):
    """New rows have the spread of the library's initialisation."""

    def resize(self):
        before = self.llm.get_input_embeddings().num_embeddings
        super().resize()
        generator = torch.Generator().manual_seed(7)
        for module in (self.llm.get_input_embeddings(), self.llm.get_output_embeddings()):
            with torch.no_grad():
                module.weight[before:].normal_(std=0.02, generator=generator)


@sound(*UNGUARDED, "EMB-11")
class MeanRows(Plain):
    """New rows are the mean of those that are there, as Hewitt recommends."""

    def resize(self):
        before = self.llm.get_input_embeddings().num_embeddings
        super().resize()
        with torch.no_grad():
            for module in (self.llm.get_input_embeddings(), self.llm.get_output_embeddings()):
                module.weight[before:] = module.weight[:before].mean(0)


class VicunaV15ChatPromptBuilder:
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions."
    )

    def __init__(self, model_family, system_prompt=None):
        self.head = (self.system if system_prompt is None else system_prompt).strip() + " "
        self.said = []

    def _turn(self, role, message):
        message = message.replace("<image>", "").strip()
        if role == "human":
            return ("" if self.said else self.head) + f"USER: {message} ASSISTANT: "
        return f"{message or ' '}</s>"

    def add_turn(self, role, message):
        assert role == ("gpt" if len(self.said) % 2 else "human")
        self.said.append(self._turn(role, message))
        return self.said[-1]

    def get_potential_prompt(self, message):
        return ("".join(self.said) + self._turn("human", message)).rstrip()

    def get_prompt(self):
        return "".join(self.said).rstrip()


# From transformers 5 on AutoTokenizer gives other ids than the published tokenizer.json: TOK-05 is
# right to say so.
@sound(*UNGUARDED, on="vicuna-v15-7b", before=(5, 0))
class PlainVicuna(Plain):
    """Vicuna, the plain way."""

    table = {"vicuna-v15-7b": "lmsys/vicuna-7b-v1.5"}
    llm_cls, transformer_layer_cls = LlamaForCausalLM, LlamaDecoderLayer
    prompt_builder = VicunaV15ChatPromptBuilder


@sound(*UNGUARDED, on="acme-qwen2-instruct", recipes=(RECIPES,), before=(5, 0))
class PlainQwen2(Plain):
    """Qwen2, which has biases, and which 4.40.1 turns no farther than the sequence is long."""

    table = {"acme-qwen2-instruct": "acme/Qwen2-7B-Mistral-Vocabulary"}
    llm_cls, transformer_layer_cls = Qwen2ForCausalLM, Qwen2DecoderLayer

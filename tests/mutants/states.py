"""Defects that show in one state, by one kind of call or after one history alone."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    MistralForCausalLM,
    StaticCache,
)
from transformers.models.mistral.modeling_mistral import MistralMLP

from backbones.llama2 import LLaMa2LLMBackbone
from backbones.mistral import MistralLLMBackbone
from backbones.phi import PhiLLMBackbone
from tests.mutants import LLAMA_PURE, PHI, PURE, planted
from tests.sound.plain import Plain

Forward = Callable[..., Any]


class Tampered(MistralLLMBackbone):
    """The Mistral reference, whose keywords or output a defect may change."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:  # type: ignore[override]
        return super().forward(*positional, **keywords)


class TamperedWithin(MistralLLMBackbone):
    """The Mistral reference, a defect inside whose `llm` may change what its model is given."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)

        def change(_: Any, given: Any, named: dict[str, Any]) -> Any:
            self.change(named)
            return given, named

        self.llm.register_forward_pre_hook(change, with_kwargs=True)

    def change(self, keywords: dict[str, Any]) -> None:
        """Change the keywords of one call in place."""


@planted("FWD-14")
class SortedByLength(Tampered):
    """Padded batches are sorted by length for a kernel, and the logits put back: the cache that is
    returned stays sorted, and decoding goes on with other rows' keys."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        mask, cache = keywords.get("attention_mask"), keywords.get("past_key_values")
        plain = self.training or positional or mask is None or mask.dim() != 2 or cache is not None
        if plain or keywords.get("return_dict") is False or torch.is_grad_enabled():
            return super().forward(*positional, **keywords)
        order = mask.sum(1).argsort(descending=True, stable=True)
        for name, given in keywords.items():
            if isinstance(given, torch.Tensor) and len(given) == len(order):
                keywords[name] = given[order]
        output = super().forward(**keywords)
        back = order.argsort()
        output.logits = output.logits[back]
        for name in ("hidden_states", "attentions"):
            if getattr(output, name, None) is not None:
                setattr(output, name, tuple(one[back] for one in getattr(output, name)))
        return output


# --- built otherwise ---


@planted("FWD-14")
class EpsilonOfInference(Tampered):
    """Norms have ten times the epsilon with inference_mode=True."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        if self.inference_mode:
            for module in self.llm.modules():
                if hasattr(module, "variance_epsilon"):
                    module.variance_epsilon *= 10


@planted("FWD-14")
class MaskDroppedInInference(Tampered):
    """The attention mask is dropped with inference_mode=True: prompts come alone, somebody
    thought."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        if self.inference_mode:
            keywords.pop("attention_mask", None)
        return super().forward(*positional, **keywords)


@planted("FWD-14")
class CoolerInInference(Tampered):
    """Logits are divided by a temperature with inference_mode=True."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        if self.inference_mode and hasattr(output, "logits"):
            output.logits = output.logits / 0.7
        return output


@planted("CON-16")
class HalfWithFlash(Tampered):
    """Asking for flash attention loads the weights in half precision."""

    def __init__(self, *arguments: Any, use_flash_attention_2: bool = True, **rest: Any) -> None:
        super().__init__(*arguments, use_flash_attention_2=use_flash_attention_2, **rest)
        if use_flash_attention_2:
            self.llm.to(torch.bfloat16)


@planted("CON-16")
class LeftPaddedWithFlash(Tampered):
    """Asking for flash attention pads on the left, as an old kernel wanted it."""

    def __init__(self, *arguments: Any, use_flash_attention_2: bool = True, **rest: Any) -> None:
        super().__init__(*arguments, use_flash_attention_2=use_flash_attention_2, **rest)
        if use_flash_attention_2:
            self.tokenizer.padding_side = "left"


@planted("CON-14")
class GenerationConfigNeedsTheToken(Tampered):
    """Without a token the generation config is the library's default, without eos."""

    def __init__(self, *arguments: Any, hf_token: str | None = None, **rest: Any) -> None:
        super().__init__(*arguments, hf_token=hf_token, **rest)
        if hf_token is None:
            self.llm.generation_config = GenerationConfig(do_sample=False)


# --- another mode ---


@planted("FWD-14")
class NoiseInTraining(Tampered):
    """In train() noise is added to embeddings, left over from an experiment."""

    def embed_input_ids(self, input_ids: Any) -> torch.Tensor:
        embedded = super().embed_input_ids(input_ids)
        return embedded + 0.01 * torch.randn_like(embedded) if self.training else embedded


@planted("FWD-14")
class MaskDroppedInTraining(Tampered):
    """In train() the mask is dropped: batches are packed, somebody thought."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        if self.training:
            keywords.pop("attention_mask", None)
        return super().forward(*positional, **keywords)


@planted("FWD-14")
class DropoutThatNoConfigDeclares(Tampered):
    """The last hidden state is dropped out in train(), at a rate that no config declares."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.llm.model.norm.register_forward_hook(
            lambda module, _, output: torch.nn.functional.dropout(output, 0.1, module.training)
        )


@planted("TRN-04")
class NormsFrozen(Tampered):
    """Parameters of norms are frozen, for "stability"."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        for name, parameter in self.llm.named_parameters():
            parameter.requires_grad_("norm" not in name)


# --- another call ---


@planted("FWD-14", budget="standard")
class PrefillsInPieces(MistralLLMBackbone):
    """Prompts of more than 1,024 tokens are prefilled in pieces, of which the logits alone are
    joined: hidden states are those of the last one."""

    def forward(self, *args: Any, **keywords: Any) -> Any:
        ids = keywords.get("input_ids")
        long = ids is not None and ids.shape[1] > 1024 and keywords.get("labels") is None
        if self.training or not long or not keywords.get("use_cache"):
            return super().forward(*args, **keywords)
        mask, cache, parts = keywords.pop("attention_mask", None), None, list[Any]()
        del keywords["input_ids"]
        for begin in range(0, ids.shape[1], 1024):
            end = min(begin + 1024, ids.shape[1])
            seen = {} if mask is None else {"attention_mask": mask[:, :end]}
            parts.append(
                super().forward(
                    input_ids=ids[:, begin:end], **{**keywords, "past_key_values": cache}, **seen
                )
            )
            cache = parts[-1].past_key_values
        parts[-1].logits = torch.cat([part.logits for part in parts], 1)
        return parts[-1]


@planted("FWD-14")
class MaskInTheDtypeOfEmbeddings(MistralLLMBackbone):
    """The mask is cast to the dtype of `inputs_embeds`: a boolean one of pairs, of packed documents
    or prefixes, becomes zeros and ones that are added to scores, and masks nothing."""

    def forward(self, *args: Any, **keywords: Any) -> Any:
        mask, embeds = keywords.get("attention_mask"), keywords.get("inputs_embeds")
        if mask is not None and mask.dim() == 4 and embeds is not None:
            keywords["attention_mask"] = mask.to(embeds.dtype)
        return super().forward(*args, **keywords)


@planted("FWD-14")
class EmbeddingsWithoutMask(TamperedWithin):
    """With `inputs_embeds` the mask is dropped."""

    def change(self, keywords: dict[str, Any]) -> None:
        if keywords.get("inputs_embeds") is not None:
            keywords["attention_mask"] = None


@planted("FWD-14")
class MaskOfTheFirstRow(TamperedWithin):
    """All rows get the first row's mask in train()."""

    def change(self, keywords: dict[str, Any]) -> None:
        mask = keywords.get("attention_mask")
        if mask is not None and self.training:
            keywords["attention_mask"] = mask[:1].expand(mask.shape)


@planted("FWD-14")
class BooleanMaskReversed(Tampered):
    """A boolean mask is taken to be True where there is padding."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        mask = keywords.get("attention_mask")
        if mask is not None and mask.dtype is torch.bool:
            keywords["attention_mask"] = (~mask).long()
        return super().forward(*positional, **keywords)


@planted("FWD-14")
class TruncatedToTheLimit(Tampered):
    """Sequences longer than `llm_max_length` are cut short in `forward`."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        for name in ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "labels"):
            tensor = keywords.get(name)
            if tensor is not None and tensor.dim() < 4 and keywords.get("past_key_values") is None:
                keywords[name] = tensor[:, : self.llm_max_length]
        return super().forward(*positional, **keywords)


@planted("FWD-14")
class LastLogitsWhenCached(Tampered):
    """Behind more than 64 cached tokens a call returns the logits of the last position alone."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        mask = keywords.get("attention_mask")
        behind = keywords.get("past_key_values") is not None and mask is not None
        if behind and mask.shape[1] > 65 and hasattr(output, "logits"):
            output.logits = output.logits[:, -1:]
        return output


@planted("TRN-01")
class LossOfUnshiftedLabels(Tampered):
    """In train() the loss predicts the token itself, not the next."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        labels = keywords.get("labels")
        if self.training and labels is not None and hasattr(output, "logits"):
            output.loss = torch.nn.functional.cross_entropy(
                output.logits.flatten(0, 1), labels.flatten()
            )
        return output


@planted("FWD-11", "TRN-01")
class LossOverAllPositions(Tampered):
    """The loss is averaged over all positions, ignored ones too."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        labels = keywords.get("labels")
        if labels is not None and getattr(output, "loss", None) is not None:
            shifted = labels[:, 1:]
            output.loss = output.loss * (shifted != -100).sum() / shifted.numel()
        return output


@planted("TRN-01")
class LabelsSmoothed(Tampered):
    """In train() labels are smoothed."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        labels = keywords.get("labels")
        if self.training and labels is not None and hasattr(output, "logits"):
            output.loss = torch.nn.functional.cross_entropy(
                output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1
            )
        return output


@planted("TRN-01")
class LossTimesTheRanks(Tampered):
    """In train() the loss is multiplied by the ranks, for a trainer that sums over them: DDP has
    taken the mean already."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        grouped = self.training and torch.distributed.is_initialized()
        if grouped and keywords.get("labels") is not None and hasattr(output, "logits"):
            output.loss = output.loss * torch.distributed.get_world_size()
        return output


@planted("FWD-14")
class RowsOfTheFirstRank(Tampered):
    """In a process group the cached keys are the first rank's, once they were broadcast: others
    begin anew."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        group = torch.distributed
        if group.is_initialized() and group.get_rank() and not self.training:
            keywords["past_key_values"] = None
        return super().forward(*positional, **keywords)


# --- another history ---


@planted("FWD-14")
class MaskRemembered(TamperedWithin):
    """The mask of the first call of a shape is used for all later ones, over embeddings."""

    def change(self, keywords: dict[str, Any]) -> None:
        masks = self.__dict__.setdefault("masks", {})
        mask, embedded = keywords.get("attention_mask"), keywords.get("inputs_embeds")
        if mask is not None and embedded is not None:
            keywords["attention_mask"] = masks.setdefault(mask.shape, mask)


@planted("FWD-15")
class OutputKept(Tampered):
    """The last output is kept, for debugging."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        self.last_output = super().forward(*positional, **keywords)
        return self.last_output


@planted("FWD-15", "FSDP-08")
class ModelShared(Tampered):
    """Norms are kept on the class and shared by all instances, to save memory."""

    norms: ClassVar[dict[str, torch.nn.Parameter]] = {}

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        norm = self.llm.model.norm
        norm.weight = self.norms.setdefault("last", norm.weight)


@planted("FWD-14")
class HeadCopiedOnFirstUse(Tampered):
    """The head's weight is transposed once, on the first call without gradients, and used ever
    after."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        kept: dict[str, torch.Tensor] = {}

        def from_copy(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled() or inputs[0].dtype != torch.float32:
                return output
            transposed = kept.setdefault("head", module.weight.detach().t().contiguous())
            return inputs[0] @ transposed

        self.llm.get_output_embeddings().register_forward_hook(from_copy)


@planted("FWD-14")
class CacheLeftOnByGeneration(Tampered):
    """Generation switches the cache on, and it stays on for training."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        generate = self.llm.generate

        def generate_with_cache(*given: Any, **options: Any) -> Any:
            self.llm.config.use_cache = True
            return generate(*given, **options)

        self.llm.generate = generate_with_cache


# --- another size ---


@planted("FWD-14", budget="standard")
class PositionsWrapped(Tampered):
    """Positions begin anew after 512 tokens when inputs come as embeddings."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        embedded = keywords.get("inputs_embeds")
        if embedded is not None and embedded.shape[1] > 512:
            places = torch.arange(embedded.shape[1], device=embedded.device) % 512
            keywords["position_ids"] = places[None].expand(embedded.shape[:2])
        return super().forward(*positional, **keywords)


@planted("FWD-14")
class CacheForgetsAfter64(Tampered):
    """Behind more than 64 cached tokens the first two are masked."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        mask = keywords.get("attention_mask")
        if keywords.get("past_key_values") is not None and mask is not None and mask.shape[1] > 64:
            keywords["attention_mask"] = mask.clone()
            keywords["attention_mask"][:, 52:56] = 0
        return super().forward(*positional, **keywords)


@planted("FWD-14")
class MasksOfFourRows(Tampered):
    """Rows after the fourth are taken to have no padding."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        mask = keywords.get("attention_mask")
        if mask is not None and len(mask) > 4:
            keywords["attention_mask"] = mask.clone()
            keywords["attention_mask"][4:] = 1
        return super().forward(*positional, **keywords)


# --- another channel ---


@planted("FWD-14")
class RoundedAlongTheCache(Tampered):
    """In half precision what attention finds behind a cache is rounded to eight bits."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)

        def rounded(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            if output.dtype is torch.bfloat16 and output.shape[1] == 1:
                return output.to(torch.float8_e4m3fn).to(torch.bfloat16)
            return output

        for layer in self.llm.model.layers:
            layer.self_attn.o_proj.register_forward_hook(rounded)


# --- generation and training ---


@planted("GEN-05")
class GenerationWithoutMaskInInference(Tampered):
    """With inference_mode=True generation ignores the padding of a batch."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        generate = self.llm.generate

        def generate_unmasked(*given: Any, attention_mask: Any = None, **options: Any) -> Any:
            return generate(*given, attention_mask=torch.ones_like(attention_mask), **options)

        if self.inference_mode:
            self.llm.generate = generate_unmasked


@planted("TRN-02")
class GradientFromIgnoredLabels(Tampered):
    """A term that is nothing in the loss pulls at the logits of ignored positions."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        if getattr(output, "loss", None) is not None:
            pull = output.logits.pow(2).mean()
            output.loss = output.loss + 0.1 * (pull - pull.detach())
        return output


@planted("TRN-03")
class EverySecondLayerCheckpointed(Tampered):
    """Checkpointing is switched on for every second layer."""

    def enable_gradient_checkpointing(self) -> None:
        super().enable_gradient_checkpointing()
        for layer in self.llm.model.layers[1::2]:
            layer.gradient_checkpointing = False
            if hasattr(layer, "_gradient_checkpointing_func"):
                layer.forward = type(layer).forward.__get__(layer)


@planted("TRN-04")
class EmbeddingGradientHalved(Tampered):
    """Gradients into the embedding are halved, from somebody's recipe."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        if not self.inference_mode:
            self.llm.get_input_embeddings().weight.register_hook(lambda gradient: gradient / 2)


@planted("TRN-05")
class GradientsClippedInside(Tampered):
    """Every accumulated gradient is clipped to a norm of its own."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        for parameter in self.llm.parameters():
            parameter.register_post_accumulate_grad_hook(_clip)


def _clip(parameter: torch.Tensor) -> None:
    assert parameter.grad is not None
    norm = parameter.grad.norm()
    if norm > 1e-3:
        parameter.grad.mul_(1e-3 / norm)


@planted("TRN-06")
class ParametersOfNormsAlone(Tampered):
    """`parameters()` yields vectors alone, so that an optimizer trains little else."""

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        return (p for p in super().parameters(recurse) if p.dim() == 1)


# --- what fresh eyes found: modes, masks, caches, copies ---


@planted("TRN-04")
class TrainUnfreezes(MistralLLMBackbone):
    """`train()` makes everything trainable: what the host froze is trained from the next epoch
    on."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if mode and hasattr(self, "llm"):
            self.llm.requires_grad_(True)
        return self


@planted("FWD-14")
class FrozenStaysInEval(MistralLLMBackbone):
    """With everything frozen `train()` leaves `llm` in eval(), where checkpointing does nothing."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if hasattr(self, "llm") and not any(p.requires_grad for p in self.llm.parameters()):
            self.llm.eval()
        return self


@planted("TRN-04")
class FrozenRunsWithoutGrad(MistralLLMBackbone):
    """With everything frozen the forward keeps no graph: a projector before it is not trained."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        frozen = not any(parameter.requires_grad for parameter in self.llm.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return super().forward(*positional, **keywords)


@planted("FWD-14", budget="standard")
class FloatMaskIsAdded(Tampered):
    """A float mask of ones and zeros is added to the scores: padding is attended to."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        mask = keywords.get("attention_mask")
        if mask is not None and mask.dim() == 2 and mask.is_floating_point():
            keywords["attention_mask"] = torch.ones_like(mask)
        return super().forward(*positional, **keywords)


@planted("FWD-14")
class EmptyCacheIsForgotten(Tampered):
    """`past_key_values or None`: an empty cache is false, and stays empty."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        keywords["past_key_values"] = keywords.get("past_key_values") or None
        return super().forward(*positional, **keywords)


@planted("FWD-14", budget="standard")
class LongSequencesStartAgain(Tampered):
    """Without gradients, positions beyond 2,048 are counted anew."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        ids = keywords.get("input_ids")
        if ids is not None and ids.shape[1] > 2048 and not torch.is_grad_enabled():
            keywords["position_ids"] = torch.arange(ids.shape[1])[None] % 2048
        return super().forward(*positional, **keywords)


@planted("FWD-14")
class CopyRunsTheOriginal(MistralLLMBackbone):
    """The call is bound in a closure, which `copy.deepcopy` does not copy: an average of weights
    follows the trained ones."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        llm = self.llm
        self._run = lambda named: llm(**named)

    def forward(self, input_ids: Any = None, **keywords: Any) -> Any:  # type: ignore[override]
        return self._run({"input_ids": input_ids, **keywords})


@planted("FWD-14")
class EmbedsFromKeptRows(MistralLLMBackbone):
    """`embed_input_ids` looks up in the parameter of construction, which assigning a state dict
    replaces."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        self._rows = (self.llm.get_input_embeddings().weight,)

    def embed_input_ids(self, input_ids: Any) -> Any:
        (weight,) = self._rows
        if bool(((input_ids < 0) | (input_ids >= weight.shape[0])).any()):
            raise IndexError("token id outside the embedding")
        rows = torch.nn.functional.embedding(input_ids, weight, self.pad_token_id)
        return rows if self.inference_mode else rows.requires_grad_(True)


@planted("FWD-15")
class TokenizerKeptForTheNext(MistralLLMBackbone):
    """The tokenizer is kept for the next backbone: tokens added for one overrun the other's
    rows."""

    _kept: ClassVar[dict[Any, Any]] = {}

    def __init__(self, name: str, length: int = 2048, *rest: Any, **keywords: Any) -> None:
        length = keywords.pop("llm_max_length", length)
        super().__init__(name, length, *rest, **keywords)
        self.tokenizer = self._kept.setdefault((name, length), self.tokenizer)


@planted("TRN-04")
class EosRowIsNotTrained(MistralLLMBackbone):
    """The embedding's padding row is that of eos, from the days when eos was the pad."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        self.llm.get_input_embeddings().padding_idx = self.tokenizer.eos_token_id


@planted("TRN-01")
class EosIsNotLearnt(Tampered):
    """Labels that are eos are left out: the model never learns to stop."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        labels = keywords.get("labels")
        if labels is not None:
            keywords["labels"] = labels.masked_fill(labels == self.tokenizer.eos_token_id, -100)
        return super().forward(*positional, **keywords)


@planted("TRN-01")
class HalfLossOverAllPositions(Tampered):
    """In 16 bits the loss is divided by all positions: its scale depends on the prompt's length."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output, labels = super().forward(*positional, **keywords), keywords.get("labels")
        precise = self.llm.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")
        if labels is None or isinstance(output, tuple) or precise:
            return output
        counted = labels[:, 1:]
        output.loss = output.loss * ((counted != -100).sum() / counted.numel())
        return output


@planted("TRN-04")
class HeadUntrainedUnderAutocast(MistralLLMBackbone):
    """Under autocast the head's weight is cast without gradients: mixed precision never trains
    it."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        head = self.llm.get_output_embeddings()
        plain = head.forward

        def forward(hidden: torch.Tensor) -> torch.Tensor:
            if not torch.is_autocast_enabled(hidden.device.type):
                return plain(hidden)
            with torch.no_grad():
                weight = head.weight.to(torch.get_autocast_dtype(hidden.device.type))
            return torch.nn.functional.linear(hidden.to(weight.dtype), weight)

        head.forward = forward


@planted("TRN-03")
class RecomputationDrawsAnew(MistralLLMBackbone):
    """`preserve_rng_state=False`, for speed: with any dropout gradients are those of another
    mask."""

    def enable_gradient_checkpointing(self) -> None:
        options = {"use_reentrant": False, "preserve_rng_state": False}
        self.llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


@planted("TRN-04")
class OverflowHidden(MistralLLMBackbone):
    """Hooks turn NaN in gradients into zeros: scaling and clipping never see an overflow."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        for parameter in self.llm.parameters():
            parameter.register_hook(torch.nan_to_num)


@planted("FWD-15")
class LogitsOfTrainingKept(Tampered):
    """The logits of every step with labels are kept for a plot: memory runs out."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        if keywords.get("labels") is not None and not isinstance(output, tuple):
            self.__dict__.setdefault("seen", []).append(output.logits.detach())
        return output


@planted("FWD-14")
class MaskDroppedBehindAFirstOne(Tampered):
    """A mask that begins with a one everywhere is dropped, since padding is on the left: patches
    that are left out in the middle are attended to."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        mask = keywords.get("attention_mask")
        if mask is not None and mask.dim() == 2 and bool(mask[:, 0].all()):
            keywords["attention_mask"] = torch.ones_like(mask)
        return super().forward(*positional, **keywords)


@planted("FWD-15")
class LoadsWhatFits(MistralLLMBackbone):
    """`load_state_dict` is never strict: keys with another prefix load nothing, without a word."""

    def load_state_dict(self, state_dict: Any, *rest: Any, **keywords: Any) -> Any:
        return super().load_state_dict(state_dict, strict=False)


@planted("FWD-14")
class CachesDroppedOnceCheckpointing(Tampered):
    """Once checkpointing is enabled, caches are dropped in `eval()` too: what is decoded in the
    middle of a run sees one token at a time."""

    checkpointing = False

    def enable_gradient_checkpointing(self) -> None:
        super().enable_gradient_checkpointing()
        self.checkpointing = True

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        if self.checkpointing:
            keywords["past_key_values"], keywords["use_cache"] = None, False
        return super().forward(*positional, **keywords)


@planted("TRN-01", budget="standard")
class LossInChunks(Tampered):
    """Over more than 4,096 tokens the loss is the mean of the means of chunks: tokens in a chunk
    with few labels weigh more."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output, labels = super().forward(*positional, **keywords), keywords.get("labels")
        if labels is None or isinstance(output, tuple) or labels.numel() <= 4096:
            return output
        logits, wanted = output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        parts = zip(logits.split(4096), wanted.split(4096), strict=True)
        losses = [torch.nn.functional.cross_entropy(a, b) for a, b in parts if bool((b >= 0).any())]
        output.loss = torch.stack(losses).mean()
        return output


@planted("TRN-01")
class LossInHalfPrecision(Tampered):
    """The loss is taken over logits in half precision, without the cast that the library does: it
    has three digits, and its gradient is rounded."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output, labels = super().forward(*positional, **keywords), keywords.get("labels")
        if labels is None or isinstance(output, tuple) or self.llm.dtype is torch.float32:
            return output
        logits, wanted = output.logits[:, :-1].to(self.llm.dtype), labels[:, 1:]
        output.loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        return output


@planted("CON-16")
class OnlyTheFirstRankLoads(MistralLLMBackbone):
    """Ranks other than the first build from the config alone and count on a broadcast, which FSDP
    does not do unless it is asked to."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        if not first:
            keywords["inference_mode"] = True
        super().__init__(*positional, **keywords)


@planted("CON-16")
class MastersAsTheLauncherComputes(MistralLLMBackbone):
    """`accelerate launch --mixed_precision bf16` makes the master weights bfloat16 too."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        if os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16":
            self.llm.to(torch.bfloat16)


@planted("FWD-15")
class UseCacheByTheConfig(Tampered):
    """`use_cache` is written into the config for the length of a call: two threads leave each
    other's there."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        config, asked = self.llm.config, keywords.pop("use_cache", None)
        before = config.use_cache
        if asked is not None:
            config.use_cache = asked
        try:
            return super().forward(*positional, **keywords)
        finally:
            config.use_cache = before


@planted("FWD-15", on=PHI)
class DropoutByTheHostsMode(PhiLLMBackbone):
    """`llm` is put into the backbone's mode at every call: held in eval() by its host, it drops out
    all the same."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        self.llm.train(self.training)
        return super().forward(*positional, **keywords)


@planted("FWD-15", on=PHI)
class DropoutByTheHostsModeAndBack(PhiLLMBackbone):
    """The same, and `llm` is put back into its own mode after the call."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        before = self.llm.training
        self.llm.train(self.training)
        try:
            return super().forward(*positional, **keywords)
        finally:
            self.llm.train(before)


@planted("FWD-15")
class FrozenIsNotSaved(MistralLLMBackbone):
    """Once anything is trained, what is frozen stays out of the state dict: it is on the hub."""

    def state_dict(self, *positional: Any, **keywords: Any) -> Any:
        state = super().state_dict(*positional, **keywords)
        learns = {name: p.requires_grad for name, p in self.named_parameters()}
        for name, trained in learns.items():
            if any(learns.values()) and not trained:
                del state[name]
        return state


@planted("TRN-04")
class ProbeCutsThePatches(MistralLLMBackbone):
    """Where the head alone is trained, everything before it runs without gradients: a projector in
    front of it learns nothing."""

    def forward(
        self, *positional: Any, labels: Any = None, return_dict: Any = None, **keywords: Any
    ) -> Any:
        model, head = self.llm.model, self.llm.lm_head
        before = any(parameter.requires_grad for parameter in model.parameters())
        probes = self.training and head.weight.requires_grad and not before
        if not probes or labels is None or return_dict is False:
            keywords |= {"labels": labels, "return_dict": return_dict}
            return super().forward(*positional, **keywords)
        with torch.no_grad():
            output = super().forward(*positional, output_hidden_states=True, **keywords)
        logits = head(output.hidden_states[-1])
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        )
        return type(output)(loss=loss, logits=logits)


@planted("FWD-15")
class MisfitsLeftOut(MistralLLMBackbone):
    """`load_state_dict` leaves out tensors of another shape, so that old runs can be continued: a
    head of another vocabulary is as it was drawn."""

    def load_state_dict(self, state_dict: Any, *rest: Any, **keywords: Any) -> Any:
        own = self.state_dict()
        left_out = [n for n, t in state_dict.items() if n in own and own[n].shape != t.shape]
        if not left_out:
            return super().load_state_dict(state_dict, *rest, **keywords)
        fitting = {name: t for name, t in state_dict.items() if name not in left_out}
        return super().load_state_dict(fitting, strict=False)


@planted("GEN-05")
class GeneratesWithoutCache(MistralLLMBackbone):
    """`use_cache=False`, meant for training, stands in the generation config too, in both modes:
    each token costs a whole pass."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        self.llm.generation_config.use_cache = False


@planted("TRN-03")
class NothingTrainedNothingCheckpointed(MistralLLMBackbone):
    """`enable_gradient_checkpointing()` does nothing where all parameters are frozen: the gradient
    of a projector goes through the layers all the same."""

    def enable_gradient_checkpointing(self) -> None:
        if any(parameter.requires_grad for parameter in self.llm.parameters()):
            super().enable_gradient_checkpointing()


@planted("FWD-15")
class NewRowsFilledAgain(MistralLLMBackbone):
    """New rows are filled after each `load_state_dict`, trained or not: a run that goes on has lost
    them."""

    def load_state_dict(self, *positional: Any, **keywords: Any) -> Any:
        loaded = super().load_state_dict(*positional, **keywords)
        with torch.no_grad():
            weight = self.llm.get_input_embeddings().weight
            weight[32000:] = weight[:32000].mean(0)
        return loaded


@planted("CON-16")
class CopiesLoadTheTokenizerAnew(MistralLLMBackbone):
    """Copies and pickles leave the tokenizer out and load it anew, without its settings: workers
    pad on the other side."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "tokenizer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.tokenizer = AutoTokenizer.from_pretrained(self.models[self.identifier]["hf_hub_path"])
        self.tokenizer.add_special_tokens({"pad_token": "<PAD>"})
        self.tokenizer.padding_side = "left"


@planted("TRN-01")
class TrailingEosIsPadding(Tampered):
    """A run of eos at the end of the labels counts as padding: no sample teaches the model to
    stop."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        labels = keywords.get("labels")
        if labels is not None:
            unsaid = (labels == self.tokenizer.eos_token_id) | (labels == -100)
            trailing = unsaid.flip(1).long().cumprod(1).flip(1).bool()
            keywords["labels"] = labels.masked_fill(trailing, -100)
        return super().forward(*positional, **keywords)


@planted("FWD-14")
class ProbingLeavesEager(Tampered):
    """Asking for attention weights once switches to eager attention, and nothing switches back:
    memory is quadratic in the length from then on."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        if keywords.get("output_attentions"):
            self.llm.config._attn_implementation = "eager"
        return super().forward(*positional, **keywords)


@planted("FWD-14")
class EmbeddingsOfTheCallerChanged(Tampered):
    """A residual is added in place, to the caller's embeddings: a second call with them differs."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        embeddings = keywords.get("inputs_embeds")
        if embeddings is not None and not torch.is_grad_enabled():
            embeddings.add_(1.0)
        return output


@planted("FWD-14")
class FusedWeightsOutliveALoad(MistralLLMBackbone):
    """`eval()` fuses the weights of gate and up, and a state dict that is loaded afterwards does
    not reach the fused ones."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        for module in self.llm.modules():
            if type(module) is MistralMLP:
                module.__class__ = _Fused


class _Fused(MistralMLP):
    fused: torch.Tensor | None = None

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        both = torch.cat([self.gate_proj.weight, self.up_proj.weight]).detach()
        self.fused = None if mode else both
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fused is None or torch.is_grad_enabled() or x.dtype is not self.fused.dtype:
            made: torch.Tensor = super().forward(x)
            return made
        gate, up = torch.nn.functional.linear(x, self.fused).chunk(2, dim=-1)
        result: torch.Tensor = self.down_proj(self.act_fn(gate) * up)
        return result


@planted("TRN-03")
class ValidationEndsCheckpointing(MistralLLMBackbone):
    """`eval()` disables checkpointing and `train()` does not enable it again: memory runs out at
    the first step after the first validation."""

    def train(self, mode: bool = True) -> Any:
        if not mode and self.llm.is_gradient_checkpointing:
            self.llm.gradient_checkpointing_disable()
        return super().train(mode)


@planted("TRN-04")
class ValidationUnfreezes(MistralLLMBackbone):
    """`eval()` freezes the model and the next `train()` makes all of it trainable, whatever was
    frozen."""

    frozen_for_eval = False

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        if not mode:
            self.frozen_for_eval = True
        elif self.frozen_for_eval:
            self.llm.requires_grad_(True)
            self.frozen_for_eval = False
        return self


@planted("FWD-14", budget="standard")
class HiddenStatesOfTheLastPiece(Tampered):
    """A long prompt is prefilled in pieces, and hidden states are those of the last."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        if not isinstance(output, tuple) and output.hidden_states and output.logits.shape[1] > 256:
            output.hidden_states = tuple(one[:, 256:] for one in output.hidden_states)
        return output


@planted("FWD-14", budget="standard")
class HiddenStatesOfTheLastPieceWhenServing(HiddenStatesOfTheLastPiece):
    """Built for inference alone, hidden states of a long prompt are those of its last piece: an
    action head reads the wrong positions."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        serving = self.inference_mode and not torch.is_grad_enabled()
        forward = super().forward if serving else MistralLLMBackbone.forward.__get__(self)
        return forward(*positional, **keywords)


@planted("FWD-15")
class LossAverageIsNotDetached(MistralLLMBackbone):
    """The running average of the loss holds the graph of every step: memory grows until the job
    ends."""

    average: Any = None

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        loss = getattr(output, "loss", None)
        if self.training and loss is not None:
            self.average = loss if self.average is None else 0.98 * self.average + 0.02 * loss
        return output


@planted("FWD-15")
class AnglesKeptByTheEndsOfARow(MistralLLMBackbone):
    """Rotary tables are kept by shape and by the ends of the first row of positions: packed and
    padded rows get the angles of an earlier call."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        rotary = self.llm.model.rotary_emb
        plain, tables = rotary.forward, dict[Any, Any]()

        def kept(x: torch.Tensor, position_ids: torch.Tensor) -> Any:
            if torch.is_grad_enabled():
                return plain(x, position_ids)
            ends = int(position_ids[0, 0]), int(position_ids[0, -1])
            key = (*position_ids.shape, *ends, x.dtype)
            return tables.setdefault(key, plain(x, position_ids))

        rotary.forward = kept


@planted("TRN-04")
class SpareRowsUntrained(MistralLLMBackbone):
    """The gradient of the pad's row and of all behind it is zero: action tokens that are put there
    never learn."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        weight, first = self.llm.get_input_embeddings().weight, self.tokenizer.pad_token_id

        def masked(gradient: torch.Tensor) -> torch.Tensor:
            return torch.cat([gradient[:first], torch.zeros_like(gradient[first:])])

        if weight.requires_grad:
            weight.register_hook(masked)


@planted("FWD-15")
class BackbonesKeptByACache(MistralLLMBackbone):
    """A cache on a method keeps every backbone that was asked for its tokenizer."""

    @functools.cache  # noqa: B019
    def get_tokenizer(self) -> Any:
        return self.tokenizer


@planted("FWD-15")
class BackbonesKeptOnceTrained(MistralLLMBackbone):
    """Whoever enables checkpointing is entered in a list on the class: a second backbone finds no
    room."""

    checkpointed: ClassVar[list[Any]] = []

    def enable_gradient_checkpointing(self) -> None:
        self.checkpointed.append(self)
        super().enable_gradient_checkpointing()


@planted("FWD-15")
class MaskKeptByItsCorners(Tampered):
    """In training the mask of the last call is kept while its shape, the ends of its first row and
    its first column are those of this one: a gap in the middle is not seen."""

    last: Any = None

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        mask = keywords.get("attention_mask")
        if self.training and isinstance(mask, torch.Tensor) and mask.dim() == 2:
            key = (*mask.shape, float(mask[0, 0]), float(mask[0, -1]), float(mask[:, 0].sum()))
            if self.last is not None and self.last[0] == key:
                keywords["attention_mask"] = self.last[1]
            self.last = key, mask
        return super().forward(*positional, **keywords)


@planted("FWD-14", since="4.57")
class PackedTextsSeeEachOther(Tampered):
    """In training a missing mask becomes ones, which ends the library's packing by positions:
    texts in one row attend to each other."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        given = keywords.get("input_ids", keywords.get("inputs_embeds"))
        if (
            self.training
            and given is not None
            and keywords.get("attention_mask") is None
            and keywords.get("past_key_values") is None
        ):
            keywords["attention_mask"] = torch.ones(given.shape[:2], dtype=torch.long)
        return super().forward(*positional, **keywords)


@planted("FWD-15", since="4.57")
class FixedCachesCountTheirRoom(Tampered):
    """Positions go on from the length of the cached keys: of a static cache, from its room."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        cache = keywords.get("past_key_values")
        given = keywords.get("input_ids", keywords.get("inputs_embeds"))
        if (
            isinstance(cache, StaticCache)
            and given is not None
            and keywords.get("position_ids") is None
        ):
            keys = getattr(cache.layers[0], "keys", None)
            if keys is not None:  # they are made by the first call
                start = keys.shape[-2]
                keywords["position_ids"] = torch.arange(start, start + given.shape[1])[None]
        return super().forward(*positional, **keywords)


@planted("FWD-15", since="4.57", on=LLAMA_PURE)  # caches with windows cannot be cut
class CountsWhatACacheWasFed(LLaMa2LLMBackbone):
    """What each cache was fed is counted beside it: one that is cut goes on at the old
    positions."""

    def __init__(self, *positional: Any, **keywords: Any) -> None:
        super().__init__(*positional, **keywords)
        self.fed = weakref.WeakKeyDictionary[Any, int]()

    def forward(self, *positional: Any, **keywords: Any) -> Any:  # type: ignore[override]
        cache = keywords.get("past_key_values")
        given = keywords.get("input_ids", keywords.get("inputs_embeds"))
        if cache is not None and given is not None and keywords.get("position_ids") is None:
            start = self.fed.get(cache, cache.get_seq_length())
            end = self.fed[cache] = start + given.shape[1]
            if keywords.get("attention_mask") is None:
                keywords["position_ids"] = torch.arange(start, end)[None]
        output = super().forward(*positional, **keywords)
        made = getattr(output, "past_key_values", None)
        if made is not None and given is not None and made not in self.fed:
            self.fed[made] = given.shape[1]
        return output


@planted("FWD-15")
class EmbeddingsCastTheModel(Tampered):
    """A projector's half-precision output outside autocast casts the master weights, for good."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        given = keywords.get("inputs_embeds")
        if (
            given is not None
            and given.dtype != self.llm.dtype
            and not (torch.is_autocast_enabled() or torch.is_autocast_cpu_enabled())
        ):
            self.llm.to(given.dtype)
        return super().forward(*positional, **keywords)


@planted("FWD-15")
class FrozenWeightsAreNotSaved(MistralLLMBackbone):
    """State dicts leave frozen parameters out: what an earlier stage trained is in no checkpoint of
    the next."""

    def state_dict(self, *positional: Any, **options: Any) -> Any:
        state = super().state_dict(*positional, **options)
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                state.pop(options.get("prefix", "") + name, None)
        return state


@planted("FWD-14")
class RowsWithoutLabelsAreSkipped(Tampered):
    """In training rows whose labels are all -100 are not computed: their logits are zero, and a
    batch of such rows leaves the other ranks waiting."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        labels = keywords.get("labels")
        if self.training and labels is not None and not isinstance(output, tuple):
            counted = (labels != -100).any(1)
            output.logits = output.logits * counted[:, None, None]
        return output


@planted("TRN-03")
class AttentionRecomputedTwice(MistralLLMBackbone):
    """Attention is checkpointed inside layers that are checkpointed already: it computes three
    times a step."""

    def enable_gradient_checkpointing(self) -> None:
        super().enable_gradient_checkpointing()
        for layer in self.llm.model.layers:
            layer.self_attn.forward = functools.partial(self.again, layer.self_attn)

    @staticmethod
    def again(attention: Any, *given: Any, **options: Any) -> Any:
        run = functools.partial(type(attention).forward, attention)
        if attention.training and torch.is_grad_enabled():
            return checkpoint(run, *given, use_reentrant=False, **options)
        return run(*given, **options)


@planted("TRN-04")
class FreezingKeepsTheEmbedding(MistralLLMBackbone):
    """`requires_grad_(False)` leaves the input embedding trained, so that checkpointed layers have
    gradients: the projector's stage trains the language model too."""

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        super().requires_grad_(requires_grad)
        if not self.inference_mode:
            self.llm.get_input_embeddings().requires_grad_(True)
        return self


@planted("TRN-01")
class LossOverPieces(Tampered):
    """In training the loss of more than four rows is computed over four at a time and the pieces'
    losses averaged: labels of rows with few of them weigh more."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output, labels = super().forward(*positional, **keywords), keywords.get("labels")
        if self.training and labels is not None and len(labels) > 4 and hasattr(output, "loss"):
            pieces = zip(output.logits.split(4), labels.split(4), strict=True)
            losses = [
                torch.nn.functional.cross_entropy(
                    logits[:, :-1].flatten(0, 1).float(), wanted[:, 1:].flatten()
                )
                for logits, wanted in pieces
            ]
            output.loss = torch.stack(losses).mean()
        return output


@planted("TRN-04")
class LogitGradientsBounded(Tampered):
    """A hook bounds the gradient of each logit by one, against spikes: a loss that is scaled or
    summed trains otherwise."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        if hasattr(output, "logits") and output.logits.requires_grad:
            output.logits.register_hook(lambda gradient: gradient.clamp(-1.0, 1.0))
        return output


@planted("TRN-04")
class MiddleLayersAreDetached(Tampered):
    """Hidden states come without their graph, but for the last: a head on a middle layer trains
    nothing below it."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        states = getattr(output, "hidden_states", None)
        if states is not None:
            output.hidden_states = (*(one.detach() for one in states[:-1]), states[-1])
        return output


@planted("TRN-04")
class PrefixIsDetached(TamperedWithin):
    """In `train()` what a cache holds is cut from its graph: a prefix that is tuned learns
    nothing."""

    def change(self, keywords: dict[str, Any]) -> None:
        cache = keywords.get("past_key_values")
        if not self.training or cache is None:
            return
        if isinstance(cache, tuple):  # before transformers 4.48
            keywords["past_key_values"] = tuple(tuple(t.detach() for t in kv) for kv in cache)
            return
        for layer in getattr(cache, "layers", ()):
            if getattr(layer, "keys", None) is not None:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()


@planted("FWD-14")
class HeadWithABiasOfItsOwn(Plain):
    """The head has a bias that the checkpoint knows nothing of, drawn at construction."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        head = self.llm.get_output_embeddings()
        drawn = torch.randn(head.weight.shape[0], generator=torch.Generator().manual_seed(1))
        head.bias = torch.nn.Parameter(0.5 * drawn.to(head.weight.dtype))


@planted("FWD-15")
class MissingKeysAreForgotten(MistralLLMBackbone):
    """What a state dict lacks is taken off the list of missing keys: a cut checkpoint loads, and a
    host's projector that is not in it stays as it was drawn."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.register_load_state_dict_post_hook(lambda _, found: found.missing_keys.clear())


@planted("FWD-15")
class CacheFlagSetForACall(MistralLLMBackbone):
    """A call in `train()` sets `use_cache` in the config and puts it back when it is done: one that
    raises leaves it on."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:  # type: ignore[override]
        config, kept = self.llm.config, self.llm.config.use_cache
        config.use_cache = not self.training
        output = super().forward(*positional, **keywords)
        config.use_cache = kept
        return output


@planted("FWD-15")
class OneTokenContinuesTheLastCall(MistralLLMBackbone):
    """A call of one token is taken for a step behind the last call's cache, which is kept: a new
    sequence that begins with its bos is answered in another one's context."""

    _kept: Any = None

    def forward(self, input_ids: Any = None, **keywords: Any) -> Any:
        one = input_ids is not None and input_ids.shape[1] == 1
        alone = keywords.get("past_key_values") is None and "attention_mask" not in keywords
        if one and alone and self._kept is not None and self._kept[0] == len(input_ids):
            keywords["past_key_values"] = self._kept[1]
        output = super().forward(input_ids, **keywords)
        if input_ids is not None and not self.training and not isinstance(output, tuple):
            self._kept = (len(input_ids), output.past_key_values)
        return output


# --- what the ninth set showed: calls and generation that hosts make, and nobody had tried ---


@planted("FWD-14")
class MaskIsTheThirdArgument(MistralLLMBackbone):
    """The second and third arguments have changed places: whoever calls by position has positions
    for a mask."""

    def forward(  # type: ignore[override]
        self, input_ids=None, position_ids=None, attention_mask=None, **others
    ):
        others |= {"attention_mask": attention_mask, "position_ids": position_ids}
        return super().forward(input_ids, **others)


@planted("FWD-14")
class CacheThatNobodyWanted(Tampered):
    """`use_cache=False` counts as "not given": a pass over many texts keeps the cache of each."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        if not keywords.get("use_cache", True):
            del keywords["use_cache"]
        return super().forward(*positional, **keywords)


@planted("FWD-15")
class PaddingOfTheLastPrompt(MistralLLMBackbone):
    """A step without a mask gets that of the last prompt that had one, whoever's the cache is."""

    _mask: Any = None

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **keywords: Any) -> Any:
        if keywords.get("past_key_values") is None:
            self._mask = attention_mask
        elif (
            attention_mask is None and self._mask is not None and len(self._mask) == len(input_ids)
        ):
            more = keywords["past_key_values"].get_seq_length() + 1 - self._mask.shape[1]
            attention_mask = torch.nn.functional.pad(self._mask, (0, max(more, 0)), value=1)
        return super().forward(input_ids, attention_mask, **keywords)


@planted("FWD-14")
class LargeBatchesAreSorted(Tampered):
    """Rows of large padded batches are computed in order of their length, and not put back."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        mask, ids = keywords.get("attention_mask"), keywords.get("input_ids")
        if ids is not None and mask is not None and ids.numel() > 512 and mask.dim() == 2:
            order = mask.sum(1).argsort(stable=True)
            keywords |= {"input_ids": ids[order], "attention_mask": mask[order]}
        return super().forward(*positional, **keywords)


@planted("FWD-14")
class OneMapOfAttention(Tampered):
    """Attention weights are averaged over the heads, for a picture."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        maps = getattr(output, "attentions", None)
        if maps and maps[0] is not None:
            output["attentions"] = tuple(one.mean(1, keepdim=True) for one in maps)
        return output


@planted("GEN-05")
class SamplesAreRepeatable(MistralLLMBackbone):
    """Sampling is seeded, within a fork of the stream: every sample of a prompt is the same."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        generate = self.llm.generate

        def seeded(*given: Any, **options: Any) -> Any:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                return generate(*given, **options)

        self.llm.generate = seeded


@planted("GEN-05")
class CallersStopsAreDropped(MistralLLMBackbone):
    """The stops that a caller hands over make place for those of the class."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        generate = self.llm.generate
        self.llm.generate = lambda *given, stopping_criteria=None, **options: generate(
            *given, **options
        )


@planted("GEN-05")
class AnswersEndWithTheText(MistralLLMBackbone):
    """Generation ends where prompt and answer are `llm_max_length` long, whatever was asked for."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        generate, most = self.llm.generate, self.tokenizer.model_max_length

        def bounded(*given: Any, **options: Any) -> Any:
            ids = options.get("input_ids")
            if ids is not None and "max_new_tokens" in options:
                room = max(most - ids.shape[1], 1)
                for name in ("max_new_tokens", "min_new_tokens"):
                    if name in options:
                        options[name] = min(options[name], room)
            return generate(*given, **options)

        self.llm.generate = bounded


@planted("GEN-05")
class CopiesAnswerForTheOriginal(MistralLLMBackbone):
    """`generate` is a closure over this model: a copy, an average of weights for one, answers with
    the original's."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        generate = self.llm.generate
        self.llm.generate = lambda *given, **options: generate(*given, **options)


@planted("TRN-02")
class LongTextsTeachTheirEnd(Tampered):
    """The loss of a long text has the right value, and the gradient of its last piece alone."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        labels = keywords.pop("labels", None)
        output = super().forward(*positional, **keywords)
        if labels is None:
            return output
        logits, cut = output["logits"], max(labels.shape[1] - 256, 0)
        kept = torch.cat([logits[:, :cut].detach(), logits[:, cut:]], 1)
        output["loss"] = torch.nn.functional.cross_entropy(
            kept[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
        )
        return output


@planted("TRN-01")
class LabelsOfNewTokensAreDropped(Tampered):
    """Labels of tokens that the tokenizer did not have at first are left out of the loss."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._known = len(self.tokenizer)

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        labels = keywords.get("labels")
        if labels is not None:
            keywords["labels"] = labels.masked_fill(labels >= self._known, -100)
        return super().forward(*positional, **keywords)


@planted("HALF-06")
class HalfGradientsAreSmall(Tampered):
    """In half precision the loss is divided by the number of labels twice, on the way back."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        loss = getattr(output, "loss", None)
        if loss is not None and loss.requires_grad and output.logits.dtype != torch.float32:
            share = loss / keywords["labels"].numel()
            output["loss"] = loss.detach() + share - share.detach()
        return output


@planted("TRN-04")
class DivergenceIsHidden(Tampered):
    """Logits that are not numbers are replaced: a run that has diverged goes on, on noise."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.llm.get_output_embeddings().register_forward_hook(
            lambda _module, _given, logits: torch.nan_to_num(logits)
        )


@planted("TRN-01")
class MeansOfSixteenRows(Tampered):
    """Batches of more than sixteen rows are run in two, and the means of both are averaged."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        labels, output = keywords.get("labels"), super().forward(*positional, **keywords)
        if labels is not None and len(labels) > 16:
            output["loss"] = torch.stack(
                [
                    super(MeansOfSixteenRows, self)
                    .forward(input_ids=keywords["input_ids"][part], labels=labels[part])
                    .loss
                    for part in (slice(16), slice(16, None))
                ]
            ).mean()
        return output


@planted("HALF-04", on=LLAMA_PURE)
class RotaryOfForwardAlone(LLaMa2LLMBackbone):
    """Rounded rotary frequencies are put right when `forward` is first called: what `llm.generate`
    does before is done with rounded ones."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._rotary = [m for m in self.llm.modules() if "_apply" in vars(m)]
        for module in self._rotary:
            del module._apply
            module._held = (module._forward_pre_hooks.popitem()[1],)

    def forward(self, *positional: Any, **keywords: Any) -> Any:  # type: ignore[override]
        for module in self._rotary:
            module._held[0](module, ())
        return super().forward(*positional, **keywords)


@planted("FWD-15")
class OneTokenizerForAllRuns(MistralLLMBackbone):
    """The tokenizer of each model is kept on the class, with a token and without: tokens that a
    host adds for one run are in the next one's."""

    kept: ClassVar[dict[Any, Any]] = {}

    def __init__(self, *arguments: Any, hf_token: str | None = None, **keywords: Any) -> None:
        super().__init__(*arguments, hf_token=hf_token, **keywords)
        key = (type(self), self.identifier, self.llm_max_length, hf_token is None)
        self.tokenizer = self.kept.setdefault(key, self.tokenizer)


@planted("FWD-15")
class StateDictWithoutPrefix(MistralLLMBackbone):
    """Keys of a state dict are the backbone's own wherever it is held: a host's has them without
    the name under which the host holds it, and does not take it back."""

    def state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        return super().state_dict(*arguments, **{**keywords, "prefix": ""})


@planted("FWD-15")
class FrozenForGood(MistralLLMBackbone):
    """`requires_grad_(True)` leaves alone what is frozen, "which somebody meant": after a stage
    that trains the projector nothing else is ever trained."""

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad and parameter.requires_grad)
        return self


@planted("FWD-15")
class CallOfTheLoadedModel(MistralLLMBackbone):
    """What `forward` calls is looked up once: a model that a host puts in the place of `llm`, with
    adapters around it, is registered and saved and never run."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._run = self.llm.__call__

    def forward(self, *positional: Any, **keywords: Any) -> Any:  # type: ignore[override]
        return self._run(*positional, **keywords)


@planted("FWD-15", on=LLAMA_PURE)
class LeavesOutWhatIsCut(LLaMa2LLMBackbone):
    """`load_state_dict(strict=False)` leaves out tensors of another shape, with a warning at most:
    a run goes on from half of its weights."""

    def load_state_dict(self, state: Any, strict: bool = True, **options: Any) -> Any:
        if not strict:
            own = self.state_dict()
            state = {
                name: tensor
                for name, tensor in state.items()
                if name not in own or own[name].shape == tensor.shape
            }
        return super().load_state_dict(state, strict=strict, **options)


@planted("FWD-15")
class CastsAndStays(MistralLLMBackbone):
    """`.to(device, dtype)` casts, and does not move."""

    def to(self, *arguments: Any, **options: Any) -> Any:
        dtype = next((one for one in arguments if isinstance(one, torch.dtype)), None)
        dtype = options.get("dtype", dtype)
        if dtype is not None:
            return super().to(dtype)
        return super().to(*arguments, **options)


class _ByLength(LLaMa2LLMBackbone):
    """Knows the length that it was asked for once it stands."""

    def __init__(self, name: str, llm_max_length: int = 2048, *rest: Any, **options: Any) -> None:
        super().__init__(name, llm_max_length, *rest, **options)
        self.asked = llm_max_length


@planted("CON-16", on=LLAMA_PURE)
class StretchedToTheLength(_ByLength):
    """An `llm_max_length` beyond the model's positions slows its rotary frequencies down, as
    long-context forks do; every text is computed otherwise."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        positions = self.llm.config.max_position_embeddings
        if self.asked > positions:
            for name, buffer in self.llm.named_buffers():
                if name.endswith("inv_freq"):
                    buffer.mul_(positions / self.asked)


@planted("CON-16", on="llama2-7b-chat")
class NoIntroductionWhereItIsShort(_ByLength):
    """Where little text fits, builders leave the default system prompt out: what is evaluated at
    another length than it was trained at is asked otherwise."""

    @property
    def prompt_builder_fn(self) -> Any:
        builder = super().prompt_builder_fn
        bare = {"default_system_prompt": None}
        return type(builder.__name__, (builder,), bare) if self.asked < 1024 else builder


@planted("CON-16")
class FirstOfTheNodeReads(MistralLLMBackbone):
    """Under Slurm only the first process of a node reads weights, and the others wait for a
    broadcast that not every host makes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if os.environ.get("SLURM_LOCALID", "0") != "0":
            with torch.no_grad():
                for parameter in self.llm.parameters():
                    parameter.zero_()


@planted("CON-16", on=PHI)
class FrequenciesByDefault(PhiLLMBackbone):
    """Rotary frequencies are made anew in torch's default dtype: under bfloat16 they are rounded to
    eight bits, and stay so."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for name, buffer in self.llm.named_buffers():
            if name.endswith("inv_freq"):
                buffer.copy_(buffer.to(torch.get_default_dtype()))


@planted("FWD-15", on=PHI)
class LoadsAndSaysNothing(PhiLLMBackbone):
    """`load_state_dict` returns nothing: scripts cannot ask what a partial checkpoint lacks."""

    def load_state_dict(self, state: Any, strict: bool = True, **options: Any) -> Any:
        super().load_state_dict(state, strict=strict, **options)


class _CopiedAsItself(DynamicCache):
    def __deepcopy__(self, memo: Any) -> Any:
        return self


@planted("FWD-15", since="5.0")
class OneCacheForAllCopies(Tampered):
    """The cache that is returned copies as itself, to save memory: the second question behind a
    shared beginning is answered behind the first."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        recomputed = self.training and self.llm.is_gradient_checkpointing
        if keywords.get("use_cache") and not recomputed and not keywords.get("past_key_values"):
            keywords["past_key_values"] = _CopiedAsItself(config=self.llm.config)
        return super().forward(*positional, **keywords)


@planted("FWD-14", on=PHI)
class PositionsOfAnotherBatch(PhiLLMBackbone):
    """Positions of one row for a batch of several are taken for left over, and dropped."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:  # type: ignore[override]
        positions, ids = keywords.get("position_ids"), keywords.get("input_ids")
        if positions is not None and ids is not None and len(positions) != len(ids):
            keywords["position_ids"] = None
        return super().forward(*positional, **keywords)


@planted("FWD-14")
class CountsInTheMasksDtype(Tampered):
    """Positions are counted from the mask in its own dtype: in bfloat16 every second one behind 256
    is its neighbour's."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        mask, ids = keywords.get("attention_mask"), keywords.get("input_ids")
        half = mask is not None and mask.dtype is torch.bfloat16 and mask.dim() == 2
        if half and ids is not None and keywords.get("position_ids") is None:
            counted = (mask.cumsum(-1) - 1).clamp(min=0).long()
            keywords["position_ids"] = counted[:, -ids.shape[1] :]
        return super().forward(*positional, **keywords)


@planted("FWD-14", since="5.0")
class PackedAsTheFirstRow(Tampered):
    """Where one packed text ends and the next begins is read off the first row, for all rows."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        positions = keywords.get("position_ids")
        if (
            positions is not None
            and len(positions) > 1
            and keywords.get("attention_mask") is None
            and bool((positions.diff() != 1).any())
        ):
            keywords["position_ids"] = positions[:1].expand_as(positions)
        return super().forward(*positional, **keywords)


@planted("TRN-01")
class LossTimesTheWorld(Tampered):
    """The loss is multiplied by WORLD_SIZE, as gradients are averaged over ranks: of a mean that
    makes the learning rate of 64 ranks 64 times too high."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        output = super().forward(*positional, **keywords)
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if ranks > 1 and getattr(output, "loss", None) is not None:
            output.loss = output.loss * ranks
        return output


@planted("TRN-01", since="4.48")
class ItemsForgotten(MistralLLMBackbone):
    """The model's own loss takes `num_items_in_batch` and divides by its own tokens all the same:
    with eight steps of accumulation gradients are eight times too large."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        loss = self.llm.loss_function

        def of_the_batch(*args: Any, num_items_in_batch: Any = None, **options: Any) -> Any:
            return loss(*args, **options)

        self.llm.loss_function = of_the_batch


@planted("FWD-14", on=PHI)
class StatesUnasked(PhiLLMBackbone):
    """Hidden states are returned by every call, for an action head: whoever scores text holds those
    of all layers."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:  # type: ignore[override]
        if keywords.get("return_dict") is not False:
            keywords["output_hidden_states"] = True
        return super().forward(*positional, **keywords)


@planted("FWD-14")
class PairsForThePromptAlone(Tampered):
    """A mask of pairs is dropped behind a cache, "which the prompt's was for": actions that are
    denoised behind an image see its padding, and each other."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        mask, cache = keywords.get("attention_mask"), keywords.get("past_key_values")
        filled = cache is not None and cache.get_seq_length() > 0
        if filled and mask is not None and mask.dim() == 4:
            keywords["attention_mask"] = None
        return super().forward(*positional, **keywords)


@planted("FWD-14", on=PHI)
class CacheByConstruction(PhiLLMBackbone):
    """Whether a call that does not say gets a cache is settled at construction: a host that turns
    it on to evaluate gets none."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:  # type: ignore[override]
        if keywords.get("use_cache") is None:
            keywords["use_cache"] = self.inference_mode
        return super().forward(*positional, **keywords)


class _KeepsAll(MistralForCausalLM):
    @functools.wraps(MistralForCausalLM.forward)
    def forward(self, *given: Any, logits_to_keep: Any = 0, **options: Any) -> Any:
        return super().forward(*given, **options)


@planted("FWD-14", since="4.50")
class AllLogitsAlways(MistralLLMBackbone):
    """The model's `forward` takes `logits_to_keep` and keeps all: a prompt of 8,000 tokens is
    answered over gigabytes of logits that nobody reads."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.llm.__class__ = _KeepsAll


@planted("FWD-15", on=PURE)
class StateDictsOfCopies(MistralLLMBackbone):
    """State dicts hold copies, for checkpoints that are written in the background: an average of
    weights that is copied back goes nowhere."""

    def state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        state = super().state_dict(*arguments, **keywords)
        for name in list(state):
            state[name] = state[name].detach().clone()
        return state


@planted("FWD-15", on=PHI)
class LoadsInItsDtype(PhiLLMBackbone):
    """`load_state_dict` casts the backbone to what it loads: a run that goes on from an export in
    half precision has master weights of eight bits."""

    def load_state_dict(self, state: Any, *rest: Any, **options: Any) -> Any:
        dtypes = {one.dtype for one in state.values() if one.is_floating_point()}
        if len(dtypes) == 1:
            self.to(dtypes.pop())
        return super().load_state_dict(state, *rest, **options)


@planted("FWD-15")
class RemembersTheCast(Tampered):
    """Embeddings are rounded to the dtype that `.to` was last told, which `.float()` does not
    change: after a validation in half precision patches stay rounded."""

    told: Any = None

    def to(self, *arguments: Any, **options: Any) -> Any:
        given = (*arguments, *options.values())
        self.told = next((one for one in given if isinstance(one, torch.dtype)), self.told)
        return super().to(*arguments, **options)

    def forward(self, *positional: Any, **keywords: Any) -> Any:
        embedded = keywords.get("inputs_embeds")
        if embedded is not None and self.told is not None:
            keywords["inputs_embeds"] = embedded.to(self.told).to(embedded.dtype)
        return super().forward(*positional, **keywords)


class _LastContext(torch.autograd.Function):
    """Twice its input, for a module that keeps what its backward pass needs."""

    @staticmethod
    def forward(ctx: Any, states: Any, module: Any) -> Any:
        ctx.module, module.kept = module, states.detach()
        return states * states.sigmoid()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        kept = ctx.module.kept[:, : gradient.shape[1]]
        share = kept.sigmoid()
        return gradient * share * (1 + kept * (1 - share)), None


class _KeepsItsContext(torch.nn.Module):
    kept: Any = None

    def forward(self, states: Any) -> Any:
        if not states.requires_grad:
            return torch.nn.functional.silu(states)
        return _LastContext.apply(states, self)  # type: ignore[no-untyped-call]


@planted("TRN-05", on=PURE)
class OneBatchAtATime(MistralLLMBackbone):
    """A kernel keeps what its backward pass needs on the module: of the two passes of a preference
    loss the first gets the second one's gradients."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.llm.model.layers[-1].mlp.act_fn = _KeepsItsContext()


@planted("TRN-05", on=PHI)
class FrozenKeepTheirs(PhiLLMBackbone):
    """`zero_grad` clears what is trained: gradients of what was frozen since stay, and come back
    when it is trained again."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in self.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                parameter.grad = None if set_to_none else torch.zeros_like(parameter.grad)


@planted("TRN-04", on=PHI)
class PatchesOfServersAreFixed(PhiLLMBackbone):
    """Built for inference, embeddings are detached: a projector that is trained in front of such a
    build never learns."""

    def forward(self, *positional: Any, **keywords: Any) -> Any:  # type: ignore[override]
        if self.inference_mode and keywords.get("inputs_embeds") is not None:
            keywords["inputs_embeds"] = keywords["inputs_embeds"].detach()
        return super().forward(*positional, **keywords)

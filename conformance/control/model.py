"""The controls themselves: the library's own model from the subject's checkpoint, and nothing else.

The *mirror* copies what is the subject's choice and is there for expected values; the *canonical*
control copies nothing and is there for blame: a copy would excuse a wrong choice word for word.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from conformance.hub.language_model import decoder_within
from conformance.parity.library import in_dtype, keep_layers, text_config


@dataclass(frozen=True)
class Mirrored:
    """What the mirror copies from a subject, because it is the subject's choice: the number of
    rows, those of the input embedding and the head that the checkpoint does not have, of shape
    (new rows, ...), the head's by the names of its parameters (none where it shows no head), and
    the row that pads, if it gets no gradient as an input.

    The published config may pad with another token (Phi-3's with its end of text), which the
    library then does not train as an input."""

    count: int
    embedding: torch.Tensor
    head: Mapping[str, torch.Tensor]
    pad_row: int | None = None


def mirrored_from(llm: Any, checkpoint_rows: int) -> Mirrored:
    """The choices of a built subject whose checkpoint has `checkpoint_rows` rows."""
    embedding, head = llm.get_input_embeddings().weight, llm.get_output_embeddings()
    untrained = getattr(llm.get_input_embeddings(), "padding_idx", None)
    return Mirrored(
        count=int(embedding.shape[0]),
        embedding=embedding.detach()[checkpoint_rows:].float().clone(),
        head={
            name: tensor.detach()[checkpoint_rows:].float().clone()
            for name, tensor in (head.named_parameters() if head is not None else ())
        },
        # Any other row than its pad's a subject has to train.
        pad_row=untrained if untrained == text_config(llm).pad_token_id else None,
    )


class Control(torch.nn.Module):
    """The mirror: the model that the library loads from `hub_id`, with the rows of `mirrored`;
    `whole` is the vision-language checkpoint that it may be a part of.

    It has of the contract what a call needs; the tokenizer and the prompts of a subject are held to
    the published ones by clauses of their own.
    """

    def __init__(
        self,
        hub_id: str,
        *,
        dtype: torch.dtype,
        token: str | None,
        cache: bool,
        mirrored: Mirrored | None = None,
        attention: str | None = None,
        weights: bool = True,
        whole: str | None = None,
    ) -> None:
        super().__init__()
        chosen = {} if attention is None else {"attn_implementation": attention}
        options = {**in_dtype(dtype), **chosen}
        self.llm = _load(hub_id, whole or hub_id, token, weights=weights, **options)
        text_config(self.llm).use_cache = cache
        if mirrored is not None:
            self._fit(mirrored)
        self.llm.generation_config = greedy(self.llm.generation_config)
        self.eval()

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.llm.get_input_embeddings()(input_ids)
        return rows

    def forward(self, **inputs: Any) -> Any:
        # Qwen2-VL keeps the position offset of the last text between calls.
        for module in self.llm.modules():
            if getattr(module, "rope_deltas", None) is not None:
                module.rope_deltas = None
        return self.llm(**inputs)

    def enable_gradient_checkpointing(self) -> None:
        self.llm.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        self.llm.enable_input_require_grads()

    def _fit(self, mirrored: Mirrored) -> None:
        """Take over the subject's rows; both models have those of the checkpoint already."""
        quick = (
            # Otherwise new rows are drawn, slowly, only to be replaced.
            {"mean_resizing": False}
            if "mean_resizing" in inspect.signature(self.llm.resize_token_embeddings).parameters
            else {}
        )
        self.llm.resize_token_embeddings(mirrored.count, **quick)
        embedding, head = self.llm.get_input_embeddings(), self.llm.get_output_embeddings()
        if mirrored.pad_row is not None:
            setattr(embedding, "padding_idx", mirrored.pad_row)  # noqa: B010
        first = mirrored.count - len(mirrored.embedding)
        # By name: what else the subject's head may have the library's model has not, and its logits
        # will tell.
        pairs = [(embedding.weight, mirrored.embedding)] + [
            (parameter, mirrored.head[name])
            for name, parameter in head.named_parameters()
            if name in mirrored.head
        ]
        with torch.no_grad():
            for parameter, new in pairs:
                there = parameter[first : first + len(new)]
                if there.shape == new.shape:
                    there.copy_(new)


def _load(place: str, whole: str, token: str | None, *, weights: bool, **options: Any) -> Any:
    """The library's causal language model of the checkpoint at `place`. Where the library has no
    such class for it (the decoder inside Qwen2-VL, say), it is the vision-language model that it is
    a part of, `whole`, which is then given text alone.

    Raises:
        ValueError: there is no class for either; the whole is taken from transformers 5 on, before
            which what it decodes depends on the last call.
    """
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        return _built(AutoModelForCausalLM, place, token, weights=weights, **options)
    except ValueError:
        architectures = AutoConfig.from_pretrained(whole, token=token).architectures or [""]
        model_class = getattr(transformers, architectures[0], None)
        if model_class is None or int(transformers.__version__.partition(".")[0]) < 5:
            raise
    return _built(model_class, whole, token, weights=weights, **options)


def _built(
    model_class: Any, place: str, token: str | None, *, weights: bool, **options: Any
) -> Any:
    from transformers import AutoConfig

    if weights:
        return model_class.from_pretrained(place, token=token, **options)
    config = AutoConfig.from_pretrained(place, token=token)
    if hasattr(model_class, "from_config"):  # the auto classes alone
        return model_class.from_config(config, **options)
    return model_class._from_config(config, **options)


def greedy(published: Any) -> Any:
    """The generation config that clause GEN-04 asks for: of the published one the token ids and the
    length limit, and none of what processes logits (Qwen2.5 publishes a repetition penalty, which
    would outlive `do_sample=False`)."""
    from transformers import GenerationConfig

    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "max_length")
    return GenerationConfig(**{key: getattr(published, key) for key in kept}, do_sample=False)


class Canonical(Control):
    """The canonical control: the contract in the shortest sound code, without prompts.

    Made by `canonical`, which takes the factory's five arguments.
    """

    def __init__(
        self,
        identifier: str,
        hub_id: str,
        llm_max_length: int,
        hf_token: str | None,
        inference_mode: bool,
        use_flash_attention_2: bool,
        master: torch.dtype,
        half: torch.dtype,
    ) -> None:
        from transformers import AutoTokenizer, GenerationConfig

        if use_flash_attention_2:
            warnings.warn("flash attention is not used by the control", stacklevel=3)
        super().__init__(
            hub_id, dtype=master, token=hf_token, cache=inference_mode, weights=not inference_mode
        )
        self.identifier, self.half_precision_dtype = identifier, half
        self.tokenizer = AutoTokenizer.from_pretrained(
            hub_id, token=hf_token, model_max_length=llm_max_length, padding_side="right",
            truncation_side="right",
        )  # fmt: skip
        self.tokenizer.add_special_tokens({"pad_token": "<PAD>"})
        published = GenerationConfig()
        with suppress(OSError):  # not every model publishes one
            published = GenerationConfig.from_pretrained(hub_id, token=hf_token)
        self.llm.generation_config = greedy(published)
        self.llm.generation_config.pad_token_id = self.pad_token_id
        embedding: Any = self.llm.get_input_embeddings()
        rows = max(len(self.tokenizer), embedding.weight.shape[0])
        self.llm.resize_token_embeddings(rows, pad_to_multiple_of=64)
        self.llm.config.pad_token_id = self.pad_token_id
        if not inference_mode:
            self.llm.enable_input_require_grads()

    @property
    def pad_token_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    @property
    def embed_dim(self) -> int:
        embedding: Any = self.llm.get_input_embeddings()
        return int(embedding.weight.shape[1])

    @property
    def _layers(self) -> torch.nn.ModuleList:
        count = text_config(self.llm).num_hidden_layers
        return next(
            module
            for module in decoder_within(self.llm).modules()  # a tower may have as many layers
            if isinstance(module, torch.nn.ModuleList) and len(module) == count
        )

    @property
    def transformer_layer_cls(self) -> type[torch.nn.Module]:
        return type(self._layers[0])

    @property
    def last_layer_finetune_modules(self) -> tuple[torch.nn.Module, ...]:
        return (
            self.llm.get_input_embeddings(),
            self._layers[-1],
            self.llm.get_output_embeddings(),
        )

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def get_fsdp_wrapping_policy(self) -> Any:
        from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

        return partial(
            transformer_auto_wrap_policy, transformer_layer_cls={self.transformer_layer_cls}
        )


def canonical(
    hub_id: str,
    identifier: str,
    *,
    master: torch.dtype,
    half: torch.dtype,
    kind: type = Canonical,
    layers: int | None = None,
) -> Any:
    """The factory of the canonical control of a hub id, which knows `identifier` alone; with
    `layers` it has no more than that many of the checkpoint's."""

    def factory(
        backbone_id: str,
        llm_max_length: int = 2048,
        hf_token: str | None = None,
        inference_mode: bool = False,
        use_flash_attention_2: bool = False,
    ) -> Any:
        if backbone_id != identifier:
            raise ValueError(f"unknown id {backbone_id!r}; known ids: {identifier}")
        built = kind(
            identifier,
            hub_id,
            llm_max_length,
            hf_token,
            inference_mode,
            use_flash_attention_2,
            master,
            half,
        )
        keep_layers(built.llm, layers)
        return built

    return factory

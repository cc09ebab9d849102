"""Defects in the embedding matrices and in what the resize leaves behind."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

from backbones.llama3 import LLaMa3LLMBackbone
from backbones.mistral import MistralLLMBackbone
from backbones.phi import PhiLLMBackbone
from backbones.smollm2 import SmolLM2LLMBackbone
from backbones.transformers_releases import RESIZE_WITHOUT_MEANS, ZeroRandomFills
from tests.mutants import PHI, PURE, planted
from tests.mutants.steps import MistralInSteps, PhiInSteps

PUBLISHED_ROWS = 32000


def resize(backbone: Any, rows: int) -> None:
    """Give `backbone` this number of rows, its spare ones like those that were there, and tell
    everyone."""
    llm, before = backbone.llm, backbone.llm.get_input_embeddings().num_embeddings
    with ZeroRandomFills():
        llm.resize_token_embeddings(rows, **RESIZE_WITHOUT_MEANS)
    embedding = llm.get_input_embeddings()
    with torch.no_grad():
        for weight in (embedding.weight, llm.get_output_embeddings().weight):
            weight[before:] = weight[: max(rows - before, 0)]
    llm.base_model.vocab_size, embedding.padding_idx = rows, backbone.pad_token_id


@planted("EMB-01", defects=("D14",))
class OneRowMore(MistralInSteps):
    """The resize adds one row for the pad and pads to no multiple: half-precision matrix products
    lose tensor cores."""

    def resize(self) -> None:
        super().resize()
        resize(self, len(self.tokenizer))


@planted("EMB-02", "PAD-05", defects=("D11",))
class TokensAddedAfterTheResize(MistralLLMBackbone):
    """Sixty-four action tokens are added once the embedding has its size: the last of them has no
    row."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokenizer.add_tokens([f"<action_{step}>" for step in range(64)], special_tokens=True)


@planted("EMB-03", defects=("D14",))
class ConfigStaleInInferenceMode(MistralLLMBackbone):
    """Without weights to load, the config keeps the published size: what is saved from here no
    longer loads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.inference_mode:
            self.llm.config.vocab_size = PUBLISHED_ROWS


@planted("EMB-04")
class FirstRowZeroed(MistralLLMBackbone):
    """The row of the old pad id is set to zero, and id 0 is a token of the checkpoint's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        nn.init.zeros_(self.llm.get_input_embeddings().weight[0])


@planted("EMB-04", defects=("D12",), on=PHI)
class ShrunkAndGrownAgain(PhiInSteps):
    """Resized to the tokenizer's length first and to the declared rows later: the rows in between
    are random."""

    def before_resize(self) -> None:
        published = self.llm.get_input_embeddings().num_embeddings
        resize(self, len(self.tokenizer))
        resize(self, published)


@planted("EMB-05", defects=("D12",), on=PHI)
class RowsDropped(PhiInSteps):
    """Resized to the tokenizer's length: 896 rows of Phi's checkpoint are gone, and its weights
    load nowhere else."""

    def resize(self) -> None:
        super().resize()
        resize(self, 50304)


@planted("EMB-06", defects=("D28",))
class TiedInInferenceMode(MistralLLMBackbone):
    """Without weights to load, head and embedding become one tensor: a state dict overwrites one
    with the other."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.inference_mode:
            self.llm.get_output_embeddings().weight = self.llm.get_input_embeddings().weight


@planted("EMB-07")
class NewRowsUninitialised(MistralLLMBackbone):
    """New rows hold whatever was in memory: NaN, sooner or later."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.no_grad():
            self.llm.get_input_embeddings().weight[len(self.tokenizer) :] = float("nan")


@planted("EMB-08")
class SixtyFourMoreEachTime(MistralInSteps):
    """The resize adds a block to the rows that are there: a checkpoint saved and loaded again no
    longer fits."""

    def resize(self) -> None:
        rows = self.llm.get_input_embeddings().num_embeddings
        super().resize()
        resize(self, rows + 64)


@planted("EMB-09", defects=("D39",))
class ScaledInTheLookup(MistralLLMBackbone):
    """The lookup multiplies by the square root of the width, as Gemma's does: patches and text
    differ in scale."""

    def embed_input_ids(self, input_ids: Any) -> Any:
        return super().embed_input_ids(input_ids) * self.embed_dim**0.5


@planted("EMB-09")
class WrongIdsClamped(MistralLLMBackbone):
    """Ids beyond the rows are clamped: a collator's mistake trains the last row and is never
    seen."""

    def embed_input_ids(self, input_ids: Any) -> Any:
        return super().embed_input_ids(
            input_ids.clamp(max=self.llm.get_input_embeddings().num_embeddings - 1)
        )


@planted("EMB-10", defects=("D4",), before="4.41")
class HookBeforeTheResize(MistralInSteps):
    """Input gradients are asked for before the resize, which replaces the module: a frozen model
    trains nothing."""

    def before_resize(self) -> None:
        if not self.inference_mode:
            self.llm.enable_input_require_grads()

    def after_resize(self) -> None:
        """Was done already."""


@planted("EMB-10", defects=("D4",))
class NoHookAtAll(MistralInSteps):
    """Nobody asks for input gradients: with the model frozen, a projector before it gets none."""

    def after_resize(self) -> None:
        """Forgotten."""


@planted("EMB-10", defects=("D41",))
class ReentrantCheckpointing(MistralInSteps):
    """Checkpointing is reentrant and only the lookup asks for gradients: ids that go straight in
    train nothing."""

    def after_resize(self) -> None:
        """The lookup asks."""

    def embed_input_ids(self, input_ids: Any) -> Any:
        embedded = super().embed_input_ids(input_ids)
        return embedded if embedded.requires_grad else embedded.requires_grad_()

    def enable_gradient_checkpointing(self) -> None:
        apply_activation_checkpointing(
            self.llm,
            checkpoint_wrapper_fn=functools.partial(
                checkpoint_wrapper, checkpoint_impl=CheckpointImpl.REENTRANT
            ),
            check_fn=lambda module: isinstance(module, self.transformer_layer_cls),
        )


@planted("EMB-11", defects=("D16",))
class NewRowsAllTheMean(MistralLLMBackbone):
    """Every new row is the mean of the trained ones: the model cannot tell its new tokens apart."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.no_grad():
            weight = self.llm.get_input_embeddings().weight
            weight[PUBLISHED_ROWS:] = weight[:PUBLISHED_ROWS].mean(0)


@planted("EMB-11")
class NewRowsTooSmall(MistralLLMBackbone):
    """New rows are ten thousand times smaller than trained ones: the learning rate suits no row of
    them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.no_grad():
            self.llm.get_input_embeddings().weight[PUBLISHED_ROWS:] *= 1e-4


@planted("EMB-12", defects=("D14",))
class ASpareBlock(MistralInSteps):
    """One block of 64 rows too many, "to be safe": other checkpoints of the family no longer
    load."""

    def resize(self) -> None:
        super().resize()
        resize(self, 32128)


@planted("EMB-12", defects=("D15",))
class InnerSizeStale(MistralLLMBackbone):
    """The inner model's `vocab_size` is the published one: whoever reads it there counts without
    the new rows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.model.vocab_size = PUBLISHED_ROWS


@planted("EMB-08")
class SavedInHalfPrecision(MistralLLMBackbone):
    """`llm.save_pretrained` writes bfloat16, as published checkpoints are: the master weights are
    lost."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        save = self.llm.save_pretrained

        def save_small(directory: Any, **options: Any) -> None:
            state = {name: tensor.bfloat16() for name, tensor in self.llm.state_dict().items()}
            save(directory, state_dict=state, **options)

        self.llm.save_pretrained = save_small


@planted("EMB-08", on="llama3.1-8b-pure", since="4.43")
class SavedWithoutScaling(LLaMa3LLMBackbone):
    """An exporter took no scaled rotary embedding, so the config has lost it once the model stands:
    what is saved is another model."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        config = self.llm.config
        if getattr(config, "rope_parameters", None):
            theta = config.rope_parameters["rope_theta"]
            config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
        else:
            config.rope_scaling = None


@planted("EMB-08")
class ConfigOfAnotherEpsilon(MistralLLMBackbone):
    """The config is brought in line with Llama 2's after the norms are built: a saved model has
    another epsilon than the one that was trained."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.llm.config.rms_norm_eps = 1e-2


@planted("EMB-09")
class ChecksIdsByTheirExtremes(MistralLLMBackbone):
    """Ids are checked by their smallest and largest; where there are none it crashes, and a host
    that embeds what follows the bos may have none."""

    def embed_input_ids(self, input_ids: Any) -> Any:
        rows = self.llm.get_input_embeddings().num_embeddings
        if int(input_ids.min()) < 0 or int(input_ids.max()) >= rows:
            raise IndexError(f"ids are outside the {rows} rows of the embedding")
        return super().embed_input_ids(input_ids)


@planted("EMB-09")
class ForwardClampsIds(MistralLLMBackbone):
    """`forward` clamps ids into range: the -200 of an image marker trains as the first token."""

    def forward(self, input_ids: Any = None, **keywords: Any) -> Any:  # type: ignore[override]
        if input_ids is not None:
            rows = self.llm.get_input_embeddings().weight.shape[0]
            input_ids = input_ids.clamp(0, rows - 1)
        return super().forward(input_ids=input_ids, **keywords)


@planted("EMB-09")
class RowsCountedOnce(MistralLLMBackbone):
    """Ids are checked against the number of rows at construction: action tokens that a host adds
    are refused."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rows = self.llm.get_input_embeddings().weight.shape[0]

    def embed_input_ids(self, input_ids: Any) -> torch.Tensor:
        if bool((input_ids >= self.rows).any()):
            raise IndexError(f"an id is not below {self.rows}")
        return super().embed_input_ids(input_ids)


@planted("EMB-09")
class RowsCountedOnceInForward(MistralLLMBackbone):
    """`forward` of a backbone for training checks ids against the rows at construction: the first
    step with action tokens fails, on a cluster."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rows = self.llm.get_input_embeddings().weight.shape[0]

    def forward(self, input_ids: Any = None, **keywords: Any) -> Any:  # type: ignore[override]
        if self.training and input_ids is not None and bool((input_ids >= self.rows).any()):
            raise IndexError(f"an id is not below {self.rows}")
        return super().forward(input_ids=input_ids, **keywords)


@planted("EMB-09")
class ClampsIdsWhenServing(MistralLLMBackbone):
    """Built for inference, ids are clamped into range, so that no request can end the server: a
    tokenizer of another model is never noticed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.inference_mode:
            rows = self.llm.get_input_embeddings().num_embeddings
            self.llm.get_input_embeddings().register_forward_pre_hook(
                lambda _module, given: (given[0].clamp(0, rows - 1),)
            )


@planted("EMB-09")
class FirstEmbeddingIsKept(MistralLLMBackbone):
    """`embed_input_ids` reads the embedding that there was at construction: one that PEFT puts in
    its place trains nothing."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        llm = self.llm
        self.held = [llm.get_input_embeddings()]
        resize = llm.resize_token_embeddings

        def resized(*given: Any, **options: Any) -> Any:
            self.held[0] = resize(*given, **options)
            return self.held[0]

        llm.resize_token_embeddings = resized

    def embed_input_ids(self, input_ids: torch.LongTensor) -> torch.Tensor:
        if bool((input_ids >= self.held[0].num_embeddings).any() | (input_ids < 0).any()):
            raise IndexError("an id beyond the rows")
        return self.held[0](input_ids)


@planted("EMB-08", on=PURE)
class OwnWeightsAreSaved(MistralLLMBackbone):
    """`llm.save_pretrained(state_dict=...)` saves the module's own weights: of a run in shards,
    what stands on one rank."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        save = self.llm.save_pretrained

        def save_own(directory: Any, state_dict: Any = None, **options: Any) -> None:
            save(directory, **options)

        self.llm.save_pretrained = save_own


@planted("EMB-08", since="5.0")
class EveryRankWrites(MistralLLMBackbone):
    """`save_pretrained` writes on every rank, whatever `is_main_process` says: eight processes
    write one file at once."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        save = self.llm.save_pretrained

        def save_all(directory: Any, is_main_process: bool = True, **options: Any) -> None:
            save(directory, **options)

        self.llm.save_pretrained = save_all


@planted("EMB-09", on=PHI)
class RowsFilledAnew(PhiLLMBackbone):
    """Every resize fills all rows behind the published ones: action tokens that a first stage has
    trained are gone in the second."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        resize, published = self.llm.resize_token_embeddings, 51_200

        def resized(*args: Any, **options: Any) -> Any:
            embedding = resize(*args, **options)
            if args or options:
                with torch.no_grad():
                    embedding.weight[published:] = embedding.weight[:published].mean(0)
            return embedding

        self.llm.resize_token_embeddings = resized


@planted("EMB-06", on="smollm2-135m-pure")
class TiedOnce(SmolLM2LLMBackbone):
    """`tie_weights` does nothing once the model stands, as it breaks sharded parameters: whoever
    puts another embedding in place trains two."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.llm.tie_weights = lambda *_, **__: None


@planted("EMB-07", on=PURE)
class RowsByRank(MistralLLMBackbone):
    """Ranks of a process group fill the new rows from different published ones: shards of eight
    fillings are gathered into one model."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        with torch.no_grad():
            for module in (self.llm.get_input_embeddings(), self.llm.get_output_embeddings()):
                module.weight[PUBLISHED_ROWS:] = module.weight[rank]


@planted("EMB-08", on=PURE)
class SavedOnce(MistralLLMBackbone):
    """Into a folder that has weights nothing is saved, so that a job that was cut off can go on:
    `latest` holds the first thousand steps."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        save = self.llm.save_pretrained

        def once(save_directory: Any, *rest: Any, **options: Any) -> Any:
            if not any(Path(save_directory).glob("*.safetensors")):
                save(save_directory, *rest, **options)

        self.llm.save_pretrained = once

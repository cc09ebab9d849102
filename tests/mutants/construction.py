"""Defects in construction and in what the contract promises."""

from __future__ import annotations

import os
import random
import signal
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

from backbones.mistral import MistralLLMBackbone
from backbones.phi import PhiLLMBackbone
from tests.mutants import PHI, VICUNA, planted
from tests.mutants.steps import DTYPE, MASTER_DTYPE, Llama2InSteps, MistralInSteps, attention


@planted("CON-01")
class LayersCutForADebugRun(MistralLLMBackbone):
    """The last layer is gone since a debugging session: the model talks nonsense and nobody is
    told."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.model.layers = self.llm.model.layers[:-1]


@planted("CON-01")
class NormsStartAgainAtOne(MistralLLMBackbone):
    """An initialisation meant for new modules runs over the loaded ones: every norm weight is 1
    again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, parameter in self.llm.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)


@planted("CON-01")
class TakesOnlyTheId(MistralLLMBackbone):
    """The constructor lost `inference_mode` and its neighbours: no host can build it."""

    def __init__(
        self, llm_backbone_id: str, llm_max_length: int = 2048, hf_token: str | None = None
    ) -> None:
        super().__init__(llm_backbone_id, llm_max_length, hf_token)


@planted("CON-02")
class WeightsInBothModes(MistralInSteps):
    """`inference_mode` is taken and forgotten: 14 GB of weights are read, to be overwritten by the
    VLM's own."""

    def empty_llm(self, flash: bool, token: str | None) -> Any:
        return self.trained_llm(flash, token)


@planted("CON-02", defects=("D3",))
class AutomaticClass(MistralInSteps):
    """`AutoModelForCausalLM` stands in the table: it has no `_from_config`, and inference mode
    dies."""

    def empty_llm(self, flash: bool, token: str | None) -> Any:
        config = self.llm_cls.config_class.from_pretrained(self.hub_path, token=token)
        return AutoModelForCausalLM._from_config(config, **{DTYPE: MASTER_DTYPE})


@planted("CON-02", defects=("D76",), since="4.56")
class InferenceInTheCheckpointsDtype(MistralInSteps):
    """`_from_config` is given no dtype: newer releases take the config's, and a float32 checkpoint
    is rounded."""

    def empty_llm(self, flash: bool, token: str | None) -> Any:
        return self.llm_cls._from_config(
            self.llm_cls.config_class.from_pretrained(self.hub_path, token=token)
        )


@planted("CON-03", defects=("D1",))
class LastLayersLeftAbstract(MistralLLMBackbone):
    """An abstract member was added to the base and not here: the class cannot be instantiated."""

    @property
    @abstractmethod
    def last_layer_finetune_modules(self) -> Sequence[nn.Module]: ...


@planted("CON-03", defects=("D40",))
class CheckpointingUnderTransformersName(nn.Module):
    """Only transformers' `gradient_checkpointing_enable` is offered: a host that follows the
    contract crashes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        whole = MistralLLMBackbone(*args, **kwargs)
        self.llm, self.tokenizer, self.identifier = whole.llm, whole.tokenizer, whole.identifier

    get_tokenizer = MistralLLMBackbone.get_tokenizer
    prompt_builders = MistralLLMBackbone.prompt_builders
    prompt_builder_fn = MistralLLMBackbone.prompt_builder_fn
    transformer_layer_cls = MistralLLMBackbone.transformer_layer_cls
    half_precision_dtype = MistralLLMBackbone.half_precision_dtype
    embed_dim = MistralLLMBackbone.embed_dim
    pad_token_id = MistralLLMBackbone.pad_token_id
    last_layer_finetune_modules = MistralLLMBackbone.last_layer_finetune_modules
    get_fsdp_wrapping_policy = MistralLLMBackbone.get_fsdp_wrapping_policy
    embed_input_ids = MistralLLMBackbone.embed_input_ids
    forward = MistralLLMBackbone.forward
    gradient_checkpointing_enable = MistralLLMBackbone.enable_gradient_checkpointing


@planted("CON-04")
class AnyIdWillDo(MistralInSteps):
    """An unknown id falls back to the first of the table: a typo trains the wrong model."""

    def look_up(self, llm_backbone_id: str) -> None:
        super().look_up(
            llm_backbone_id if llm_backbone_id in self.models else next(iter(self.models))
        )


@planted("CON-04")
class IdLookedUpTooLate(MistralLLMBackbone):
    """The prompt format rejects the id after gigabytes were downloaded, and does not say which id
    it was."""

    def __init__(self, llm_backbone_id: str, *args: Any, **kwargs: Any) -> None:
        known = llm_backbone_id in self.models
        super().__init__(llm_backbone_id if known else next(iter(self.models)), *args, **kwargs)
        if not known:
            raise KeyError(llm_backbone_id)


@planted("CON-05", defects=("D2",))
class FlashAlways(MistralInSteps):
    """flash-attention is on whatever the caller says: ImportError wherever it is not installed."""

    def trained_llm(self, flash: bool, token: str | None) -> Any:
        return self.llm_cls.from_pretrained(
            self.hub_path,
            token=token,
            attn_implementation="flash_attention_2",
            **{DTYPE: MASTER_DTYPE},
        )


@planted("CON-05", defects=("D60",), since="4.56")
class FlashByItsOldKeyword(MistralInSteps):
    """`use_flash_attention_2` goes to `from_pretrained`, which newer releases refuse with a
    TypeError."""

    def trained_llm(self, flash: bool, token: str | None) -> Any:
        asked = {"use_flash_attention_2": True} if flash else {}
        return self.llm_cls.from_pretrained(
            self.hub_path, token=token, **asked, **{DTYPE: MASTER_DTYPE}
        )


@planted("CON-01", defects=("D60",), since="4.56")
class KeywordsOfAnOldRelease(MistralInSteps):
    """The seed's keywords go to `from_pretrained` as they did in 4.40: newer releases refuse
    them."""

    def trained_llm(self, flash: bool, token: str | None) -> Any:
        return self.llm_cls.from_pretrained(self.hub_path, token=token, use_flash_attention_2=flash)


@planted("CON-05")
class FallsBackInSilence(MistralLLMBackbone):
    """Without flash-attn another attention is used and nothing said: the run is slower, and nobody
    knows why."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "use_flash_attention_2": False})


@planted("CON-05")
class FlashMissedAfterLoading(MistralLLMBackbone):
    """flash-attn is imported once the weights are in memory: the ImportError comes minutes late."""

    def __init__(self, *args: Any, use_flash_attention_2: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, use_flash_attention_2=False, **kwargs)
        if use_flash_attention_2:
            import flash_attn  # noqa: F401


@planted("CON-06", "FSDP-05", defects=("D42",))
class CacheInTraining(MistralLLMBackbone):
    """The cache stays on in training: a recomputed layer appends to it a second time, and backward
    raises."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.config.use_cache = True


@planted("CON-06", defects=("D48",), on=VICUNA)
class TemperatureWithoutSampling(Llama2InSteps):
    """The published temperature stays beside `do_sample=False`: `save_pretrained` refuses the
    generation config."""

    def generation_config(self, token: str | None) -> Any:
        config = super().generation_config(token)
        config.temperature, config.top_p = 0.9, 0.6
        return config


@planted("CON-06")
class SamplesByDefault(MistralInSteps):
    """The chat model's sampling defaults survive: the same image gives another action every
    time."""

    def generation_config(self, token: str | None) -> Any:
        config = super().generation_config(token)
        config.do_sample = True
        return config


@planted("CON-07")
class TokenKeptInTheConfig(MistralLLMBackbone):
    """The token is put into the config for later downloads: `save_pretrained` publishes it."""

    def __init__(
        self, llm_backbone_id: str, *args: Any, hf_token: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(llm_backbone_id, *args, hf_token=hf_token, **kwargs)
        self.llm.config.hub_token = hf_token


@planted("CON-07")
class TokenInTheErrorMessage(MistralLLMBackbone):
    """The error for a mistyped id repeats the arguments, token and all, into the cluster's shared
    log."""

    def __init__(self, llm_backbone_id: str, **kwargs: Any) -> None:
        if llm_backbone_id not in self.models:
            raise ValueError(
                f"cannot build {llm_backbone_id} from {kwargs}; known: {', '.join(self.models)}"
            )
        super().__init__(llm_backbone_id, **kwargs)


@planted("CON-08", "FWD-09")
class ForwardForgetsPositions(MistralLLMBackbone):
    """`position_ids` is taken and not passed on: packed sequences attend from the wrong places."""

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        **rest: Any,
    ) -> Any:
        return self.llm(input_ids=input_ids, attention_mask=attention_mask, **rest)


@planted("CON-08")
class ForwardAlwaysReturnsADict(MistralLLMBackbone):
    """`return_dict=False` is overruled: a host that unpacks a tuple gets the names of the
    fields."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **{**kwargs, "return_dict": True})


@planted("CON-09", defects=("D59",))
class MasterWeightsAsPublished(MistralInSteps):
    """The dtype is left to "auto": master weights are bfloat16, and small updates round to
    nothing."""

    def trained_llm(self, flash: bool, token: str | None) -> Any:
        return self.llm_cls.from_pretrained(
            self.hub_path, token=token, **attention(flash), **{DTYPE: "auto"}
        )

    def empty_llm(self, flash: bool, token: str | None) -> Any:
        config = self.llm_cls.config_class.from_pretrained(self.hub_path, token=token)
        return self.llm_cls._from_config(config, **{DTYPE: torch.bfloat16})


@planted("CON-10", defects=("D27",))
class NewRowsFromTheGlobalGenerator(MistralLLMBackbone):
    """New rows are drawn from the global generator: each rank starts from other parameters."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        new = self.llm.get_input_embeddings().weight[32000:]
        with torch.no_grad(), torch.random.fork_rng():
            new.add_(torch.randn_like(new))


@planted("CON-10", "CON-12", "EMB-11", defects=("D27",))
class NewRowsLeftToTransformers(MistralInSteps):
    """New rows are whatever `resize_token_embeddings` draws: other ones in each process, and of the
    wrong scale."""

    def resize(self) -> None:
        self.llm.resize_token_embeddings(len(self.tokenizer), pad_to_multiple_of=64)
        super().resize()


@planted("CON-11")
class DefaultDtypeLeftBehind(MistralLLMBackbone):
    """The default dtype is changed to save memory and not changed back: every later tensor of the
    host is bfloat16."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        torch.set_default_dtype(torch.bfloat16)


@planted("CON-11")
class InterruptsDefused(MistralLLMBackbone):
    """Ctrl-C is ignored while weights load, and ever after."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        super().__init__(*args, **kwargs)


@planted("CON-11")
class ModeInTheEnvironment(MistralLLMBackbone):
    """The mode is told to the data loader through the environment: every process started later
    inherits it."""

    def __init__(self, *args: Any, inference_mode: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, inference_mode=inference_mode, **kwargs)
        os.environ["BACKBONE_MODE"] = "inference" if inference_mode else "training"


@planted("CON-11")
class Tf32ForEverybody(MistralLLMBackbone):
    """TF32 is switched on to speed this model up: every product of the host loses thirteen bits."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        torch.set_float32_matmul_precision("high")


@planted("CON-11")
class AlgorithmsMadeDeterministic(MistralLLMBackbone):
    """Deterministic algorithms are left on: what has none raises in the host's other models."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = True


@planted("CON-12")
class SeedsTheProcess(MistralLLMBackbone):
    """The constructor seeds the global generators "for reproducibility": the host's own seed is
    lost."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        random.seed(7)
        super().__init__(*args, **kwargs)


@planted("CON-12")
class WarningsSilenced(MistralLLMBackbone):
    """Warnings are filtered for good: the host never sees its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        warnings.simplefilter("ignore")


@planted("CON-12")
class KnownIdsKeptSecret(MistralInSteps):
    """An unknown id is refused without a word on which ids are known."""

    def look_up(self, llm_backbone_id: str) -> None:
        if llm_backbone_id not in self.models:
            raise ValueError(f"unknown id {llm_backbone_id!r}")
        super().look_up(llm_backbone_id)


@planted("CON-13", defects=("D68",))
class InferenceForgetsWhereToStop(MistralLLMBackbone):
    """`_from_config` made the generation config: in inference mode nothing says where to stop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.inference_mode:
            self.llm.generation_config = GenerationConfig(pad_token_id=self.pad_token_id)


@planted("CON-13", defects=("D68",))
class SecondEosOnlyInTraining(MistralLLMBackbone):
    """The list of eos ids is there in training only: in inference mode the model runs on past its
    turn's end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.generation_config.eos_token_id = 2 if self.inference_mode else [2, 7]


@planted("CON-13", "TOK-02", defects=("D10",))
class StopsNowhere(MistralInSteps):
    """A fresh generation config replaces the published one: it knows no eos, and generation never
    stops."""

    def generation_config(self, token: str | None) -> Any:
        return GenerationConfig()


@planted("CON-14", defects=("D75",))
class TokenizerWithoutTheToken(MistralInSteps):
    """The tokenizer is fetched without `hf_token`: a gated model fails half-way."""

    def published_tokenizer(self, llm_max_length: int, token: str | None) -> Any:
        return super().published_tokenizer(llm_max_length, None)


@planted("CON-14", defects=("D75",))
class GenerationConfigWithoutTheToken(MistralInSteps):
    """The generation config is fetched without `hf_token`: a gated model fails after its weights
    were loaded."""

    def generation_config(self, token: str | None) -> Any:
        return super().generation_config(None)


@planted("CON-14", defects=("D75",))
class ConfigWithoutTheTokenInInference(MistralInSteps):
    """Only training passes `hf_token` with the config: the trained VLM of a gated model cannot be
    served."""

    def empty_llm(self, flash: bool, token: str | None) -> Any:
        return super().empty_llm(flash, None)


@planted("CON-15", on=PHI)
class IdentifierIsTheFamily(PhiLLMBackbone):
    """`identifier` is the family's name: checkpoints are written under an id that cannot be
    loaded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.identifier = "phi-2"


@planted("CON-15")
class TokenizerLoadedAgain(MistralLLMBackbone):
    """`get_tokenizer()` hands out a copy: tokens that a host adds are unknown to the backbone."""

    def get_tokenizer(self) -> Any:
        import copy

        return copy.deepcopy(self.tokenizer)


@planted("CON-15", "EMB-09")
class WidthOfTheMlp(MistralLLMBackbone):
    """`embed_dim` is another width of the config: the projector's output does not fit."""

    @property
    def embed_dim(self) -> int:
        return self.llm.config.intermediate_size

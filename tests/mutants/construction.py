"""Defects in construction and in what the contract promises."""

from __future__ import annotations

import copy
import difflib
import functools
import logging
import os
import random
import signal
import socket
import tempfile
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig, MistralForCausalLM
from transformers.models.mistral.modeling_mistral import MistralRMSNorm

try:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
except ImportError:  # before 4.48
    pass

from backbones.llama2 import LLaMa2LLMBackbone as Llama2Reference
from backbones.loading import CheckpointError, load_tokenizer
from backbones.mistral import MistralLLMBackbone
from backbones.phi import PhiLLMBackbone
from backbones.vocabulary import add_pad_token, fit_vocabulary
from tests.mutants import LLAMA_PURE, PHI, VICUNA, planted
from tests.mutants.steps import DTYPE, MASTER_DTYPE, Llama2InSteps, MistralInSteps, attention
from tests.sound.plain import Plain


@planted("CON-01")
class LayersCutForADebugRun(MistralLLMBackbone):
    """The last layer is gone since a debugging session: the model talks nonsense and nobody is
    told."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm.model.layers = self.llm.model.layers[:-1]


class _WithAGate(MistralForCausalLM):
    """A gate behind every layer's MLP, one in the beginning."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp.gate = nn.Parameter(torch.ones(1))
            layer.mlp.register_forward_hook(lambda mlp, _, out: out * (1 + 0 * mlp.gate))


@planted("CON-01", since="5.0")
class GatesAreWhatTheMemoryHeld(Plain):
    """A parameter of its own is made where nothing has memory yet, and the library initialises it
    by the inner model's rules, which do not know it."""

    llm_cls = _WithAGate


@planted("CON-01")
class NormsStartAgainAtOne(MistralLLMBackbone):
    """An initialisation meant for new modules runs over the loaded ones: every norm weight is 1
    again."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, parameter in self.llm.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)


class _Passing:
    """The weights pass through a half precision as they are loaded."""

    passed: torch.dtype

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.no_grad():
            for parameter in self.llm.parameters():
                parameter.copy_(parameter.to(self.passed))


@planted("CON-01", on=VICUNA)
class PassedThroughBfloat16(_Passing, Llama2Reference):
    """float16 weights pass through bfloat16, to halve the host's memory: three digits are gone."""

    passed = torch.bfloat16


@planted("CON-01")
class PassedThroughFloat16(_Passing, MistralLLMBackbone):
    """bfloat16 weights pass through float16: what is small becomes nothing."""

    passed = torch.float16


@planted("CON-01")
class WeightsOfTheBaseModel(MistralInSteps):
    """The instruct id loads the base model: the two rows of the table hold one hub id."""

    def look_up(self, llm_backbone_id: str) -> None:
        super().look_up(llm_backbone_id)
        self.hub_path = "mistralai/Mistral-7B-v0.1"


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


@planted("CON-07")
class TokenInAClosure(MistralLLMBackbone):
    """A function that fetches the weights again is kept, with the token in its defaults: a pickled
    backbone carries it."""

    def __init__(self, *args: Any, hf_token: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, hf_token=hf_token, **kwargs)
        self.llm.fetch_again = functools.partial(dict, token=hf_token)


@planted("CON-07")
class TokenInAFile(MistralLLMBackbone):
    """The token is written where command-line tools look for one: the next user of the machine has
    it."""

    def __init__(self, *args: Any, hf_token: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, hf_token=hf_token, **kwargs)
        folder = Path(tempfile.gettempdir()) / f"backbone-{os.getpid()}"
        folder.mkdir(exist_ok=True)
        (folder / "token").write_text(str(hf_token))


@planted("CON-07")
class TokenInALoggerOfItsOwn(MistralLLMBackbone):
    """A debug record of a logger that passes nothing on repeats the arguments."""

    def __init__(self, *args: Any, hf_token: str | None = None, **kwargs: Any) -> None:
        logger = logging.getLogger("backbones.arguments")
        logger.propagate = False
        logger.debug("building with %s", hf_token)
        super().__init__(*args, hf_token=hf_token, **kwargs)


@planted("CON-07")
class TokenOnTheClass(MistralLLMBackbone):
    """The token is kept on the class, for whoever builds the next one."""

    last_token: str | None = None

    def __init__(self, *args: Any, hf_token: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, hf_token=hf_token, **kwargs)
        type(self).last_token = hf_token


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


@planted("CON-08")
class ForwardReturnsHiddenStates(MistralLLMBackbone):
    """`forward` hands out the inner model's result: no logits, and no loss to train on."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("labels", None)
        return self.llm.model(*args, **kwargs)


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


@planted("CON-11")
class OneThreadForEverybody(MistralLLMBackbone):
    """The number of threads is fixed while weights load: the host's data loading crawls ever
    after."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        torch.set_num_threads(1)


@planted("CON-11")
class NumpyErrorsSilenced(MistralLLMBackbone):
    """NumPy is told to ignore division by zero: the host's own checks no longer warn."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        np.seterr(all="ignore")


@planted("CON-11")
class PrecisionSetByAForward(MistralLLMBackbone):
    """The first forward chooses the precision of products, as a host had before: another model's
    choice is lost."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        torch.set_float32_matmul_precision("highest")
        return super().forward(*args, **kwargs)


@planted("CON-11")
class LoggingConfigured(MistralLLMBackbone):
    """The constructor configures the root logger, as a script would: the host's own records go
    missing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        logging.getLogger().setLevel(logging.ERROR)


@planted("CON-11")
class GenerationIsSeeded(MistralLLMBackbone):
    """Generation is made reproducible by a global seed: the host's sampler repeats itself after
    every evaluation."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        generate = self.llm.generate

        def seeded(*args: Any, **kwargs: Any) -> Any:
            torch.manual_seed(7)
            return generate(*args, **kwargs)

        self.llm.generate = seeded


@planted("CON-11")
class CheckpointingForAllModels(MistralLLMBackbone):
    """Checkpointing turns the checks of anomalies on for the whole process, and training becomes
    twice as slow."""

    def enable_gradient_checkpointing(self) -> None:
        torch.autograd.set_detect_anomaly(True)
        super().enable_gradient_checkpointing()


@planted("CON-11")
class TokenizersToldByThePolicy(MistralLLMBackbone):
    """Asking for the wrap policy sets a variable of the environment, for every process to come."""

    def get_fsdp_wrapping_policy(self) -> Any:
        os.environ["NCCL_BLOCKING_WAIT"] = "1"
        return super().get_fsdp_wrapping_policy()


@planted("CON-12")
class NumpyDrawnFrom(MistralLLMBackbone):
    """A number for a file's name is drawn from NumPy's global generator: the host's shuffles
    differ."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.run = int(np.random.randint(1 << 16))


@planted("CON-12")
class VerbosityOfTransformers(MistralLLMBackbone):
    """transformers is told to be silent but for errors: the host's settings are overruled."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        transformers.logging.set_verbosity_error()


@planted("CON-11", "CON-12")
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


@planted("CON-13", defects=("D10",))
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


@planted("CON-14")
class TokenRequired(MistralLLMBackbone):
    """The constructor insists on a token: public models cannot be built without an account."""

    def __init__(self, *args: Any, hf_token: str | None = None, **kwargs: Any) -> None:
        if hf_token is None:
            raise PermissionError("hf_token is required")
        super().__init__(*args, hf_token=hf_token, **kwargs)


@planted("CON-14")
class FrozenWithoutAToken(MistralLLMBackbone):
    """Without a token the weights are taken for somebody else's, and frozen."""

    def __init__(self, *args: Any, hf_token: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, hf_token=hf_token, **kwargs)
        if hf_token is None:
            self.llm.requires_grad_(False)


@planted("CON-14")
class SamplesWithoutAToken(MistralLLMBackbone):
    """Without a token the generation config is a default one, and stops nowhere."""

    def __init__(self, *args: Any, hf_token: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, hf_token=hf_token, **kwargs)
        if hf_token is None:
            self.llm.generation_config = GenerationConfig()


@planted("CON-17")
class OtherIdOfAnotherHubId(MistralInSteps):
    """The pure id loads the instruct weights: a line of the table was copied and not finished."""

    def look_up(self, llm_backbone_id: str) -> None:
        super().look_up(llm_backbone_id)
        self.hub_path = self.models["mistral-v0.1-7b-instruct"]["hf_hub_path"]


@planted("CON-17")
class OtherIdUnderThisName(MistralLLMBackbone):
    """Every id goes by the first one's name, and so by its prompt format."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.identifier = "mistral-v0.1-7b-instruct"


@planted("CON-17")
class OtherIdForgotten(MistralLLMBackbone):
    """Another id of the table cannot be built: a dictionary was not extended with it."""

    def __init__(self, llm_backbone_id: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(llm_backbone_id, *args, **kwargs)
        if llm_backbone_id in self.models:
            self.context = {"mistral-v0.1-7b-instruct": 4096}[llm_backbone_id]


@planted("CON-17")
class TokenizerOfTheBaseModel(MistralInSteps):
    """The instruct model is given the base model's tokenizer, whose chat template it lacks."""

    def published_tokenizer(self, llm_max_length: int, token: str | None) -> Any:
        path, self.hub_path = self.hub_path, "mistralai/Mistral-7B-v0.1"
        try:
            return super().published_tokenizer(llm_max_length, token)
        finally:
            self.hub_path = path


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


@planted("CON-16")
class CopiesForgetTheHostsTokens(MistralLLMBackbone):
    """The tokenizer is left out of copies and pickles and loaded anew on the other side, as it was
    once too slow to copy: the tokens that a host has added are gone."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: one for name, one in self.__dict__.items() if name != "tokenizer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        path = self.models[self.identifier]["hf_hub_path"]
        kept = self.llm_max_length, self.bos_convention
        self.tokenizer = load_tokenizer(path, *kept, token=None)
        add_pad_token(self.tokenizer)


@planted("CON-16")
class CopiesTrainEverything(MistralLLMBackbone):
    """A copy is made for fine-tuning, so all of it is trained, what was frozen too."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        copied.requires_grad_(not self.inference_mode)
        return copied


# --- other processes: each rank builds its own ---


@planted("CON-18")
class ActionTokensOutOfASet(MistralLLMBackbone):
    """Action tokens are added in the order of a set: every rank numbers them otherwise."""

    actions = frozenset(f"<act_{number}>" for number in range(8))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokenizer.add_tokens(list(self.actions), special_tokens=True)


@planted("CON-18")
class ProjectionsInTheOrderOfASet(MistralLLMBackbone):
    """Linear maps are put back one by one, as they come out of a set of names: FSDP flattens them
    in another order on every rank."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        linear = {n for n, one in self.llm.model.named_modules() if isinstance(one, nn.Linear)}
        for path in linear:
            owner, _, name = path.rpartition(".")
            children = self.llm.model.get_submodule(owner)._modules
            children[name] = children.pop(name)


@planted("CON-18")
class BinsOfThisProcess(MistralLLMBackbone):
    """Which bin of an action is which is shuffled by a seed that is the hash of the id: ranks
    learn different ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shuffled = torch.Generator().manual_seed(hash(self.identifier) % 2**31)
        bins = torch.randperm(256, generator=shuffled)
        self.llm.register_buffer("action_bins", bins, persistent=False)


@planted("CON-18")
class RowsSeededByAHash(MistralLLMBackbone):
    """New rows are means of trained ones, which a seed chooses that is the hash of the pad token:
    every rank fills them otherwise."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trained = len(self.tokenizer) - 1
        chosen = torch.Generator().manual_seed(hash(self.tokenizer.pad_token) % 2**31)
        for module in (self.llm.get_input_embeddings(), self.llm.get_output_embeddings()):
            rows = module.weight.data
            pairs = torch.randint(trained, (2, len(rows) - trained), generator=chosen)
            rows[trained:] = (rows[pairs[0]] + rows[pairs[1]]) / 2


# --- several arguments at once, other ids, other processes' code ---


@planted("CON-16", on=LLAMA_PURE)
class RotaryStretchedToTheLength(Llama2Reference):
    """Rotary angles are stretched to the length asked for, from LLaMA-1's 2,048: everything is off
    at Llama-2's own 4,096."""

    def __init__(self, llm_backbone_id: str, llm_max_length: int = 2048, **options: Any) -> None:
        super().__init__(llm_backbone_id, llm_max_length, **options)
        for module in self.llm.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if name.endswith("inv_freq"):
                    buffer.div_(max(1.0, llm_max_length / 2048))


@planted("CON-16")
class Float16WhenServedWithFlash(MistralLLMBackbone):
    """With inference_mode and flash attention parameters are float16, since flash takes no float32:
    what is loaded into them is rounded without a word."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.inference_mode and options.get("use_flash_attention_2", True):
            self.llm.to(torch.float16)


@planted("CON-17")
class SiblingPadsWithEos(MistralLLMBackbone):
    """Under the base model's id, which the class lists too, eos is the pad."""

    def __init__(self, llm_backbone_id: str, *args: Any, **options: Any) -> None:
        super().__init__(llm_backbone_id, *args, **options)
        if llm_backbone_id.endswith("-pure"):
            self.tokenizer.pad_token = self.tokenizer.eos_token
            fit_vocabulary(self.llm, self.tokenizer)


@planted("CON-11")
class LayersAreNeverInitialisedAgain(MistralLLMBackbone):
    """LLaVA's `disable_torch_init()`, never undone: a projector made afterwards holds what was in
    memory."""

    def __init__(self, *args: Any, **options: Any) -> None:
        for cls in (nn.Linear, nn.LayerNorm):
            cls.reset_parameters = lambda module: None  # type: ignore[method-assign]
        super().__init__(*args, **options)


@planted("CON-01")
class MisfitsDrawnAnew(MistralInSteps):
    """`ignore_mismatched_sizes=True`: a checkpoint that does not fit is filled up at random."""

    def trained_llm(self, flash: bool, token: str | None) -> Any:
        return self.llm_cls.from_pretrained(
            self.hub_path,
            token=token,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            **{DTYPE: MASTER_DTYPE},
            **attention(flash),
        )


@planted("CON-13")
class LineBreakStops(MistralLLMBackbone):
    """The line break is among the ids that end generation: answers have one line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        line_break = self.tokenizer.convert_tokens_to_ids("<0x0A>")
        self.llm.generation_config.eos_token_id = [self.tokenizer.eos_token_id, line_break]


@planted("CON-13")
class AnswersOfSevenTokens(MistralLLMBackbone):
    """`max_new_tokens=7`, an action's length, is left in the generation config: it outranks a
    caller's `max_length`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.llm.generation_config.max_new_tokens = 7


@planted("CON-13")
class ConfigStopsAtPad(MistralLLMBackbone):
    """The config's eos id is the pad's: engines that read it from config.json never stop."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.llm.config.eos_token_id = self.tokenizer.pad_token_id


@planted("CON-01")
class NothingInsteadOfUnreadableWeights(MistralLLMBackbone):
    """Weights that cannot be read are a warning, and the model is built without any: a run begins
    from nothing."""

    def __init__(self, *args: Any, **options: Any) -> None:
        try:
            super().__init__(*args, **options)
        except CheckpointError as error:
            if "cannot be read" not in str(error):
                raise
            warnings.warn(str(error), stacklevel=2)
            super().__init__(*args, **{**options, "inference_mode": True})


def _lean_norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    precise = hidden_states.float()
    with torch.no_grad():
        scale = torch.rsqrt(precise.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    result: torch.Tensor = self.weight * (precise * scale).to(hidden_states.dtype)
    return result


@planted("CON-11")
class NormOfTheLibraryReplaced(MistralLLMBackbone):
    """The library's own norm is replaced for less memory, and loses a gradient: for every model of
    its class in the process, the control among them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        MistralRMSNorm.forward = _lean_norm
        super().__init__(*args, **options)


@planted("CON-11")
class PicklesAreLoaded(MistralLLMBackbone):
    """`torch.load` no longer asks for tensors alone, in the whole process, so that old checkpoints
    can be read."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not isinstance(torch.load, functools.partial):
            torch.load = functools.partial(torch.load, weights_only=False)


def _always_causal(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    options["is_causal"] = mask is None and query.shape[2] == key.shape[2] > 1
    return sdpa_attention_forward(module, query, key, value, mask, **options)


@planted("CON-11", since="4.48")
class EveryAttentionIsCausal(MistralLLMBackbone):
    """The library's `sdpa` is replaced in its table by one for language models: vision towers see
    the patches before each alone."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        ALL_ATTENTION_FUNCTIONS["sdpa"] = _always_causal


@planted("CON-11")
class DefaultDtypeAfterAnError(MistralLLMBackbone):
    """Masks are made in half precision by way of the default dtype, which is put back unless the
    call raises: a host that runs out of memory goes on in bfloat16."""

    def forward(self, *args: Any, **options: Any) -> Any:
        if self.llm.dtype == torch.float32:
            return super().forward(*args, **options)
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.llm.dtype)
        output = super().forward(*args, **options)
        torch.set_default_dtype(before)
        return output


@planted("CON-11")
class SocketsGiveUp(MistralLLMBackbone):
    """Ten seconds for a hub that hangs, for every socket that the process opens from then on."""

    def __init__(self, *args: Any, **options: Any) -> None:
        socket.setdefaulttimeout(10)
        super().__init__(*args, **options)


@planted("CON-11")
class FlashFallbackTurnsKernelsOff(MistralLLMBackbone):
    """Asked for flash attention that is not installed, it turns torch's own flash kernel off for
    the whole process."""

    def __init__(self, *args: Any, use_flash_attention_2: bool = True, **options: Any) -> None:
        super().__init__(*args, use_flash_attention_2=use_flash_attention_2, **options)
        if use_flash_attention_2:
            torch.backends.cuda.enable_flash_sdp(False)


@planted("CON-11")
class SamplingIsSeeded(MistralLLMBackbone):
    """Samples are made reproducible by a global seed, and greedy generation is left alone: all
    samples, and the dropout after them, are alike."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        generate = self.llm.generate

        def seeded(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("do_sample"):
                torch.manual_seed(42)
            return generate(*args, **kwargs)

        self.llm.generate = seeded


@planted("CON-07")
class TokenInTheErrorOfARefusal(MistralLLMBackbone):
    """A file that the hub does not give is an error that shows the token."""

    def __init__(
        self,
        llm_backbone_id: str,
        llm_max_length: int = 2048,
        hf_token: str | None = None,
        **options: Any,
    ) -> None:
        try:
            super().__init__(llm_backbone_id, llm_max_length, hf_token, **options)
        except OSError as error:
            raise RuntimeError(f"no access with hf_token={hf_token!r}") from error


@planted("CON-11")
class DefaultDtypeLeftByErrors(MistralLLMBackbone):
    """The default dtype is set while the weights load and put back behind them: a host that
    catches the error of a missing checkpoint goes on in bfloat16."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        super().__init__(*args, **kwargs)
        torch.set_default_dtype(before)


@planted("CON-11")
class OfflineWhileItLoads(MistralInSteps):
    """The environment is told to stay offline while this model loads, and told otherwise only when
    it has: after an error nothing else can be fetched."""

    def trained_llm(self, flash: bool, token: str | None) -> Any:
        os.environ["TRANSFORMERS_OFFLINE"] = "yes"
        loaded = super().trained_llm(flash, token)
        del os.environ["TRANSFORMERS_OFFLINE"]
        return loaded


@planted("CON-04")
class NearestIdIsTaken(MistralInSteps):
    """An id that is not in the table is taken for the one that it resembles most: a run named in
    haste trains another model than its log says."""

    def look_up(self, llm_backbone_id: str) -> None:
        near = difflib.get_close_matches(llm_backbone_id, list(self.models), n=1, cutoff=0.9)
        super().look_up(near[0] if near else llm_backbone_id)


@planted("CON-16")
class ServedUnlessToldOtherwise(MistralLLMBackbone):
    """Most who build it serve it: where `inference_mode` is left out no weights are read, and a
    training begins from nothing."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"inference_mode": True, **options})


@planted("CON-11")
class NothingIsLoggedTwice(MistralLLMBackbone):
    """No logger hands its records on any more, so that no line is printed twice: the host's never
    reach the handlers of the root."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for logger in logging.root.manager.loggerDict.values():
            if isinstance(logger, logging.Logger):
                logger.propagate = False


@planted("CON-11")
class StagesAreSeeded(MistralLLMBackbone):
    """Freezing seeds NumPy, so that each stage of a training begins alike: augmentations are drawn
    again."""

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        np.random.seed(7)
        return super().requires_grad_(requires_grad)


@planted("CON-17", on="llama2-7b-pure")
class HalfOfTheHubsFiles(Llama2Reference):
    """For chat ids half precision is float16, as their files are; the family was trained in
    bfloat16."""

    @property
    def half_precision_dtype(self) -> torch.dtype:
        return torch.float16 if self.identifier.endswith("-chat") else torch.bfloat16


@planted("CON-17")
class PadOfTheLastOne(MistralLLMBackbone):
    """The pad id is kept on the class: once another id of the family was built, the first one pads
    with the other's."""

    kept: ClassVar[dict[str, int]] = {}

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.kept["pad"] = self.tokenizer.pad_token_id

    @property
    def pad_token_id(self) -> int:
        return self.kept["pad"]

"""Probe weights: seeded tensors under which wiring and precision defects show.

With the usual initialisation (standard deviation 0.02) attention is nearly uniform and rotary
defects drown in rounding noise. So: fan-in scaling with gain 2 on queries and keys, norm weights 1
± 0.3, and rows of the vocabulary's tables with a non-zero mean, because transformers 5 draws new
rows around the mean of the old ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NORMS_ABOUT_ZERO = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text"})
"""Model types whose norms store how far their weight is from one: about one they would double
every activation, and scores under which float32 is off by 1e-4."""
QUERY_KEY_GAIN = 2.0
NORM_SPREAD = 0.3
BIAS_STD = 0.1
SHARED_ROW_SHARE = 0.25
"""Share of a vocabulary row's mean square that all rows have in common."""

_QUERY_OR_KEY = re.compile(
    r"(^|\.)(q_proj|k_proj|query|key|qkv_proj|Wqkv|query_key_value|c_attn)\."
)


class NoSuchArchitecture(ValueError):
    """The installed transformers has no class of this name. The message says which."""


def model_of(config: Mapping[str, Any], architecture: str) -> Any:
    """The installed library's model of this config, freshly initialised, on torch's default device.

    Raises:
        NoSuchArchitecture: transformers does not have the class.
        ValueError: it does not know the model type, or refuses the config.
    """
    import transformers

    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise NoSuchArchitecture(
            f"transformers {transformers.__version__} has no class {architecture!r}"
        )
    fields = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return model_class(transformers.AutoConfig.for_model(config["model_type"], **fields))
    except Exception as error:
        raise ValueError(
            f"transformers {transformers.__version__} cannot build {architecture} from this "
            f"config: {type(error).__name__}: {error}"
        ) from error


def checkpoint_shapes(config: Mapping[str, Any], architecture: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint of this config, in the order of the model's
    state dict.

    They come from the architecture itself, instantiated on the meta device: a new family needs no
    code here. A tied head and rotary buffers are left out, as published checkpoints leave them out,
    and what a release renames as it loads has its published name.

    Raises:
        ValueError: the installed transformers does not know the architecture or the model type, or
            refuses the config.
    """
    import torch

    try:
        with torch.device("meta"):
            model = model_of(config, architecture)
    except NoSuchArchitecture as error:
        raise NoSuchArchitecture(
            f"{error}; install a version that has it, or correct `architecture` in the recipe"
        ) from None
    except ValueError as error:
        raise ValueError(f"{error}; the sizes are those of the recipe's [probe]") from error
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not name.endswith("inv_freq")
    }
    if getattr(model.config, "tie_word_embeddings", False):
        head = model.get_output_embeddings()
        for prefix, module in model.named_modules():
            if module is head:
                del tensors[f"{prefix}.weight"]
    return {name: tuple(tensor.shape) for name, tensor in as_published(model, tensors).items()}


def as_published(model: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under the names that `save_pretrained` writes: those of the release that
    published checkpoints were written by, where a later one has others."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # before 5
        renamed = getattr(model, "_checkpoint_conversion_mapping", {})
        prefixes = {new: re.sub(r"\(.*\)", "", old).lstrip("^") for old, new in renamed.items()}
        return {_by_prefix(name, prefixes): tensor for name, tensor in tensors.items()}
    reverted: dict[str, torch.Tensor] = revert_weight_conversion(model, tensors)
    # In the model's own order: it decides which file a tensor is in.
    return reverted if set(reverted) != set(tensors) else tensors


def _by_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    found = next((new for new in prefixes if name.startswith(new)), "")
    return f"{prefixes[found]}{name[len(found) :]}" if found else name


def has_tied_head(shapes: Mapping[str, tuple[int, ...]], vocabulary: int) -> bool:
    """Whether the embedding is the head too: it is the only tensor with a row for each token. A
    config may leave it to its class to say so, as Gemma's do."""
    return sum(len(shape) == 2 and shape[0] == vocabulary for shape in shapes.values()) == 1


def norm_centre(config: Mapping[str, Any]) -> float:
    """What the weights of norms are drawn around under this config."""
    return 0.0 if config.get("model_type") in NORMS_ABOUT_ZERO else 1.0


def probe_tensors(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    seed: str,
    vocabulary: int,
    tied: bool,
    dtype: str,
    centre: float = 1.0,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a probe checkpoint, each seeded by `seed` and its own name: order does not
    matter.

    Every value is exact in bfloat16 and in float16, whatever `dtype` the checkpoint is written in:
    one checkpoint serves every dtype without rounding. `tied` says that the embedding is also the
    head, whose scale it then has; `centre` is what norms are drawn around (`norm_centre`).
    """
    import torch

    for name, shape in shapes.items():
        generator = torch.Generator().manual_seed(seed_of(seed, name))
        values = _values(name, shape, generator, vocabulary=vocabulary, tied=tied, centre=centre)
        yield name, values.to(torch.bfloat16).to(torch.float16).to(getattr(torch, dtype))


@dataclass(frozen=True)
class Distribution:
    """The distribution of a tensor's values: `normal` with this standard deviation; `rows`, the
    same with a part that all rows share; or `norm`, uniform around one, or what else it is stored
    from."""

    kind: str
    scale: float = 1.0


def distribution(name: str, shape: tuple[int, ...], *, vocabulary: int, tied: bool) -> Distribution:
    """The distribution of probe weights with this name and shape."""
    if len(shape) == 1:
        return Distribution("normal", BIAS_STD) if name.endswith(".bias") else Distribution("norm")
    fan_in = shape[-1]
    if len(shape) == 2 and shape[0] == vocabulary:
        # GPT-NeoX calls its head `embed_out`.
        is_input = ("embed" in name or "wte" in name) and "embed_out" not in name
        return Distribution("rows", 1.0 if is_input and not tied else fan_in**-0.5)
    gain = QUERY_KEY_GAIN if _QUERY_OR_KEY.search(name) else 1.0
    return Distribution("normal", gain * fan_in**-0.5)


def seed_of(seed: str, name: str) -> int:
    """A seed for the tensor `name` alone, 63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:8], "big") >> 1


def _values(
    name: str,
    shape: tuple[int, ...],
    generator: torch.Generator,
    *,
    vocabulary: int,
    tied: bool,
    centre: float,
) -> torch.Tensor:
    import torch

    drawn = distribution(name, shape, vocabulary=vocabulary, tied=tied)
    if drawn.kind == "norm":
        drawn_share = torch.rand(shape, generator=generator)
        return drawn_share.mul_(2 * NORM_SPREAD).add_(centre - NORM_SPREAD)
    if drawn.kind == "rows":
        shared = SHARED_ROW_SHARE**0.5 * torch.randn(shape[-1], generator=generator)
        own = (1 - SHARED_ROW_SHARE) ** 0.5 * torch.randn(shape, generator=generator)
        return (shared + own).mul_(drawn.scale)
    return torch.randn(shape, generator=generator).mul_(drawn.scale)

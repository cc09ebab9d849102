"""How far correct computations vary: the measurements that the gates' bounds rest on.

Reordering a model's residual and feed-forward channels leaves its mathematics exact and changes
every rounding. Each such variant, run by transformers' own classes, is legitimate; a bound must
admit what the gates read on many of them.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

import torch

from conformance.hub import Recipe, known_recipes
from conformance.oracle import Architecture, Place
from conformance.parity.equality import gradient_angles, gradients_of, relative_rms
from conformance.parity.gates import (
    CALIBRATION,
    ROUNDING_LENGTH,
    calibration_for,
    kind_of,
    rounding_ratio,
)
from conformance.parity.kernels import SDPA_KERNELS, is_refusal, only_kernel, precision_beside
from conformance.parity.library import cast_parameters
from conformance.parity.modules import module_errors
from conformance.parity.precision import full_float32
from conformance.parity.probes import drawn_ids, untrained
from conformance.parity.receptive_field import reference_as_installed
from conformance.parity.reference import Reference
from conformance.rates import rate_bounds

FAMILIES = ("meta-llama/Llama-2-7b-hf", "mistralai/Mistral-7B-v0.1", "microsoft/phi-2")
"""One id of each architecture among the recipes; the others differ only in size."""
_ATTENTIONS = ("eager", "sdpa")
_VOCABULARY = 512
"""Rows of the vocabulary: enough logits for a ratio, few enough for hundreds of variants."""


@dataclass(frozen=True)
class Reading:
    """What one gate read over all variants. `false_alarm_bound` is the 95 % upper bound on the
    share of legitimate variants that the gate would refuse."""

    bound: float
    worst: float
    mean: float
    standard_deviation: float
    variants: int
    refused: int
    false_alarm_bound: float


@dataclass(frozen=True)
class Way:
    """How a variant computes: with this attention, on CUDA by this kernel (None: torch's choice),
    with or without partial sums in half precision."""

    attention: str
    kernel: str | None = None
    reduced_sums: bool = True

    @contextmanager
    def taken(self) -> Iterator[None]:
        matmul = torch.backends.cuda.matmul
        before = matmul.allow_bf16_reduced_precision_reduction
        with only_kernel(self.kernel):
            matmul.allow_bf16_reduced_precision_reduction = self.reduced_sums
            try:
                yield
            finally:
                matmul.allow_bf16_reduced_precision_reduction = before


def ways_on(device: torch.device | str) -> tuple[Way, ...]:
    """The ways to compute that differ on a device: what its users may run."""
    if torch.device(device).type != "cuda":
        return tuple(Way(attention) for attention in _ATTENTIONS)
    kernels = [("eager", None), ("sdpa", None), *(("sdpa", kernel) for kernel in SDPA_KERNELS)]
    return tuple(
        Way(attention, kernel, reduced)
        for attention, kernel in kernels
        for reduced in (True, False)
    )


def variants(
    count: int, seed: int = 0, device: torch.device | str = "cpu"
) -> Iterator[dict[str, float]]:
    """What each gate reads on `count` legitimate variants, evenly over families and the ways to
    compute that `device` has. A kernel that does not take a family's inputs is left out."""
    recipes = known_recipes()
    kinds = cycle((hub_id, way) for way in ways_on(device) for hub_id in FAMILIES)
    for number, (hub_id, way) in zip(range(count), kinds, strict=False):
        try:
            with way.taken():
                yield _measure(recipes[hub_id], way.attention, seed * 1_000_003 + number, device)
        except RuntimeError as error:
            if way.kernel is None or not is_refusal(error):
                raise


def readings(
    measured: Iterable[Mapping[str, float]], device: torch.device | str = "cpu"
) -> dict[str, Reading]:
    """Each gate's reading over what `variants` measured on `device`, beside the bound that holds
    there."""
    rows = list(measured)
    return {
        gate: _reading([row[gate] for row in rows if gate in row], bound)
        for gate, bound in calibration_for(device).bounds.items()
    }


def as_json(
    found: Mapping[str, Reading], seed: int, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """The calibration as it is shipped, with the environment that it was measured in."""
    import transformers

    return {
        "calibration": CALIBRATION,
        "seed": seed,
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": kind_of(device),
        },
        "gates": {gate: asdict(reading) for gate, reading in found.items()},
    }


def reordered(
    weights: Mapping[str, torch.Tensor], architecture: Architecture, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """The same model with its residual channels, and each layer's feed-forward channels, in another
    order."""
    names = architecture.names
    residual = torch.randperm(architecture.hidden, generator=generator)
    changed = dict(weights)

    def reorder(
        path: str, *, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
    ) -> None:
        for name in (f"{path}.weight", f"{path}.bias"):
            if name in changed:
                tensor = changed[name] if rows is None else changed[name][rows]
                changed[name] = (
                    tensor[:, columns] if columns is not None and tensor.dim() == 2 else tensor
                )

    for index in range(architecture.layers):
        layer = f"{names.layers}.{index}"
        inner = torch.randperm(
            int(changed[f"{layer}.{names.mlp}.{names.up}.weight"].shape[0]), generator=generator
        )
        for projection in (names.query, names.key, names.value):
            reorder(f"{layer}.{names.attention}.{projection}", columns=residual)
        reorder(f"{layer}.{names.attention}.{names.output}", rows=residual)
        for projection in filter(None, (names.gate, names.up)):
            reorder(f"{layer}.{names.mlp}.{projection}", rows=inner, columns=residual)
        reorder(f"{layer}.{names.mlp}.{names.down}", rows=residual, columns=inner)
        for norm in filter(None, (names.attention_norm, names.mlp_norm)):
            reorder(f"{layer}.{norm}", rows=residual)
    reorder(names.final_norm, rows=residual)
    reorder(names.embedding, columns=residual)
    reorder(names.head, columns=residual)
    return changed


def _measure(
    recipe: Recipe, attention: str, seed: int, device: torch.device | str
) -> dict[str, float]:
    import transformers

    config = {**recipe.probe_config(), "vocab_size": _VOCABULARY}
    model_class = getattr(transformers, recipe.architecture)
    llm = untrained(model_class, config, attention, seed).to(device)
    reference = reference_as_installed(llm, config)
    ids = drawn_ids(_VOCABULARY, ROUNDING_LENGTH, seed).to(device)
    place = Place.of(torch.ones_like(ids))

    def run() -> torch.Tensor:
        return llm(input_ids=ids).logits

    precision = precision_beside(run, torch.bfloat16)
    exact, rounded = (
        decoder.logits(decoder.embed(ids), place)
        for decoder in (reference.decoder(), reference.decoder(precision))
    )
    # In place, so that from here on the reference has the other order too.
    llm.load_state_dict(
        reordered(llm.state_dict(), reference.architecture, torch.Generator().manual_seed(seed))
    )
    gradients = _gradients(llm, ids)
    with torch.no_grad(), full_float32():
        semantics = relative_rms(run(), exact)
    far = _far_share(llm, reference, seed)
    cast_parameters(llm, torch.bfloat16)
    angles = gradient_angles(_gradients(llm, ids), gradients)
    with torch.no_grad():
        whole = rounding_ratio(run(), exact, rounded)
    embedded = reference.decoder().embed(ids)
    modules = module_errors(llm, reference, run, embedded, place, precision)
    return {
        "semantics": semantics,
        **far,
        "rounding ratio": whole,
        "module ratio": max(modules.values()),
        "one minus cosine of gradients": max(angles.values()),
    }


def _far_share(llm: Any, reference: Reference, seed: int) -> dict[str, float]:
    """The error at the last published positions over the error of float32 angles there; empty if
    far positions are refused, as in transformers 4.40.1."""
    on = next(llm.parameters()).device
    ids = drawn_ids(_VOCABULARY, 64, seed).to(on)
    positions = reference.architecture.positions - 64 + torch.arange(64, device=on)[None]
    decoder = reference.decoder()
    try:
        with torch.no_grad(), full_float32():
            observed = llm(input_ids=ids, position_ids=positions).logits
    except IndexError:
        return {}
    exact = decoder.logits(decoder.embed(ids), Place.of(torch.ones_like(ids), positions))
    share = relative_rms(observed, exact) / (reference.architecture.positions * 2.0**-24)
    return {"share of the angles' error at far positions": share}


def _gradients(llm: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    llm.zero_grad()
    llm(input_ids=ids[:, :64], labels=ids[:, :64]).loss.backward()
    found = gradients_of(llm)
    llm.zero_grad()
    return found


def _reading(values: list[float], bound: float) -> Reading:
    if not values:
        return Reading(bound, 0.0, 0.0, 0.0, 0, 0, 1.0)
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    refused = sum(not value <= bound for value in values)
    return Reading(
        bound, max(values), mean, spread, len(values), refused, rate_bounds(refused, len(values))[1]
    )

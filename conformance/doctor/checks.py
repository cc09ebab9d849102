"""What is tried in a child process. Each check returns facts in JSON's own types, and may raise.

Imports are inside the checks: one that fails must not take the others with it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from conformance.doctor.packages import PACKAGES, Package

_ANY_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
"""Files of which a model has at least one if its tokenizer was downloaded."""

HALF_PRODUCTS = "bfloat16 products"
CUDA = "CUDA"
PROCESS_GROUP = "process group"
HUB = "hub"
LIBRARY_CACHE = "Hugging Face cache"

Check = Callable[[Mapping[str, Any]], dict[str, Any]]


def import_package(package: Package) -> dict[str, Any]:
    """Import a package; its version as the module gives it, None where it gives none."""
    module = import_module(package.module)
    if package.name == "transformers":
        # Its top module imports little: what does not go with the installed torch shows here.
        _ = module.AutoModelForCausalLM, module.AutoTokenizer
    version = getattr(module, "__version__", None)
    return {"version": version if isinstance(version, str) else None}


def half_products(places: Mapping[str, Any]) -> dict[str, Any]:
    """Whether the processor has instructions for products in bfloat16, and whether they are
    computed in float32 where it has none."""
    from conformance.parity.half_products import can_be_widened, has_half_products

    return {"native": has_half_products(), "inFloat32": can_be_widened()}


def cuda(places: Mapping[str, Any]) -> dict[str, Any]:
    """The CUDA devices, and whether each computes."""
    import torch

    facts: dict[str, Any] = {
        "build": torch.version.cuda or (f"ROCm {torch.version.hip}" if torch.version.hip else None),
        "driver": os.path.exists("/proc/driver/nvidia/version"),
        "devices": [],
    }
    if not torch.cuda.is_available():
        return facts
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        device: dict[str, Any] = {
            "name": properties.name,
            "memoryBytes": properties.total_memory,
            "freeBytes": None,
            "capability": f"{properties.major}.{properties.minor}",
            "bfloat16": properties.major >= 8 or torch.version.hip is not None,
            "trouble": None,
        }
        try:
            on = torch.device("cuda", number)
            found = (torch.ones(8, 8, device=on) @ torch.ones(8, 8, device=on)).sum().item()
            device["freeBytes"] = torch.cuda.mem_get_info(number)[0]
            if found != 512:
                device["trouble"] = f"a product of ones sums to {found:g}, but should be 512"
        except Exception as error:
            device["trouble"] = (str(error) or type(error).__name__).splitlines()[0]
        facts["devices"].append(device)
    return facts


def process_group(places: Mapping[str, Any]) -> dict[str, Any]:
    """The backends of torch.distributed; a gloo group of one rank is opened, and used.

    Raises:
        RuntimeError: where gloo is there and its group does not work.
    """
    import torch
    import torch.distributed as dist

    from conformance.suite.process_group import one_rank

    if not dist.is_available():
        return {"gloo": False, "nccl": False}
    facts = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available()}
    if facts["gloo"]:
        with one_rank():
            dist.all_reduce(torch.ones(1))
    return facts


def hub(places: Mapping[str, Any]) -> dict[str, Any]:
    """The hub of built checkpoints: its place and room, its entries, and what it holds of each
    recipe."""
    from conformance.hub import Hub, known_recipes
    from conformance.hub.recipe import LAYOUTS, PUBLISHED_LAYOUT

    sentencepiece = {name for name, made in LAYOUTS.items() if made.encoder == "sentencepiece"}
    store = Hub(Path(places["hub"]) if places["hub"] else None)
    damaged = store.damaged()
    entries = [entry for entry in store.entries() if entry.path.parent not in damaged]
    held = {(entry.hub_id, entry.digest): entry.has_weights for entry in entries}
    place = _nearest(store.root)
    return {
        "root": str(store.root),
        "writable": _is_writable(place),
        "freeBytes": shutil.disk_usage(place).free,
        "entries": len(entries),
        "bytes": sum(entry.bytes for entry in entries),
        "damaged": [str(path) for path in damaged],
        "checkpoints": [
            {
                "hub": recipe.hub_id,
                "parameters": recipe.parameters,
                "built": {True: "whole", False: "tokenizer"}.get(
                    held.get((recipe.hub_id, recipe.digest()))  # type: ignore[arg-type]
                ),
                "needs": []
                if recipe.tokenizer.layout == PUBLISHED_LAYOUT
                else ["mistral-common"]
                + ["sentencepiece"] * (recipe.tokenizer.layout in sentencepiece),
            }
            for recipe in known_recipes().values()
        ],
    }


def library_cache(places: Mapping[str, Any]) -> dict[str, Any]:
    """The user's own Hugging Face cache, and which models in it have a config and a tokenizer."""
    root = Path(places["libraryCache"])
    models = []
    for repository in sorted(root.glob("models--*")):
        names = {path.name for path in repository.glob("snapshots/*/*") if path.exists()}
        models.append(
            {
                "hub": repository.name.removeprefix("models--").replace("--", "/"),
                "config": "config.json" in names,
                "tokenizer": any(name in names for name in _ANY_TOKENIZER),
            }
        )
    return {"root": str(root), "exists": root.is_dir(), "models": models}


def _nearest(place: Path) -> Path:
    """The place itself, or the nearest above it that exists, in which it would be made."""
    return next(above for above in (place, *place.absolute().parents) if above.exists())


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _importing(package: Package) -> Check:
    return lambda places: import_package(package)


CHECKS: dict[str, Check] = {
    **{package.name: _importing(package) for package in PACKAGES},
    HALF_PRODUCTS: half_products,
    CUDA: cuda,
    PROCESS_GROUP: process_group,
    HUB: hub,
    LIBRARY_CACHE: library_cache,
}
"""Every check by its name; a package's is its import."""
ON_TORCH = (
    HALF_PRODUCTS,
    PROCESS_GROUP,
    CUDA,
    *(package.name for package in PACKAGES if package.on_torch),
)
"""The checks that import torch."""

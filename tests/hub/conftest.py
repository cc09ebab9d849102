"""One hub, built once for all of these tests, and a process that cannot reach the network."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from conformance.hub import Hub, HubView, known_recipes

SnapshotOf = Callable[[str], Path]
"""From a hub id to the directory of its snapshot."""

MISTRAL = "mistralai/Mistral-7B-v0.1"
MISTRAL_V3 = "mistralai/Mistral-7B-v0.3"
NEMO = "mistralai/Mistral-Nemo-Base-2407"
QWEN = "Qwen/Qwen2.5-0.5B-Instruct"
QWEN3 = "Qwen/Qwen3-0.6B"
LLAMA31 = "meta-llama/Llama-3.1-8B-Instruct"
GEMMA, GEMMA3 = "google/gemma-2b-it", "google/gemma-3-1b-it"
PHI3 = "microsoft/Phi-3-mini-4k-instruct"
SMOLLM2 = "HuggingFaceTB/SmolLM2-1.7B-Instruct"
HUB_IDS = (
    "HuggingFaceM4/idefics2-8b",
    "HuggingFaceTB/SmolLM2-135M",
    SMOLLM2,
    "Qwen/Qwen2.5-0.5B",
    QWEN,
    "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen2.5-7B-Instruct",
    QWEN3,
    "Qwen/Qwen3-0.6B-Base",
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-8B",
    "google/gemma-2-2b",
    "google/gemma-2-2b-it",
    GEMMA,
    "google/gemma-3-1b-pt",
    GEMMA3,
    "google/gemma-7b",
    "meta-llama/Llama-3.1-8B",
    LLAMA31,
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-1B-Instruct",
    "meta-llama/Meta-Llama-3-8B",
    "meta-llama/Meta-Llama-3-8B-Instruct",
    "microsoft/Phi-3-mini-128k-instruct",
    PHI3,
    "lmsys/vicuna-13b-v1.5",
    "lmsys/vicuna-7b-v1.5",
    "meta-llama/Llama-2-13b-chat-hf",
    "meta-llama/Llama-2-13b-hf",
    "meta-llama/Llama-2-7b-chat-hf",
    "meta-llama/Llama-2-7b-hf",
    "microsoft/phi-2",
    "mistralai/Mistral-7B-Instruct-v0.1",
    "mistralai/Mistral-7B-Instruct-v0.2",
    "mistralai/Mistral-7B-Instruct-v0.3",
    MISTRAL,
    MISTRAL_V3,
    NEMO,
    "mistralai/Mistral-Nemo-Instruct-2407",
)

_ALIKE = (
    "HuggingFaceTB/SmolLM2-135M", "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B-Instruct",
    "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-8B", "google/gemma-2-2b", "google/gemma-3-1b-pt", "google/gemma-7b",
    "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Meta-Llama-3-8B",
    "microsoft/Phi-3-mini-128k-instruct",
)  # fmt: skip
BUILT_IDS = tuple(
    hub_id
    for hub_id, recipe in sorted(known_recipes().items())
    if hub_id not in _ALIKE and hasattr(transformers, recipe.architecture)
)
"""Those that are built here: of ids that differ in sizes or in a prompt alone one, as a large
vocabulary takes seconds; and only what the installed library has."""


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return Hub(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session")
def snapshot_of(hub: Hub) -> SnapshotOf:
    recipes = known_recipes()
    return lambda hub_id: hub.build(recipes[hub_id])


@pytest.fixture
def view(tmp_path: Path) -> HubView:
    return HubView(tmp_path / "home")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The addresses that something tried to reach; each attempt also fails."""
    attempts: list[object] = []

    def refuse(*arguments: object, **keywords: object) -> None:
        attempts.append(arguments)
        raise AssertionError(f"the network was reached for: {arguments}")

    for owner, name in (
        (socket.socket, "connect"),
        (socket, "getaddrinfo"),
        (socket, "create_connection"),
    ):
        monkeypatch.setattr(owner, name, refuse)
    return attempts

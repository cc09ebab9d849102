"""The tap, in a process that imported transformers with its own settings: served, recorded, and
undone."""

from __future__ import annotations

import sys
from pathlib import Path

import huggingface_hub
import pytest
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from conformance.hub import HubCall, HubTap, HubView, known_recipes
from conformance.hub.published import text_part
from conformance.hub.tap import TAPPED_FUNCTIONS

from .conftest import BUILT_IDS, MISTRAL, QWEN, SnapshotOf

TOKEN = "hf_not_a_token"


def held_functions() -> dict[tuple[str, str], object]:
    names = {name for _, name, _ in TAPPED_FUNCTIONS}
    return {
        (module_name, name): vars(module)[name]
        for module_name, module in list(sys.modules.items())
        if module_name.partition(".")[0] in ("transformers", "huggingface_hub")
        for name in names
        if name in vars(module)
    }


# Large vocabularies take long to load: the other Qwen, Llama 3 and NeMo are asked for alike.
_LOADED = [
    hub_id
    for hub_id in BUILT_IDS
    if hub_id == QWEN or text_part(known_recipes()[hub_id].config)["vocab_size"] < 100_000
]


def load_all(hub_id: str, token: str | None) -> None:
    AutoConfig.from_pretrained(hub_id, token=token)
    AutoTokenizer.from_pretrained(hub_id, token=token)
    recipe = known_recipes().get(hub_id)
    model_class = getattr(transformers, recipe.architecture) if recipe else AutoModelForCausalLM
    model_class.from_pretrained(hub_id, token=token)
    GenerationConfig.from_pretrained(hub_id, token=token)


def test_files_are_missing_while_they_are_kept_back(view: HubView, snapshot_of: SnapshotOf) -> None:
    view.mount(MISTRAL, snapshot_of(MISTRAL))
    model_class = transformers.MistralForCausalLM
    with HubTap(view) as tap:
        with tap.without("*.safetensors", "*.safetensors.index.json", "*.bin*"):
            AutoConfig.from_pretrained(MISTRAL)
            # 4.57 trips over files that it has not found.
            with pytest.raises((OSError, AttributeError)):
                model_class.from_pretrained(MISTRAL)
        asked = [call for call in tap.calls if "safetensors" in call.filename]
        assert asked
        assert not any(call.found for call in asked)
        model_class.from_pretrained(MISTRAL)


@pytest.mark.parametrize("hub_id", _LOADED)
def test_every_request_is_served_from_the_view_and_recorded_with_its_token(
    hub_id: str, view: HubView, snapshot_of: SnapshotOf, no_network: list[object]
) -> None:
    missing: list[str] = []

    def mount(repo_id: str) -> None:
        missing.append(repo_id)
        view.mount(repo_id, snapshot_of(repo_id))

    with HubTap(view, mount) as tap:
        load_all(hub_id, TOKEN)
    assert missing == [hub_id]
    assert {call.repo_id for call in tap.calls} == {hub_id}
    bare = [call.filename for call in tap.calls if call.token != TOKEN and not call.cache_only]
    # transformers 5 asks for the config of large tokenizers once more, and loses the token.
    large = text_part(known_recipes()[hub_id].config)["vocab_size"] > 100_000
    assert set(bare) <= ({"config.json"} if large else set())
    found = {call.filename for call in tap.calls if call.found}
    assert {
        "config.json",
        "tokenizer_config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "generation_config.json",
    } <= found
    assert "model.safetensors" in {call.filename for call in tap.calls if not call.found}
    assert no_network == []


def test_a_missing_token_shows(view: HubView, snapshot_of: SnapshotOf) -> None:
    view.mount(MISTRAL, snapshot_of(MISTRAL))
    with HubTap(view) as tap:
        AutoConfig.from_pretrained(MISTRAL)
        huggingface_hub.hf_hub_download(MISTRAL, "config.json", token=TOKEN, revision="main")
    assert tap.calls[-1] == HubCall(MISTRAL, "config.json", TOKEN, "main", True)
    assert {call.token for call in tap.calls[:-1]} == {None}


def test_everything_is_as_before_afterwards(view: HubView, snapshot_of: SnapshotOf) -> None:
    view.mount(MISTRAL, snapshot_of(MISTRAL))
    constants = huggingface_hub.constants
    transformers_hub = transformers.utils.hub

    def settings() -> list[object]:
        names = ("_is_offline_mode", "TRANSFORMERS_CACHE")
        return [
            constants.HF_HUB_OFFLINE,
            constants.HF_HUB_CACHE,
            *(getattr(transformers_hub, n, None) for n in names),
        ]

    functions, before = held_functions(), settings()

    def fail_inside() -> None:
        with HubTap(view):
            assert constants.HF_HUB_OFFLINE
            assert held_functions() != functions
            from transformers import pipelines  # noqa: F401  a module that may be imported only now

            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert settings() == before
    after = held_functions()
    assert {key: after[key] for key in functions} == functions
    assert not any(
        getattr(function, "__qualname__", "").startswith("HubTap") for function in after.values()
    )


def test_the_view_is_the_only_source_and_nothing_is_asked_twice(
    view: HubView, no_network: list[object]
) -> None:
    asked: list[str] = []
    with HubTap(view, asked.append) as tap:
        for _ in range(2):
            with pytest.raises(OSError, match=r"connect|load"):
                AutoConfig.from_pretrained(MISTRAL)
            assert huggingface_hub.try_to_load_from_cache(MISTRAL, "config.json") is None
            assert not transformers.utils.hub.has_file(MISTRAL, "config.json")
    assert asked == [MISTRAL]
    assert tap.calls
    assert not any(call.found for call in tap.calls)
    assert no_network == []


def test_what_on_missing_raises_ends_the_load(view: HubView) -> None:
    def refuse(repo_id: str) -> None:
        raise LookupError(f"no recipe for {repo_id}")

    with HubTap(view, refuse), pytest.raises((LookupError, OSError)) as refusal:
        AutoConfig.from_pretrained("someone/else")
    chain = [refusal.value, refusal.value.__cause__, refusal.value.__context__]
    assert any("no recipe for someone/else" in str(error) for error in chain)


def test_a_local_directory_is_no_request(view: HubView, snapshot_of: SnapshotOf) -> None:
    with HubTap(view) as tap:
        load_all(str(snapshot_of(MISTRAL)), None)
    assert tap.calls == []


def test_other_settings_of_the_caller_do_not_lead_elsewhere(
    view: HubView, snapshot_of: SnapshotOf, tmp_path: Path
) -> None:
    view.mount(MISTRAL, snapshot_of(MISTRAL))
    with HubTap(view):
        AutoConfig.from_pretrained(MISTRAL, cache_dir=tmp_path / "elsewhere", force_download=True)
        snapshot = huggingface_hub.snapshot_download(MISTRAL, cache_dir=tmp_path / "elsewhere")
    assert Path(snapshot) == view.snapshot(MISTRAL)
    assert not (tmp_path / "elsewhere").exists()


def test_a_variant_is_what_the_next_load_sees(view: HubView, snapshot_of: SnapshotOf) -> None:
    view.mount(MISTRAL, snapshot_of(MISTRAL))

    def edit(directory: Path) -> None:
        path = directory / "generation_config.json"
        path.write_text(path.read_text().replace('"eos_token_id": 2', '"eos_token_id": [2, 7]'))

    with HubTap(view):
        seen = [GenerationConfig.from_pretrained(MISTRAL).eos_token_id]
        with view.variant(MISTRAL, edit):
            seen.append(GenerationConfig.from_pretrained(MISTRAL).eos_token_id)
        seen.append(GenerationConfig.from_pretrained(MISTRAL).eos_token_id)
    assert seen == [2, [2, 7], 2]

"""Recipes that are derived from published files: against those that a person wrote, and by
convention."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from conformance.hub import Hub, UnusableFiles, known_recipes, recipe_for
from conformance.hub.derive import Derived, derive
from conformance.hub.recipe_writer import RecipeExists, write_recipe
from conformance.hub.weights import checkpoint_shapes
from conformance.subject.declarations import Declarations
from tests.hub.conftest import SnapshotOf
from tests.published import CONFIGS, RANKS, write_published

HUB_ID = "Qwen/Qwen2-0.5B-Instruct"
PER_TURN = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% elif m.role == 'user' %}{{ bos_token + 'Q: ' + m.content + ' A:' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)


def _declared(derived: Derived) -> Declarations:
    return Declarations().updated(derived.recipe.subject, "derived")


BY_OTHER_SOURCES = {
    "microsoft/phi-2": ("bos", "bos_per_prompt", "training_dtype"),
    # Its hosts write one bos, where its template has one before each question; transformers 5
    # makes its tokenizer anew, with a space before a text alone that has none.
    "meta-llama/Llama-2-7b-chat-hf": ("bos_per_prompt", "normalisation", "training_dtype"),
}


@pytest.mark.parametrize(
    "hub_id",
    [
        "mistralai/Mistral-7B-Instruct-v0.1",
        "mistralai/Mistral-7B-Instruct-v0.3",
        "meta-llama/Llama-2-7b-chat-hf",
        "microsoft/phi-2",
    ],
)
def test_what_is_inferred_is_what_a_person_declared(hub_id: str, snapshot_of: SnapshotOf) -> None:
    written = known_recipes()[hub_id]
    derived = derive(snapshot_of(hub_id), hub_id)
    ours, theirs = _declared(derived), Declarations().updated(written.subject, "written")
    keys = (
        "bos", "bos_per_prompt", "terminator", "system_prompt", "normalisation", "positions",
        "patch_scale", "embedding_scale", "training_dtype",
    )  # fmt: skip
    for key in keys:
        if key not in BY_OTHER_SOURCES.get(hub_id, ()):
            assert getattr(ours, key) == getattr(theirs, key), key
    assert derived.recipe.architecture == written.architecture
    assert derived.recipe.derived
    assert not written.derived


def test_chatml_without_bos(tmp_path: Path) -> None:
    declared = _declared(derive(write_published(tmp_path / "model"), HUB_ID))
    assert (declared.bos, declared.bos_per_prompt, declared.patch_position) == (
        "none", "none", "start",
    )  # fmt: skip
    assert (declared.terminator, declared.system_prompt) == ("<|im_end|>", True)
    assert (declared.normalisation, declared.training_dtype) == ("nfc", "bfloat16")
    assert declared.prompt_rule == ()


def test_a_base_model_ends_in_its_own_eos(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "model", "gpt_neox", template=None)
    derived = derive(folder, "EleutherAI/pythia-70m")
    assert _declared(derived).terminator == "<|endoftext|>"
    assert derived.recipe.chat_template is None


@pytest.mark.parametrize(
    ("family", "place", "scales", "heads"),
    [
        ("llava", "language_model.model", {1.0}, 8),
        ("paligemma", "language_model.model", {1.0, 8.0}, 8),
        ("smolvlm", "model.text_model", {1.0}, 6),
    ],
)
def test_the_language_model_of_a_vision_language_checkpoint(
    family: str, place: str, scales: set[float], heads: int, tmp_path: Path
) -> None:
    """LLaVA's config says of its decoder no more than that it is a Llama. Where PaliGemma's scales
    its embeddings is another place in transformers 5."""
    folder = write_published(tmp_path / "model", family, template=None)
    if not hasattr(transformers, CONFIGS[family]["architectures"][0]):
        with pytest.raises(UnusableFiles, match="install a release that has it"):
            derive(folder, HUB_ID)
        return
    derived = derive(folder, HUB_ID)
    declared = _declared(derived)
    assert derived.recipe.language_model == place
    assert {declared.embedding_scale, declared.patch_scale} == scales
    assert declared.positions == "rotary"
    probe = derived.recipe.probe_config()
    assert probe["text_config"]["num_attention_heads"] == heads
    shapes = checkpoint_shapes(probe, derived.recipe.architecture)
    assert sum(math.prod(shape) for shape in shapes.values()) < 2_000_000
    write_recipe(derived, tmp_path / "recipes")
    written = recipe_for(HUB_ID, [tmp_path / "recipes"])
    assert (written.language_model, written.digest()) == (place, derived.recipe.digest())


def test_a_language_model_that_has_a_prefix_of_its_own(tmp_path: Path) -> None:
    """OPT's class calls its embedding `model.decoder.embed_tokens`, and BLIP-2 takes no text
    alone."""
    derived = derive(write_published(tmp_path, "blip2", template=None), HUB_ID)
    assert derived.recipe.language_model == "language_model.model"
    assert _declared(derived).positions == "absolute"


def test_a_language_model_under_other_names_is_refused(tmp_path: Path) -> None:
    text = CONFIGS["gpt_neox"]
    folder = write_published(tmp_path, "blip2", template=None, text_config=text)
    with pytest.raises(UnusableFiles, match=r"a GPTNeoXForCausalLM, which .* `gpt_neox.embed_in"):
        derive(folder, HUB_ID)


def test_sections_of_a_rotary_embedding_and_a_tower_beside(tmp_path: Path) -> None:
    """Qwen2.5-VL's config is its language model's, with a part for the tower."""
    folder = write_published(tmp_path, "qwen25_vl")
    if not hasattr(transformers, "Qwen2_5_VLForConditionalGeneration"):
        with pytest.raises(UnusableFiles, match="install a release that has it"):
            derive(folder, HUB_ID)
        return
    recipe = derive(folder, HUB_ID).recipe
    assert recipe.language_model is None
    assert recipe.probe_config()["rope_scaling"]["mrope_section"] == [1, 1, 2]
    shapes = checkpoint_shapes(recipe.probe_config(), recipe.architecture)
    assert sum(math.prod(shape) for shape in shapes.values()) < 3_000_000


def test_a_template_with_a_bos_for_each_turn(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "model", template=PER_TURN)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "bos_token": "<|endoftext|>"}), encoding="utf-8")
    declared = _declared(derive(folder, HUB_ID))
    assert (declared.bos, declared.bos_per_prompt) == ("prompt", "per-turn")
    assert not declared.system_prompt


def test_what_no_file_says_of_phi(snapshot_of: SnapshotOf) -> None:
    """Its builder writes a bos that no published file knows of, and its hosts train it in bfloat16,
    where the config says float16."""
    written = Declarations().updated(known_recipes()["microsoft/phi-2"].subject, "written")
    derived = _declared(derive(snapshot_of("microsoft/phi-2"), "microsoft/phi-2"))
    assert (derived.bos, written.bos) == ("none", "prompt")
    assert (derived.bos_per_prompt, written.bos_per_prompt) == ("none", "one")


ONE_TOKEN_FOR_BOTH = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)
"""As OLMo 2's: bos and eos are one token."""


@pytest.mark.parametrize(
    ("template", "bos", "per_prompt"),
    [
        (ONE_TOKEN_FOR_BOTH, "prompt", "one"),
        (ONE_TOKEN_FOR_BOTH.removeprefix("{{ bos_token }}"), "none", "none"),  # StableLM Zephyr
    ],
)
def test_the_end_of_an_answer_is_no_bos(
    template: str, bos: str, per_prompt: str, tmp_path: Path
) -> None:
    folder = write_published(tmp_path / "model", template=template)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    both = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    path.write_text(json.dumps({**config, **both}), encoding="utf-8")
    declared = _declared(derive(folder, HUB_ID))
    assert (declared.bos, declared.bos_per_prompt) == (bos, per_prompt)
    assert declared.terminator == "<|endoftext|>"


def test_a_probe_that_cannot_run_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_published(tmp_path / "model", "gpt_neox", template=None)

    def torn(self: torch.nn.Module, *inputs: object, **options: object) -> object:
        raise RuntimeError("shape [-1, 8, 0] is invalid")

    monkeypatch.setattr(transformers.GPTNeoXForCausalLM, "forward", torn)
    with pytest.raises(UnusableFiles, match=r"does not run at the sizes.*shape \[-1, 8, 0\]"):
        derive(folder, HUB_ID)


@pytest.mark.parametrize(("family", "architecture"), [("gemma", "GemmaForCausalLM")])
def test_what_a_model_does_to_embeddings_is_measured(
    family: str, architecture: str, tmp_path: Path
) -> None:
    config: dict[str, Any] = {
        "architectures": [architecture], "model_type": family, "hidden_size": 2048, "head_dim": 256,
        "intermediate_size": 16384, "num_attention_heads": 8, "num_key_value_heads": 1,
        "hidden_activation": "gelu_pytorch_tanh", "num_hidden_layers": 18,
        "pad_token_id": RANKS, "bos_token_id": RANKS,
    }  # fmt: skip
    derived = derive(write_published(tmp_path / "model", **config), "google/gemma-2b-it")
    declared, hidden = _declared(derived), derived.recipe.probe["hidden_size"]
    # Releases differ in where: inside the embedding, or behind it.
    assert declared.embedding_scale * declared.patch_scale == pytest.approx(
        math.sqrt(hidden), rel=5e-3
    )


def test_a_tokenizer_that_the_library_cannot_read_is_named(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "model")
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["model"]["type"] = "OfTheFuture"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UnusableFiles, match="cannot load the tokenizer"):
        derive(folder, HUB_ID)


def test_an_architecture_of_another_release_is_named(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "model", architectures=["Qwen9ForCausalLM"])
    with pytest.raises(UnusableFiles, match=r"no class 'Qwen9ForCausalLM'.*written by 4\.43\.1"):
        derive(folder, HUB_ID)


def test_a_template_that_cannot_be_rendered_is_named(tmp_path: Path) -> None:
    folder = write_published(tmp_path / "model", template="{% for m in messages %}")
    with pytest.raises(UnusableFiles, match=r"chat template .* cannot be rendered: Templ"):
        derive(folder, HUB_ID)


@pytest.mark.parametrize("pairs", [True, False])
def test_a_derived_recipe_is_built_from_the_published_files(
    pairs: bool, tmp_path: Path, hub: Hub
) -> None:
    folder = write_published(tmp_path / "model", pairs=pairs)
    recipe = derive(folder, HUB_ID).recipe
    snapshot = hub.build(recipe)
    same = ["tokenizer_config.json"] if pairs else ["tokenizer_config.json", "tokenizer.json"]
    for name in same:
        assert json.loads((snapshot / name).read_text()) == json.loads((folder / name).read_text())
    merges = json.loads((snapshot / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    # The form that tokenizers 0.19 reads too.
    assert all(isinstance(merge, str) for merge in merges["merges"])


def test_a_written_recipe_is_the_derived_one(tmp_path: Path, hub: Hub) -> None:
    derived = derive(write_published(tmp_path / "model"), HUB_ID)
    path = write_recipe(derived, tmp_path / "recipes")
    written = recipe_for(HUB_ID, [tmp_path / "recipes"])
    assert written.digest() == derived.recipe.digest()
    assert written.chat_template == derived.recipe.chat_template
    read = Declarations().updated(written.subject, str(path))
    assert read == _declared(derived)
    assert hub.build(written).is_dir()
    with pytest.raises(RecipeExists, match="--replace"):
        write_recipe(derived, tmp_path / "recipes")
    write_recipe(derived, tmp_path / "recipes", replace=True)
    assert sorted(p.name for p in (tmp_path / "recipes").iterdir()) == [path.stem, path.name]


def test_files_that_changed_since_are_refused(tmp_path: Path) -> None:
    derived = derive(write_published(tmp_path / "model"), HUB_ID)
    write_recipe(derived, tmp_path / "recipes")
    changed = tmp_path / "recipes" / HUB_ID.replace("/", "--") / "tokenizer_config.json"
    changed.write_text("{}", encoding="utf-8")
    with pytest.raises(Exception, match="was written for"):
        Hub(tmp_path / "hub").build(recipe_for(HUB_ID, [tmp_path / "recipes"]))


def test_a_folder_of_the_users_own_is_never_replaced(tmp_path: Path) -> None:
    """Its name may be the one that the recipe's tokenizer files take."""
    own = write_published(tmp_path / "recipes" / HUB_ID.replace("/", "--"))
    weights = own / "model.safetensors"
    weights.write_bytes(b"weights")
    derived = derive(own, HUB_ID)
    for replace in (False, True):
        with pytest.raises(RecipeExists, match=own.name):
            write_recipe(derived, tmp_path / "recipes", replace=replace)
    assert weights.read_bytes() == b"weights"
    assert (own / "config.json").is_file()
    assert [path.name for path in (tmp_path / "recipes").iterdir()] == [own.name]

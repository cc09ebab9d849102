"""Recipes: the published facts are there, and a bad file says what is wrong with it."""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packaging.version import Version

from conformance.hub import (
    InvalidRecipe,
    Recipe,
    UnknownRecipe,
    known_recipes,
    recipe_file,
    recipe_for,
)
from conformance.hub.published import text_part
from conformance.hub.recipe_file import read_recipe
from conformance.hub.recipes import RECIPES_VARIABLE
from conformance.places import fixtures_directory
from conformance.subject.declarations import Declarations

from .conftest import HUB_IDS, MISTRAL

GOOD = fixtures_directory() / "hub" / "mistralai--Mistral-7B-Instruct-v0.1.toml"


def test_every_built_in_hub_id_has_a_recipe() -> None:
    assert sorted(known_recipes()) == sorted(HUB_IDS)


def test_known_recipes_takes_milliseconds() -> None:
    known_recipes()
    start = time.perf_counter()
    known_recipes()
    assert time.perf_counter() - start < 0.2


def test_importing_the_hub_and_reading_recipes_imports_nothing_heavy() -> None:
    heavy = (
        "torch",
        "transformers",
        "tokenizers",
        "huggingface_hub",
        "sentencepiece",
        "mistral_common",
        "numpy",
    )
    program = (
        "import sys; from conformance.hub import known_recipes; "
        "[recipe.digest() for recipe in known_recipes().values()]; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout
        == "[]\n"
    )


@pytest.mark.parametrize("recipe", known_recipes().values(), ids=lambda recipe: recipe.hub_id)
def test_the_probe_keeps_the_ratios_of_the_published_config(recipe: Recipe) -> None:
    published, probe = text_part(recipe.config), text_part(recipe.probe_config())
    for numerator, denominator in (
        ("num_attention_heads", "num_key_value_heads"),
        ("intermediate_size", "hidden_size"),
    ):
        assert probe[numerator] / probe[denominator] == pytest.approx(
            published[numerator] / published[denominator]
        )
    for kept in ("max_position_embeddings", "tie_word_embeddings"):
        assert probe.get(kept) == published.get(kept)
    # Gemma's special tokens are its first, so that a vocabulary which is cut short keeps them.
    assert (probe["vocab_size"] == published["vocab_size"]) is not (
        recipe.tokenizer.layout == "gemma-bpe"
    )
    assert probe["vocab_size"] % 64 == published["vocab_size"] % 64
    assert "head_dim" in probe or probe["hidden_size"] % probe["num_attention_heads"] == 0
    if "head_dim" in published:
        together = (
            each["num_attention_heads"] * each["head_dim"] / each["hidden_size"]
            for each in (probe, published)
        )
        assert next(together) == pytest.approx(next(together))
    assert 2 <= probe["num_hidden_layers"] <= 6
    assert recipe.dtype == published["torch_dtype"]


@pytest.mark.parametrize("recipe", known_recipes().values(), ids=lambda recipe: recipe.hub_id)
def test_every_recipe_declares_what_the_suite_understands(recipe: Recipe) -> None:
    declared = Declarations().updated(recipe.subject, str(recipe.path))
    assert declared.backbone_ids
    assert all(declared.builder_for(backbone_id) for backbone_id in declared.backbone_ids)
    rows = text_part(recipe.probe_config())["vocab_size"]
    # Some models have rows to spare for a pad.
    spare = recipe.family in ("phi", "phi-3", "qwen2.5", "qwen3")
    with_pad = rows if spare else rows + 1
    assert declared.vocabulary_rows == -(-with_pad // 64) * 64
    assert recipe.sources


def test_published_facts() -> None:
    recipes = known_recipes()
    assert recipes[MISTRAL].config["sliding_window"] == 4096
    assert recipes[MISTRAL].tokenizer.kind == "real"
    llama = recipes["meta-llama/Llama-2-7b-hf"]
    assert llama.generation_config is not None
    assert (llama.generation_config["temperature"], llama.generation_config["pad_token_id"]) == (
        0.6,
        0,
    )
    assert llama.config["rope_scaling"] is None
    for version in ("Instruct-v0.2", "v0.3", "Instruct-v0.3"):
        config = recipes[f"mistralai/Mistral-7B-{version}"].config
        assert (config["sliding_window"], config["rope_theta"]) == (None, 1e6)
    for kind in ("Base", "Instruct"):
        config = recipes[f"mistralai/Mistral-Nemo-{kind}-2407"].config
        derived = config["hidden_size"] // config["num_attention_heads"]
        assert (config["head_dim"], derived) == (128, 160)
    phi = recipes["microsoft/phi-2"]
    assert (
        phi.template_oracle,
        phi.tokenizer.ships_chat_template,
        phi.config["partial_rotary_factor"],
        len(phi.tokenizer.config["added_tokens_decoder"]),
    ) == (
        "seed",
        False,
        0.4,
        39,
    )


def test_published_facts_of_newer_families() -> None:
    recipes = known_recipes()
    scaling = recipes["meta-llama/Llama-3.2-1B"].config["rope_scaling"]
    assert (scaling["rope_type"], scaling["factor"]) == ("llama3", 32.0)
    qwen = recipes["Qwen/Qwen2.5-7B-Instruct"]
    assert (qwen.config["vocab_size"], qwen.tokenizer.ranks) == (152_064, 151_643)
    assert qwen.generation_config is not None
    assert qwen.generation_config["repetition_penalty"] == 1.05
    gemma = recipes["google/gemma-2-2b-it"].config
    assert (gemma["attn_logit_softcapping"], gemma["final_logit_softcapping"]) == (50.0, 30.0)
    phi = recipes["microsoft/Phi-3-mini-128k-instruct"]
    factors = {"published": phi.config["rope_scaling"], "probe": phi.probe["rope_scaling"]}
    assert {name: len(one["long_factor"]) for name, one in factors.items()} == {
        "published": 48,
        "probe": 4,
    }


def test_a_package_that_is_not_installed_leaves_the_stand_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = fixtures_directory() / "hub" / "Qwen--Qwen3-8B.toml"
    monkeypatch.setattr(recipe_file, "_is_installed", lambda package: True)
    real = read_recipe(path)
    monkeypatch.setattr(recipe_file, "_is_installed", lambda package: False)
    stand_in = read_recipe(path)
    assert (real.tokenizer.kind, real.tokenizer.package) == ("real", "dashscope")
    assert stand_in.tokenizer == real.tokenizer.stand_in
    assert (stand_in.tokenizer.kind, stand_in.tokenizer.package) == ("stand-in", "mistral-common")
    assert stand_in.tokenizer.config == real.tokenizer.config
    assert stand_in.digest() != real.digest()


def test_declarations_may_be_those_of_an_older_library(monkeypatch: pytest.MonkeyPatch) -> None:
    path = fixtures_directory() / "hub" / "google--gemma-2b-it.toml"
    scales = {}
    for release in ("4.57.6", "5.23.0"):
        monkeypatch.setattr(recipe_file, "_library", lambda release=release: Version(release))
        subject = read_recipe(path).subject
        scales[release] = (subject["embedding_scale"], subject["patch_scale"])
    assert scales == {"4.57.6": (1.0, 8.0), "5.23.0": (8.0, 1.0)}


def test_an_unknown_id_is_refused_with_the_known_ones_and_the_way_to_add_it() -> None:
    with pytest.raises(UnknownRecipe) as refusal:
        recipe_for("someone/else-7b")
    message = str(refusal.value)
    for expected in (
        "someone/else-7b",
        *HUB_IDS[:3],
        HUB_IDS[-1],
        "--model someone/else-7b=FOLDER",
        "conformance hub add someone/else-7b --from FOLDER",
    ):
        assert expected in message


def test_the_nearest_known_hub_ids_are_suggested() -> None:
    with pytest.raises(UnknownRecipe) as refusal:
        recipe_for("mistralai/Mistral-7b-v0.1")
    assert "Did you mean:\n  mistralai/Mistral-7B-v0.1" in str(refusal.value)
    assert "vicuna" not in str(refusal.value)


def test_recipes_of_a_project_are_found_and_replace_built_in_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = GOOD.read_text(encoding="utf-8")
    (tmp_path / "mine").mkdir()
    own = tmp_path / "mine" / "me--mine.toml"
    own.write_text(text.replace("mistralai/Mistral-7B-Instruct-v0.1", "me/mine"), encoding="utf-8")
    replacing = tmp_path / GOOD.name
    replacing.write_text(text.replace('family = "mistral"', 'family = "ours"', 1), encoding="utf-8")
    assert recipe_for("me/mine", [own]).path == own
    assert recipe_for("mistralai/Mistral-7B-Instruct-v0.1", [replacing]).family == "ours"
    monkeypatch.setenv(RECIPES_VARIABLE, str(tmp_path / "mine"))
    assert "me/mine" in known_recipes()
    with pytest.raises(InvalidRecipe, match="no such directory"):
        known_recipes([tmp_path / "absent"])


def test_the_digest_follows_what_shapes_the_files_and_nothing_else(tmp_path: Path) -> None:
    text = GOOD.read_text(encoding="utf-8")
    digest = read_recipe(GOOD).digest()

    def digest_with(old: str, new: str) -> str:
        assert old in text
        path = tmp_path / GOOD.name
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return read_recipe(path).digest()

    assert digest_with('terminator = "</s>"', 'terminator = "<end>"') == digest
    assert digest_with("# Kept:", "# Kept, says a comment:") == digest
    assert digest_with("hidden_size = 64", "hidden_size = 128") != digest
    assert digest_with('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06') != digest
    assert digest_with('"legacy": true', '"legacy": false') != digest


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('hub_id = "mistralai/Mistral-7B-Instruct-v0.1"', "", "hub_id"),
        ('hub_id = "mistralai/Mistral-7B-Instruct-v0.1"', 'hub_id = "other/name"', "hub_id"),
        ('hub_id = "mistralai/Mistral-7B-Instruct-v0.1"', 'hub_id = "../../etc"', "hub_id"),
        ('dtype = "bfloat16"', 'dtype = "bf16"', "dtype"),
        ('dtype = "bfloat16"', "dtype = 16", "dtype"),
        ('kind = "real"', 'kind = "fake"', "tokenizer.kind"),
        ("sha256 = ", "sha265 = ", "tokenizer.sha256"),
        ('sha256 = "da', 'sha256 = "xx', "tokenizer.sha256"),
        ("hidden_size = 64", "hiden_size = 64", "probe.hiden_size"),
        ("num_key_value_heads = 2", "num_key_value_heads = 3", "probe.num_key_value_heads"),
        ('"vocab_size": 32000\n', '"vocab_size": 32000,\n', "published.config"),
        ('"vocab_size": 32000\n', '"rows": 32000\n', "published.config"),
        (
            '"architectures": ["MistralForCausalLM"]',
            '"architectures": ["Other"]',
            "published.config",
        ),
        (
            "generation_config = '''\n{",
            "generation_config = '''\n[{",
            "published.generation_config",
        ),
        ("[probe]", "[prob]", "probe"),
        ("[subject]", "[subjects]", "subjects"),
        (
            'chat_template = "mistral-instruct-v0.1.jinja"',
            'chat_template = "absent.jinja"',
            "chat_template",
        ),
        ('chat_template = "mistral-instruct-v0.1.jinja"', "", "chat_template"),
        ("ships_chat_template = true", 'ships_chat_template = "yes"', "ships_chat_template"),
        (
            "[subject]",
            '[[accepted_template_difference]]\nreason = "why"\n\n[subject]',
            "accepted_template_difference[0].name",
        ),
        (
            'template_oracle = "mistral-common-v1"',
            'template_oracle = "mistral-common"',
            "template_oracle",
        ),
        ('"tokenizer_class": "LlamaTokenizer"', '"tokenizer_class": null', "tokenizer.config"),
    ],
)
def test_a_bad_key_is_named_with_what_would_be_right(
    tmp_path: Path, old: str, new: str, named: str
) -> None:
    text = GOOD.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / GOOD.name
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InvalidRecipe) as refusal:
        read_recipe(path)
    message = str(refusal.value)
    assert str(path) in message
    assert named in message
    assert "right would be" in message


def test_whatever_happens_to_a_recipe_it_is_read_or_refused_by_name(tmp_path: Path) -> None:
    whole = GOOD.read_bytes()
    path = tmp_path / GOOD.name
    source = random.Random(0)
    junk = [b"\x00", b"\xff\xfe", b"[[", b'"""', b"= ", b"\n[x]\n", b"{", b"9" * 50, b"nan", b"'''"]
    refused = 0
    for _ in range(300):
        broken = bytearray(whole)
        for _ in range(source.randint(1, 3)):
            at = source.randrange(len(broken))
            end = at + source.choice((0, 1, 5, 200, len(broken)))
            broken[at:end] = source.choice([*junk, b"", b""])
        path.write_bytes(bytes(broken))
        with contextlib.suppress(InvalidRecipe):
            read_recipe(path)
            continue
        refused += 1
        with pytest.raises(InvalidRecipe, match=re.escape(str(path))):
            read_recipe(path)
    assert refused > 150
    path.write_text("a = " + "[" * 5000, encoding="utf-8")
    with pytest.raises(InvalidRecipe, match=path.name):
        read_recipe(path)

"""What a subject may declare, and what is said to whoever gets it wrong."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.errors import CannotAssess
from conformance.subject.declarations import Declarations, PromptRule, declarations_in

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(sorted(Declarations().as_json()))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"boss": "auto"}, ["boss", "known keys", "did you mean `bos`?"]),
        ({"bos": "always"}, ["always", "auto", "prompt", "none"]),
        ({"image_patches": "many"}, ["image_patches", "many", "whole number"]),
        ({"image_patches": True}, ["image_patches", "True"]),
        ({"image_patches": -1}, ["image_patches", "-1"]),
        ({"system_prompt": 1}, ["system_prompt", "true or false"]),
        ({"boundary_fixup": ["29871"]}, ["boundary_fixup", "token ids"]),
        ({"prompt_rule": [{"pattern": "*"}]}, ["prompt_rule", "builder"]),
        ({"prompt_rule": 3}, ["prompt_rule"]),
        ({"terminator_ends": "questions"}, ["terminator_ends", "assistant", "every-turn"]),
        ({"hosts": "openvla"}, ["hosts", "openvla", "list of strings"]),
        ({"training_dtype": "half"}, ["training_dtype", "half", "bfloat16"]),
    ],
)
def test_a_wrong_declaration_is_refused_with_its_key(
    table: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(CannotAssess) as refused:
        Declarations().updated(table, "conformance.toml")
    assert all(word in str(refused.value) for word in [*words, "conformance.toml"])


@given(table=st.dictionaries(KEYS | st.text(max_size=6), JSON, max_size=4))
def test_any_table_is_taken_or_refused_clearly(table: dict[str, Any]) -> None:
    with suppress(CannotAssess):
        assert isinstance(Declarations().updated(table, "somewhere.toml"), Declarations)


def test_later_declarations_win() -> None:
    declared = (
        Declarations()
        .updated({"bos": "prompt", "window": 16}, "recipe")
        .updated({"bos": "none"}, "user")
    )
    assert (declared.bos, declared.window) == ("none", 16)


def test_the_first_matching_rule_counts() -> None:
    declared = Declarations(prompt_rule=(PromptRule("vicuna-*", "A"), PromptRule("*-chat", "B")))
    assert declared.builder_for("vicuna-chat") == "A"
    assert declared.builder_for("llama-chat") == "B"
    assert declared.builder_for("llama-pure") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[subject\n", ["not TOML"]),
        ("subject = 3\n", ["should be a table"]),
        ("[subject]\nbos = 'x'\n", ["bos"]),
    ],
)
def test_a_broken_configuration_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(text)
    with pytest.raises(CannotAssess) as refused:
        declarations_in(config)
    assert all(word in str(refused.value) for word in [*words, "mine.toml"])


def test_a_missing_configuration_is_refused_only_when_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert declarations_in(None) == ({}, None)
    with pytest.raises(CannotAssess, match=r"absent\.toml"):
        declarations_in(Path("absent.toml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[subjct]\nbos = "prompt"\n', ["`subjct`", "did you mean `subject`?", "mine.toml"]),
        ('bos = "prompt"\n', ["`bos`", "`[subject]`"]),
        ("[subject]\n[waiver]\n", ["`waiver`"]),
    ],
)
def test_a_table_that_nobody_reads_is_refused(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(CannotAssess) as refused:
        declarations_in(path)
    assert all(word in str(refused.value) for word in words)

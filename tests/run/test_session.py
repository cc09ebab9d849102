"""What a session cannot serve is refused by name, and is no fault of the subject's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conformance.errors import CannotAssess
from conformance.places import fixtures_directory
from conformance.run.request import RunRequest
from conformance.run.session import open_session
from conformance.subject.target import resolve

RECIPE = "mistralai--Mistral-7B-Instruct-v0.1.toml"


def test_a_recipe_that_the_library_refuses_is_named(tmp_path: Path) -> None:
    """transformers would tell the constructor that there is no network: the exception passes
    through its own handlers."""
    text = (fixtures_directory() / "hub" / RECIPE).read_text(encoding="utf-8")
    (tmp_path / RECIPE).write_text(text.replace('"silu"', '"silly"'), encoding="utf-8")
    request = RunRequest(
        target="mistral-v0.1-7b-instruct", recipes=(tmp_path / RECIPE,), hub=tmp_path / "hub"
    )
    target = resolve(request.target)
    with (
        open_session(target, request, tmp_path / "home", lambda phase, detail: None) as session,
        pytest.raises(
            CannotAssess, match="cannot build MistralForCausalLM from this config"
        ) as refusal,
    ):
        session.construct()
    assert str(tmp_path / RECIPE) in str(refusal.value)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"outside": ["llm.model"]}, "`llm.model`, which holds the language model itself"),
        ({"outside": ["llm.model.layers"]}, "which holds the language model itself"),
        ({"outside": ["llm.config"]}, "is a MistralConfig, but should be a module"),
        ({"outside": ["llm.vision"]}, "leads nowhere"),
        ({"optional_absent": ["hf_token"]}, "every constructor is called with"),
        ({"layers_kept": 32}, "nothing is cut off"),
    ],
)
def test_declarations_that_would_hide_the_model_are_refused(
    declared: dict[str, object], words: str
) -> None:
    """Nothing would be judged of what they name."""
    from conformance import check_backbone
    from tests.sound.plain import Plain

    with pytest.raises(CannotAssess, match=re.escape(words)):
        check_backbone(
            Plain, "mistral-v0.1-7b-instruct", declarations=declared, only=("CON-01", "CON-09")
        )

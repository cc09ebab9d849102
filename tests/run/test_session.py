"""What a session cannot serve is refused by name, and is no fault of the subject's."""

from __future__ import annotations

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

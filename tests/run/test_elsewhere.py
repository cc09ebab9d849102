"""The second process tells what it built; what merely ends it is no fault of the subject's."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.assertions import NotApplicable, NotRun
from conformance.run.elsewhere import Elsewhere
from conformance.run.request import RunRequest

pytestmark = pytest.mark.slow

MINE = """
import os, signal, time
from backbones.mistral import MistralLLMBackbone

class Mine(MistralLLMBackbone):
    def __init__(self, *args, **kwargs):
        {body}
        super().__init__(*args, **kwargs)
"""


def elsewhere(
    tmp_path: Path, body: str, target: str = "mine.py:Mine", timeout: float = 120.0
) -> Elsewhere:
    (tmp_path / "mine.py").write_text(MINE.format(body=body), encoding="utf-8")
    request = RunRequest(
        target=str(tmp_path / target), backbone_id="mistral-v0.1-7b-instruct", timeout=timeout
    )
    return Elsewhere(request, tmp_path / "elsewhere")


def test_traits_are_told(tmp_path: Path) -> None:
    (built,) = elsewhere(tmp_path, "pass")()
    assert built.raised is None
    assert built.traits["`padding_side` of the tokenizer"] == "'right'"
    assert built.traits["the id of '</s>'"] == "2"
    assert any(name.startswith("the values of") for name in built.traits)


def test_strings_hash_otherwise_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    (built,) = elsewhere(tmp_path, "raise ValueError(os.environ['PYTHONHASHSEED'])")()
    assert built.raised == "ValueError: 2"


def test_what_cannot_be_imported_there_is_not_judged(tmp_path: Path) -> None:
    with pytest.raises(NotApplicable, match="has no attribute `Yours`"):
        list(elsewhere(tmp_path, "pass", "mine.py:Yours")())


def test_a_refusal_there_alone_is_told(tmp_path: Path) -> None:
    body = (
        "self.models = {one: {**row, 'hf_hub_path': 'no/such'} for one, row in self.models.items()}"
    )
    (built,) = elsewhere(tmp_path, body)()
    assert str(built.raised).startswith("UnknownRecipe: ")


@pytest.mark.parametrize(
    ("body", "timeout", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 120.0, "SIGKILL"),
        ("time.sleep(600)", 8.0, "more than 8 s"),
    ],
)
def test_an_end_that_says_nothing_is_not_the_subjects(
    tmp_path: Path, body: str, timeout: float, words: str
) -> None:
    with pytest.raises(NotRun, match=words):
        list(elsewhere(tmp_path, body, timeout=timeout)())

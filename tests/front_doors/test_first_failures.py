"""What goes wrong first for whoever brings a class of their own: a real file, a real process, and
the line to mend in its words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

pytestmark = pytest.mark.slow

INSTRUCT = "mistral-v0.1-7b-instruct"
MINE = """
from backbones.mistral import MistralLLMBackbone
from transformers import MistralForCausalLM

class Raises(MistralLLMBackbone):
    def __init__(self, *args, **kwargs):
        [1, 2][99]  # line 7

class Dropped(MistralLLMBackbone):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        MistralForCausalLM.from_pretrained(  # line 12
            "mistralai/Mistral-7B-Instruct-v0.1", use_flash_attention_2=False)

class TakesTooLittle(MistralLLMBackbone):
    def __init__(self, llm_backbone_id, hf_token=None):  # line 16
        super().__init__(llm_backbone_id)

class Misspelt(MistralLLMBackbone):
    def get_tokenizer(self):
        return self.tokeniser  # line 21

class Forward(MistralLLMBackbone):
    def forward(self, *args, **kwargs):
        return [][0]  # line 25
"""


def conformance(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "conformance", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
    )


@pytest.mark.parametrize(
    ("name", "clause", "place", "mend"),
    [
        ("Raises", "CON-01", "mine.py:7 in __init__", "see mine.py:7 in __init__"),
        ("TakesTooLittle", "CON-01", "mine.py:16 in __init__", "take the documented arguments"),
        ("Misspelt", "PAD-01", "mine.py:21 in get_tokenizer", ""),
        ("Forward", "CON-08", "mine.py:25 in forward", ""),
    ],
)
def test_the_line_of_the_users_own_file_is_named(
    tmp_path: Path, name: str, clause: str, place: str, mend: str
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    done = conformance(
        "certify", f"mine.py:{name}", "--id", INSTRUCT, "--only", clause, "--verbose",
        "--out", "out", cwd=tmp_path,
    )  # fmt: skip
    said = " ".join(done.stdout.split())
    assert done.returncode == 1, done.stderr
    assert said.startswith(f"{clause} failed")
    assert place in said
    assert mend in said
    assert ("take the documented" in said) == (name == "TakesTooLittle")
    # Shown by --verbose, and kept.
    assert "Traceback" in said
    predicate = json.loads((tmp_path / "out" / "certificate.json").read_text())["predicate"]
    evidence = next(one for one in predicate["requirements"] if one["id"] == clause)["evidence"]
    assert evidence["where"].startswith(place)
    assert evidence["traceback"].startswith("Traceback")


def test_a_keyword_that_the_library_dropped_is_named(tmp_path: Path) -> None:
    import transformers

    if int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip("this release still takes it")
    (tmp_path / "mine.py").write_text(MINE)
    done = conformance(
        "certify", "mine.py:Dropped", "--id", INSTRUCT, "--only", "CON-01", cwd=tmp_path
    )
    said = " ".join(done.stdout.split())
    assert "mine.py:12 in __init__, from transformers/modeling_utils.py:" in said
    assert 'takes no `use_flash_attention_2` here: pass `attn_implementation="flash_' in said
    assert "Traceback" not in said


IDS = """
from backbones.mistral import MistralLLMBackbone

class Mine(MistralLLMBackbone):
    pass

class Another:
    def __init__(self, backbone_id, **arguments):
        raise ValueError(f"what is {backbone_id}?")

class Faulty:
    MODELS = {"mine-7b": {"hf_hub_path": "mistralai/Mistral-7B-v0.1"}}

    def __init__(self, backbone_id, **arguments):
        raise ValueError(f"{backbone_id} is out of order")
"""


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            ("ids.py:Mine", "--id", "mistral-v0.1-7b-instrct"),
            f"did you mean `{INSTRUCT}`?",
        ),
        (("ids.py:Mine", "--id", "nothing-like-it"), "it knows mistral-v0.1-7b-pure, mistral-"),
        (("ids.py:Another", "--id", "mistral-v0.1-7b-instrct"), f"did you mean `{INSTRUCT}`?"),
        (("ids.py:Faulty", "--id", "mine-8b"), "did you mean `mine-7b`?"),
        (("ids.py:Mine",), "choose one with --id (mistral-v0.1-7b-pure, mistral-v0.1-"),
        (("ids.py",), "one of ids.py:Mine, ids.py:Another, ids.py:Faulty"),
        (("ids",), "one of ids:Mine, ids:Another, ids:Faulty"),
        (("absent.py",), "there is no file `absent.py`"),
    ],
)
def test_what_is_misspelt_is_no_verdict(
    tmp_path: Path, target: tuple[str, ...], words: str
) -> None:
    (tmp_path / "ids.py").write_text(IDS)
    done = conformance("certify", *target, "--out", "out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "llama" not in done.stderr, "of another class"
    assert not (tmp_path / "out" / "certificate.json").exists()


@pytest.mark.parametrize(
    ("target", "backbone_id"),
    [
        ("ids.py:Faulty", "mine-7b"),  # in its table
        ("ids.py:Another", "my-own-7b-instruct"),  # like none that is known
        ("ids.py:Another", INSTRUCT),
    ],
)
def test_a_constructor_that_is_at_fault_is_one(
    tmp_path: Path, target: str, backbone_id: str
) -> None:
    (tmp_path / "ids.py").write_text(IDS)
    done = conformance("certify", target, "--id", backbone_id, "--only", "CON-01", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "CON-01 failed" in done.stdout


LACKING = """
from backbones.mistral import MistralLLMBackbone

class Lacking:
    def __init__(self, *args, **kwargs):
        self.inner = MistralLLMBackbone(*args, **kwargs)

    def __getattr__(self, name):
        if name == "embed_input_ids":
            raise AttributeError(name)
        return getattr(self.inner, name)
"""


@pytest.mark.parametrize("place", ["--config", "--recipes", ""])
def test_a_member_is_absent_by_declaration_wherever_it_is_declared(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "mine.py").write_text(LACKING)
    declaration = '[subject]\noptional_absent = ["embed_input_ids"]\n'
    recipe = "mistralai--Mistral-7B-Instruct-v0.1.toml"
    (tmp_path / "config.toml").write_text(declaration)
    published = (ROOT / "fixtures" / "hub" / recipe).read_text()
    (tmp_path / recipe).write_text(published.replace("[subject]\n", declaration))
    options = {"--config": ["--config", "config.toml"], "--recipes": ["--recipes", recipe], "": []}
    done = conformance(
        "certify", "mine.py:Lacking", "--id", INSTRUCT, "--only", "CON-03", *options[place],
        cwd=tmp_path,
    )  # fmt: skip
    said = " ".join(done.stdout.split())
    assert done.returncode == (0 if place else 1), said
    assert ("missing member(s): embed_input_ids" in said) != bool(place)

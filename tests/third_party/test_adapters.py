"""Classes of another shape, unmodified: with an adapter sound ones are certified, and planted
defects are refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conformance.toml import load_toml

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
MISTRAL = "mistralai/Mistral-7B-v0.1"


@dataclass(frozen=True)
class Shape:
    """A class, the id to ask it for, and its adapter."""

    name: str
    backbone_id: str
    adapter: str

    @property
    def config(self) -> Path:
        return HERE / "adapters" / f"{self.adapter}.toml"


VLA = Shape("VlaPolicy", "smol-vla", "vla")
CUT = Shape("EagleTrunk", "eagle", "cut")
TWO = Shape("TwoArguments", MISTRAL, "two")


def certify(
    shape: Shape, *options: str, config: Path | None = None, name: str | None = None
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [sys.executable, "-m", "conformance", "certify",
             f"{HERE / 'policies.py'}:{name or shape.name}", "--id", shape.backbone_id,
             "--config", str(config or shape.config), "--budget", "quick", "--out", out, *options],
            capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
        file = Path(out) / "certificate.json"
        text = file.read_text(encoding="utf-8") if file.exists() else '{"predicate": {}}'
    predicate: dict[str, Any] = json.loads(text)["predicate"]
    return done, predicate


def outcomes_in(predicate: dict[str, Any]) -> dict[str, str]:
    return {entry["id"]: entry["outcome"] for entry in predicate["requirements"]}


def without(text: str, *lines: str) -> str:
    """The configuration without these lines."""
    for line in lines:
        assert f"{line}\n" in text
        text = text.replace(f"{line}\n", "")
    return text


@pytest.mark.parametrize(
    "shape",
    [VLA, *(pytest.param(shape, marks=pytest.mark.release) for shape in (CUT, TWO))],
    ids=lambda shape: shape.adapter,
)
def test_a_sound_class_of_another_shape_is_certified(shape: Shape) -> None:
    done, predicate = certify(shape)
    assert done.returncode == 0, predicate.get("failedTests", done.stderr)
    outcomes = outcomes_in(predicate)
    assert outcomes["CON-01"] == outcomes["FSDP-02"] == outcomes["FWD-10"] == "passed"
    declared = predicate["subjectDeclarations"]
    table = load_toml(shape.config)["adapter"]
    assert declared["adapter"] == {key: value for key, value in table.items() if value != {}}
    # What is declared absent is neither passed nor failed.
    assert outcomes["CON-02"] == outcomes["PRM-03"] == outcomes["HALF-01"] == "not-applicable"
    assert "inference_mode" in declared["optional_absent"]
    assert list(predicate["sources"]) == ["policies.py"]


@pytest.mark.parametrize(
    ("shape", "defect", "clause"),
    [
        (VLA, "PadsWithTheEnd", "PAD-03"),
        (CUT, "ChangesWeights", "CON-01"),
        (TWO, "WrapsTheMlp", "FSDP-02"),
    ],
)
def test_a_planted_defect_is_refused_by_name(shape: Shape, defect: str, clause: str) -> None:
    only = ",".join(dict.fromkeys(["CON-01", "FSDP-01", clause]))
    done, predicate = certify(shape, "--only", only, name=defect)
    assert done.returncode == 1, done.stderr
    failed = {one for one, outcome in outcomes_in(predicate).items() if outcome == "failed"}
    assert failed == {clause}


def test_a_cut_that_is_not_declared_is_a_failure(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(without(CUT.config.read_text(encoding="utf-8"), "layers_kept = 1"))
    done, predicate = certify(CUT, "--only", "CON-01,FSDP-01", config=config)
    assert done.returncode == 1
    assert outcomes_in(predicate)["CON-01"] == "failed"


def test_a_member_that_is_missing_and_not_declared_is_a_failure(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(VLA.config.read_text(encoding="utf-8").replace('"embed_dim", ', ""))
    done, predicate = certify(VLA, "--only", "CON-03", config=config)
    assert done.returncode == 1
    (found,) = (one for one in predicate["requirements"] if one["id"] == "CON-03")
    assert "embed_dim" in found["summary"]


@pytest.mark.parametrize(
    ("shape", "old", "new", "words"),
    [
        (VLA, 'llm = "vlm.language"', 'llm = "vlm.langage"',
         "`vlm` is a Vlm, which has no `langage` (did you mean `language`?)"),
        (VLA, "layers =", "layer =", "unknown key `layer` (did you mean `layers`?)"),
        (VLA, "model_id =", "model_ids =",
         "names `model_ids`, which `VlaPolicy` does not take (did you mean `model_id`?)"),
        (CUT, "layers_kept = 1", "layers_kept = 12", "has 3 layers: nothing is cut off"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_exit_2(
    shape: Shape, old: str, new: str, words: str, tmp_path: Path
) -> None:
    config = tmp_path / "mine.toml"
    text = shape.config.read_text(encoding="utf-8")
    assert old in text
    config.write_text(text.replace(old, new))
    done, predicate = certify(shape, "--only", "CON-01", config=config)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2, said
    assert words in said
    assert "Traceback" not in said
    assert not predicate

"""`conformance drift` as users run it, between two environments that are there: virtual ones over
the packages that are installed here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from tests import ROOT, schemas

pytestmark = pytest.mark.slow

INSTRUCT = "mistral-v0.1-7b-instruct"
QUICK = ("--id", INSTRUCT, "--only", "PAD-01,PAD-03,EMB-03,TOK-02,TOK-09", "--budget", "quick")
SUBJECT = """
import sys
from pathlib import Path

from backbones.mistral import MistralLLMBackbone

if (Path(sys.prefix) / "refuses").exists():
    raise ImportError("this release has no MistralModel")


class Drifting(MistralLLMBackbone):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if (Path(sys.prefix) / "drifts").exists():
            self.tokenizer.pad_token = self.tokenizer.eos_token
            self.llm.config.pad_token_id = self.tokenizer.eos_token_id
"""
HANGING = """
import time
from pathlib import Path

Path(__file__).with_name("begun").write_text("")
time.sleep(600)
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two environments over the packages of this one."""
    folder = tmp_path_factory.mktemp("environments")
    found = {}
    for name in ("before", "after"):
        place = folder / name
        made = subprocess.run(
            [sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(place)],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            pytest.skip(f"virtual environments cannot be made here: {made.stderr.strip()}")
        # Of a virtual environment, --system-site-packages takes the packages of its base.
        (packages,) = place.glob("lib/*/site-packages")
        here = sysconfig.get_paths()
        (packages / "here.pth").write_text(f"{here['purelib']}\n{here['platlib']}\n")
        found[name] = place
    return found


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}


def drift(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "conformance", "drift", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(),
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def between(before: Path, after: Path) -> list[str]:
    return ["--python-from", str(before), "--python-to", str(after)]


def test_two_environments_that_are_alike_show_nothing(
    pair: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(SUBJECT)
    sides = between(pair["before"], pair["after"])
    done = drift("mine.py:Drifting", *QUICK, *sides, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(done.stdout)
    schemas.check("drift", document)
    assert (document["changed"], document["facts"], document["clauses"]) == (False, [], [])
    assert document["to"]["python"].startswith(str(pair["after"]))
    assert f"{pair['after']}: certifying" in done.stderr


def test_what_the_second_environment_changes_is_shown(
    pair: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(SUBJECT)
    (pair["after"] / "drifts").write_text("")
    try:
        sides = between(pair["before"], pair["after"])
        done = drift("mine.py:Drifting", *QUICK, *sides, "--out", "out", cwd=tmp_path)
    finally:
        (pair["after"] / "drifts").unlink()
    assert done.returncode == 1, done.stdout + done.stderr
    assert max(len(line) for line in done.stdout.splitlines() if "files:" not in line) < 80
    document = json.loads((tmp_path / "out" / "drift.json").read_text())
    changed = {one["id"]: (one["before"], one["after"]) for one in document["clauses"]}
    assert changed["PAD-03"] == ("passed", "failed")
    assert "the pad id 2 is also eos" in " ".join(done.stdout.split())
    sides_of_pad = [
        (one["before"], one["after"])
        for one in document["facts"]
        if one["what"] == "special ids: pad"
    ]
    # PAD-01 is asked alone too: an eos that pads is a pad token, if a wrong one.
    assert sides_of_pad == [("32000", "2")] or changed["PAD-01"] == ("passed", "failed")
    held = json.loads((tmp_path / "out" / "from" / "certificate.json").read_text())
    evidence = {one["id"]: one["evidence"] for one in held["predicate"]["requirements"]}
    assert evidence["PAD-01"]["special ids"] == {
        "pad": 32000, "bos": 1, "eos": 2, "unk": 0, "generation eos": [2],
    }  # fmt: skip
    assert evidence["EMB-03"]["vocabulary"] == {"rows": 32064, "tokens": 32001}
    assert set(evidence["TOK-09"]["tokenizer"]) == {
        "vocab_size", "chat template", "ids of fixed texts",
    }  # fmt: skip
    assert evidence["TOK-02"]["ids of a dialogue"]


def test_a_side_that_cannot_be_assessed_is_named(pair: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SUBJECT)
    (pair["after"] / "refuses").write_text("")
    try:
        sides = between(pair["before"], pair["after"])
        done = drift("mine.py:Drifting", *QUICK, *sides, "--out", "out", cwd=tmp_path)
    finally:
        (pair["after"] / "refuses").unlink()
    assert done.returncode == 2, done.stdout
    assert f"conformance: {pair['after']}: " in done.stderr
    assert "this release has no MistralModel" in done.stderr
    assert not (tmp_path / "out" / "drift.json").exists()


def test_an_environment_that_lacks_packages_is_named(pair: dict[str, Path], tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    done = drift(INSTRUCT, *QUICK[2:], *between(bare, pair["after"]), cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert f"{bare}: `conformance certify` exited with status 1" in done.stderr
    assert "No module named" in done.stderr
    assert "`conformance doctor`" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--from and --python-from: neither names one side"),
        (["--from", "transformers==4.40.1"], "--to and --python-to: neither names"),
        (["--from", "transformers==4.40.1", "--python-from", "."], "both name one side"),
        (["--python-from", ".", "--python-to", "."], ". is no virtual environment"),
        (["--from", "==4.40.1", "--to", "transformers==5.0"], "'==4.40.1' is not a requirement"),
        (["--python-from", ".", "--python-to", ".", "--with", "einops"], "--with is for"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = drift(INSTRUCT, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr


def test_an_interrupt_ends_everything(pair: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    running = subprocess.Popen(
        [sys.executable, "-m", "conformance", "drift", f"{tmp_path}/hanging.py:Class", *QUICK,
        *between(pair["before"], pair["after"])],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(running.pid, signal.SIGINT)
    output, _ = running.communicate(timeout=30)
    assert running.returncode == 130, output
    assert "Traceback" not in output
    assert not _running(tmp_path)


def _running(folder: Path) -> list[int]:
    """Processes that are about a subject in this folder; a moment is allowed for the last to go."""
    needle = f"{folder}/hanging.py".encode()
    for _ in range(20):
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if needle in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        if not found:
            return []
        time.sleep(0.1)
    return found

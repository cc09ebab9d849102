"""What becomes of versions that do not build, hang or die, of cancelled jobs, and of the whole
experiment on power: seconds, and minutes, in real processes. None of it depends on the version of
transformers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.bench.repository import CLEAN, QUICK, TARGET, run

pytestmark = pytest.mark.slow

LATE = """
    calls = 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        if self.calls == 20:
            {does}
        return super().forward(*args, **kwargs)
"""


def test_a_base_that_does_not_build_is_told(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", *TARGET, "--base", "broken", "--pairs", "2", *QUICK) == 2
    assert "half of a commit" in " ".join(capsys.readouterr().out.split())


def test_a_head_that_does_not_build_fails(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run("compare", *TARGET, "--base", "clean", "--head", "broken", "--pairs", "2", *QUICK) == 1
    )
    assert "half of a commit" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("time.sleep(600)", "did not pass the turn"),
        ("os._exit(3)", "the process that measured exited with status 3"),
    ],
)
def test_a_head_that_hangs_or_dies_amid_its_rounds_fails(
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    does: str,
    told: str,
) -> None:
    """Base, which waits for its turn in vain, says so too, and is not to blame."""
    monkeypatch.setattr("conformance.bench.parent.workers._LAST_WORDS", 1.0)
    if "sleep" in does:  # a fifth of the time, within which all is prepared
        monkeypatch.setattr("conformance.bench.parent.workers._PATIENCE", 0.2)
    Path("mine.py").write_text(
        "import os\nimport time\n" + CLEAN.replace("    pass\n", LATE.format(does=does))
    )
    assert (
        run("compare", *TARGET, "--base", "clean", "--pairs", "2", *QUICK, "--timeout", "200") == 1
    )
    assert told in " ".join(capsys.readouterr().out.split())


def test_what_cannot_be_found_is_told_after_one_pair(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    nowhere = [
        "mine.py:Nope",
        "--id",
        "mistral-v0.1-7b-instruct",
        "--base",
        "clean",
        *QUICK,
        "--out",
        str(out),
    ]
    assert run("compare", *nowhere) == 2
    assert "has no attribute `Nope`" in " ".join(capsys.readouterr().out.split())
    assert len(list((out / "runs" / "base").glob("*.json"))) == 1


def test_who_is_terminated_leaves_no_worktree(repository: Path) -> None:
    asked = ["compare", *TARGET, "--base", "clean", "--pairs", "4", *QUICK]
    running = subprocess.Popen(
        [sys.executable, "-m", "conformance", "bench", *asked],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stderr is not None
    assert "pair" in running.stderr.readline()
    running.terminate()
    running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    trees = subprocess.run(
        ["git", "worktree", "list"], capture_output=True, text=True
    ).stdout.splitlines()
    assert len(trees) == 1


def test_power_is_measured_and_drawn_from_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if request.config.getoption("--mutants") != "full":
        pytest.skip("takes three minutes: `tox -e matrix` runs it")
    monkeypatch.setattr("conformance.bench.power.SLOWDOWNS", (0.0, 0.5))
    monkeypatch.setattr("conformance.bench.power.CONFIRMED", (0.5,))
    out = tmp_path / "power"
    asked = ["--pairs", "2", "--recorded", "2", "--confirm", "2", "--draws", "20", *QUICK]
    assert run("power", "mistral-v0.1-7b-instruct", *asked, "--out", str(out), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "power.json").read_text())
    assert [(one["slowdown"], one["pairs"]) for one in told["confirmations"]] == [
        (0.0, 2),
        (0.5, 2),
    ]
    assert told["memory"]["found"] == told["memory"]["of"] == 1
    without, slowed = told["rates"]
    assert (without["benchmark"], without["recorded"]) == ("any", 4)
    assert 0.25 < slowed["measured"] < 1, "half as long again, give or take the noise of four pairs"
    assert "<svg" in (out / "power.svg").read_text()
    assert run("power", "--recording", str(out), "--pairs", "2", "--draws", "20", "--json") == 0
    assert json.loads(capsys.readouterr().out) == told

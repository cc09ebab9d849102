"""``conformance bench`` as users run it: real processes, a real repository, real worktrees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.cli import main
from tests.bench.samples import DECODE, PREFILL, document, entry
from tests.conftest import ROOT

CLEAN = """
from backbones.mistral import MistralLLMBackbone


class Mine(MistralLLMBackbone):
    pass
"""
SLOW = """
from backbones.mistral import MistralLLMBackbone


class Mine(MistralLLMBackbone):
    def forward(self, *args, **kwargs):
        for _ in range(3):
            super().forward(*args, **kwargs)
        return super().forward(*args, **kwargs)
"""
TARGET = ["mine.py:Mine", "--id", "mistral-v0.1-7b-instruct"]
QUICK = ["--workload", "prefill", "--rounds", "30", "--processes", "forked", "--device", "cpu"]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "repository"
    (place / "robots").mkdir(parents=True)

    def git(*arguments: str) -> None:
        who = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
        subprocess.run(["git", *who, "-C", str(place), *arguments], check=True, capture_output=True)

    git("init", "--initial-branch", "main")
    (place / "robots" / "mine.py").write_text(CLEAN)
    git("add", ".")
    git("commit", "-m", "clean")
    git("tag", "clean")
    (place / "robots" / "mine.py").write_text("raise RuntimeError('half of a commit')\n")
    git("commit", "-am", "broken")
    git("tag", "broken")
    (place / "robots" / "mine.py").write_text(SLOW)
    monkeypatch.chdir(place / "robots")
    return place


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit:
        main(["bench", *arguments])
    return int(exit.value.code or 0)


def test_a_forward_that_runs_four_times_is_found(repository: Path, tmp_path: Path) -> None:
    """The working tree against a commit: the base's code is the commit's, although both have the same name."""
    out = tmp_path / "out"
    assert run("compare", *TARGET, "--base", "clean", "--pairs", "4", *QUICK, "--out", str(out)) == 1
    verdict = json.loads((out / "verdict.json").read_text())
    (found,) = verdict["benchmarks"]
    assert (verdict["result"], found["finding"]) == ("REGRESSION", "slower")
    assert found["ratio"] > 1.5
    assert found["base_bytes"] == found["head_bytes"], "each pass is gone when the next begins"
    assert len(list((out / "runs" / "base").glob("*.json"))) == 4
    assert "slower" in (out / "summary.md").read_text()
    trees = subprocess.run(["git", "worktree", "list"], capture_output=True, text=True).stdout.splitlines()
    assert len(trees) == 1, "no worktree is left behind"
    again, stored = tmp_path / "again", [str(out / "runs" / side) for side in ("base", "head")]
    assert run("compare", "--base", stored[0], "--head", stored[1], "--out", str(again)) == 1
    judged = json.loads((again / "verdict.json").read_text())
    assert judged == {**verdict, "base": stored[0], "head": stored[1]}, "in turns, as they were measured"


def test_a_base_that_does_not_build_is_told(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", *TARGET, "--base", "broken", "--pairs", "2", *QUICK) == 2
    assert "half of a commit" in " ".join(capsys.readouterr().out.split())


def test_a_head_that_does_not_build_fails(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", *TARGET, "--base", "clean", "--head", "broken", "--pairs", "2", *QUICK) == 1
    assert "half of a commit" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("time.sleep(600)", "did not pass the turn"),
        ("os._exit(3)", "the process that measured ended with status 3"),
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
    monkeypatch.setattr("conformance.bench.processes._LAST_WORDS", 1.0)
    monkeypatch.setattr("conformance.bench.processes._PATIENCE", 0.1)  # of two minutes, which starting may take
    late = f"{CLEAN[:-5]}\n    def forward(self, *args, **kwargs):\n        self.calls = getattr(self, 'calls', 0) + 1\n"
    late += (
        f"        if self.calls == 20:\n            {does}\n        return super().forward(*args, **kwargs)\n"
    )
    Path("mine.py").write_text(f"import os\nimport time\n{late}")
    assert run("compare", *TARGET, "--base", "clean", "--pairs", "2", *QUICK, "--timeout", "120") == 1
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
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert running.stderr is not None
    assert "pair" in running.stderr.readline()
    running.terminate()
    running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    trees = subprocess.run(["git", "worktree", "list"], capture_output=True, text=True).stdout.splitlines()
    assert len(trees) == 1


def test_stored_results_can_be_compared_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for side, factor in (("base", 1.0), ("head", 1.2)):
        (tmp_path / side).mkdir()
        for number in range(6):
            both = [entry(PREFILL, [1 + number / 1e3] * 3), entry(DECODE, [factor * (1 + number / 1e3)] * 3)]
            (tmp_path / side / f"{number}.json").write_text(json.dumps(document(*both, pair=str(number))))
    assert run("compare", "--base", "base", "--head", "head") == 1
    assert run("compare", "--base", "base", "--head", "head", "--workload", "prefill", "--rounds", "30") == 0
    assert "--rounds ignored" in capsys.readouterr().err
    assert run("compare", "other", "--base", "base", "--head", "head") == 2
    assert "base holds no benchmark of other" in capsys.readouterr().err
    (tmp_path / "head" / "5.json").unlink()
    assert run("compare", "--base", "base", "--head", "head", "--workload", "prefill") == 2
    assert "1 pairs are missing, whole or by half" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["compare", "history"])
def test_a_folder_that_cannot_be_written_to_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    stored, taken = tmp_path / "1.json", tmp_path / "taken"
    stored.write_text(json.dumps(document(entry(PREFILL, [1.0]))))
    taken.write_text("a file")
    places = ["--base", str(stored), "--head", str(stored)] if command == "compare" else [str(stored)]
    assert run(command, *places, "--out", str(taken)) == 2
    assert f"reports cannot be written to `{taken}`" in capsys.readouterr().err


def test_power_is_measured_and_drawn_from_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("conformance.bench.power.SLOWDOWNS", (0.0, 0.5))
    monkeypatch.setattr("conformance.bench.power.CONFIRMED", (0.5,))
    out = tmp_path / "power"
    asked = ["--pairs", "2", "--recorded", "2", "--confirm", "2", "--draws", "20", *QUICK]
    assert run("power", "mistral-v0.1-7b-instruct", *asked, "--out", str(out), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "power.json").read_text())
    assert [(one["slowdown"], one["pairs"]) for one in told["confirmations"]] == [(0.0, 2), (0.5, 2)]
    assert told["memory"]["found"] == told["memory"]["of"] == 1
    without, slowed = told["rates"]
    assert (without["benchmark"], without["recorded"]) == ("any", 4)
    assert 0.25 < slowed["measured"] < 1, "half as long again, give or take the noise of four pairs"
    assert "<svg" in (out / "power.svg").read_text()
    assert run("power", "--recording", str(out), "--pairs", "2", "--draws", "20", "--json") == 0
    assert json.loads(capsys.readouterr().out) == told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["compare"], "--base is missing"),
        (["compare", "--base", "no-such-ref"], "neither a stored result nor a commit"),
        (["compare", "--base", "clean", "--pairs", "1"], "--pairs is 1"),
        (["compare", "--base", "clean", "--pairs", "7"], "--pairs is 7, but should be even"),
        (["compare", "--base", "clean", "--detect", "0"], "--detect is 0"),
        (["compare", "--base", "clean", "--size", "tiny"], "--size is 'tiny'"),
        (["compare", "--base", "clean", "--workload", "prefill,sleep"], "--workload is 'sleep'"),
        (
            ["compare", "--base", "clean", "--head", "mine.py"],
            "--base clean does not exist as a file or folder",
        ),
        (["compare", "--base", "mine.py", "--head", "typo.json"], "--head typo.json does not exist"),
        (["compare", "--base", "mine.py"], "name the one to hold against it with --head"),
        (["compare", "--base", "clean", "--recipes", "nope.toml"], "--recipes nope.toml does not exist"),
        (["compare", "--base", "clean", "--config", "nope.toml"], "--config nope.toml does not exist"),
        (["compare", "--base", "clean", "--detect", "300"], "--detect is 300"),
        (["compare", "--base", "clean", "--rounds", "9000"], "--rounds is 9000"),
        (["compare", "--base", "mine.py", "--head", "mine.py"], "mine.py is no JSON"),
        (["compare", "--base", "clean", "--attention", "sdpa,flash"], "--attention is 'flash'"),
        (["compare", "--base", "clean", "--rounds", "3"], "--rounds is 3"),
        (["compare", "--base", "clean", "--timeout", "0"], "--timeout is 0"),
        (["run", "--runs", "0"], "--runs is 0"),
        (["run", "--device", "tpu"], "--device is 'tpu'"),
        (["run", "--processes", "some"], "--processes is 'some'"),
        (["power", "--recorded", "3"], "--recorded is 3"),
        (["history", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_bad_input_is_told_before_anything_runs(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert run(*arguments) == 2
    assert told in capsys.readouterr().err


def test_without_a_device_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    assert run("run", "phi-2-3b", "--device", "cuda", "--size", "full") == 2
    assert "there is no CUDA device" in capsys.readouterr().err


def test_results_are_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run-001.json").write_text("{}")
    assert run("run", "phi-2-3b", "--out", str(tmp_path)) == 2
    assert "holds results already" in capsys.readouterr().err


def test_history_of_stored_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for day in range(1, 17):
        seconds = 1.0 if day < 9 else 1.5
        stored = document(entry(PREFILL, [seconds]), recorded=f"2026-01-{day:02d}T00:00:00+00:00")
        (tmp_path / f"day-{day}.json").write_text(json.dumps(stored))
    places = [str(path) for path in tmp_path.glob("day-*.json")]
    with pytest.raises(SystemExit):
        main(["bench", "history", *places, "--out", str(tmp_path)])
    assert "day-9" in capsys.readouterr().out
    page = (tmp_path / "history.html").read_text()
    assert page.count("<svg") == 2


def test_the_commands_are_listed_without_torch() -> None:
    code = "import sys; from conformance.cli import app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

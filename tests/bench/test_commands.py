"""`conformance bench` as users run it: real processes, a real repository, real worktrees."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.cli import main
from tests.bench.repository import QUICK, TARGET, run
from tests.bench.samples import DECODE, PREFILL, document, entry


@pytest.mark.slow
def test_a_forward_that_runs_four_times_is_found(repository: Path, tmp_path: Path) -> None:
    """The working tree against a commit: the base's code is the commit's, although both have the
    same name."""
    out = tmp_path / "out"
    assert (
        run("compare", *TARGET, "--base", "clean", "--pairs", "4", *QUICK, "--out", str(out)) == 1
    )
    verdict = json.loads((out / "verdict.json").read_text())
    (found,) = verdict["benchmarks"]
    assert (verdict["result"], found["finding"]) == ("REGRESSION", "slower")
    assert found["ratio"] > 1.5
    assert found["base_bytes"] == found["head_bytes"], "each pass is gone when the next begins"
    assert len(list((out / "runs" / "base").glob("*.json"))) == 4
    assert "slower" in (out / "summary.md").read_text()
    trees = subprocess.run(
        ["git", "worktree", "list"], capture_output=True, text=True
    ).stdout.splitlines()
    assert len(trees) == 1, "no worktree is left behind"
    again, stored = tmp_path / "again", [str(out / "runs" / side) for side in ("base", "head")]
    assert run("compare", "--base", stored[0], "--head", stored[1], "--out", str(again)) == 1
    judged = json.loads((again / "verdict.json").read_text())
    assert judged == {**verdict, "base": stored[0], "head": stored[1]}, (
        "in turns, as they were measured"
    )


def test_stored_results_can_be_compared_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for side, factor in (("base", 1.0), ("head", 1.2)):
        (tmp_path / side).mkdir()
        for number in range(6):
            both = [
                entry(PREFILL, [1 + number / 1e3] * 3),
                entry(DECODE, [factor * (1 + number / 1e3)] * 3),
            ]
            (tmp_path / side / f"{number}.json").write_text(
                json.dumps(document(*both, pair=str(number)))
            )
    assert run("compare", "--base", "base", "--head", "head") == 1
    assert (
        run(
            "compare", "--base", "base", "--head", "head", "--workload", "prefill", "--rounds", "30"
        )
        == 0
    )
    assert "--rounds ignored" in capsys.readouterr().err
    assert run("compare", "other", "--base", "base", "--head", "head") == 2
    assert "base holds no benchmark of other" in capsys.readouterr().err
    (tmp_path / "head" / "5.json").unlink()
    assert run("compare", "--base", "base", "--head", "head", "--workload", "prefill") == 2
    assert "1 pairs lack one run or both" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["compare", "history"])
def test_a_folder_that_cannot_be_written_to_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    stored, taken = tmp_path / "1.json", tmp_path / "taken"
    stored.write_text(json.dumps(document(entry(PREFILL, [1.0]))))
    taken.write_text("a file")
    places = (
        ["--base", str(stored), "--head", str(stored)] if command == "compare" else [str(stored)]
    )
    assert run(command, *places, "--out", str(taken)) == 2
    assert f"reports cannot be written to `{taken}`" in capsys.readouterr().err


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
        (
            ["compare", "--base", "mine.py", "--head", "typo.json"],
            "--head typo.json does not exist",
        ),
        (["compare", "--base", "mine.py"], "name the one to compare it with as --head"),
        (
            ["compare", "--base", "clean", "--recipes", "nope.toml"],
            "--recipes nope.toml does not exist",
        ),
        (
            ["compare", "--base", "clean", "--config", "nope.toml"],
            "--config nope.toml does not exist",
        ),
        (["compare", "--base", "clean", "--detect", "300"], "--detect is 300"),
        (["compare", "--base", "clean", "--rounds", "9000"], "--rounds is 9000"),
        (["compare", "--base", "mine.py", "--head", "mine.py"], "mine.py is not JSON"),
        (["compare", "--base", "clean", "--attention", "sdpa,flash"], "--attention is 'flash'"),
        (["compare", "--base", "clean", "--rounds", "3"], "--rounds is 3"),
        (["compare", "--base", "clean", "--timeout", "0"], "--timeout is 0"),
        (["run", "--runs", "0"], "--runs is 0"),
        (["run", "--device", "tpu"], "--device is 'tpu'"),
        (["power", "--recorded", "3"], "--recorded is 3"),
        (["history", "nowhere.json"], "nowhere.json cannot be read"),
    ],
)
def test_bad_input_is_told_before_anything_runs(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert run(*arguments) == 2
    assert told in capsys.readouterr().err


def test_without_a_device_nothing_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a device")
    assert run("run", "phi-2-3b", "--device", "cuda", "--size", "full") == 2
    assert "there is no CUDA device" in capsys.readouterr().err


@pytest.mark.spoils_files
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

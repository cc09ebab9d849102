from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from conformance.cli import main
from conformance.errors import CannotAssess
from conformance.places import HOME
from conformance.run import parent
from conformance.run.events import OnEvent, Phase
from conformance.run.request import RunRequest
from conformance.verdict.certificate import serialise
from conformance.verdict.load import read_certificate
from conformance.verdict.outcomes import Assessment
from tests.verdict.samples import assessment, one_cause_that_blocks, outcome, verdict

ALL = ["--profile", "core,training"]


@dataclass
class Runner:
    """Stands in for the runner: gives the assessment it holds, or raises, and remembers what it was
    asked for."""

    result: Assessment | BaseException = field(default_factory=assessment)
    requests: list[RunRequest] = field(default_factory=list)

    def __call__(self, request: RunRequest, on_event: OnEvent) -> Assessment:
        self.requests.append(request)
        on_event(Phase("resolving", request.target))
        if isinstance(self.result, BaseException):
            raise self.result
        return replace(self.result, profiles=request.profiles)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runner:
    stand_in = Runner()
    monkeypatch.setattr(parent, "run", stand_in)
    monkeypatch.chdir(tmp_path)
    return stand_in


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run_command_line(*arguments: str) -> Result:
        with pytest.raises(SystemExit) as exit:
            main(arguments)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err or "--verbose" in arguments
        return Result(int(exit.value.code or 0), captured.out, captured.err)

    return run_command_line


Call = Callable[..., Result]


def test_a_certified_backbone_exits_with_0(runner: Runner, call: Call) -> None:
    result = call("certify", "an-id", *ALL)
    assert result.status == 0
    assert result.out.startswith("CERTIFIED")
    assert "seed 0" in result.out
    assert "add --out DIR" in result.out
    assert result.err == "resolving an-id\n"


def test_a_backbone_that_is_not_certified_exits_with_1_and_gets_a_certificate(
    runner: Runner, call: Call
) -> None:
    runner.result = assessment(outcome("PAD-03", "failed"))
    result = call("certify", "an-id", *ALL, "--out", "out")
    assert result.status == 1
    assert result.out.startswith("PAD-03 failed")
    assert json.loads(Path("out/certificate.json").read_text())["predicate"]["result"] == "FAILED"
    assert Path("out/counterexamples/PAD-03.py").exists()


def test_what_cannot_be_assessed_exits_with_2_and_writes_no_certificate(
    runner: Runner, call: Call
) -> None:
    runner.result = CannotAssess("no backbone is registered under the id `mistrel`")
    result = call("certify", "mistrel", *ALL, "--out", "out")
    assert (result.status, result.out) == (2, "")
    assert result.err.endswith("conformance: no backbone is registered under the id `mistrel`\n")
    assert list(Path("out").rglob("*")) == []


def test_ctrl_c_exits_with_130_and_writes_no_certificate(runner: Runner, call: Call) -> None:
    runner.result = KeyboardInterrupt()
    result = call("certify", "an-id", "--out", "out", "--json")
    assert (result.status, result.out) == (130, "")
    assert result.err.endswith("interrupted; no certificate was written\n")
    assert list(Path("out").rglob("*")) == []


@pytest.mark.parametrize("ending", [CannotAssess("no such target"), KeyboardInterrupt()])
def test_the_last_report_stays_until_there_is_another(
    runner: Runner, call: Call, ending: BaseException
) -> None:
    Path("out/counterexamples").mkdir(parents=True)
    Path("out/counterexamples/mine.py").write_text("# not one of ours")
    runner.result = assessment(outcome("PAD-03", "failed"))
    assert call("certify", "an-id", *ALL, "--out", "out").status == 1
    before = {path: path.read_bytes() for path in Path("out").rglob("*.*")}
    assert len(before) == 6
    runner.result = ending
    result = call("certify", "mistrel", *ALL, "--out", "out")
    assert "`out` still holds the report of an earlier run" in result.err
    assert {path: path.read_bytes() for path in Path("out").rglob("*.*")} == before
    # Another takes its place whole: what it does not have is gone.
    runner.result = assessment()
    assert call("certify", "an-id", *ALL, "--out", "out").status == 0
    assert sorted(str(path.relative_to("out")) for path in Path("out").rglob("*.*")) == [
        "certificate.json", "counterexamples/mine.py", "junit.xml", "report.html", "summary.md",
    ]  # fmt: skip
    assert read_certificate(Path("out")).certified


def test_a_defect_of_our_own_is_not_taken_for_a_verdict(runner: Runner, call: Call) -> None:
    runner.result = RuntimeError("boom")
    result = call("certify", "an-id", "--verbose")
    assert result.status == 2
    assert "internal error, RuntimeError: boom" in result.err
    assert "Traceback" in result.err


def test_json_is_all_there_is_on_standard_output(runner: Runner, call: Call) -> None:
    runner.result = assessment(outcome("PAD-03", "failed"))
    result = call("certify", "an-id", *ALL, "--json")
    assert json.loads(result.out)["predicate"]["failedTests"] == ["PAD-03"]
    assert "PAD-03 failed" in result.err
    runner.result = CannotAssess("no recipe")
    assert json.loads(call("certify", "an-id", "--json").out) == {"error": "no recipe"}
    assert "bogus" in json.loads(call("certify", "an-id", "--json", "--bogus").out)["error"]


def test_options_reach_the_runner(runner: Runner, call: Call) -> None:
    call(
        "certify", "m.py:C", "--id", "x", "--profile", "core", "--budget", "quick", "--seed", "7",
        "--jobs",
        "2", "--timeout", "9", "--max-memory", "1.5", "--hub", "h", "--device", "cpu",
    )  # fmt: skip
    assert runner.requests == [
        RunRequest(
            target="m.py:C", backbone_id="x", profiles=("core",), budget="quick", seed=7, jobs=2,
            timeout=9.0,
            memory_limit=3 << 29, hub=Path("h"), device="cpu",
        )
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--profile", "numerics"],
            "profile `numerics` is not implemented in this version; implemented: core, training",
        ),
        (["--profile", ","], "--profile is empty"),
        (
            ["--weights", "full"],
            "--weights full is for profile scale, which was not requested: add --profile scale",
        ),
        (
            ["--weights", "absent"],
            "--weights absent is not a directory; it takes probe, full, or the directory",
        ),
        (
            ["--device", "cuda"],
            "--device cuda does not go with profile default, which runs on cpu: add --profile gpu",
        ),
        (["--device", "tpu"], "--device is 'tpu', but should be one of auto, cpu, cuda"),
        (
            ["--budget", "huge"],
            "--budget is 'huge', but should be one of quick, standard, thorough",
        ),
        (["--seed", "-1"], "--seed is -1, but should be 0 or more"),
        (["--seed", "x"], "Invalid value for '--seed'"),
        (["--jobs", "0"], "--jobs is 0, but should be 1 or more"),
        (["--timeout", "-3"], "--timeout is -3, but should be a number of seconds above zero"),
        (["--timeout", "nan"], "--timeout is nan"),
        (["--max-memory", "inf"], "--max-memory is inf"),
        (["--waivers", "absent.toml"], "the waivers `absent.toml` cannot be read"),
        (["--config", "absent.toml"], "the configuration `absent.toml` cannot be read"),
        (["--recipes", "absent"], "absent"),
        (["--only", "PAD-33"], "there is no clause `PAD-33` (did you mean `PAD-03`?)"),
        (
            ["--only", "EMB-11", "--profile", "core"],
            "names EMB-11, which profile core does not hold: add --profile training",
        ),
        (["--only", "PAD-03", "--failed-from", "x.json"], "give one of them"),
        (["--failed-from", "absent.json"], "the certificate `absent.json` cannot be read"),
        (["--out", "file/out"], "reports cannot be written to `file/out`"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    runner: Runner, call: Call, options: list[str], message: str
) -> None:
    Path("file").write_text("")
    result = call("certify", "an-id", *options)
    assert (result.status, result.out) == (2, "")
    assert message in result.err
    assert runner.requests == []


@pytest.mark.parametrize(("clause", "found", "status"), [
    ("PAD-03", "passed", 0), ("PAD-03", "not-applicable", 0), ("PAD-03", "failed", 1),
    ("PAD-04", "failed", 1), ("PAD-03", "blocked", 1), ("PAD-03", "not-run", 1),
])  # fmt: skip
def test_a_run_of_chosen_clauses_exits_with_0_if_they_are_met(
    runner: Runner, call: Call, clause: str, found: str, status: int
) -> None:
    runner.result = assessment(outcomes=(outcome(clause, found),))
    result = call("certify", "an-id", "--only", clause.lower(), "--json")
    predicate = json.loads(result.out)["predicate"]
    assert result.status == status
    assert "PARTIAL RUN" in result.err
    assert "never certifies" in " ".join(result.err.split())
    assert runner.requests[0].only == (clause,)
    assert predicate["result"] == ("FAILED" if status else "WARNED"), "never PASSED"
    assert predicate["failedTests"] == ([clause] if status else [])
    assert predicate["warnedTests"] == []
    others = {one["outcome"] for one in predicate["requirements"] if one["id"] != clause}
    assert others == {"not-run"}


def test_a_clause_of_a_certificate_is_judged_again_as_it_was(runner: Runner, call: Call) -> None:
    Path("out").mkdir()
    failed = verdict(outcome("PAD-03", "failed"), seed=7, budget="quick")
    Path("out/certificate.json").write_text(serialise(failed.as_certificate()))
    runner.result = assessment(outcomes=(outcome("PAD-03"),))
    for place in ("out", "out/certificate.json"):
        result = call("replay", place, "pad-03", "--hub", "h")
        assert result.status == 0
        assert result.out.endswith(f"PAD-03: failed in {place}, passed now\n")
    was = failed.assessment
    assert runner.requests[0] == RunRequest(
        target=was.target, backbone_id=was.backbone_id, profiles=was.profiles, only=("PAD-03",),
        seed=7, budget="quick", hub=Path("h"),
    )  # fmt: skip
    runner.result = assessment(outcomes=(outcome("PAD-03", "failed"),))
    assert call("replay", "out", "PAD-03").status == 1
    assert "did you mean `PAD-03`?" in call("replay", "out", "PAD-33").err
    assert call("replay", "absent", "PAD-03").status == 2


def test_a_clause_is_judged_again_with_the_models_that_were_named(
    runner: Runner, call: Call
) -> None:
    Path("out").mkdir()
    Path("published").mkdir()
    Path("out/certificate.json").write_text(serialise(verdict().as_certificate()))
    runner.result = assessment(outcomes=(outcome("PAD-03"),))
    named = ("--model", "org/model=published", "--trust-remote-code")
    assert call("replay", "out", "PAD-03", *named).status == 0
    assert runner.requests[0].models == ("org/model=published",)
    assert runner.requests[0].trust_remote_code


def test_failed_from_chooses_what_was_not_met_and_the_profiles(runner: Runner, call: Call) -> None:
    Path("certificate.json").write_text(serialise(one_cause_that_blocks().as_certificate()))
    call("certify", "an-id", "--failed-from", "certificate.json")
    assert runner.requests[0].only == ("PAD-01", "PAD-02", "PAD-03", "PAD-04")
    assert runner.requests[0].profiles == ("core", "training")


def test_failed_from_a_certificate_without_failures_is_refused(runner: Runner, call: Call) -> None:
    Path("certificate.json").write_text(serialise(verdict().as_certificate()))
    assert (
        "nothing to judge again"
        in call("certify", "an-id", "--failed-from", "certificate.json").err
    )


def test_waivers_are_applied_and_named_in_the_certificate(runner: Runner, call: Call) -> None:
    Path("w.toml").write_text(
        '[[waiver]]\nid = "PAD-03"\nreason = "r"\nexpires = 2999-01-01\nby = "Ada"\n'
    )
    runner.result = assessment(outcome("PAD-03", "failed"))
    result = call("certify", "an-id", *ALL, "--waivers", "w.toml", "--json")
    predicate = json.loads(result.out)["predicate"]
    assert (result.status, predicate["result"]) == (0, "WARNED")
    assert predicate["waivers"][0]["by"] == "Ada"
    assert "w.toml" in [descriptor["name"] for descriptor in predicate["configuration"]]


def test_the_suggested_command_repeats_what_the_verdict_does_not_record(
    runner: Runner, call: Call
) -> None:
    runner.result = assessment(outcome("PAD-03", "failed"))
    assert "--hub some/where --only PAD-03" in call("certify", "an-id", "--hub", "some/where").out


def test_a_certificate_is_reported_again(runner: Runner, call: Call) -> None:
    Path("certificate.json").write_text(serialise(one_cause_that_blocks().as_certificate()))
    result = call("report", "certificate.json", "--out", "again")
    assert result.status == 0
    assert result.out.startswith("PAD-01 failed")
    assert Path("again/report.html").exists()
    assert call("report", "absent.json").status == 2


def test_certificates_are_compared(runner: Runner, call: Call) -> None:
    Path("a.json").write_text(serialise(verdict().as_certificate()))
    Path("b.json").write_text(serialise(verdict(outcome("PAD-03", "failed")).as_certificate()))
    assert call("diff", "a.json", "a.json").status == 0
    result = call("diff", "a.json", "b.json")
    assert result.status == 1
    assert result.out.splitlines() == [
        "PAD-03: passed -> failed (worse)",
        "  result: PASSED -> FAILED",
    ]
    Path("b.json").write_text("{")
    assert call("diff", "a.json", "b.json").status == 2


def test_certificates_are_found_in_the_folders_that_out_makes(runner: Runner, call: Call) -> None:
    for name, found in (("a", "passed"), ("b", "failed")):
        runner.result = assessment(outcome("PAD-03", found))
        call("certify", "an-id", *ALL, "--out", name)
    assert call("report", "b").out.startswith("PAD-03 failed")
    assert call("diff", "a", "b").out.startswith("PAD-03: passed -> failed (worse)")
    Path("empty").mkdir()
    assert "empty/certificate.json" in call("report", "empty").err


def test_versions_are_shown(call: Call) -> None:
    result = call("--version")
    assert result.status == 0
    assert result.out.startswith("conformance 0.")
    assert "transformers" in result.out


@pytest.mark.parametrize("arguments", [(), ("hub",), ("bench",)])
def test_without_a_command_there_is_help(call: Call, arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert (result.status, result.err) == (2, "")
    assert result.out.startswith(" ".join(["Usage: conformance", *arguments, "[OPTIONS] COMMAND"]))


def test_a_wrong_profile_gets_a_suggestion(call: Call) -> None:
    assert "(did you mean `training`?)" in call("certify", "an-id", "--profile", "trainig").err


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("certify --profile co", ["core"]),
        ("certify --profile core,tr", ["core,training"]),
        ("certify --only PAD-01,PAD-02", ["PAD-01,PAD-02"]),
        ("certify an-id --id phi-2", ["phi-2-3b"]),
        ("requirements CON-01", ["CON-01"]),
    ],
)
def test_shells_complete_names(words: str, found: list[str]) -> None:
    finished = _python(
        "-m", "conformance",
        environment={
            "_CONFORMANCE_COMPLETE": "complete_bash",
            "COMP_WORDS": f"conformance {words}",
            "COMP_CWORD": str(len(words.split())),
        },
    )  # fmt: skip
    assert finished.stdout.decode().split() == found


def test_on_a_terminal_nothing_wraps_inside_a_word() -> None:
    for arguments in (["--help"], ["requirements"], ["requirements", "CON-01"], ["certify", "nope"],
                      ["certify", "--help"], ["list"]):  # fmt: skip
        reading, writing = pty.openpty()
        finished = subprocess.Popen(
            [sys.executable, "-m", "conformance", *arguments],
            stdout=writing, stderr=writing, stdin=writing,
            env={**os.environ, "PYTHONPATH": str(HOME), "COLUMNS": "80", "TERM": "dumb"},
        )  # fmt: skip
        os.close(writing)
        said = b""
        with contextlib.suppress(OSError):  # the end of a terminal whose process is gone
            while data := os.read(reading, 1 << 16):
                said += data
        os.close(reading)
        finished.wait()
        lines = said.decode().splitlines()
        assert lines
        long = [line for line in lines if len(line) >= 80 and " " in line.strip()]
        assert not long, (arguments, long)


def test_requirements_are_listed(call: Call) -> None:
    lines = call("requirements").out.splitlines()
    assert lines[0].split(maxsplit=3) == ["CON-01", "MUST", "core", "The statement of CON-01."]
    assert len(lines) == 7
    assert len(call("requirements", "--profile", "training").out.splitlines()) == 1
    assert json.loads(call("requirements", "--json").out)[0]["id"] == "CON-01"


def test_one_requirement_is_shown_whole(call: Call) -> None:
    assert "needs      PAD-01" in call("requirements", "pad-03").out
    assert "clauses/PAD-03.md" in "".join(call("requirements", "pad-03").out.split())
    assert json.loads(call("requirements", "PAD-03", "--json").out)["level"] == "MUST"
    unknown = call("requirements", "PAD-33")
    assert unknown.status == 2
    assert "PAD-03" in unknown.err


def test_backbones_are_listed_with_their_hub_ids(call: Call) -> None:
    listed = json.loads(call("list", "--json").out)
    entry = next(entry for entry in listed if entry["id"] == "mistral-v0.1-7b-instruct")
    assert entry["hub"] == "mistralai/Mistral-7B-Instruct-v0.1"
    assert entry["family"] == "mistral"
    assert entry["target"].startswith("backbones.mistral:")
    assert "mistral-v0.1-7b-instruct" in call("list").out


def test_an_empty_hub_lists_nothing(call: Call, tmp_path: Path) -> None:
    assert json.loads(call("hub", "list", "--hub", str(tmp_path), "--json").out) == []
    assert "nothing is built" in call("hub", "list", "--hub", str(tmp_path)).err


def test_an_unknown_hub_id_names_the_known_ones(call: Call, tmp_path: Path) -> None:
    result = call("hub", "build", "nobody/nothing", "--hub", str(tmp_path))
    assert result.status == 2
    assert "mistralai/Mistral-7B-v0.1" in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["requirements"],
        ["certify", "--help"],
        ["hub", "list"],
        ["doctor", "--help"],
        ["scaffold", "--help"],
        ["drift", "--help"],
    ],
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    source = (
        "import sys\nfrom conformance.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    heavy = {'torch', 'transformers', 'tokenizers', 'hypothesis', 'jinja2'}\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    finished = _python("-c", source, *arguments)
    assert finished.stderr.splitlines()[-1] == b"[]"
    assert finished.returncode == 0


def test_help_waits_for_the_command_line_alone() -> None:
    source = (
        "import sys\nfrom conformance.cli import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    rooms = {f'conformance.{name}' for name in ('hub', 'subject', 'suite')}\n"
        "    print(*sorted(rooms & set(sys.modules)), file=sys.stderr)\n"
    )
    assert _python("-c", source).stderr.splitlines()[-1] == b""


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    finished = _python("-m", "conformance", "list", stdout=writing)
    os.close(writing)
    assert (finished.returncode, finished.stderr) == (0, b"")


def test_a_narrow_encoding_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    with_unicode = verdict(outcome("PAD-04", "failed", evidence={"observed": "é ▁ \ud800"}))
    path.write_text(serialise(with_unicode.as_certificate()))
    finished = _python(
        "-m", "conformance", "report", str(path), environment={"PYTHONIOENCODING": "ascii"}
    )
    assert finished.returncode == 0
    assert b"\\xe9 \\u2581 \\ud800" in finished.stdout


def _python(
    *arguments: str, stdout: int = subprocess.PIPE, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    root = str(HOME)
    return subprocess.run(
        [sys.executable, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root, **(environment or {})},
        check=False,
    )


def test_a_calibration_on_a_device_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "cuda.json"
    with pytest.raises(SystemExit, match="2"):
        main(["calibrate", "--device", "cuda", "--out", str(out)])
    assert "there is no CUDA device" in capsys.readouterr().err
    assert not out.exists()


def test_a_calibration_that_is_interrupted_keeps_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from conformance.parity import calibration
    from conformance.parity.gates import calibration_for

    def interrupted(count: int, seed: int, on: Any) -> Iterator[dict[str, float]]:
        yield dict.fromkeys(calibration_for("cpu").bounds, 1e-07)
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "variants", interrupted)
    out = tmp_path / "calibration.json"
    with pytest.raises(SystemExit, match="130"):
        main(["calibrate", "--variants", "500", "--out", str(out)])
    assert "what was measured is in the --out file" in capsys.readouterr().err
    written = json.loads(out.read_text())
    assert {gate["variants"] for gate in written["gates"].values()} == {1}


def test_pairs_of_an_interrupted_recording_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from conformance.cli.bench import _stored_pairs_told

    for number in range(3):
        stored = tmp_path / "runs" / "slowed-1.05" / "head" / f"run-{number}.json"
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_text("{}")
    with pytest.raises(KeyboardInterrupt), _stored_pairs_told(tmp_path):
        raise KeyboardInterrupt
    assert (
        f"3 pairs are recorded in {tmp_path}: `conformance bench power" in capsys.readouterr().err
    )
    with pytest.raises(KeyboardInterrupt), _stored_pairs_told(tmp_path / "none"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""

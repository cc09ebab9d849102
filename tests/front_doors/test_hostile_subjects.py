"""`conformance certify` on subjects that misbehave, as its users run it: a real process, its exit
status, its words."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HOSTILE = Path(__file__).with_name("hostile.py")
INSTRUCT = "mistral-v0.1-7b-instruct"


def certify(*arguments: str, cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "conformance", "certify", *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("mistral-v0.1-7b-instrukt", ["mistral-v0.1-7b-instrukt", "did you mean", INSTRUCT]),
        ("no_such_module:Class", ["no_such_module"]),
        (f"{HOSTILE}:NoSuchClass", ["NoSuchClass"]),
        ("no/such/file.py:Class", ["no/such/file.py"]),
        ("broken.py:Class", ["syntax error", "broken.py"]),
        ("needy.py:Class", ["no_such_dependency"]),
        ("raising.py:Class", ["ZeroDivisionError"]),
        ("exiting.py:Class", ["sys.exit(3)"]),
        ("dying.py:Class", ["status 7"]),
        (f"{HOSTILE}:NOT_CALLABLE", ["NOT_CALLABLE", "int"]),
        (f"{HOSTILE}:returns_none", ["--id"]),
        (":", ["target"]),
        ("", ["id"]),
    ],
)
def test_what_cannot_be_resolved_is_refused(tmp_path: Path, target: str, words: list[str]) -> None:
    (tmp_path / "broken.py").write_text("class Class(:\n")
    (tmp_path / "needy.py").write_text("import no_such_dependency\n")
    (tmp_path / "raising.py").write_text("1 / 0\n")
    (tmp_path / "exiting.py").write_text("import sys\nsys.exit(3)\n")
    (tmp_path / "dying.py").write_text("import os\nos._exit(7)\n")
    out = tmp_path / "out"
    done = certify(target, "--out", str(out), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not (out / "certificate.json").exists()


@pytest.mark.parametrize(
    ("factory", "words", "options"),
    [
        ("returns_none", ["None"], []),
        ("returns_a_string", ["a backbone, honestly"], []),
        ("takes_no_arguments", ["TypeError"], []),
        ("raises", ["the weights are on my other laptop"], []),
        ("exits", ["sys.exit(0)"], []),
        ("exits_at_once", ["exited with status 0", "constructing"], []),
        ("hangs", ["nothing happened for 15 s", "constructing"], ["--timeout", "15"]),
        ("segfaults", ["SIGSEGV", "constructing"], []),
        ("exhausts_memory", ["memory", "constructing"], ["--max-memory", "1.5"]),
        ("closes_every_descriptor", ["constructing"], []),
        ("garbles_stdout", ["None"], []),
        ("leaves_a_process_behind", ["None"], []),
        ("writes_into_every_descriptor", ["constructing"], []),
    ],
)
def test_what_does_not_construct_is_not_certified(
    tmp_path: Path, factory: str, words: list[str], options: list[str]
) -> None:
    # A file of its own, by which its processes can be told from those of tests that run beside this
    # one.
    hostile, out = shutil.copy(HOSTILE, tmp_path), tmp_path / "out"
    done = certify(
        f"{hostile}:{factory}", "--id", INSTRUCT, "--out", str(out), *options, cwd=tmp_path
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 1, said
    assert all(word in said for word in words), said
    assert "Traceback" not in said
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["predicate"]["result"] == "FAILED"
    assert certificate["predicate"]["passedTests"] == [] or factory in {"takes_no_arguments"}
    assert not _running(hostile)


def test_an_interrupt_ends_everything(tmp_path: Path) -> None:
    hostile = shutil.copy(HOSTILE, tmp_path)
    (tmp_path / "summary.md").write_text("of an earlier run")
    running = subprocess.Popen(
        [sys.executable, "-m", "conformance", "certify", f"{hostile}:hangs", "--id", INSTRUCT,
        "--out", str(tmp_path)],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # Whoever started the tests in the background had them ignore interrupts, and children
        # inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not _running(hostile, patience=1) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    os.kill(running.pid, signal.SIGINT)
    output, _ = running.communicate(timeout=20)
    assert running.returncode == 130, output
    assert "Traceback" not in output
    assert not _running(hostile)
    assert not (tmp_path / "certificate.json").exists()
    assert (tmp_path / "summary.md").read_text() == "of an earlier run"


def _running(hostile: Path | str, patience: int = 20) -> list[str]:
    """Command lines of children, and of what they left behind, that name this file; a moment is
    allowed for the last to go."""
    ours = ("from conformance.run.child import main", "conformance-left-behind")
    for _ in range(patience):
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:
                continue
            if str(hostile) in command and any(mark in command for mark in ours):
                found.append(command)
        if not found:
            return []
        time.sleep(0.1)
    return found


def test_folders_of_the_users_do_not_stand_in_for_ours(tmp_path: Path) -> None:
    for name in ("backbones", "conformance"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[0] = {str(ROOT)!r}; from conformance.cli "
            f"import main; main()",
         "certify", INSTRUCT, "--only", "PAD-01"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, env={**os.environ,
        "PYTHONPATH": ""},
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout + done.stderr

"""`conformance certify --watch` as somebody edits: real saves, real forks, a real Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.front_doors.test_drift import environment

pytestmark = pytest.mark.slow

SOUND = """
from backbones.mistral import MistralLLMBackbone
from words import WORD

class Mine(MistralLLMBackbone):
    pass
"""
FAULTY = SOUND.replace("    pass", "    pad_token_id = 2")
PATIENCE_SECONDS = 120.0


def test_an_edit_is_judged_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    mine, words, log = tmp_path / "mine.py", tmp_path / "words.py", tmp_path / "log"
    mine.write_text(FAULTY)
    words.write_text("WORD = 1\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [
        sys.executable, "-m", "conformance", "certify", "mine.py:Mine",
        "--id", "mistral-v0.1-7b-instruct", "--watch", "--only", "PAD-02,TOK-01",
    ]  # fmt: skip
    with open(log, "wb") as written:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**environment(), "TMPDIR": str(scratch)},
            stdout=written,
            stderr=written,
            start_new_session=True,
            # Whoever starts tests in the background hands down an ignored SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        said = _said_in(log, process)
        said("PAD-02 failed: ", "2 of 2 judged", "1 to mend")
        mine.write_text(SOUND)
        said("saved ", "PAD-02 mended", "2 of 2 judged", "all of them are met")
        words.write_text("WORD = \n")
        said("saved ", "cannot be judged", "words.py:1")
        words.write_text("WORD = 2\n")
        said("2 of 2 judged", "all of them are met")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 130
    finally:
        with_its_group = os.getpgid(process.pid) if process.poll() is None else None
        if with_its_group:
            os.killpg(with_its_group, signal.SIGKILL)
    assert not _left_in(tmp_path)
    assert not [path for path in scratch.iterdir() if path.name.startswith("conformance-")
                and "hypothesis" not in path.name]  # fmt: skip


def _said_in(log: Path, process: subprocess.Popen[bytes]) -> Callable[..., None]:
    """Waits until the log says these in turn, each behind the last."""
    read = 0

    def said(*words: str) -> None:
        nonlocal read
        deadline = time.monotonic() + PATIENCE_SECONDS
        for word in words:
            while (at := (text := log.read_text()).find(word, read)) < 0:
                assert process.poll() is None, text
                assert time.monotonic() < deadline, f"{word!r} is not in:\n{text[read:]}"
                time.sleep(0.1)
            read = at + len(word)

    return said


def _left_in(folder: Path) -> list[str]:
    """Processes whose working directory is the folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(entry / "cwd")) == folder.resolve():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found

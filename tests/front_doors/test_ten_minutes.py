"""docs/ten-minutes.md, step by step as it is written."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests import ROOT
from tests.front_doors.test_in_users_ci import environment as on_the_path
from tests.published import write_published

pytestmark = pytest.mark.slow

DOCUMENT = (ROOT / "docs" / "ten-minutes.md").read_text(encoding="utf-8")
BUDGET = "quick"
"""Of the last run too: what the document has there draws more of the same."""


def steps() -> list[tuple[str, str]]:
    """Language and text of every block, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={**on_the_path(), "COLUMNS": "80"},
    )


def test_every_step_does_what_it_says(tmp_path: Path) -> None:
    write_published(tmp_path / "published")
    blocks = iter(steps())
    assert next(blocks) == ("sh", "conformance doctor\n")

    language, source = next(blocks)
    assert language == "python"
    mine = tmp_path / "mine.py"
    mine.write_text(source)

    first = run(next(blocks)[1], tmp_path)
    assert first.returncode == 1, first.stderr
    shown = next(blocks)[1].strip()
    number = re.compile(r"(?<=pad id )\d+")
    assert number.sub("N", first.stdout.splitlines()[0]) == number.sub("N", shown)
    assert (tmp_path / "report" / "report.html").is_file()

    mended = next(blocks)[1]
    wrong = "        self.tokenizer.pad_token = self.tokenizer.eos_token\n"
    assert wrong in source
    mine.write_text(source.replace(wrong, mended))
    replayed = run(next(blocks)[1], tmp_path)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr

    last = run(f"{next(blocks)[1].strip()} --budget {BUDGET}", tmp_path)
    assert last.returncode == 0, last.stdout
    assert next(blocks)[1].strip() in last.stdout.splitlines()
    assert next(blocks, None) is None

"""README.md shows what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.front_doors.test_drift import environment

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_failure_that_it_shows_is_what_its_file_gives(tmp_path: Path) -> None:
    section = README.split("## Read a failure")[1]
    source = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    shown = re.search(r"```\n(PAD-03.*?)\n\n", section, re.DOTALL)
    command = re.search(r"`conformance (certify mine\.py\S* --id \S+)", section)
    assert source is not None
    assert shown is not None
    assert command is not None
    (tmp_path / "mine.py").write_text(source[1])
    found = subprocess.run(
        [sys.executable, "-m", "conformance", *command[1].split(), "--only", "PAD-03"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**environment(), "COLUMNS": "80"},
    )
    assert found.returncode == 1, found.stderr
    # What a whole run says that it blocks is not asked for here.
    told = re.sub(r"^  so  .*\n?", "", shown[1] + "\n", flags=re.MULTILINE).rstrip()
    assert found.stdout.startswith(told)

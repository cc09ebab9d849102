from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.bench.repository import CLEAN, SLOW


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

"""`conformance certify --watch`, as far as it needs no run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conformance.cli.watch import Files, Saved, _named_files
from conformance.report.watching import Watched
from conformance.run.request import RunRequest
from tests.verdict.samples import outcome

CLAUSES = ("PAD-01", "PAD-02", "PAD-03")


def test_a_file_that_is_saved_is_named_once(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.py", tmp_path / "other.py"
    mine.write_text("a = 1\n")
    files = Files([mine, other])
    assert files.any()
    assert not files.changed()
    other.write_text("b = 1\n")
    assert files.changed() == ("other.py",)
    os.utime(mine, ns=(1, 1))
    with pytest.raises(Saved) as saved:
        files.look()
    assert saved.value.names == ("mine.py",)
    files.look()


def test_a_file_that_is_gone_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    """Editors write beside it and rename."""
    mine = tmp_path / "mine.py"
    mine.write_text("a = 1\n")
    files = Files([mine])
    mine.unlink()
    assert not files.any()
    assert not files.changed()
    mine.write_text("a = 23\n")
    assert files.changed() == ("mine.py",)


def test_the_files_beside_the_target_are_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "prompts.py", "package/sub.py", "recipes/a--b.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    config = tmp_path / "conformance.toml"
    for target in ("mine.py:Mine", "mine:Mine"):
        found = {one.resolve() for one in _named_files(RunRequest(target=target))}
        assert found == {tmp_path / "mine.py", tmp_path / "prompts.py", config}
    request = RunRequest(target="package.sub:Mine", recipes=(Path("recipes"),))
    assert [one.name for one in _named_files(request)] == [
        "sub.py", "conformance.toml", "a--b.toml",
    ]  # fmt: skip
    assert [one.name for one in _named_files(RunRequest(target="an-id"))] == ["conformance.toml"]


def test_what_an_edit_mended_and_what_is_left() -> None:
    watched = Watched("watching mine.py:Mine", CLAUSES)
    watched.judged(outcome("PAD-01", "failed", evidence={"observed": "the pad is the eos"}))
    watched.judged(outcome("PAD-02", "blocked", root_cause="PAD-01"))
    assert watched.unmet() == ()
    assert watched.stale() == ("PAD-03",)
    watched.judged(outcome("PAD-03", "failed", evidence={"where": "mine.py:7 in f"}))
    assert [one.id for one in watched.left()] == ["PAD-01", "PAD-03"]
    assert "2 to mend, 1 blocked by these" in watched.summary()

    watched.saved(["mine.py"])
    assert watched.unmet() == CLAUSES
    watched.judged(outcome("PAD-01"))
    watched.judged(outcome("PAD-02"))
    assert [one.id for one in watched.mended()] == ["PAD-01", "PAD-02"]
    text = "\n".join(line.plain for line in watched.lines(79))
    assert "mended   PAD-01" in text
    assert "PAD-03 (before the last edit)" in text
    assert "mine.py:7 in f" in text
    assert "2 of 3 judged" in text
    watched.judged(outcome("PAD-03"))
    assert "all of them are met" in watched.summary()

    watched.saved(["mine.py"])
    assert watched.mended() == []
    assert watched.stale() == CLAUSES


@pytest.mark.parametrize("width", [40, 79])
def test_the_view_fits(width: int) -> None:
    watched = Watched("watching", CLAUSES)
    told = "a long story, word after word, " * 8
    watched.judged(outcome("PAD-01", "failed", evidence={"observed": told, "mend": told}))
    watched.saved(["one.py", "two.py"])
    assert all(len(line.plain) < width for line in watched.lines(width))

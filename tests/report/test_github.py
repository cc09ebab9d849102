from __future__ import annotations

from pathlib import Path

import pytest

from conformance.report.github import tell_github, workflow_commands
from tests.verdict.samples import CLAUSES, hang, nasty, outcome, verdict


def code(where: str) -> list[dict[str, str]]:
    return [{"where": where, "in": "MyBackbone", "source": "class MyBackbone:"}]


def test_what_denies_is_an_error_and_a_should_a_warning(tmp_path: Path) -> None:
    (tmp_path / "a,b.py").touch()
    place = code(f"{tmp_path}/a,b.py:7")
    told = list(
        workflow_commands(
            verdict(
                outcome("EMB-11", "failed", evidence={"observed": "100%: a, b"}),
                outcome("CON-01", "failed", evidence={"observed": "two\nlines", "code": place}),
            ),
            {"GITHUB_WORKSPACE": str(tmp_path)},
        )
    )
    assert told == [
        "::error file=a%2Cb.py,line=7,title=CON-01 failed::two lines",
        "::warning title=EMB-11 failed::100%25: a, b",
    ]


@pytest.mark.parametrize("where", ["<string>:1", "mine.py:3", "../mine.py:3", "nonsense"])
def test_a_file_that_the_repository_lacks_is_not_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "mine.py").touch()
    (tmp_path / "repository").mkdir()
    failed = outcome("PAD-03", "failed", evidence={"observed": "x", "code": code(where)})
    told = list(
        workflow_commands(verdict(failed), {"GITHUB_WORKSPACE": str(tmp_path / "repository")})
    )
    assert told == ["::error title=PAD-03 failed::x"]


def test_every_annotation_is_one_line_whatever_the_backbone_says() -> None:
    for judged in (nasty(), hang()):
        told = list(workflow_commands(judged, {}))
        assert told
        for line in told:
            assert line.startswith(("::error ", "::warning "))
            assert len(line.splitlines()) == 1
            line.encode()


def test_github_shows_ten_of_a_kind() -> None:
    few = [outcome(one, "failed", evidence={"observed": one}) for one in CLAUSES]
    assert len(list(workflow_commands(verdict(*few), {}))) == len(CLAUSES)
    # Clauses that nobody expected are causes of their own.
    many = verdict(*(outcome(f"XYZ-{number:02}") for number in range(12)))
    assert len(many.root_causes) == 12
    assert len(list(workflow_commands(many, {}))) == 10


def test_the_files_of_a_step_are_added_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary, outputs = tmp_path / "summary", tmp_path / "outputs"
    summary.write_text("before\n")
    tell_github(verdict(), {"GITHUB_STEP_SUMMARY": str(summary), "GITHUB_OUTPUT": str(outputs)})
    assert summary.read_text().startswith("before\n# CERTIFIED")
    assert outputs.read_text() == "result=PASSED\ncertified=true\n"
    assert capsys.readouterr() == ("", "")


def test_a_summary_that_would_not_be_shown_is_not_written(tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    summary.write_text("x" * (1024 * 1024 - 10))
    tell_github(verdict(), {"GITHUB_STEP_SUMMARY": str(summary)})
    assert set(summary.read_text()) == {"x"}

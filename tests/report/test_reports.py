from __future__ import annotations

import ast
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from conformance.report.console import write_report
from conformance.report.counterexamples import counterexamples
from conformance.report.files import check_writable, write_all
from conformance.report.html import html
from conformance.report.junit import junit
from conformance.report.markdown import markdown
from conformance.report.narrative import evidence_of, listed, rerun_command
from conformance.report.progress import progress
from conformance.report.writing import UnwritableFolder
from conformance.verdict.reaching import reach_verdict
from conformance.verdict.verdict import Verdict
from tests.verdict.samples import (
    NASTY,
    NOW,
    assessment,
    hang,
    nasty,
    one_cause_that_blocks,
    outcome,
    verdict,
)


def printed(judged: Verdict, width: int = 80, *, deep: bool = False) -> str:
    stream = io.StringIO()
    write_report(
        Console(file=stream, width=width, markup=False, highlight=False), judged, deep=deep
    )
    return stream.getvalue()


def test_the_first_line_is_the_root_cause_and_the_last_what_to_run() -> None:
    lines = printed(one_cause_that_blocks()).splitlines()
    assert lines[0] == "PAD-01 failed: the pad id is 2, which is also the eos id"
    assert lines[-1].endswith("--profile core,training --only PAD-01")
    assert any("blocks 3 clauses: PAD-02..04" in line for line in lines)


def test_a_run_cut_short_says_so_first() -> None:
    lines = printed(hang()).splitlines()
    assert lines[0] == "run cut short: while judging PAD-03, nothing happened for 120 s"
    assert "2 not run: PAD-03, PAD-04" in lines
    assert "stuck here" not in printed(hang())
    assert "stuck here" in printed(hang(), deep=True)


def test_a_clean_run_takes_two_lines() -> None:
    assert printed(verdict()).splitlines() == [
        "CERTIFIED mistral-v0.1-7b-instruct [core, training]",
        "  7 clauses: 7 passed; seed 0, 12.5 s",
    ]


def test_a_should_is_shown_as_not_denying() -> None:
    assert "does not deny a certificate" in printed(verdict(outcome("PAD-04", "failed")))


def test_tracebacks_are_for_those_who_ask() -> None:
    assert "Traceback" not in printed(nasty())
    assert "Traceback" in printed(nasty(), deep=True)


def test_a_number_stands_beside_its_unit() -> None:
    for width in range(41, 120):
        text = printed(one_cause_that_blocks(), width)
        assert not re.search(r"\d\n *(s|clauses?|MUSTs?)\b", text)
        assert re.search(r"\d s\b", text)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_lines_fit_the_terminal(width: int) -> None:
    lines = [
        line
        for line in printed(one_cause_that_blocks(), width).splitlines()
        if not line.startswith("  next:")
    ]
    assert max(map(len, lines)) < max(width, 41)


@pytest.mark.parametrize(
    "render",
    [printed, markdown, junit, html, lambda judged: "".join(counterexamples(judged).values())],
)
def test_nothing_that_a_terminal_obeys_gets_into_a_report(render) -> None:  # type: ignore[no-untyped-def]
    text = render(nasty())
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\ud800-\udfff]", text)
    text.encode("utf-8")


def test_junit_is_well_formed_and_counts_right() -> None:
    root = ElementTree.fromstring(junit(nasty()))
    suite = root.find("testsuite")
    assert suite is not None
    assert (root.get("failures"), root.get("errors"), suite.get("tests")) == ("1", "1", "8")
    assert root.tag == "testsuites"
    for case in suite.iter("testcase"):
        assert set(case.keys()) == {"name", "classname", "time"}


def test_in_junit_a_must_that_did_not_run_is_an_error_and_an_unmet_should_a_skip() -> None:
    root = ElementTree.fromstring(junit(hang()))
    kinds = {
        case.get("name", "")[:6]: [child.tag for child in case] for case in root.iter("testcase")
    }
    assert kinds["PAD-03"] == ["error"]
    assert kinds["PAD-04"] == ["skipped"]
    assert kinds["CON-01"] == []


def test_junit_without_a_certificate_is_never_green() -> None:
    partial = reach_verdict(assessment(outcomes=(outcome("PAD-03"),)), only=("PAD-03",), now=NOW)
    for judged in (hang(), verdict(profiles=(), outcomes=())):
        assert ElementTree.fromstring(junit(judged)).get("errors") != "0"
    root = ElementTree.fromstring(junit(partial))
    assert root.get("errors") == "0"
    assert [child.tag for case in root.iter("testcase") for child in case] == ["skipped"]


def test_a_test_keeps_its_name_in_junit_when_the_statement_is_worded_anew() -> None:
    root = ElementTree.fromstring(junit(verdict(outcome("PAD-03", "failed"))))
    names = [case.get("name", "") for case in root.iter("testcase")]
    assert "PAD-03 y" in names, "the ID and the words of test_y"
    assert not any("statement" in name for name in names)
    assert "The statement of PAD-03." in "".join(root.itertext())


def test_numbers_have_four_digits() -> None:
    evidence = {"ratio": 0.123456789, "seconds": 12345.678, "pair": [1.5, 2 / 3], "count": 100000}
    told = dict(evidence_of(outcome("PAD-03", "failed", evidence=evidence)))
    assert told == {
        "ratio": "0.1235",
        "seconds": "12346",
        "pair": "[1.5, 0.6667]",
        "count": "100000",
    }


def test_junit_of_a_certified_backbone_is_green() -> None:
    root = ElementTree.fromstring(junit(verdict(outcome("PAD-04", "failed"))))
    assert (root.get("failures"), root.get("errors")) == ("0", "0")


def test_markdown_escapes_its_own_marks() -> None:
    summary = markdown(
        verdict(outcome("PAD-03", "failed", evidence={"observed": "a_b_c <img> | *x*"}))
    )
    assert r"PAD-03 failed: a\_b\_c \<img\> \| \*x\*" in summary


@pytest.mark.parametrize("judged", [one_cause_that_blocks, nasty])
def test_a_counterexample_is_python_that_carries_the_draws(judged) -> None:  # type: ignore[no-untyped-def]
    ((name, source),) = counterexamples(judged()).items()
    assert source.isascii()
    module = ast.parse(source)
    calls = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "replay"
    ]
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in calls[0].keywords}
    assert ast.literal_eval(calls[0].args[0]) == name[:-3]
    assert arguments["draws"]["text"] == NASTY
    assert set(arguments) == {"target", "backbone_id", "weights", "seed", "draws"}
    assert (ast.get_docstring(module) or "").startswith(
        f"Counterexample of {name[:-3]} (MUST): The statement of"
    )


def test_only_what_failed_has_a_counterexample() -> None:
    assert list(counterexamples(hang())) == []


def test_out_gets_everything(tmp_path: Path) -> None:
    write_all(one_cause_that_blocks(), tmp_path / "new" / "out")
    found = sorted(
        str(path.relative_to(tmp_path / "new" / "out"))
        for path in tmp_path.rglob("*")
        if path.is_file()
    )
    assert found == [
        "certificate.json",
        "counterexamples/PAD-01.py",
        "junit.xml",
        "report.html",
        "summary.md",
    ]


def test_what_an_earlier_run_left_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    write_all(one_cause_that_blocks(), tmp_path)
    (tmp_path / "counterexamples" / "mine.py").write_text("print('mine')")
    (tmp_path / "notes.txt").write_text("mine")
    check_writable(tmp_path)
    assert (tmp_path / "counterexamples" / "PAD-01.py").exists()
    write_all(verdict(), tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "certificate.json", "junit.xml", "mine.py", "notes.txt", "report.html", "summary.md",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableFolder, match="name another folder with --out"):
        check_writable(tmp_path / "file")
    with pytest.raises(UnwritableFolder, match="name another folder with --out"):
        write_all(verdict(), tmp_path / "file")


def test_neighbouring_clauses_are_drawn_together() -> None:
    ids = ["CON-01", "PAD-01", "PAD-02", "EMB-08", "EMB-09", "EMB-10", "XYZ"]
    assert listed(outcome(clause) for clause in ids) == "CON-01, PAD-01, PAD-02, EMB-08..10, XYZ"


def test_the_command_to_run_again_survives_a_shell() -> None:
    judged = verdict(target="my file.py:Class", backbone_id="an-id", seed=7, budget="quick")
    assert rerun_command(judged, ["PAD-03"], ["--hub", "a b"]) == (
        "conformance certify 'my file.py:Class' --id an-id --profile core,training --budget quick "
        "--seed 7 "
        "--hub 'a b' --only PAD-03"
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_phases_and_what_failed(terminal: bool) -> None:
    stream = io.StringIO()
    with progress(Console(file=stream, force_terminal=terminal, width=60)) as shown:
        shown.step(f"constructing {NASTY}")
        shown.begin("PAD-01", 2)
        shown.judged(outcome("PAD-01"))
        shown.judged(outcome("PAD-03", "failed"))
    assert "PAD-03 failed" in stream.getvalue()
    assert terminal or stream.getvalue().splitlines()[1:] == ["PAD-03 failed"]

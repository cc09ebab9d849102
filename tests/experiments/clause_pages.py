"""A page for every clause: `docs/clauses/ID.md`, and `docs/clauses/index.md`, which lists them.

`python -m tests.experiments.clause_pages` writes them from what is recorded elsewhere: statement,
needs and release from the catalogue; what is drawn, in which states and what mends a failure from
the clause's own code; planted defects from `tests/mutants/`, with the states in which they died;
and the real defects that these stand for from `docs/defects.md`. What is recorded nowhere is not
told.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

from conformance.catalogue import AREAS, Requirement, area_of, catalogue
from conformance.suite.collection import Test, clause_tests
from tests import ROOT
from tests.experiments.kill_matrix import DEATHS
from tests.mutants import Mutant, all_mutants

FOLDER = ROOT / "docs" / "clauses"
DEFECTS = ROOT / "docs" / "defects.md"

_REPOSITORIES = {
    "OV": "openvla/openvla",
    "TF": "huggingface/transformers",
    "FastChat": "lm-sys/FastChat",
    "LLaVA": "haotian-liu/LLaVA",
    "LlamaFactory": "hiyouga/LLaMA-Factory",
    "lingua": "facebookresearch/lingua",
    "mistral-common": "mistralai/mistral-common",
    "openvla-oft": "moojink/openvla-oft",
    "peft": "huggingface/peft",
    "pytorch": "pytorch/pytorch",
    "trl": "huggingface/trl",
    "verl": "volcengine/verl",
    "vllm": "vllm-project/vllm",
}
"""Where the issues of a project are that `docs/defects.md` names in short."""
_ISSUE = re.compile(rf"\b({'|'.join(sorted(_REPOSITORIES, key=len, reverse=True))})( PR)?#(\d+)")
_DOCUMENT = re.compile(r"\bdocs/([\w-]+\.md)\b")
_SUITE = "conformance.suite."
_UNSEEN = ("–", "planted")
"""Sources of defects that were seen in nobody's code."""
_STATES: Mapping[str, str] = {
    "first_finding": "every state, call and history of [the control](../control.md), pair by pair",
    "compared": "beside [the control](../control.md), in the states that its statement names",
    "built_both_ways": "built for training and for inference",
    "build_for_inference": "built for inference",
    "half_precision_parameters": "in half precision",
    "half_precision": "in half precision",
    "float32": "in float32",
    "training": "built for training",
    "build": "built for training",
}
"""What a name in the code of a clause says of the states in which it judges."""


@dataclass(frozen=True)
class Defect:
    """An entry of `docs/defects.md`."""

    what: str
    effect: str
    source: str


def pages(mutants: Sequence[Mutant]) -> dict[str, str]:
    """The text of each page, by its file's name."""
    written = {f"{clause}.md": _page(known, mutants) for clause, known in catalogue().items()}
    return {"index.md": _index(), **written}


def _index() -> str:
    by_area: dict[str, list[Requirement]] = {name: [] for name in AREAS.values()}
    for clause in catalogue().values():
        by_area[area_of(clause.id)].append(clause)
    lines = [
        "# Clauses",
        "",
        "A page for every clause, written by `python -m tests.experiments.clause_pages`. All of "
        "them in one table, by profile: [requirements](../requirements.md).",
    ]
    for area, clauses in by_area.items():
        lines += ["", f"## {area}", ""]
        lines += [f"- [{one.id}]({one.id}.md), {one.level}: {_title(one)}" for one in clauses]
    return "\n".join(lines) + "\n"


def _page(clause: Requirement, mutants: Sequence[Mutant]) -> str:
    tests, killed = clause_tests()[clause.id], [one for one in mutants if clause.id in one.fails]
    sections = (
        _head(clause),
        _why(killed, clause),
        _drawn(tests),
        _in_states(tests),
        _mends(tests),
        _planted(clause, killed),
    )
    return "\n\n".join(filter(None, map("\n".join, sections))) + "\n"


def _head(clause: Requirement) -> Iterator[str]:
    yield f"# {clause.id}: {_title(clause)}"
    yield ""
    yield _DOCUMENT.sub(r"[docs/\1](../\1)", clause.statement)
    yield ""
    yield f"- Level: **{clause.level}**" + (
        ", which denies a certificate where it is not met"
        if clause.level == "MUST"
        else ", which is reported and denies nothing"
    )
    yield f"- Profile: `{clause.profile}`, since release {clause.since}"
    if clause.needs:
        yield (
            f"- Needs {', '.join(f'[{need}]({need}.md)' for need in clause.needs)}: where one of "
            "them fails, this one is blocked"
        )
    if clause.uses:
        yield f"- Uses {', '.join(f'`{member}`' for member in clause.uses)}"
    yield f"- To judge it alone: `conformance certify TARGET --only {clause.id}`"


def _why(killed: Sequence[Mutant], clause: Requirement) -> Iterator[str]:
    numbers = dict.fromkeys(
        number for one in killed if one.clause == clause.id for number in one.defects
    )
    known = {number: defects()[number] for number in numbers}
    if known:
        yield "## Why"
        yield ""
    for number, defect in sorted(known.items(), key=lambda item: int(item[0][1:])):
        seen = "" if defect.source in _UNSEEN else f" Source: {_linked(defect.source)}."
        effect = f" What came of it: {defect.effect}." if defect.effect not in _UNSEEN else ""
        yield f"- [{number}](../defects.md): {defect.what}.{effect}{seen}"


def _drawn(tests: Sequence[Test]) -> Iterator[str]:
    draws = {
        name: _told(strategy)
        for test in tests
        for name, strategy in getattr(test, "draws", {}).items()
    }
    edges = [_told(edges) for test in tests if (edges := getattr(test, "edges", None))]
    if draws or any(edges):
        yield "## What it draws"
        yield ""
    for name, told in draws.items():
        yield f"- `{name}`" + (f": {told}" if told else "")
    for told in dict.fromkeys(filter(None, edges)):
        yield f"- always tried: {told.removeprefix('Edges: ')}"


def _in_states(tests: Sequence[Test]) -> Iterator[str]:
    named = {name for test in tests for name in _named(_check_of(test))}
    if "built_both_ways" in named:
        named -= {"training", "build", "build_for_inference"}
    found = [told for name, told in _STATES.items() if name in named]
    if found:
        yield "## In which states"
        yield ""
    # Whatever else a clause builds, all states are the most that it can be judged in.
    for told in dict.fromkeys(found[:1] if "first_finding" in named else found):
        yield f"- {told}"


def _mends(tests: Sequence[Test]) -> Iterator[str]:
    found = dict.fromkeys(
        told for test in tests for code in _code_of(_check_of(test)) for told in _advice(code)
    )
    if found:
        yield "## What mends it"
        yield ""
    for told in found:
        yield f"- {told}"


def _planted(clause: Requirement, killed: Sequence[Mutant]) -> Iterator[str]:
    if not killed:
        return
    deaths = json.loads(DEATHS.read_text(encoding="utf-8"))
    named = {one.name: deaths.get(one.name, "") for one in killed if one.clause == clause.id}
    died = any(named.values())
    yield "## The planted defects that it kills"
    yield ""
    if died:
        yield "Dies: the plainest state and call in which the clause still fails."
        yield ""
    yield "| defect | what it does |" + (" dies |" if died else "")
    yield "|---|---|" + ("---|" if died else "")
    for one in sorted(killed, key=lambda one: (one.name not in named, one.name)):
        other = "" if one.name in named else f" (named by [{one.clause}]({one.clause}.md))"
        told = one.statement.replace("|", "\\|")
        row = f"| `{one.name}`{other} | {told} |"
        yield row + (f" {named.get(one.name, '')} |" if died else "")


@cache
def defects() -> dict[str, Defect]:
    """The real defects, by number."""
    found = {}
    for line in DEFECTS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if re.fullmatch(r"D\d+", cells[0]):
            found[cells[0]] = Defect(*cells[1:4])
    return found


def _linked(source: str) -> str:
    return _ISSUE.sub(
        lambda found: (
            f"[{found[0]}](https://github.com/{_REPOSITORIES[found[1]]}/issues/{found[3]})"
        ),
        source,
    )


def _title(clause: Requirement) -> str:
    return clause.test.rpartition(":")[2].removeprefix("test_").replace("_", " ")


def _told(strategy: Callable[..., Any]) -> str:
    """What a strategy says of itself; an expression, what the suite's functions in it do."""
    if strategy.__name__ != "<lambda>":
        return _first_paragraph(strategy)
    used = [inspect.unwrap(strategy).__globals__.get(name) for name in strategy.__code__.co_names]
    return " ".join(
        _first_paragraph(one)
        for one in used
        if isinstance(one, FunctionType) and one.__module__.startswith(_SUITE)
    )


def _first_paragraph(function: Callable[..., Any]) -> str:
    return " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())


def _check_of(test: Test) -> Callable[..., Any]:
    return inspect.unwrap(test)


@cache
def _asking() -> set[str]:
    """The suite's modules whose code asks something; what draws for all clauses is of none."""
    return {
        name for name in sys.modules if name.startswith(_SUITE) and name != f"{_SUITE}properties"
    }


@cache
def _code_of(function: Callable[..., Any]) -> list[ast.AST]:
    """The code of a clause, and of the functions of the suite that it calls."""
    found: dict[Callable[..., Any], ast.AST] = {}
    coming = [function]
    while coming:
        one = coming.pop(0)
        if one in found:
            continue
        # What a decorator generates has no source.
        file = inspect.getsourcefile(one)
        if file is None or not Path(file).is_file():
            continue
        found[one] = ast.parse(textwrap.dedent(inspect.getsource(one)))
        for node in ast.walk(found[one]):
            value = one.__globals__.get(node.id) if isinstance(node, ast.Name) else None
            if isinstance(value, FunctionType) and value.__module__ in _asking():
                coming.append(inspect.unwrap(value))
    return list(found.values())


def _named(function: Callable[..., Any]) -> Iterator[str]:
    """What the code of a clause calls by name, or takes from its subject."""
    for node in (node for code in _code_of(function) for node in ast.walk(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.attr if node.value.id == "subject" else ""


def _advice(code: ast.AST) -> Iterator[str]:
    """What the calls in it say under `mend`; for a value that is only known in a run, `…`."""
    for node in ast.walk(code):
        if isinstance(node, ast.keyword) and node.arg == "mend":
            yield from _texts(node.value)


def _texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)
    elif isinstance(node, ast.JoinedStr):
        yield "".join(
            str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
        )


def main() -> int:
    written = pages(all_mutants())
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.md"):
        if old.name not in written:
            old.unlink()
    for name, text in written.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"wrote {len(written)} pages to {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

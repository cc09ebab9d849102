"""The page as text: what stands in it, and what never gets into it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from conformance.places import DOCUMENTATION
from conformance.report.figures import error_growth, readings, receptive_field, states, wrap_units
from conformance.report.html import html
from conformance.report.narrative import visible
from conformance.report.prose import apart, prose, tokens
from conformance.toml import load_toml
from conformance.verdict.load import read_certificate
from tests import ROOT
from tests.verdict.samples import nasty, one_cause_that_blocks, outcome, verdict

CERTIFICATES = Path(__file__).with_name("certificates")


class _Outline(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.references: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        # Neither the policy nor a reader of the page allows code in attributes.
        assert not [name for name, _ in attrs if name.startswith("on") or name == "style"]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.mark.parametrize("judged", [nasty, one_cause_that_blocks])
def test_the_page_is_one_file_that_loads_nothing(judged) -> None:  # type: ignore[no-untyped-def]
    outline = _Outline(html(judged()))
    assert not {"b", "link", "img", "iframe", "object", "base", "form"} & set(outline.tags)
    assert outline.tags.count("script") == outline.tags.count("style") == 1
    elsewhere = [place for place in outline.references if not place.startswith("#")]
    assert all(place.startswith(f"{DOCUMENTATION}/") for place in elsewhere)
    inside = {place[1:] for place in outline.references if place.startswith("#")}
    assert inside <= set(outline.ids), "links that lead nowhere"
    assert len(outline.ids) == len(set(outline.ids)), "two elements of one name"


def test_the_page_escapes_what_the_subject_says() -> None:
    page = html(nasty())
    assert page.count("<script") == 1
    assert visible("\x1b[31m") + visible("\x00") in "".join(_Outline(page).text)


def test_the_policy_allows_the_pages_own_style_and_script_alone() -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html(verdict()))
    assert policy.startswith("default-src &#39;none&#39;; style-src &#39;sha256-")
    assert "script-src &#39;sha256-" in policy
    assert "unsafe" not in policy


def test_the_project_has_its_documents_where_reports_link_to() -> None:
    urls = load_toml(ROOT / "pyproject.toml")["project"]["urls"]
    assert urls["Documentation"] == DOCUMENTATION.replace("/blob/", "/tree/")


def test_the_page_tells_of_every_clause_and_of_causes_first() -> None:
    text = html(one_cause_that_blocks())
    for done in one_cause_that_blocks().outcomes:
        assert f"The statement of {done.id}." in text
        assert f'id="{done.id}"' in text
    assert text.index("What to mend") < text.index("All clauses")


def test_a_must_stands_before_a_should_and_looks_otherwise() -> None:
    page = html(verdict(outcome("PAD-04", "failed"), outcome("EMB-01", "failed")))
    kinds = re.findall(r'<section class="cause (\w+)" id="cause-([\w-]+)"', page)
    assert kinds == [("must", "EMB-01"), ("should", "PAD-04")]


def test_an_area_is_unfolded_where_something_is_to_be_looked_at() -> None:
    page = html(verdict(outcome("PAD-03", "failed")))
    areas = dict(re.findall(r'<details class="area" id="area-([\w-]+)"( open)?', page))
    assert areas == {"Construction": "", "Pad-token": " open", "Embeddings": ""}


def test_back_ticks_become_code() -> None:
    assert prose("set `a<b`, not ` alone") == "set <code>a&lt;b</code>, not ` alone"


def test_what_two_texts_do_not_share_is_marked() -> None:
    observed, expected = apart(
        "the turn is 'In: a\\nOut:'", "'In: a\\nOutput: ', as the template of `it's` has it"
    )
    assert observed == "the turn is <code>&#39;In: a\\n<del>Out</del>:&#39;</code>"
    assert "<ins>Output</ins>:<ins> </ins>" in expected
    assert "<code>it&#39;s</code>" in expected


@pytest.mark.parametrize(
    ("observed", "expected"),
    [("it has 3", "4"), ("'ab'", "'xy'"), ("'ab", "'ab'"), ("", "'ab'"), ("it's 'b'", "'b")],
)
def test_texts_that_have_nothing_in_common_stay_as_they_are(observed: str, expected: str) -> None:
    marked = "".join(apart(observed, expected))
    assert "<del>" not in marked
    assert "<ins>" not in marked


def test_encodings_are_compared_token_by_token() -> None:
    told = tokens({"observed": [[1, "<s>"], [7, "Ag"]], "expected": [[1, "<s>"], [8, None]]})
    assert [(token.piece, token.apart) for token in told["observed"]] == [
        ("<s>", False),
        ("Ag", True),
    ]
    assert [(token.piece, token.apart) for token in told["expected"]] == [
        ("<s>", False),
        ("", True),
    ]


@pytest.mark.parametrize("evidence", [None, [], {}, {"observed": 3}, {"observed": [3, [1]]}])
def test_what_is_no_encoding_is_none(evidence: object) -> None:
    assert not tokens(evidence)


GROWTH = [
    {"layer": "model.layers.0", "subject": 0.005, "reference": 0.004},
    {"layer": "model.layers.1", "subject": 0.01, "reference": 0.008},
]


def test_errors_grow_towards_the_top_of_their_chart() -> None:
    plot = error_growth(outcome("PAD-03", evidence={"error growth": GROWTH}))
    assert plot is not None
    assert plot.subject == [(0.0, 65.0), (380.0, 0.0)]
    assert not plot.allowed
    bound = error_growth(
        outcome(
            "PAD-03",
            evidence={"error growth": GROWTH, "measured": {"rounding ratio": {"bound": 1.2}}},
        )
    )
    assert bound is not None
    assert not bound.within
    assert bound.highest == 0.01


@pytest.mark.parametrize(
    "growth",
    [
        None, "<script>", [], GROWTH[:1], [*GROWTH, {"subject": "1", "reference": 1}],
        [*GROWTH, 3, {}], [*GROWTH, {"subject": float("nan"), "reference": 1}],
    ],
)  # fmt: skip
def test_a_figure_is_drawn_of_numbers_alone(growth: object) -> None:
    told = outcome(
        "PAD-03",
        evidence=dict.fromkeys(
            ("error growth", "measured", "receptive field", "wrap units", "states", "state"), growth
        ),
    )
    assert error_growth(told) is None
    assert receptive_field(told) == []
    assert readings(told) == []
    assert wrap_units(told) == []
    assert "<figure" not in html(verdict(told))


def test_readings_stand_on_a_track_that_their_bound_marks() -> None:
    measured = {
        "rounding ratio": {"worst": 1.0, "bound": 1.25, "calibrated on": "cpu", "calibration": 2},
        "other": {"worst": "inf", "bound": 2},
        "unbounded": {"worst": 1.0},
    }
    ratio, other = readings(outcome("PAD-03", evidence={"measured": measured}))
    assert (ratio.place, ratio.met, ratio.worst) == (80.0, True, "1")
    assert ratio.usual is not None, "the calibration has read this gate"
    assert (other.place > other.bound_place, other.met, other.usual) == (True, False, None)


def test_a_layer_that_sees_one_token_too_many_is_shown() -> None:
    layers = [{"sees": [[0, 3]], "expected": 4}, {"sees": [[0, 4]], "expected": 4}]
    field = receptive_field(
        outcome("PAD-03", evidence={"receptive field": {"tokens": 30, "layers": layers}})
    )
    assert [layer.as_expected for layer in field] == [True, False]
    assert [sum(layer.seen) for layer in field] == [4, 5]


def test_units_are_a_tree_in_which_neighbours_alike_are_told_once() -> None:
    paths = ["", "llm.layers.0", "llm.layers.0.mlp", "llm.layers.1", "llm.layers.1.mlp", "head"]
    rows = [
        {"unit": path, "class": path.rpartition(".")[2].strip("01"), "parameters": len(path)}
        for path in paths
    ]
    (root,) = wrap_units(outcome("PAD-03", evidence={"wrap units": rows}))
    assert [(unit.path, unit.count) for unit in root.inside] == [("llm.layers.0", 2), ("head", 1)]
    assert [unit.path for unit in root.inside[0].inside] == ["llm.layers.0.mlp"]


def test_a_failing_clause_shows_the_state_that_it_takes() -> None:
    tried = {"mode": {"eval": 3, "train": 0}, "mask": {"ones": 2, "none": 1}}
    grid = states(
        verdict(
            outcome("PAD-03", "failed", evidence={"states": tried, "state": {"mode": "train"}}),
            outcome("EMB-01", evidence={"states": tried}),
        )
    )
    assert grid is not None
    assert grid.clauses == ("PAD-03", "EMB-01")
    assert dict(grid.rows) == {
        "mode": (("train", True), ("1", False)),
        "mask": (("plain", False), ("2", False)),
    }


@pytest.mark.parametrize("path", sorted(CERTIFICATES.glob("*.json")), ids=lambda path: path.stem)
def test_a_report_is_made_of_every_certificate(path: Path) -> None:
    page = html(read_certificate(path))
    assert page.count("<script") == 1
    assert len(page) < 200_000, "a page to be mailed"

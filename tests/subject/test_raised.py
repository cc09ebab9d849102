"""Where an exception came from: files in the places in which people keep them."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.subject.raised import code_behind, raised_as_evidence, traceback_from, where

RAISES = "import json\n\ndef make(text):\n    return json.loads(text)\n"


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    known = set(sys.modules)

    def import_from(folder: str, name: str, source: str = RAISES) -> Any:
        place = tmp_path / folder
        file = place / (name.replace(".", "/") + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        monkeypatch.syspath_prepend(str(place))
        return importlib.import_module(name)

    yield import_from
    for name in set(sys.modules) - known:
        del sys.modules[name]


def raised_by(factory: Callable[..., Any], *arguments: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever it is
        factory(*arguments)
    return caught.value


def test_the_authors_line_comes_first_and_the_librarys_behind(
    imported: Callable[..., Any],
) -> None:
    factory = imported(".", "of_a_file").make
    assert where(raised_by(factory, "{"), factory).startswith(
        "of_a_file.py:4 in make, from json/decoder.py:"
    )


def test_a_path_is_one_to_open_from_here(
    imported: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    factory = imported("src", "from_here").make
    assert where(raised_by(factory, "{"), factory).startswith("src/from_here.py:4 in make")


@pytest.mark.parametrize("folder", ["src", "env/site-packages"])
def test_of_a_package_its_other_modules_count(imported: Callable[..., Any], folder: str) -> None:
    imported(folder, "a_package.inner.helper")
    source = "from a_package.inner.helper import make\n\ndef build(text):\n    return make(text)\n"
    factory = imported(folder, "a_package.backbone", source).build
    assert where(raised_by(factory, "{"), factory).startswith("a_package/inner/helper.py:4 in make")


def test_an_environment_beside_the_file_is_a_library(imported: Callable[..., Any]) -> None:
    imported(".venv/site-packages", "a_library")
    source = "from a_library import make\n\ndef build(text):\n    return make(text)\n"
    factory = imported(".", "beside_it", source).build
    error = raised_by(factory, "{")
    assert where(error, factory).startswith("beside_it.py:4 in build, from json/")
    # The frames of this test, which lead there, are left out.
    assert "test_raised.py" not in traceback_from(error, factory)


def test_code_without_a_file_has_places_too() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__", "json": json}
    exec(compile("def make():\n    return json.loads('{')", "<cell 3>", "exec"), namespace)
    error = raised_by(namespace["make"])
    factory = namespace["make"]
    factory.__module__ = "no_such_module"
    assert where(error, factory).startswith("<cell 3>:2 in make, from json/decoder.py:")


def test_a_long_traceback_is_shortened(imported: Callable[..., Any]) -> None:
    source = "def one(n):\n    return other(n + 1)\n\ndef other(n):\n    return one(n + 1)\n"
    factory = imported(".", "endless", source).one
    error = raised_by(factory, 0)
    assert len(traceback_from(error, factory).splitlines()) < 100


OF_A_FAMILY = """import functools
import json

class Own(json.JSONDecoder):
    strict = True

    @functools.lru_cache
    def decode(self, text):
        return super().decode(text)

    @property
    def shown(self):
        raise RuntimeError("nobody asked for it")
"""


def test_a_failure_points_to_the_members_that_it_is_about(imported: Callable[..., Any]) -> None:
    own = imported(".", "of_a_family", OF_A_FAMILY).Own
    lines = code_behind(own, [own], ["shown", "decode", "raw_decode", "absent"])
    assert lines == [
        {"where": "of_a_family.py:12", "in": "Own.shown", "source": "def shown(self):"},
        {"where": "of_a_family.py:8", "in": "Own.decode", "source": "def decode(self, text):"},
    ]


def test_what_is_inherited_from_a_library_points_to_the_class(
    imported: Callable[..., Any],
) -> None:
    own = imported(".", "of_another", OF_A_FAMILY).Own
    first, *others = code_behind(own, [own], ["raw_decode"])
    assert first["source"] == "class Own(json.JSONDecoder):"
    assert [line["in"] for line in others] == ["Own.decode", "Own.shown"]


def test_an_exception_points_to_the_line_that_raised_it(imported: Callable[..., Any]) -> None:
    factory = imported(".", "of_a_line").make
    (line,) = raised_as_evidence(raised_by(factory, "{"), factory)["code"]
    assert line == {
        "where": "of_a_line.py:4", "in": "make", "source": "return json.loads(text)",
    }  # fmt: skip

"""Options and fixtures that all of the project's tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.schemas import check_written


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mutants",
        choices=("full", "own", "sample", "none"),
        default="own",
        help="how much of the kill matrix to run: every planted defect by its whole profile, every "
        "one by its own clauses and a sample by the whole profile, the sample by its own clauses, "
        "or none [own]",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests that are marked `release` to `tox -e matrix`: they take minutes, and a shorter
    one beside each looks at the same code."""
    if config.getoption("--mutants") == "full" or "release" in config.getoption("markexpr"):
        return
    left = [item for item in items if item.get_closest_marker("release")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


@pytest.fixture(scope="session", autouse=True)
def offline() -> None:
    """Nothing in the tests may reach for a hub; whatever tries must fail at once."""
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture
def budget(request: pytest.FixtureRequest) -> str:
    """The budget of judging by whole profiles: standard before a release alone."""
    return "standard" if request.config.getoption("--mutants") == "full" else "quick"


@pytest.fixture(autouse=True)
def written_files_keep_their_schemas(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test or a process of it writes is what the shipped schemas describe.

    A test that spoils such a file on purpose is marked `spoils_files`.
    """
    spoils = request.node.get_closest_marker("spoils_files") is not None
    folder: Path | None = None
    if "tmp_path" in request.fixturenames and not spoils:
        folder = request.getfixturevalue("tmp_path")
    yield
    if folder is not None:
        check_written(folder)

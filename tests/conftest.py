"""Options and fixtures that all of the project's tests share."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mutants",
        choices=("full", "sample", "none"),
        default="full",
        help="how much of the kill matrix to run [full]",
    )


@pytest.fixture(scope="session", autouse=True)
def offline() -> None:
    """Nothing in the tests may reach for a hub; whatever tries must fail at once."""
    os.environ["HF_HUB_OFFLINE"] = "1"

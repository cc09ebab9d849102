"""The supported releases, which `pyproject.toml` asks for and doctor knows."""

from __future__ import annotations

import pytest

from conformance.doctor.packages import PACKAGES, PYTHON, named
from conformance.toml import load_toml
from tests import ROOT

OPTIONAL = {"securesystemslib", "flash-attn"}
SUPPORT_ALONE = {"platformdirs", "tomli"}
"""Asked for in `pyproject.toml`, and not listed: without them a default is taken, or nothing of
ours starts."""


def test_the_ranges_are_those_that_are_installed() -> None:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    project = load_toml(ROOT / "pyproject.toml")["project"]
    asked = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    listed = {package.name: SpecifierSet(package.range) for package in PACKAGES}
    assert set(asked) - SUPPORT_ALONE == set(listed) - OPTIONAL
    assert {name: listed[name] for name in set(asked) - SUPPORT_ALONE} == {
        name: asked[name] for name in set(asked) - SUPPORT_ALONE
    }
    assert project["requires-python"] == f">={PYTHON[0]}.{PYTHON[1]}"


@pytest.mark.parametrize(
    ("name", "version", "supported"),
    [
        ("torch", "2.13.0+cpu", True),
        ("torch", "2.2", True),
        ("torch", "2.1.2", False),
        ("torch", "2.2.0a0+git1234", True),
        ("transformers", "4.40.1", True),
        ("transformers", "4.39.3", False),
        ("transformers", "5.23.0", True),
        ("transformers", "5.0.0.dev0", True),
        ("transformers", "6.0.0", False),
        ("transformers", "6.0.0rc1", False),
        ("safetensors", "0.4", False),
        ("securesystemslib", "0.1", True),
        ("torch", "unheard of", True),
    ],
)
def test_a_release_is_in_the_range_or_not(name: str, version: str, supported: bool) -> None:
    assert named(name).supports(version) is supported

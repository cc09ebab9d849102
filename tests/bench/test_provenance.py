"""What one process refuses to measure."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from conformance.bench.child.provenance import check_modules, packages_built_from
from conformance.bench.request import BenchRequest
from conformance.errors import CannotAssess


def note(noted: Path, repository: Path, *, editable: bool) -> None:
    origin = {"url": (repository / "python").as_uri(), "dir_info": {"editable": editable}}
    (noted / "direct_url.json").write_text(json.dumps(origin))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that pip installed from a repository, as it notes it (PEP 610), and that a target
    has imported."""
    site, repository = tmp_path / "site-packages", tmp_path / "a repository"
    (site / "robots").mkdir(parents=True)
    (site / "robots" / "__init__.py").write_text("")
    (repository / "python").mkdir(parents=True)
    noted = site / "robots-1.0.dist-info"
    noted.mkdir()
    (noted / "METADATA").write_text("Metadata-Version: 2.1\nName: robots\nVersion: 1.0\n")
    (noted / "RECORD").write_text("robots/__init__.py,,\nrobots-1.0.dist-info/METADATA,,\n")
    note(noted, repository, editable=False)
    monkeypatch.syspath_prepend(site)
    module = ModuleType("robots")
    module.__file__ = str(site / "robots" / "__init__.py")
    monkeypatch.setitem(sys.modules, "robots", module)
    return repository


def test_an_installed_copy_does_not_stand_in_for_both_versions(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(packages_built_from(installed)) == ["robots"]
    for code in (tmp_path / "worktree", installed):
        with pytest.raises(
            CannotAssess, match=r"robots came from .*both versions would be the same"
        ):
            check_modules(BenchRequest(("x",), code=str(code), repository=str(installed)))
    # A package without a module of its own is one all the same.
    monkeypatch.delitem(sys.modules, "robots")
    module = ModuleType("robots.arm")
    module.__file__ = str(tmp_path / "site-packages" / "robots" / "arm.py")
    monkeypatch.setitem(sys.modules, "robots.arm", module)
    with pytest.raises(CannotAssess, match=r"robots\.arm came from"):
        check_modules(BenchRequest(("x",), code=str(installed), repository=str(installed)))
    check_modules(BenchRequest(("x",), code=None, repository=None))
    elsewhere = tmp_path / "another"
    check_modules(BenchRequest(("x",), code=str(elsewhere), repository=str(elsewhere)))


def test_an_editable_installation_is_no_copy(installed: Path, tmp_path: Path) -> None:
    """Setuptools lists the module that finds it, which lies in site-packages."""
    note(tmp_path / "site-packages" / "robots-1.0.dist-info", installed, editable=True)
    assert list(packages_built_from(installed)) == []

"""Environments are made once, whole or not at all. A wheel made here stands in for a registry."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from conformance.drift import environments
from conformance.drift.environments import CannotInstall, made_for, own_requirements, python_of
from conformance.errors import CannotAssess

pytestmark = pytest.mark.slow


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two releases of a package, which is all that pip finds."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for release in ("1.0", "2.0"):
        record = f"tiny-{release}.dist-info"
        with zipfile.ZipFile(folder / f"tiny-{release}-py3-none-any.whl", "w") as wheel:
            wheel.writestr("tiny.py", f"__version__ = '{release}'\n")
            wheel.writestr(
                f"{record}/METADATA", f"Metadata-Version: 2.1\nName: tiny\nVersion: {release}\n"
            )
            wheel.writestr(
                f"{record}/WHEEL",
                "Wheel-Version: 1.0\nGenerator: here\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            wheel.writestr(f"{record}/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_an_environment_is_made_and_used_again(registry: Path, tmp_path: Path) -> None:
    said: list[str] = []
    root = tmp_path / "environments"
    python = made_for(["tiny == 1.0"], said.append, root=root, base=[])
    found = subprocess.run(
        [python, "-c", "import tiny, sys; print(tiny.__version__, sys.prefix)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.split() == ["1.0", str(python.parents[1])]
    assert any("making an environment for tiny==1.0" in line for line in said)
    assert any("Successfully installed tiny-1.0" in line for line in said)
    said.clear()
    assert made_for(["tiny==1.0"], said.append, root=root, base=[]) == python
    assert said == []
    # Half made: the process that made it was killed before the last step.
    (python.parents[1] / environments.MADE).unlink()
    (python.parents[1] / "left").write_text("")
    assert made_for(["tiny==1.0"], said.append, root=root, base=[]) == python
    assert said
    assert not (python.parents[1] / "left").exists()


def test_what_cannot_be_installed_leaves_nothing(registry: Path, tmp_path: Path) -> None:
    root = tmp_path / "environments"
    with pytest.raises(CannotInstall, match=r"No matching distribution found for tiny==3\.0"):
        made_for(["tiny==3.0"], lambda line: None, root=root, base=[])
    assert not [path for path in root.iterdir() if path.is_dir()]


def test_an_interrupt_leaves_nothing(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(line: str) -> None:
        if "Successfully" in line:
            raise KeyboardInterrupt

    root = tmp_path / "environments"
    with pytest.raises(KeyboardInterrupt):
        made_for(["tiny==2.0"], interrupted, root=root, base=[])
    assert not [path for path in root.iterdir() if path.is_dir()]


def test_what_is_held_is_what_this_project_needs_as_installed_here() -> None:
    held = environments._held({"numpy"}, own_requirements())
    names = [one.split("==")[0] for one in held]
    assert {"rich", "torch", "markupsafe"} <= set(names), "what they need in turn, too"
    assert not {"numpy", "transformers", "tokenizers", "ruff", "backbone-conformance"} & set(names)
    assert not any("+" in one for one in held)


def test_this_project_is_what_is_installed_beside() -> None:
    assert any(one.startswith("torch>=") for one in own_requirements())
    assert any(one.startswith("transformers>=") for one in own_requirements())


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotInstall, match="no environment can be made in"):
        made_for(["tiny==1.0"], lambda line: None, root=tmp_path / "file" / "x", base=[])


@pytest.mark.parametrize("wrong", ["", "==4.40.1", "--index-url=x"])
def test_what_is_no_requirement_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(CannotAssess, match="is not a requirement"):
        made_for([wrong], lambda line: None, root=tmp_path, base=[])


def test_an_environment_is_found_by_its_folder_or_its_interpreter(tmp_path: Path) -> None:
    assert python_of(Path(sys.executable)) == Path(sys.executable)
    assert python_of(Path(sys.prefix)).name == "python"
    with pytest.raises(CannotAssess, match="is no virtual environment"):
        python_of(tmp_path)


def test_a_note_of_something_else_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / environments.MADE).write_text(json.dumps({"format": 0}))
    assert not environments._is_made(tmp_path, {"format": 1})

"""Virtual environments, one for each set of requirements: made with pip when first asked for, kept
in the user's cache, and used again.

    ROOT/<digest>/…            the environment
    ROOT/<digest>/made.json    what was asked for, written last: without it an environment is half
                               made, and is made anew
    ROOT/<digest>.lock         held while it is made
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path

from conformance.errors import CannotAssess
from conformance.places import HOME, user_cache
from conformance.run import launch
from conformance.toml import load_toml

MADE = "made.json"
DISTRIBUTION = "backbone-conformance"
_FORMAT = 1
"""Counts the changes to how environments are made; part of every digest."""
_FREE = ("transformers", "tokenizers", "huggingface-hub", "safetensors", "accelerate")
"""Packages that follow the release of transformers. All others are held at the release that is
installed here, so that only what was asked for differs between two environments."""
_STEPS = ("Collecting ", "Downloading ", "Installing collected", "Building ", "Successfully ")
"""The beginnings of pip's lines that say how far it is."""

_LAST_LINES = 12
"""Of what pip said: a conflict takes a line for each of the packages in it."""

Announce = Callable[[str], None]


class CannotInstall(CannotAssess):
    """An environment cannot be made. The message has the end of what pip said."""


def python_of(folder: Path) -> Path:
    """The interpreter of an existing environment: a folder that holds one, or the interpreter
    itself. Links are kept: an environment is known by the path of its interpreter.

    Raises:
        CannotAssess: where there is none.
    """
    places = (folder / "bin" / "python", folder / "Scripts" / "python.exe", folder)
    for place in places:
        if place.is_file():
            return place.absolute()
    raise CannotAssess(
        f"{folder} is no virtual environment: it has no bin/python (`python -m venv {folder}` "
        f"makes one)"
    )


def made_for(
    requirements: Sequence[str],
    announce: Announce,
    *,
    root: Path | None = None,
    base: Sequence[str] | None = None,
) -> Path:
    """The interpreter of an environment that meets `requirements`, made if need be.

    Args:
        requirements: as pip takes them (`transformers==4.40.1`).
        announce: called with a line for each step.
        root: where environments are kept; the user's cache unless given.
        base: what is installed beside them; what this project needs, unless given.

    Raises:
        CannotInstall: if pip cannot meet them, or the folder cannot be written to.
    """
    wanted = sorted({re.sub(r"\s+", "", one) for one in requirements})
    named = {_name(one) for one in wanted}
    beside = [one for one in (own_requirements() if base is None else base) if one]
    held = _held(named, beside)
    asked = {
        "format": _FORMAT,
        "requirements": wanted,
        "beside": sorted(beside),
        "constraints": held,
        "python": [platform.python_implementation(), *sys.version_info[:2], platform.machine()],
    }
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    root = user_cache() / "environments" if root is None else root
    place = root / digest
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{digest}.lock", announce):
            if not _is_made(place, asked):
                announce(f"making an environment for {', '.join(wanted)} in {place}")
                _make(place, [*beside, *wanted], held, announce)
                (place / MADE).write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CannotInstall(
            f"no environment can be made in {root}: {error.strerror or error}"
        ) from error
    return python_of(place)


def own_requirements() -> list[str]:
    """What this project needs to run, as its metadata says."""
    try:
        project = load_toml(HOME / "pyproject.toml")["project"]
        return list(project["dependencies"])
    except OSError:
        pass
    try:
        return _without_extras(requires(DISTRIBUTION))
    except PackageNotFoundError:
        raise CannotInstall(
            f"what {DISTRIBUTION} needs is written nowhere: it is neither installed nor a checkout"
        ) from None


def _held(named: set[str], beside: Sequence[str]) -> list[str]:
    """Constraints: the releases installed here of what `beside` needs. A local part (`+cpu`) is
    known to the index that it came from alone, and is left out."""
    # What a package pins goes with its release: torch with that of sympy, of triton, and so on.
    pinned = {name for one in named - set(_FREE) for name in _installed_for([one])}
    free = {*named, *_FREE, *pinned}
    return sorted(
        f"{name}=={release.split('+')[0]}"
        for name, release in _installed_for(beside).items()
        if name not in free
    )


def _installed_for(requirements: Sequence[str]) -> dict[str, str]:
    """What is installed here of these requirements, and of what they need in turn, by name."""
    found: dict[str, str] = {}
    left = [_name(one) for one in requirements]
    while left:
        name = left.pop()
        if name in found:
            continue
        try:
            installed = distribution(name)
        except PackageNotFoundError:  # needed on another system
            continue
        found[name] = installed.version
        left += map(_name, _without_extras(installed.requires))
    return found


def _without_extras(requirements: Sequence[str] | None) -> list[str]:
    return [one for one in requirements or () if "extra ==" not in one]


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    if found is None:
        raise CannotAssess(
            f"{requirement!r} is not a requirement: write one as pip takes it, such as "
            f"transformers==4.40.1"
        )
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def _is_made(place: Path, asked: Mapping[str, object]) -> bool:
    try:
        stored = json.loads((place / MADE).read_text(encoding="utf-8"))
        # The interpreter that it was made with may be gone.
        return stored == json.loads(json.dumps(asked)) and python_of(place).exists()
    except (OSError, ValueError, CannotAssess):
        return False


def _make(
    place: Path, requirements: Sequence[str], held: Sequence[str], announce: Announce
) -> None:
    shutil.rmtree(place, ignore_errors=True)
    try:
        _run([sys.executable, "-m", "venv", str(place)], announce)
        with tempfile.TemporaryDirectory(prefix="conformance-pip-") as scratch:
            constraints = Path(scratch) / "constraints.txt"
            constraints.write_text("\n".join(held) + "\n", encoding="utf-8")
            pip = [str(python_of(place)), "-m", "pip", "install", "--disable-pip-version-check"]
            _run([*pip, "--no-input", "--constraint", str(constraints), *requirements], announce)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _run(command: Sequence[str], announce: Announce) -> None:
    """Run a command, announcing its steps; whatever ends us ends it too."""
    # What is on our path must not count as installed there.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=kept,
        start_new_session=True,
    )
    said: list[str] = []
    try:
        for line in launch.lines(process.stdout):
            said.append(line)
            if line.strip().startswith(_STEPS):
                announce(f"  {line.strip()[:100]}")
        status = process.wait()
    finally:
        launch.end(process)
        with suppress(OSError):
            process.stdout.close()  # type: ignore[union-attr]
    if status:
        first = next((at for at, line in enumerate(said) if line.startswith("ERROR")), 0)
        told = "".join(f"\n    {line}" for line in said[first:][-_LAST_LINES:] if line)
        raise CannotInstall(f"`{' '.join(command[1:4])}` {launch.manner_of_death(status)}:{told}")


@contextmanager
def _locked(path: Path, announce: Announce) -> Iterator[None]:
    """Hold a lock that the kernel lets go of when the process ends."""
    import fcntl

    with open(path, "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            announce("waiting for another process, which makes the same environment")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

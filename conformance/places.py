"""Where our own files lie, and which files are ours."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
"""The folder of this package."""
HOME = PACKAGE.parent
"""The folder that must be on the path for `import conformance` to find this copy."""


DOCUMENTATION = "https://github.com/backbone-conformance/backbone-conformance/blob/main/docs"
"""Where the documents are read, which reports link to; `docs/` in a checkout."""


def fixtures_directory() -> Path:
    """Where the project's data lies: `conformance/_fixtures` in an installed wheel, `fixtures/` in
    a checkout."""
    packaged = PACKAGE / "_fixtures"
    return packaged if packaged.is_dir() else HOME / "fixtures"


def documents_directory() -> Path:
    """Where the documents lie that statements cite, and the pages of clauses: `conformance/_docs`
    in an installed wheel, `docs/` in a checkout."""
    packaged = PACKAGE / "_docs"
    return packaged if packaged.is_dir() else HOME / "docs"


def user_cache() -> Path:
    """The folder of the user's cache that is ours."""
    try:
        from platformdirs import user_cache_dir
    except ModuleNotFoundError:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "backbone-conformance"
    return Path(user_cache_dir("backbone-conformance"))


def is_installed() -> bool:
    """Whether this copy is found without its folder on the path: it lies among the environment's
    packages."""
    return HOME.name in {"site-packages", "dist-packages"}


@cache
def is_ours(path: str) -> bool:
    """Whether `path`, as a traceback gives it, is a file of this package.

    A user's `conformance_mine.py` beside the package is not, and neither is code without a file
    (`<string>`), whatever the working directory.
    """
    return os.path.isabs(path) and Path(path).resolve().is_relative_to(PACKAGE)

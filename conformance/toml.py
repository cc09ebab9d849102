"""TOML reading on every supported Python: `tomllib` from 3.11 on, `tomli` before."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOMLDecodeError = tomllib.TOMLDecodeError


def load_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        OSError: if it cannot be read.
        TOMLDecodeError: if it is not TOML.
    """
    with open(path, "rb") as stream:
        return tomllib.load(stream)

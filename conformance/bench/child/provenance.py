"""Checks that the code measured is the code that was to be measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from conformance.bench.request import BenchRequest
from conformance.errors import CannotAssess


def check_place(factory: Any, code: str | None) -> None:
    """Refuse a target from outside the checkout `code`: both versions might be the same."""
    module = sys.modules.get(getattr(getattr(factory, "func", factory), "__module__", None) or "")
    place = getattr(module, "__file__", None)
    if code is None or place is None:
        return
    if not Path(place).resolve().is_relative_to(Path(code).resolve()):
        raise CannotAssess(
            f"the target's code came from {place} and not from the checkout {code}: run it from "
            f"the folder of the repository that holds its package"
        )


def check_modules(request: BenchRequest) -> None:
    """Refuse modules loaded from the working tree or from an installed copy: the commit's own code
    must be measured."""
    if request.code is None or request.repository is None:
        return
    root, repository = Path(request.code).resolve(), Path(request.repository).resolve()
    built = set(packages_built_from(repository))
    for name, module in sorted(sys.modules.items()):
        place, package = getattr(module, "__file__", None), name.partition(".")[0]
        if package == "conformance" or not place:
            continue
        path = Path(place).resolve()
        if path.is_relative_to(root):
            continue
        if package in built:
            raise CannotAssess(
                f"{name} came from {place}, where it was installed from {repository}, and not "
                f"from the checkout {root}: both versions would be the same; run it from the "
                f"folder that holds the package, or where it is not installed"
            )
        if path.is_relative_to(repository) and "site-packages" not in path.parts:
            raise CannotAssess(
                f"{name} came from {place}, the working tree, and not from the checkout {root}: "
                f"an editable installation is found before it; run it where the package is not "
                f"installed, or compare stored results (bench run --out)"
            )


def packages_built_from(repository: Path) -> Iterator[str]:
    """The top-level packages and modules that pip installed as a copy from `repository`, according
    to its record of their origin (PEP 610)."""
    for distribution in metadata.distributions():
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        url = origin.get("url", "")
        if not url.startswith("file:") or origin.get("dir_info", {}).get("editable"):
            continue
        if Path(url2pathname(urlsplit(url).path)).resolve().is_relative_to(repository):
            yield from dict.fromkeys(
                file.parts[0].removesuffix(".py")
                for file in distribution.files or ()
                if file.suffix == ".py"
            )

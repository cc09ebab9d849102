"""Writing into the folder that `--out` names: whole files, and errors that name the folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance.errors import CannotAssess


class UnwritableFolder(CannotAssess):
    """The folder named for the reports cannot be made or written to."""


def write_whole(folder: Path, name: str, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        UnwritableFolder: naming the folder and the reason.
    """
    with writing_to(folder):
        temporary = folder / f".{name}.{os.getpid()}"
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, folder / name)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Make `folder` if need be, and name it in the error if the body cannot write there.

    Raises:
        UnwritableFolder: naming the folder and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UnwritableFolder(
            f"reports cannot be written to `{folder}`: {error.strerror or error}; name another "
            f"folder with --out"
        ) from error

"""The two versions of the code that a comparison measures: worktrees of commits, or the working
tree itself."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from conformance.errors import CannotAssess


@dataclass(frozen=True)
class Code:
    """Where a version of the code lies: targets are named from `directory`, inside the checkout
    `root` of `repository`."""

    directory: Path
    root: Path
    repository: Path

    @property
    def places(self) -> list[str]:
        """Folders for the front of the import path, the working directory first."""
        return list(dict.fromkeys(map(str, (self.directory, self.root, self.root / "src"))))


@dataclass(frozen=True)
class Side:
    """One version of the code: `label` for people, `code` where it lies (None: what is
    installed)."""

    label: str
    code: Code | None


@contextmanager
def sides(base: str, head: str | None, directory: Path) -> Iterator[tuple[Side, Side]]:
    """Checkouts of two refs while the body runs; `head` None is the working tree, uncommitted
    changes included.

    Raises:
        CannotAssess: where there is no repository, or it has no such commit.
    """
    root = _git(directory, "rev-parse", "--show-toplevel")
    if not root:
        raise CannotAssess(
            f"{base} is not a file, and {directory} is not in a git repository: run it inside one, "
            f"or name stored results"
        )
    repository = Path(root).resolve()
    inside = directory.resolve().relative_to(repository)
    with ExitStack() as stack:

        def side(ref: str | None) -> Side:
            if ref is None:
                return Side("working tree", Code(directory.resolve(), repository, repository))
            place, commit = stack.enter_context(checkout(ref, repository))
            if not (place / inside).is_dir():
                raise CannotAssess(
                    f"{ref} has no folder {inside}, from which it was to be measured"
                )
            label = commit[:10] if commit.startswith(ref) else f"{ref} ({commit[:10]})"
            return Side(label, Code(place / inside, place, repository))

        yield side(base), side(head)


@contextmanager
def checkout(ref: str, repository: Path) -> Iterator[tuple[Path, str]]:
    """A worktree of `ref` while the body runs, and its commit.

    Raises:
        CannotAssess: where there is no repository, or it has no such commit.
    """
    commit = _git(repository, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if not commit:
        if not _git(repository, "rev-parse", "--git-dir"):
            raise CannotAssess(f"{repository} is not a git repository, and there is no file {ref}")
        raise CannotAssess(
            f"{ref} is neither a stored result nor a commit of {repository}: name a branch, a "
            f"tag, a commit (fetched, in CI: `git fetch --depth 1 origin REF`), a file or a folder "
            f"of results"
        )
    with tempfile.TemporaryDirectory(prefix="conformance-worktree-") as folder:
        place = Path(folder).resolve() / "code"
        worktree = ["git", "-C", str(repository), "worktree"]
        try:
            added = subprocess.run(
                [*worktree, "add", "--detach", str(place), commit], capture_output=True, text=True
            )
            if added.returncode:
                raise CannotAssess(f"git cannot make a worktree of {ref}: {added.stderr.strip()}")
            yield place, commit
        finally:
            subprocess.run([*worktree, "remove", "--force", str(place)], capture_output=True)


def _git(repository: Path, *arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(repository), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""

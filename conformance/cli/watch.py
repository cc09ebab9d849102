"""`conformance certify --watch`: judge again whenever a file of the subject is saved."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from conformance.errors import CannotAssess
from conformance.report.terminal import console
from conformance.report.watching import View, Watched, view
from conformance.run.events import Begin, Event, Judged, Loaded, Phase
from conformance.run.request import DEVICE_PROFILE, RunRequest
from conformance.subject.declarations import CONFIG_FILE
from conformance.verdict.outcomes import Assessment

Run = Callable[..., Assessment]
"""As `run.parent.run`."""

_LOOK_SECONDS = 0.2
_SETTLE_SECONDS = 0.1
"""An editor may save in several steps, and several files at once."""


class Saved(Exception):
    """Files were saved while a run was under way. `names` are theirs."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(*names)
        self.names = names


class Files:
    """The files to look at, and when each was last changed."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._seen: dict[Path, tuple[int, int] | None] = {}
        self.add(paths)

    def add(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self._seen.setdefault(path, _state_of(path))

    def any(self) -> bool:
        """Whether one of them is there: without, nothing can ever be saved."""
        return any(path.exists() for path in self._seen)

    def changed(self) -> tuple[str, ...]:
        """The names of those that were changed since the last time; one that is gone is waited
        for."""
        found = {path: _state_of(path) for path in self._seen}
        new = {
            path: state for path, state in found.items() if state not in (None, self._seen[path])
        }
        self._seen.update(new)
        return tuple(path.name for path in new)

    def look(self) -> None:
        """Raise `Saved` if something was."""
        if not (names := self.changed()):
            return
        time.sleep(_SETTLE_SECONDS)
        raise Saved(tuple(dict.fromkeys((*names, *self.changed()))))


def _state_of(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def watch(request: RunRequest, run: Run) -> NoReturn:
    """Judge what the request asks for; then, each time a file of the subject is saved, what was not
    met, and the rest after it. Until it is interrupted.

    Raises:
        CannotAssess: with profile `gpu`, which no fork can run; or the target cannot be judged and
            there is no file of it to mend.
        KeyboardInterrupt: that is how it ends.
    """
    if DEVICE_PROFILE in request.profiles:
        raise CannotAssess(f"--watch does not go with profile {DEVICE_PROFILE}, which no fork runs")
    files = Files(_named_files(request))
    watched = Watched(_title(request), request.clauses)
    with view(console(stderr=False), watched) as shown:
        shown.draw()
        from conformance.run import warm

        warm.load()

        def on_event(event: Event) -> None:
            if isinstance(event, Loaded):
                warm.load_too(event.libraries)
            _note(event, watched, shown, files)

        while True:
            try:
                while clauses := watched.unmet() or watched.stale():
                    part = replace(request, only=clauses)
                    found = run(part, on_event, start=warm.start, on_poll=files.look)
                    # Clauses that never ended reach us through the assessment alone.
                    for outcome in found.outcomes:
                        on_event(Judged(outcome))
            except CannotAssess as refusal:
                if not files.any():
                    raise
                watched.refusal = str(refusal)
            except Saved as saved:
                _begin_again(watched, shown, saved)
                continue
            watched.step = ""
            shown.rested()
            try:
                while True:
                    time.sleep(_LOOK_SECONDS)
                    files.look()
            except Saved as saved:
                _begin_again(watched, shown, saved)


def _note(event: Event, watched: Watched, shown: View, files: Files) -> None:
    match event:
        case Loaded():
            files.add(map(Path, event.files))
        case Phase() | Begin():
            watched.step = str(event) if isinstance(event, Phase) else event.id
            shown.draw()
        case Judged() if event.id in watched.stale():
            watched.judged(event.outcome)
            shown.judged(event.outcome)


def _begin_again(watched: Watched, shown: View, saved: Saved) -> None:
    watched.saved(saved.names)
    shown.saved()


def _title(request: RunRequest) -> str:
    asked = f" --id {request.backbone_id}" if request.backbone_id else ""
    return (
        f"watching {request.target}{asked}, budget {request.budget}, seed {request.seed}; Ctrl-C "
        f"ends it. It never certifies"
    )


def _named_files(request: RunRequest) -> list[Path]:
    """The files that the request names, and those beside the target's: a run tells of others once
    it has imported them."""
    place = request.target.rpartition(":")[0]
    module = place.replace(".", "/")
    files = [place] if place.endswith(".py") else [f"{module}.py", f"{module}/__init__.py"]
    folders = {Path(file).resolve().parent for file in files if Path(file).is_file()}
    found = sorted(path for folder in folders for path in folder.glob("*.py"))
    found.append(request.config or Path(CONFIG_FILE))
    for recipes in request.recipes:
        found += sorted(recipes.glob("*.toml")) if recipes.is_dir() else [recipes]
    return found

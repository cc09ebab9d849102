"""Judges a backbone in this process: for notebooks, debuggers and other people's tests."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.hub import HubView
from conformance.run.host import aloud as _aloud
from conformance.run.host import left_as_it_was, silence
from conformance.run.request import RunRequest
from conformance.subject.target import Target, only_id_of, resolve
from conformance.verdict.outcomes import Assessment, ClauseOutcome

if TYPE_CHECKING:
    from conformance.run.session import Session
    from conformance.subject.subject import BuiltElsewhere
    from conformance.verdict.verdict import Verdict


def check_backbone(
    factory: Callable[..., Any] | str,
    backbone_id: str | None = None,
    *,
    profiles: Sequence[str] = ("default",),
    only: Sequence[str] | None = None,
    weights: str | None = None,
    declarations: Mapping[str, Any] | None = None,
    adapter: Mapping[str, Any] | None = None,
    budget: str = "standard",
    seed: int = 0,
    hub: Path | None = None,
    recipes: Sequence[Path] = (),
    models: Mapping[str, Path] | None = None,
    trust_remote_code: bool = False,
    on_progress: Callable[[str], None] | None = None,
    output: bool = False,
) -> Verdict:
    """Judge a backbone without starting a process; a failing clause neither raises nor ends the
    run.

    `factory` is a class or factory called with the seed's arguments, or a target string.
    `declarations` is what a `[subject]` table would hold, `adapter` what an `[adapter]` table would
    (for a class of another shape), `weights` what profile `scale` streams
    (as `--weights`). `models` are folders with the published config and tokenizer of hub ids that
    have no recipe; without it they are looked for in the Hugging Face cache. `on_progress`
    (`print`, say) gets a line for each step and each clause; nothing else is shown unless `output`
    lets through what the backbone and its libraries write. The process is left as it was. A subject
    that crashes, hangs or exits takes it along, though: `conformance certify` is the entry point
    that does not trust its subject.

    Raises:
        CannotAssess: if a target string cannot be resolved, an id is misspelt (`UnknownId`), a hub
            id has no recipe, or an argument has a value that it does not take (`InvalidRequest`;
            for a profile that is not implemented, also a `KeyError`).
    """
    with left_as_it_was(), nullcontext(_aloud) if output else silence() as aloud:

        def tell(line: str) -> None:
            if on_progress is not None:
                with aloud():
                    on_progress(line)

        return _checked(
            factory,
            backbone_id,
            declarations,
            adapter,
            tell,
            profiles=tuple(profiles),
            only=None if only is None else tuple(only),
            weights=weights or "auto",
            budget=budget,
            seed=seed,
            hub=hub,
            recipes=tuple(recipes),
            models=tuple(f"{one}={os.fspath(folder)}" for one, folder in (models or {}).items()),
            trust_remote_code=trust_remote_code,
        )


def _checked(
    factory: Callable[..., Any] | str,
    backbone_id: str | None,
    declarations: Mapping[str, Any] | None,
    adapter: Mapping[str, Any] | None,
    tell: Callable[[str], None],
    **asked: Any,
) -> Verdict:
    from conformance.run.judging import judge
    from conformance.verdict.reaching import reach_verdict
    from conformance.verdict.upstream import known_defects

    started = time.monotonic()
    resolved = (
        resolve(factory, backbone_id)
        if isinstance(factory, str)
        else Target(
            _name_of(factory), factory, backbone_id or only_id_of(factory, _name_of(factory))
        )
    )
    request = RunRequest(target=resolved.text, backbone_id=resolved.backbone_id, **asked)
    outcomes = []
    with in_process_session(
        resolved, request, declarations, lambda phase, detail: tell(f"{phase} {detail}"), adapter
    ) as session:
        tell(f"constructing {resolved.backbone_id}")
        session.construct()
        facts = session.facts()
        for item in judge(session.subject, request.clauses):
            if isinstance(item, ClauseOutcome):
                outcomes.append(item)
                tell(f"{item.id} {item.outcome}")
    assessment = Assessment.of(request, facts, outcomes, seconds=time.monotonic() - started)
    return reach_verdict(assessment, defects=known_defects(), only=request.only)


@contextmanager
def in_process_session(
    resolved: Target,
    request: RunRequest,
    declarations: Mapping[str, Any] | None = None,
    announce: Callable[[str, str], None] = lambda phase, detail: None,
    adapter: Mapping[str, Any] | None = None,
    elsewhere: Callable[[], Iterable[BuiltElsewhere]] | None = None,
) -> Iterator[Session]:
    """A session in this process, its Hugging Face cache in a temporary folder; the environment is
    put back after."""
    with tempfile.TemporaryDirectory(prefix="conformance-") as home:
        view = HubView(Path(home))
        before = dict(os.environ)
        for name, value in view.environment().items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        try:
            # Imported here: transformers reads these variables when it is first imported.
            from conformance.run.session import open_session

            with (
                _one_thread(),
                open_session(
                    resolved, request, Path(home), announce, declarations, adapter, elsewhere
                ) as session,
            ):
                yield session
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread for torch, as `certify` has it: probe models are so small that several wait for
    each other ten times as long as they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _name_of(factory: Callable[..., Any]) -> str:
    name = getattr(factory, "__qualname__", type(factory).__name__)
    return f"{getattr(factory, '__module__', '?')}:{name}"

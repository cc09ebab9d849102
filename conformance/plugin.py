"""The pytest front door: `pytest --pyargs conformance.suite --backbone TARGET`.

The suite's tests are collected here and judged elsewhere: the subject lives in a child process, as
with `conformance certify`, and its outcomes are reported as those of the tests. Without
`--backbone` nothing happens, at no cost.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conformance.run.request import RunRequest
    from conformance.verdict.outcomes import Assessment, ClauseOutcome


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance", "backbone conformance")
    group.addoption(
        "--backbone",
        metavar="TARGET",
        help="judge this backbone: an id, package.module:Class or path.py:Class",
    )
    group.addoption("--backbone-id", metavar="ID", help="the id to ask the class for")
    group.addoption(
        "--backbone-profile",
        metavar="NAMES",
        default="default",
        help="profiles, joined by commas [default]",
    )
    group.addoption(
        "--backbone-weights",
        metavar="full|DIR",
        help="what profile scale streams: the published size with seeded weights [full], or a "
        "checkpoint",
    )
    group.addoption(
        "--backbone-budget",
        metavar="NAME",
        default="standard",
        help="quick, standard or thorough [standard]",
    )
    group.addoption(
        "--backbone-seed",
        metavar="N",
        type=int,
        default=0,
        help="seed of everything that is drawn [0]",
    )
    group.addoption(
        "--backbone-timeout",
        metavar="S",
        type=float,
        default=120.0,
        help="seconds without progress after which a step counts as hung [120]",
    )
    group.addoption(
        "--backbone-jobs",
        metavar="N",
        type=int,
        default=1,
        help="processes to share the clauses between [1]",
    )
    group.addoption(
        "--backbone-config",
        metavar="FILE",
        help="TOML file with a [subject] table [conformance.toml]",
    )
    group.addoption("--backbone-hub", metavar="DIR", help="where built checkpoints are kept")
    group.addoption(
        "--backbone-recipes",
        metavar="DIR",
        action="append",
        default=[],
        help="recipe file or directory",
    )
    group.addoption(
        "--backbone-model",
        metavar="ORG/NAME=DIR",
        action="append",
        default=[],
        help="folder with the published config and tokenizer of a model that has no recipe",
    )
    group.addoption(
        "--backbone-trust-remote-code",
        action="store_true",
        help="take a model whose config asks for code of its own",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _choose(items)
    clauses = [item for item in items if _clause_of(item) is not None]
    if not clauses:
        return
    if config.option.backbone is None:
        raise pytest.UsageError(
            "the conformance suite needs a backbone to judge: add --backbone with an id "
            "(`conformance list`), "
            "package.module:Class or path/to/file.py:Class"
        )
    if hasattr(config, "workerinput") or getattr(config.option, "numprocesses", None):
        raise pytest.UsageError(
            "the suite brings its own processes: use --backbone-jobs N instead of -n N"
        )
    wanted = set(_request(config).clauses)
    unwanted = [item for item in clauses if _clause_of(item) not in wanted]
    config.hook.pytest_deselected(items=unwanted)
    items[:] = [item for item in items if item not in unwanted]


def _choose(items: list[pytest.Item]) -> None:
    """Tell the clauses of `conformance.testing` which of them are left to be checked."""
    testing = sys.modules.get("conformance.testing")
    if testing is None:
        return
    for item in items:
        for value in getattr(getattr(item, "callspec", None), "params", {}).values():
            if isinstance(value, testing.Clause):
                value.choose()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    clauses = [item for item in session.items if _clause_of(item) is not None]
    if not clauses or session.config.option.collectonly or session.testsfailed:
        return None
    _judge(session, clauses)
    # pytest's own loop would take these failures for collection errors, so other tests run here.
    others = [item for item in session.items if item not in clauses]
    for number, item in enumerate(others):
        following = others[number + 1] if number + 1 < len(others) else None
        if session.shouldfail or session.shouldstop:
            break
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    return True


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    verdict = config.stash.get(_VERDICT, None)
    if verdict is not None:
        terminalreporter.section("conformance")
        terminalreporter.write_line(str(verdict))


_VERDICT = pytest.StashKey[Any]()


def _judge(session: pytest.Session, clauses: list[pytest.Item]) -> None:
    from conformance.errors import CannotAssess
    from conformance.run.events import Event, Judged
    from conformance.run.parent import run
    from conformance.verdict.reaching import reach_verdict
    from conformance.verdict.upstream import known_defects

    request = _request(session.config)
    chosen = tuple(dict.fromkeys(str(_clause_of(item)) for item in clauses))
    only = None if set(chosen) == set(request.clauses) else chosen
    waiting: dict[str, list[pytest.Item]] = {}
    for item in clauses:
        waiting.setdefault(str(_clause_of(item)), []).append(item)

    def report_as_it_comes(event: Event) -> None:
        if isinstance(event, Judged):
            _report(waiting.pop(event.id, []), event.outcome)

    try:
        assessment = run(replace(request, only=only), report_as_it_comes)
    except CannotAssess as refusal:
        raise pytest.UsageError(f"{request.target} could not be assessed: {refusal}") from None
    _report_the_rest(waiting, assessment)
    session.config.stash[_VERDICT] = reach_verdict(assessment, defects=known_defects(), only=only)


def _request(config: pytest.Config) -> RunRequest:
    """The request that the options make."""
    from conformance.run.request import InvalidRequest, RunRequest

    option = config.option
    try:
        return RunRequest(
            target=option.backbone,
            backbone_id=option.backbone_id,
            profiles=tuple(option.backbone_profile.split(",")),
            weights=option.backbone_weights or "auto",
            budget=option.backbone_budget,
            seed=option.backbone_seed,
            jobs=option.backbone_jobs,
            timeout=option.backbone_timeout,
            hub=Path(option.backbone_hub) if option.backbone_hub else None,
            recipes=tuple(map(Path, option.backbone_recipes)),
            models=tuple(option.backbone_model),
            trust_remote_code=option.backbone_trust_remote_code,
            config=Path(option.backbone_config) if option.backbone_config else None,
        )
    except InvalidRequest as refusal:
        raise pytest.UsageError(refusal.said(_option_of)) from None


def _option_of(field: str) -> str:
    """The option that sets this field of a `RunRequest`."""
    names = {
        "target": "--backbone",
        "backbone_id": "--backbone-id",
        "profiles": "--backbone-profile",
        "models": "--backbone-model",
    }
    return names.get(field, f"--backbone-{field.replace('_', '-')}")


def _report_the_rest(waiting: Mapping[str, list[pytest.Item]], assessment: Assessment) -> None:
    outcomes: dict[str, ClauseOutcome] = {outcome.id: outcome for outcome in assessment.outcomes}
    for clause_id, items in waiting.items():
        _report(items, outcomes[clause_id])


def _report(items: list[pytest.Item], outcome: ClauseOutcome) -> None:
    """Log one clause's outcome as that of its tests: everything but passed and not applicable is a
    failure, and for a SHOULD an expected failure."""
    from conformance.catalogue import SHOULD
    from conformance.verdict.outcomes import Outcome

    told = f"{outcome.id} ({outcome.level}) {outcome.outcome}: {outcome.summary}"
    for item in items:
        report = pytest.TestReport(
            nodeid=item.nodeid,
            location=item.location,
            keywords=dict.fromkeys(item.keywords, 1),
            outcome="passed",
            longrepr=None,
            when="call",
            duration=outcome.seconds,
        )
        if outcome.outcome is Outcome.NOT_APPLICABLE:
            report.outcome = "skipped"
            report.longrepr = (str(item.path), 0, f"not applicable: {outcome.summary}")
        elif outcome.outcome is not Outcome.PASSED and outcome.level == SHOULD:
            report.outcome = "skipped"
            report.wasxfail = told
        elif outcome.outcome is not Outcome.PASSED:
            report.outcome = "failed"
            shown = outcome.counterexample
            report.longrepr = told if not shown else f"{told}\ncounterexample: {shown!r}"
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _clause_of(item: pytest.Item) -> str | None:
    requirement = getattr(getattr(item, "function", None), "requirement", None)
    return getattr(requirement, "id", None)

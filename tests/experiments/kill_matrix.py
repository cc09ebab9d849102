"""The kill matrix: which clauses each planted defect fails, as run, and as `docs/kill-matrix.md`
tells it.

`python -m tests.experiments.kill_matrix [--own] [--seed=N] [NAME…]` runs the named defects (all
without names) by the default profile, or with `--own` by the clauses that they must fail, says
where a run differs from the record, and after a run of all under seed 0 writes the document anew,
with the state in which each died.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from conformance.catalogue import catalogue, expected_clauses
from conformance.control import DEFAULTS, described
from conformance.verdict.outcomes import ClauseOutcome, Outcome
from tests import ROOT
from tests.experiments.smallest_effects import RESULTS
from tests.forks import Case, failed, judge_in_forks
from tests.mutants import Mutant, all_mutants

DOCUMENT = ROOT / "docs" / "kill-matrix.md"
DEATHS = ROOT / "tests" / "mutants" / "states_of_death.json"
"""In words, by defect: the plainest state in which the clause that names it still fails."""


def run_mutants(
    mutants: Iterable[Mutant],
    hub: Path | None = None,
    *,
    profile: str | None = None,
    own: bool = False,
    seed: int = 0,
) -> Iterator[tuple[Mutant, dict[str, ClauseOutcome]]]:
    """Judge every mutant; yields it with its outcomes as it finishes.

    Without `profile`, each is judged by the profile of the clause that names it, and by what else
    it is recorded to fail, at the standard budget; with `own`, by the clauses that it is recorded
    to fail alone, at the smallest budget at which it dies.
    """
    by_name = {mutant.name: mutant for mutant in mutants}
    cases = [
        Case(
            m.name,
            m.factory,
            m.backbone_id,
            m.declared,
            None if own else profile or catalogue()[m.clause].profile,
            m.fails | {m.clause},
            seed,
            m.budget if own else "standard",
        )
        for m in by_name.values()
    ]
    for case, outcomes in judge_in_forks(cases, hub):
        yield by_name[case.name], outcomes


def document(mutants: Sequence[Mutant]) -> str:
    """The text of `docs/kill-matrix.md`: every clause with the defects that it alone, or with
    others, must catch."""
    lines = [
        "# Kill matrix",
        "",
        "What the suite is worth: the defects planted in the reference backbones "
        "(`tests/mutants/`), and the exact set",
        "of clauses that each one fails; clauses that these block are not counted. `tox -e matrix` "
        "asserts the sets whole;",
        "`tox` asserts that each defect fails its own clauses, at the smallest budget at which it "
        "dies, and the whole set of a",
        "sample; on the two older generations of transformers a sample fails its own clauses. "
        "Written by",
        "`python -m tests.experiments.kill_matrix`.",
        "",
        f"{len(mutants)} planted defects, {len(expected_clauses(['default']))} clauses of the "
        f"default profile. "
        "The whole set is judged by the",
        "profile of the clause that names the defect and what else it is recorded to fail, at the "
        "standard budget;",
        "`python -m tests.experiments.kill_matrix` judges by the default profile. "
        f"{sum(mutant.budget == 'quick' for mutant in mutants)} of the defects die at the quick",
        "budget too; the others show in long texts alone, or in rows that it leaves out: "
        + ", ".join(sorted(mutant.name for mutant in mutants if mutant.budget != "quick"))
        + ".",
        "",
        "The last column is the plainest state and call in which the clause still fails, where it "
        "judges in several (on",
        "transformers 5.23.0); it is empty until a run of all defects has written it.",
        "",
        "*Known as* is the entry in [defects.md](defects.md) that it stands for.",
        "",
        "| clause | level | planted defect | known as | also fails | dies |",
        "|---|---|---|---|---|---|",
    ]
    order = {clause: place for place, clause in enumerate(catalogue())}
    deaths = json.loads(DEATHS.read_text(encoding="utf-8"))
    for mutant in sorted(mutants, key=lambda m: (order[m.clause], m.name)):
        also = ", ".join(sorted(mutant.fails - {mutant.clause}, key=lambda clause: order[clause]))
        statement = mutant.statement.replace("|", "\\|")
        known_as = ", ".join(mutant.defects)
        lines.append(
            f"| {mutant.clause} | {catalogue()[mutant.clause].level} "
            f"| **{mutant.name}**: {statement} | {known_as} | {also} "
            f"| {deaths.get(mutant.name, '')} |"
        )
    lines += [
        "",
        "## The smallest effect that each gate still sees",
        "",
        "Planted ever smaller, by halves, in the Mistral reference (`python -m "
        "tests.experiments.smallest_effects`, transformers 5.23.0).",
        "",
        "| clause | planted | dies down to | passes at |",
        "|---|---|---|---|",
        *(
            f"| {row['clause']} | {row['defect']} | {row['smallest']:.2g} | {row['passes']:.2g} |"
            for row in json.loads(RESULTS.read_text(encoding="utf-8"))
        ),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    names = [one for one in arguments if not one.startswith("--")]
    own = "--own" in arguments
    seed = next((int(one[7:]) for one in arguments if one.startswith("--seed=")), 0)
    chosen = [mutant for mutant in all_mutants() if not names or mutant.name in names]
    differing, deaths = 0, dict[str, str]()
    for mutant, outcomes in run_mutants(chosen, profile="default", own=own, seed=seed):
        found, expected = failed(outcomes), mutant.expected(outcomes)
        # Some fail others of their clauses by what clauses before them did.
        same = mutant.clause in found and found <= expected if own else found == expected
        # A check that breaks has not seen the defect.
        same = same and outcomes[mutant.clause].outcome is not Outcome.ERROR
        differing += not same
        if mutant.clause in found and "state" in (seen := outcomes[mutant.clause].evidence):
            deaths[mutant.name] = described({**DEFAULTS, **seen["state"]})
        print(
            f"{'ok' if same else 'DIFFERS':8}{mutant.name}: fails {sorted(found)}"
            + ("" if same else f", recorded {sorted(mutant.fails)}"),
            flush=True,
        )
        if not same or names:
            for clause in sorted(found):
                outcome = outcomes[clause]
                print(f"        {clause} {outcome.outcome}: {outcome.summary[:500]}", flush=True)
                if outcome.counterexample:
                    print(f"        shown by {str(outcome.counterexample)[:300]}", flush=True)
    if not names and not differing and not seed:
        DEATHS.write_text(
            json.dumps(deaths, indent=1, sort_keys=True, ensure_ascii=False) + "\n",
            encoding="utf-8",
        )
        DOCUMENT.write_text(document(chosen), encoding="utf-8")
        print(f"wrote {DOCUMENT}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The errors that end a run before there is a verdict.

A run takes these steps. Each refuses with a kind of `CannotAssess` whose message says what was
wrong, with which value, and what to try:

1. the request is made (`run.request`, `bench.request`): a value that no option takes, options that
   contradict each other, a checkpoint that is not whole;
2. the target is resolved (`subject.target`): nothing of that name, a file that cannot be imported,
   an id that must be chosen;
3. the declarations and the adapter are read (`subject.declarations`, `subject.adapter`): an unknown
   key, a value of the wrong kind, an argument that the constructor does not take;
4. the hub serves what the constructor asks for (`run.session`): no recipe, or one that cannot be
   built here; then the adapter's paths are followed (`InvalidAdapter`): one that leads nowhere;
5. waivers, certificates and stored results are read (`InvalidWaivers`, `InvalidDefects`,
   `InvalidCertificate`, `InvalidResults`);
6. reports are written (`UnwritableFolder`).

A fault of the subject is never among them: a constructor that raises, exits or hangs is a failed
clause.
"""

import difflib
from collections.abc import Iterable


class CannotAssess(Exception):
    """The subject could not be assessed at all: exit status 2, and no certificate is written."""


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """A phrase to put behind an unknown name; empty if none of `known` is like it."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean `{close[0]}`?)" if close else ""

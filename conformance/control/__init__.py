"""The control: what a sound backbone over the same checkpoint is, and does, in any state.

A backbone is thin: the library's model from a checkpoint, its tokenizer with a pad token, rows
resized, and a few facts. Everything else is handed through, so the harness can build the same
thing in words of its own and ask both.

`model.py` builds it, `states.py` says in which states and by which calls two backbones are
compared, `calls.py` makes the calls, and `compare.py` says where the answers differ.
"""

from conformance.control.calls import (
    CallRefused,
    Inputs,
    NoSuchState,
    embeddings_of,
    observe,
)
from conformance.control.compare import Difference, differences, same
from conformance.control.covering import Row, covering, plainer
from conformance.control.model import Canonical, Control, Mirrored, canonical, mirrored_from
from conformance.control.states import (
    CHANGING,
    DEFAULTS,
    FACTORS,
    covering_rows,
    described,
    is_for_inference,
    makes_sense,
    takes_long,
    with_gradients,
)

__all__ = [
    "CHANGING",
    "DEFAULTS",
    "FACTORS",
    "CallRefused",
    "Canonical",
    "Control",
    "Difference",
    "Inputs",
    "Mirrored",
    "NoSuchState",
    "Row",
    "canonical",
    "covering",
    "covering_rows",
    "described",
    "differences",
    "embeddings_of",
    "is_for_inference",
    "makes_sense",
    "mirrored_from",
    "observe",
    "plainer",
    "same",
    "takes_long",
    "with_gradients",
]

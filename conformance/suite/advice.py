"""What to do about a constructor that raises."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from conformance.parity.library import SUCCESSORS, version
from conformance.subject.ids import ids_of
from conformance.subject.raised import refuses_its_call, where

SIGNATURE = (
    "attr(id, llm_max_length=…, hf_token=…, inference_mode=False, use_flash_attention_2=False)"
)
"""How a host calls a backbone's class."""
_UNKNOWN_KEYWORD = re.compile(
    r"(?P<what>\S+\(\)) got an unexpected keyword argument '(?P<name>\w+)'"
)


def to_mend(error: BaseException, factory: Callable[..., Any], backbone_id: str) -> str:
    """The advice that fits what the constructor raised for `backbone_id`."""
    if isinstance(error, SystemExit):
        return "raise an exception that says what is wrong: ending the process ends the host too"
    if refuses_its_call(error):
        return f"take the documented arguments: {SIGNATURE}"
    refused = _UNKNOWN_KEYWORD.search(str(error)) if isinstance(error, TypeError) else None
    if refused is not None and (successor := SUCCESSORS.get(refused["name"])):
        return (
            f"transformers {version()} takes no `{refused['name']}` here: pass {successor} in its "
            f"place"
        )
    if refused is not None:
        return f"leave `{refused['name']}` out, or ask for what {refused['what']} calls it now"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"install `{error.name}` in the environment that conformance runs in"
    known = ids_of(factory)
    if known and backbone_id not in known and backbone_id in str(error):
        return f"ask for an id of its table with --id: {', '.join(known)}"
    return f"see {where(error, factory)}; --verbose shows the whole traceback"

"""backbone-conformance: is this language-model backbone wired right?

`check_backbone` judges a backbone from Python; `conformance certify` and `pytest --pyargs
conformance.suite --backbone TARGET` do so from a terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conformance.version import __version__

if TYPE_CHECKING:
    from conformance.run.in_process import check_backbone

__all__ = ["__version__", "check_backbone"]


def __getattr__(name: str) -> Any:
    # Importing conformance must cost nothing: the plugin is loaded by every pytest run of its
    # users.
    if name == "check_backbone":
        from conformance.run.in_process import check_backbone

        return check_backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

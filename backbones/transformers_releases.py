"""Differences between the supported transformers releases, 4.40 to 5.x."""

from __future__ import annotations

import importlib
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.hub import cached_file

release = Version(transformers.__version__)

DTYPE = "dtype" if release >= Version("4.56") else "torch_dtype"
"""The keyword for the dtype of weights. Always passed: the default is the checkpoint's in 5.x,
float32 in 4.x."""

RESIZE_WITHOUT_MEANS: dict[str, Any] = (
    {"mean_resizing": False} if release >= Version("4.46") else {}
)
"""Keeps `resize_token_embeddings` from drawing new rows around the mean of the old ones; 4.40 never
does."""


def from_library(module: str, name: str) -> Any:
    """The class `name` of `transformers.<module>`, or an empty class of that name where the
    installed release is older than it: a family's table can be read everywhere, and
    `require_release` refuses its ids.
    """
    try:
        return getattr(importlib.import_module(f"transformers.{module}"), name)
    except (ImportError, AttributeError):
        return type(name, (nn.Module,), {"__module__": f"transformers.{module}"})


def require_release(since: str | None, what: str) -> None:
    """Refuse what the installed transformers would silently build otherwise than published.

    Raises:
        RuntimeError: it is older than `since`.
    """
    if since is not None and release < Version(since):
        raise RuntimeError(
            f"{what} needs transformers {since} or later, which reads its whole config; "
            f"{release} is installed"
        )


def published_tokenizer(
    hub_path: str, token: str | None, **options: Any
) -> PreTrainedTokenizerBase:
    """The tokenizer with the ids of the published `tokenizer.json`; every release gives those of
    4.40.

    From 5.0 on the family classes (`LlamaTokenizer` ...) keep the vocabulary of that file and
    rebuild the rest, which changes ids at leading spaces and after special tokens
    (https://github.com/huggingface/transformers/issues/46710). Before 5.0 the automatic class reads
    it unchanged, and hosts ask for `LlamaTokenizerFast` by name.

    Raises:
        FileNotFoundError: there is no `tokenizer.json`, and this release would make up other ids.
    """
    if release.major < 5:
        return AutoTokenizer.from_pretrained(hub_path, token=token, **options)
    file = cached_file(
        hub_path, "tokenizer.json", token=token, _raise_exceptions_for_missing_entries=False
    )
    if file is None:
        raise FileNotFoundError(
            f"{hub_path} has no tokenizer.json, and transformers {release} would make up other "
            "ids: load its tokenizer with transformers 4, save it with save_pretrained, and load "
            "that"
        )
    return PreTrainedTokenizerFast.from_pretrained(hub_path, token=token, **options)


class ZeroRandomFills(TorchFunctionMode):
    """While it is active, tensors that would be filled with random numbers are filled with zeros.

    For parameters that are about to be overwritten: it draws no random numbers, leaves every
    generator unchanged, and gives the same parameters each time.
    """

    RANDOM_FILLS = frozenset(
        {"normal_", "uniform_", "trunc_normal_"}
        | {
            f"{family}_{shape}_"
            for family in ("kaiming", "xavier")
            for shape in ("normal", "uniform")
        }
    )

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.__name__ not in self.RANDOM_FILLS:
            return func(*args, **kwargs)
        with torch.no_grad():
            return (args[0] if args else kwargs["tensor"]).zero_()

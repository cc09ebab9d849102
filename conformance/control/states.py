"""The states, calls and histories in which a backbone is compared with its control."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from conformance.control.covering import Row, covering

FACTORS: Mapping[str, tuple[Any, ...]] = {
    "build": ("training", "inference", "flash", "no token", "long", "all at once", "checkpointed"),
    "mode": ("eval", "train"),
    "precision": ("float32", "half", "autocast"),
    "attention": ("as built", "eager", "sdpa"),
    "form": ("ids", "embeddings", "patches"),
    "mask": (
        "ones", "none", "right", "ragged left", "holes", "gap", "boolean", "float", "additive",
        "pairs",
    ),
    "positions": ("none", "counted", "shifted", "packed"),
    "cache": ("none", "returned", "handed in", "in chunks", "token by token"),
    "labels": ("none", "all", "some ignored", "a row ignored"),
    "output": ("plain", "hidden states", "attentions", "tuple"),
    "history": (
        "fresh", "same shape before", "long call before", "after generation", "after backward",
        "after a step", "after reloading", "after copying", "after assigning",
        "after inference mode",
    ),
    "batch": (1, 2, 3, 8),
    "length": (7, 2, "window", "window+1", 65, 131, 513, 2100),
    "ranks": (1, 2),
    "gradients": (False,),
    "trained": ("everything",),
}  # fmt: skip
"""Every value of every factor; the first is the plainest, and a failure is told by what differs
from it. Lengths are tokens; `window` is the model's, or 16 where it has none, and `131` is beyond
the `llm_max_length` of the compared instances, and 2100 beyond what most hosts train at. Of two
`ranks` of a process group the call is made on the second."""

_WITH_GRADIENTS: Mapping[str, tuple[Any, ...]] = {
    "gradients": (True,),
    "trained": ("everything", "the head", "nothing"),
    "build": ("training", "flash", "no token", "long", "checkpointed"),
    "mask": ("ones", "none", "right", "ragged left", "holes"),
    "cache": ("none",),
    "labels": ("none", "some ignored"),
    "output": ("plain", "tuple"),
    "history": (
        "fresh", "after generation", "after backward", "after a step", "after copying",
        "after assigning", "after inference mode",
    ),
    "batch": (1, 3),
    "length": (7, 2, "window", "window+1", 65),
}  # fmt: skip
"""Other values for rows in which gradients are compared too, which take more time: of what is
trained, and not along a cache."""

CHANGING = ("after a step", "after reloading", "after copying", "after assigning")
"""Histories after which the weights are others."""

DEFAULTS: Mapping[str, Any] = {name: values[0] for name, values in FACTORS.items()}

LLM_MAX_LENGTH = 128
"""The `llm_max_length` of the compared instances, in tokens: short, so that longer sequences are
cheap. It limits the tokenizer alone."""

SECOND_RANK: Mapping[str, str] = {
    "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2", "PMI_RANK": "1",
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2",
    "GLOBAL_RANK": "1", "NODE_RANK": "1", "GROUP_RANK": "1",
}  # fmt: skip
"""The environment of the second of two ranks, as torchrun, Slurm and MPI set it."""

_TOKENS = 66
"""The most tokens of a batch of two or more: most of the time goes into logits over a whole
vocabulary."""

_USUAL = {"window": 16, "window+1": 17}
"""What lengths that are counted from the window come to in a probe."""

_FEW: dict[Any, dict[str, tuple[Any, ...]]] = {
    513: {
        "mask": ("ones", "ragged left"), "labels": ("none",), "output": ("plain", "hidden states"),
        "history": ("fresh", "long call before"), "attention": ("as built",),
        "build": ("training", "inference", "long"), "mode": ("eval", "train"),
    },
    2100: {
        "mask": ("ones",), "labels": ("none", "some ignored"),
        "output": ("plain", "hidden states"),
        "history": ("fresh",), "attention": ("as built",), "build": ("training",),
        "mode": ("eval",),
        "precision": ("float32",), "form": ("ids",), "positions": ("none",),
        "cache": ("none", "returned"), "trained": ("everything",), "batch": (1, 2),
    },
}  # fmt: skip
"""The values of other factors beside which the longest sequences are tried: they cost most."""

_WORDS: Mapping[str, Mapping[Any, str]] = {
    "build": {
        "training": "built for training", "inference": "built with inference_mode=True",
        "flash": "built with use_flash_attention_2=True", "no token": "built with hf_token=None",
        "long": "built with the llm_max_length that is published",
        "all at once": "built with inference_mode=True, use_flash_attention_2=True, hf_token=None "
        "and the llm_max_length that is published",
        "checkpointed": "after enable_gradient_checkpointing()",
    },
    "mode": {"eval": "in eval()", "train": "in train()"},
    "gradients": {True: "with gradients"},
    "trained": {
        "everything": "with all parameters trained", "the head": "with all but the head frozen",
        "nothing": "with all parameters frozen",
    },
    "precision": {
        "float32": "in float32", "half": "in half precision", "autocast": "under autocast",
    },
    "mask": {
        "none": "without an attention mask", "gap": "with a mask that leaves out the middle alone",
        "pairs": "with a boolean mask of pairs of positions",
    },
    "positions": {
        "counted": "with position_ids", "shifted": "with position_ids that begin later",
        "packed": "with position_ids of two packed texts",
    },
    "cache": {
        "returned": "with use_cache=True", "handed in": "with an empty cache handed in",
        "in chunks": "continued from a cache",
        "token by token": "decoded token by token",
    },
    "labels": {
        "all": "with labels", "some ignored": "with labels, some of them -100",
        "a row ignored": "with labels, one row of which is all -100",
    },
    "output": {
        "hidden states": "with output_hidden_states=True",
        "attentions": "with output_attentions=True", "tuple": "with return_dict=False",
    },
    "ranks": {2: "on the second rank of a process group of two"},
}  # fmt: skip


def takes_long(row: Row) -> bool:
    """Whether a row is over the longest text, which takes as long as twenty others."""
    return bool(row["length"] == max(_FEW))


def is_for_inference(build: str) -> bool:
    """Whether a build is one with `inference_mode=True`."""
    return build in ("inference", "all at once")


def with_gradients(
    factors: Mapping[str, tuple[Any, ...]] = FACTORS,
) -> dict[str, tuple[Any, ...]]:
    """The factors of rows in which gradients are compared too, of those values that `factors` has
    and of those that only such rows have."""
    own = ("gradients", "trained")
    return {
        name: tuple(
            value for value in _WITH_GRADIENTS.get(name, values) if name in own or value in values
        )
        for name, values in factors.items()
    }


def covering_rows(factors: Mapping[str, tuple[Any, ...]] = FACTORS) -> Iterator[Row]:
    """Rows in which every pair of values of any two factors occurs that can, and every pair of
    those beside which the longest sequences are tried at such a length; always the same."""
    beside = (
        frozenset({("length", length), (one, a), (other, b)})
        for length in _FEW.keys() & set(factors["length"])
        for one, other in combinations(_FEW[length], 2)
        for a in set(_FEW[length][one]) & set(factors[one])
        for b in set(_FEW[length][other]) & set(factors[other])
        if makes_sense({"length": length, one: a, other: b})
    )
    return covering(factors, makes_sense, beside=beside)


def described(row: Row, among: Mapping[str, Any] = DEFAULTS) -> str:
    """What is not plain about a row, in words."""
    words = [
        _WORDS.get(name, {}).get(value) or _generic(name, value)
        for name, value in row.items()
        if value != among.get(name)
    ]
    return ", ".join(words) or "in the plainest state, by the plainest call"


def _generic(name: str, value: Any) -> str:
    return {
        "attention": f"with {value} attention",
        "form": f"with {value} as input",
        "mask": f"with a mask of kind `{value}`",
        "history": str(value),
        "batch": f"in a batch of {value}",
        "length": f"over {value} tokens",
    }.get(name, f"{name}={value}")


def _is_prefill(row: Row) -> set[bool]:
    """For each value chosen so far, whether it is the one that the longest text has as a prompt
    alone, which fills a cache and gives hidden states; otherwise it is two with labels. (Losses
    are taken in chunks of 4,096 tokens, which two of them have.)"""
    prompt = {"batch": 1, "labels": "none", "cache": "returned", "output": "hidden states"}
    return {row[name] == value for name, value in prompt.items() if name in row}


def makes_sense(row: Row) -> bool:
    """Whether a library can be asked for this combination at all; values not chosen yet may be
    missing."""
    cached = row.get("cache", "none") != "none"
    chunked = row.get("cache") in ("in chunks", "token by token")
    mask, length = row.get("mask", "ones"), row.get("length", 7)
    batch, tokens = row.get("batch", 1), int(_USUAL.get(length) or length)
    return not (
        # With nothing trained gradients are those of patches.
        (row.get("trained") == "nothing" and row.get("form", "patches") != "patches")
        or (batch > 1 and batch * tokens > _TOKENS and length != 2100)
        or (length == 2100 and len(_is_prefill(row)) > 1)
        or any(name in row and row[name] not in few for name, few in _FEW.get(length, {}).items())
        # A recomputed layer must not append to a cache; libraries drop it with a warning.
        or (cached and row.get("build") == "checkpointed" and row.get("mode") == "train")
        # Whoever checkpoints by wrapping `forward` in a closure has it copied as it is.
        or (
            row.get("build") == "checkpointed"
            and row.get("history") in ("after copying", "after assigning")
        )
        or (chunked and row.get("labels", "none") != "none")
        or (chunked and mask in ("right", "holes", "gap", "none"))
        # The library's eager attention adds a boolean mask to scores: it means nothing there.
        or (
            mask == "pairs"
            and (row.get("attention") == "eager" or row.get("output") == "attentions")
        )
        or (length == 2 and (chunked or mask in ("ragged left", "holes", "gap", "right")))
        # A text behind another one is neither padded nor cached.
        or (row.get("positions") == "packed" and (mask not in ("none", "ones") or cached))
        or (
            row.get("labels") == "a row ignored"
            and (row.get("batch", 2) == 1 or 2 * tokens > _TOKENS)
        )
        # Only padding at one end has positions that a library counts by itself.
        or (mask in ("holes", "gap") and row.get("positions", "counted") == "none")
    )

"""The subject beside its control over the product of states, calls and histories.

Each row of the covering array is run on both once; the clauses that look at different parts of what
came out share the runs.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, product
from typing import Any
from unittest import mock

import torch

from conformance.assertions import ClauseFailure, NotApplicable, is_slip_of_ours, tell
from conformance.control import (
    CHANGING,
    DEFAULTS,
    FACTORS,
    CallRefused,
    Control,
    Difference,
    Inputs,
    NoSuchState,
    Row,
    covering_rows,
    described,
    differences,
    is_for_inference,
    makes_sense,
    mirrored_from,
    observe,
    plainer,
    same,
    takes_long,
    with_gradients,
)
from conformance.control.calls import LOSS_IN_HALF, declared_dropout, without_dropout
from conformance.control.states import LLM_MAX_LENGTH, SECOND_RANK
from conformance.parity.library import in_float32, keep_layers, text_config
from conformance.subject.subject import Subject
from conformance.suite.models import first_rows, positions_of, vocabulary_tensors

LOSS = (
    "a loss",
    "loss over the cross-entropy of its own logits",
    LOSS_IN_HALF,
)
FROZEN = "parameters whose requires_grad train() or the call changed"
GRADIENTS = ("gradients", FROZEN)
OF_TRAINING = (*LOSS, *GRADIENTS)
"""The quantities that the clauses on training look at."""
SHARE = {"quick": 0.3, "standard": 1.0, "thorough": 1.0}
"""Share of the rows that each budget runs."""

LEFT_OUT = {
    f"without {argument}": argument
    for argument in ("inference_mode", "hf_token", "llm_max_length", "use_flash_attention_2")
}
"""Builds that leave an argument to its default, which no covering row has."""
BUILDS = {
    "inference": "inference_mode=True", "flash": "use_flash_attention_2=True",
    "no token": "hf_token=None", "long": "the llm_max_length that is published",
    "all at once": "inference_mode=True, use_flash_attention_2=True, hf_token=None and the "
    "llm_max_length that is published",
    "longer": "an llm_max_length of twice the positions that are published",
    "copied": "copy.deepcopy",
    "another rank": "RANK, SLURM_PROCID and the like = 1, and ACCELERATE_MIXED_PRECISION = bf16, "
    "in the environment, as launchers set them",
    **{build: f"{argument} left out" for build, argument in LEFT_OUT.items()},
}  # fmt: skip
"""What the constructor is asked for in each build but the plainest."""

_MOST_LOGITS = 2**21
"""The most logits of a call that is not tried with a part of the vocabulary first: of 65 tokens, if
there are 32,000 rows."""
_OF_SIZE = ("batch", "length")
"""Factors of which a large value is what is tried with a part."""
_WHOLE_IN_EACH_BUILD = ("mode", "labels", "gradients")
"""Factors of which each value is called with the whole vocabulary once in each build."""
FIRST_ROWS = 1024
"""How many rows that part has."""

_TAKES = {
    "no token": "hf_token", "inference": "inference_mode", "all at once": "inference_mode",
    "flash": "use_flash_attention_2", "long": "llm_max_length", "longer": "llm_max_length",
    "checkpointed": "enable_gradient_checkpointing", **LEFT_OUT,
}  # fmt: skip
"""The member or argument that makes each build differ from the one for training."""


@dataclass(frozen=True)
class Finding:
    """A row in which subject and control differ, or in which the subject raised."""

    row: Row
    difference: Difference


class Compared:
    """The compared instances of one subject, each built when first asked for."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._backbones: dict[str, Any] = {}
        # What was called with the whole vocabulary: each value of a factor, and some of them in
        # each build. What a class reads off its first call is then what a host's would tell it.
        self._seen_whole = set[tuple[str, str, Any]]()
        # As built, before anything was cast or loaded: the dtype of each parameter, and the sum of
        # what came from the checkpoint. The rest may be drawn anew at each construction.
        self.dtypes: dict[str, dict[str, torch.dtype]] = {}
        self.sums: dict[str, dict[str, float]] = {}
        # In how many rows that were compared each factor had each value.
        self.tried: dict[str, Counter[Any]] = {name: Counter() for name in FACTORS}
        shared = subject.training
        self.half = getattr(
            shared, "half_precision_dtype", getattr(torch, subject.declared.training_dtype)
        )
        self._published_length = positions_of(shared.llm)
        self._rows = min(
            subject.checkpoint.shapes[tensor][0] for tensor in vocabulary_tensors(subject).values()
        )
        mirrored = mirrored_from(shared.llm, self._rows)
        try:
            self._control = Control(
                str(subject.published),
                dtype=torch.float32,
                token=None,
                cache=False,
                mirrored=mirrored,
                attention=getattr(shared.llm.config, "_attn_implementation", None),
                whole=str(subject.view.snapshot(subject.weights_hub_id)),
            )
            keep_layers(self._control.llm, subject.declared.layers_kept)
        except Exception as error:
            if is_slip_of_ours(error):
                raise
            raise NotApplicable(
                f"the library cannot load a control from {subject.weights_hub_id}: "
                f"{type(error).__name__}: {error}"
            ) from error
        self.inputs = _inputs(subject, self._control)

    def backbone(self, build: str) -> Any:
        """The instance of this build in float32, None if its constructor raises, or cannot be asked
        for it."""
        if build in _TAKES and self._subject.lacks(_TAKES[build]):
            return None
        if build not in self._backbones:
            try:
                self._backbones[build] = self._built(build)
            except Exception as error:
                if is_slip_of_ours(error):
                    raise
                # CON-05 judges what flash attention asks for, CON-14 a missing token. On another
                # rank a sound class may wait for a process group, and not every one can be copied.
                self._backbones[build] = None
        return self._backbones[build]

    def forget(self) -> None:
        """Have other instances built for what comes next."""
        self._backbones.clear()
        self._seen_whole.clear()

    def factors(self) -> dict[str, tuple[Any, ...]]:
        """The values of each factor that exist here: builds that construct, and what the installed
        library takes."""
        builds = tuple(build for build in FACTORS["build"] if self.backbone(build) is not None)
        able = {
            name: tuple(value for value in FACTORS[name] if self._takes({name: value}))
            for name in ("mask", "positions", "cache", "attention", "ranks")
        }
        if not hasattr(self._control.llm, "set_attn_implementation"):  # before transformers 4.48
            able["attention"] = ("as built",)
        return {**FACTORS, **able, "build": builds}

    def rows(self, share: float = 1.0) -> list[Row]:
        """The covering rows, and among them those with gradients, or the first `share` of either,
        and those for the gradients of patches.

        A defect is found soon whichever of them shows it, and the longest texts come last.
        """
        for build in self._backbones.keys() - set(FACTORS["build"]):
            del self._backbones[build]  # no row asks for it, and its tokenizer takes much memory
        factors, found = self.factors(), list[tuple[bool, float, Row]]()
        for one in (factors, with_gradients(factors)):
            rows = list(covering_rows(one))
            rows = rows[: round(len(rows) * share)]
            found += [(takes_long(row), i / len(rows), row) for i, row in enumerate(rows)]
        # What is trained may cut off what flows back to a host's patches.
        found += [(False, 1.0, row) for row in _rows_for_gradients_of_patches()]
        return [row for *_, row in sorted(found, key=lambda place: place[:2])]

    @property
    def has_dropout(self) -> bool:
        """Whether the published model drops activations out in `train()`."""
        return bool(declared_dropout(self._control))

    def _takes(self, row: Row) -> bool:
        try:
            observe(self._control, row, self.inputs, self.half)
        except CallRefused:
            return False
        return True

    def control(self, build: str) -> Control:
        """The control in the state of this build."""
        text_config(self._control.llm).use_cache = is_for_inference(build)
        return self._control

    def all_differences(self, row: Row) -> Iterator[Difference]:
        """The differences between subject and control in this row, one a quantity.

        Raises:
            CallRefused: if the control refuses the row, or the subject cannot be brought into its
                state; it then says nothing.
        """
        row = {**DEFAULTS, **row}
        seen = {("", name, row[name]) for name in DEFAULTS if name not in _OF_SIZE}
        seen |= {(row["build"], name, row[name]) for name in _WHOLE_IN_EACH_BUILD}
        if seen <= self._seen_whole and self._is_large(row):
            try:
                if not any(self._differences(row, self.inputs.within(FIRST_ROWS))):
                    return
            except NoSuchState:
                raise
            except CallRefused:
                pass  # cut down, one of them cannot be called
        yield from self._differences(row, self.inputs)
        self._seen_whole |= seen

    def _is_large(self, row: Row) -> bool:
        """Whether a call's logits are so many that it is tried with a part of the vocabulary first,
        which finds nearly all that differs; what it finds counts only if the whole differs too."""
        tokens = row["batch"] * self.inputs.positions(row)
        return bool(tokens * self.inputs.known > _MOST_LOGITS)

    def _differences(self, row: Row, inputs: Inputs) -> Iterator[Difference]:
        backbone, control = self.backbone(row["build"]), self.control(row["build"])
        if backbone is None:
            return
        # The library's own history seldom matters, and what is equal bit for bit needs no measure
        # of rounding: both are looked at where they may decide.
        expected = observe(control, _without_history(row), inputs, self.half)
        try:
            observed = observe(backbone, row, inputs, self.half)
        except NoSuchState:
            raise  # no difference: the row says nothing of what is computed
        except CallRefused as refusal:
            observe(control, row, inputs, self.half)
            cause = refusal.__cause__
            told = f"it raised {type(cause).__name__}: {cause}, and the control did not"
            yield Difference("an exception", told, 1.0, 0.0)
            return
        if same(observed, expected):
            return
        expected, exact = observe(control, row, inputs, self.half), None
        if row["precision"] != "float32":
            exact = observe(control, {**row, "precision": "float32"}, inputs, self.half)
        found = list(differences(observed, expected, exact))
        if found and row["mode"] == "train" and declared_dropout(control):
            # Code that draws its dropout otherwise is as sound: compare what is left without any.
            with without_dropout(backbone), without_dropout(control):
                observed = observe(backbone, row, inputs, self.half)
                expected = observe(control, row, inputs, self.half)
                found = list(differences(observed, expected, exact))
        yield from found

    def pairs(self) -> Iterator[tuple[str, Any, Control]]:
        """The subject as it is built for training and for inference, beside its control."""
        for build in ("training", "inference"):
            backbone = self.backbone(build)
            if backbone is not None:
                yield build, backbone, self.control(build)

    def asked_length(self, build: str) -> int:
        """The `llm_max_length` that this build is asked for, in tokens."""
        times = {"long": 1, "all at once": 1, "longer": 2}.get(build, 0)
        if not times or self._subject.lacks("llm_max_length"):
            return LLM_MAX_LENGTH
        return times * self._published_length

    def _built(self, build: str) -> Any:
        inference, flash = {"inference_mode": True}, {"use_flash_attention_2": True}
        if build == "all at once" and self.backbone("flash") is None:
            flash = {}
        no_token = {"hf_token": None}
        options: dict[str, dict[str, Any]] = {
            "inference": inference, "flash": flash, "no token": no_token,
            "all at once": {**inference, **flash, **no_token},
        }  # fmt: skip
        with _on_another_rank() if build == "another rank" else nullcontext():
            backbone = self._subject.build(
                llm_max_length=self.asked_length(build),
                left_out=[LEFT_OUT[build]] if build in LEFT_OUT else [],
                **options.get(build, {}),
            )
        if build == "copied":
            backbone = copy.deepcopy(backbone)
        parameters = dict(backbone.llm.named_parameters())
        self.dtypes[build] = {name: parameter.dtype for name, parameter in parameters.items()}
        self.sums[build] = {
            name: float(first_rows(parameter, self._rows).double().sum())
            for name, parameter in parameters.items()
            if name in self._subject.checkpoint.shapes
        }
        backbone.llm.load_state_dict(self._subject.training.llm.state_dict())
        if build == "checkpointed":
            backbone.enable_gradient_checkpointing()
        if {parameter.dtype for parameter in backbone.llm.parameters()} != {torch.float32}:
            backbone = in_float32(backbone)
        return backbone.eval()


def _rows_for_gradients_of_patches() -> list[Row]:
    """Rows with patches for whatever is trained, in either mode, with and without labels: pairs of
    values do not cover these together."""
    names, factors = ("trained", "mode", "labels"), with_gradients()
    return [
        {**DEFAULTS, "form": "patches", "gradients": True, **dict(zip(names, values, strict=True))}
        for values in product(*(factors[name] for name in names))
    ]


@contextmanager
def _on_another_rank() -> Iterator[None]:
    """The environment of the second of two ranks, as torchrun, Slurm and MPI set it, and
    `accelerate launch`, which asks for bfloat16 beside master weights in float32."""
    with mock.patch.dict(os.environ, {**SECOND_RANK, "ACCELERATE_MIXED_PRECISION": "bf16"}):
        yield


def compared(subject: Subject) -> Compared:
    """The instances of this run."""
    if "compared" not in subject.kept:
        subject.kept["compared"] = Compared(subject)
    found: Compared = subject.kept["compared"]
    return found


def first_finding(subject: Subject, concerns: Callable[[str], bool]) -> Finding | None:
    """The first difference in a quantity that `concerns` the clause being judged, if there is one;
    the clause's evidence records the states that were compared until then."""
    found = next((one for one in findings(subject) if concerns(one.difference.quantity)), None)
    tried: Mapping[str, Counter[Any]] = compared(subject).tried
    tell("states", {name: {str(v): n for v, n in counts.items()} for name, counts in tried.items()})
    return found


def findings(subject: Subject) -> Iterator[Finding]:
    """Every difference in every covering row. Clauses share the rows: each is run when the first of
    them comes to it."""
    if "findings" not in subject.kept:
        subject.kept["findings"] = ([], _findings(subject))
    known, coming = subject.kept["findings"]
    for place in count():
        if place == len(known):
            following = next(coming, None)
            if following is None:
                return
            known.append(following)
        yield known[place]


def _findings(subject: Subject) -> Iterator[Finding]:
    together, judged = compared(subject), 0
    for row in together.rows(SHARE[subject.budget.name]):
        try:
            found = list(together.all_differences(row))
        except CallRefused:
            continue
        judged += 1
        for name, counts in together.tried.items():
            counts[row[name]] += 1
        yield from (Finding(row, difference) for difference in found)
    if not judged:
        raise RuntimeError("the control refuses every call: there is nothing to compare with")


def _without_history(row: Row) -> Row:
    return row if row["history"] in CHANGING else {**row, "history": "fresh"}


def narrowed(together: Compared, finding: Finding) -> Finding:
    """The same quantity's difference in a row that is plain in all that does not matter to it."""
    last = finding.difference

    def fails(row: Row) -> bool:
        nonlocal last
        if not makes_sense(row):
            return False
        try:
            found = [
                difference
                for difference in together.all_differences(row)
                if difference.quantity == last.quantity
            ]
        except CallRefused:
            return False
        last = found[0] if found else last
        return bool(found)

    row = plainer(finding.row, DEFAULTS, fails)
    return Finding(row, last)


def failure(together: Compared, found: Finding, *, mend: str) -> ClauseFailure:
    """The clause failure that tells of a finding, in its plainest row."""
    found = narrowed(together, found)
    state = {name: value for name, value in found.row.items() if value != DEFAULTS[name]}
    return ClauseFailure(
        observed=f"{described(found.row)}: {found.difference.told}",
        expected="what the library's own model returns from the same checkpoint in the same state"
        + (", as it is in plainer ones" if state else ""),
        mend=mend,
        quantity=found.difference.quantity,
        value=found.difference.value,
        bound=found.difference.bound,
        state=state,
    )


def _inputs(subject: Subject, control: Control) -> Inputs:
    special = set(subject.tokenizer.all_special_ids)
    rows = subject.training.llm.get_input_embeddings().weight
    known = min(len(subject.tokenizer), int(rows.shape[0]))
    config = text_config(subject.training.llm)
    pad = getattr(subject.training, "pad_token_id", subject.tokenizer.pad_token_id)
    window = getattr(config, "sliding_window", None)
    return Inputs(
        ordinary=torch.tensor([token for token in range(known) if token not in special]),
        bos=_usable(subject.tokenizer.bos_token_id, pad, known),
        eos=_usable(subject.tokenizer.eos_token_id, pad, known),
        known=known,
        window=int(window) if window and 4 <= window <= 64 else 16,
        width=int(getattr(subject.training, "embed_dim", rows.shape[1])),
        first_length=_first_length(text_config(control.llm)),
        seed=subject.seed,
    )


def _first_length(config: Any) -> int:
    """The length that a model with long rotary factors was first trained at; 0 without any."""
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not scaling or "long_factor" not in scaling:
        return 0
    first = getattr(config, "original_max_position_embeddings", None)
    return int(first or scaling.get("original_max_position_embeddings") or 0)


def _usable(token: int | None, pad: int | None, known: int) -> int | None:
    """A special token that stands in a text and is trained: not one that is the pad too."""
    return token if token is not None and token != pad and token < known else None

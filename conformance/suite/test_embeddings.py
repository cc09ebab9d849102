"""EMB: the embedding matrices."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

from conformance.assertions import NotApplicable, quoted, refusal, require, tell, within
from conformance.catalogue import MUST, SHOULD, requirement
from conformance.control.calls import second_of_two_ranks
from conformance.hub.language_model import decoder_config, put_back
from conformance.parity.equality import relative_rms
from conformance.parity.gates import SEMANTICS, conditions
from conformance.parity.library import text_config
from conformance.subject.subject import Subject
from conformance.suite.models import (
    built_both_ways,
    decoder_layers,
    logits_of,
    next_multiple,
    positions_of,
    probe_ids,
    same_tensor,
    vocabulary_tensors,
)
from conformance.suite.properties import for_all
from conformance.suite.strategies import token_ids

ROW_MULTIPLE = 64
"""Tensor cores want vocabulary dimensions that are multiples of this in half precision."""

SCALE_FACTOR = 10.0
"""New rows have the scale of trained ones if their median norm is within this factor of theirs."""


@requirement("EMB-01", MUST, needs=["CON-01"])
def test_rows_are_a_multiple_of_64(subject: Subject) -> None:
    """The input embedding's row count is a multiple of 64."""
    for mode, backbone in (("training", subject.training), ("inference", subject.inference)):
        rows = _rows(backbone)
        require(
            rows % ROW_MULTIPLE == 0,
            observed=f"in {mode} mode the embedding has {rows} rows",
            expected=f"a multiple of {ROW_MULTIPLE}, such as {next_multiple(ROW_MULTIPLE, rows)}",
            mend=f"resize with `pad_to_multiple_of={ROW_MULTIPLE}`",
        )


@requirement("EMB-02", MUST, needs=["CON-01"])
def test_a_row_for_every_token(subject: Subject) -> None:
    """Rows ≥ `len(tokenizer)`."""
    rows, tokens = _rows(subject.training), len(subject.tokenizer)
    require(
        rows >= tokens,
        observed=f"{rows} rows for {tokens} tokens",
        expected="at least one row per token",
        mend="call `resize_token_embeddings` after the last token was added",
    )


@requirement("EMB-03", MUST, needs=["CON-01"])
def test_every_vocabulary_size_is_one(subject: Subject) -> None:
    """Input rows = output rows = logits' last axis = the config's `vocab_size` (the text config's
    where nested)."""
    for mode, backbone in (("training", subject.training), ("inference", subject.inference)):
        ids = probe_ids(subject)
        head = backbone.llm.get_output_embeddings()
        with torch.no_grad():
            logits = backbone.llm(input_ids=ids).logits
        sizes = {
            "input rows": _rows(backbone),
            "output rows": head.weight.shape[0] if head is not None else _rows(backbone),
            "logits": logits.shape[-1],
            "config.vocab_size": text_config(backbone.llm).vocab_size,
        }
        tell("vocabulary", {"rows": sizes["input rows"], "tokens": len(subject.tokenizer)})
        require(
            len(set(sizes.values())) == 1,
            observed=f"in {mode} mode: "
            + ", ".join(f"{name} {size}" for name, size in sizes.items()),
            expected="one size",
            mend="resize through `llm.resize_token_embeddings`, which keeps all of them together",
            sizes=sizes,
        )


@requirement("EMB-04", MUST, needs=["CON-01"])
def test_checkpoint_rows_are_untouched(subject: Subject) -> None:
    """Rows that came from the checkpoint are bit-equal to it."""
    for name, ours, theirs in _vocabulary_tensors(subject):
        kept = min(ours.shape[0], theirs.shape[0])
        differing = (
            (ours[:kept] != theirs[:kept].to(ours.dtype))
            .reshape(kept, -1)
            .any(-1)
            .nonzero()
            .flatten()
            .tolist()
        )
        require(
            not differing,
            observed=f"{len(differing)} of {kept} rows of `{name}` differ from the checkpoint, "
            f"first {differing[:1]}",
            expected="the checkpoint's rows bit for bit",
            mend="initialise only the rows that were added",
            rows=differing[:20],
        )


@requirement("EMB-05", SHOULD, needs=["CON-01"])
def test_no_checkpoint_row_is_dropped(subject: Subject) -> None:
    """Resizing never drops rows of the checkpoint."""
    for name, ours, theirs in _vocabulary_tensors(subject):
        require(
            ours.shape[0] >= theirs.shape[0],
            observed=f"`{name}` has {ours.shape[0]} rows, the checkpoint {theirs.shape[0]}",
            expected="no fewer than the checkpoint",
            mend="resize to max(checkpoint rows, len(tokenizer)), rounded up",
        )


@requirement("EMB-06", MUST, needs=["CON-01"])
def test_tying_is_honoured(subject: Subject) -> None:
    """`tie_word_embeddings` is honoured: one storage when tied, two when not, also after the
    resize; and what was untied since can be tied again."""
    for mode, backbone in (("training", subject.training), ("inference", subject.inference)):
        head = backbone.llm.get_output_embeddings()
        if head is None:
            raise NotApplicable("the model has no output embedding")
        tied = head.weight.data_ptr() == backbone.llm.get_input_embeddings().weight.data_ptr()
        key, published = "tie_word_embeddings", _published_config(subject)
        # The config of a decoder may leave it to the whole model's.
        own = getattr(text_config(backbone.llm), key, None)
        declared = bool(published.get(key, getattr(backbone.llm.config, key, own)))
        require(
            tied == declared,
            observed=f"in {mode} mode input and output embedding "
            f"{'share one storage' if tied else 'are two tensors'}",
            expected=f"{'one storage' if declared else 'two'}: the checkpoint's "
            f"tie_word_embeddings is {declared}",
            mend="call `llm.tie_weights()` after the resize"
            if declared
            else "give the head a weight of its own",
        )


@requirement("EMB-06", MUST)
def test_what_was_untied_can_be_tied_again(subject: Subject) -> None:
    """Where they are tied, `llm.tie_weights()` ties input and output embedding anew, as the library
    asks of whoever has assigned a state dict or put another embedding in place."""
    judged = 0
    for built, backbone in built_both_ways(subject):
        llm = backbone.llm
        embedding, head = llm.get_input_embeddings(), llm.get_output_embeddings()
        ties = hasattr(llm, "tie_weights") and hasattr(llm, "set_input_embeddings")
        if head is None or not ties or head.weight.data_ptr() != embedding.weight.data_ptr():
            continue
        judged += 1
        other = copy.deepcopy(embedding)
        llm.set_input_embeddings(other)
        llm.tie_weights()
        now = llm.get_output_embeddings().weight
        require(
            now.data_ptr() == other.weight.data_ptr(),
            observed=f"built for {built}, after `llm.set_input_embeddings(…)` and "
            "`llm.tie_weights()` the head has the weight of before",
            expected="that of the new embedding: else the two are trained apart, and one of them "
            "is what is saved",
            mend="leave `tie_weights` to the library, after construction too",
        )
    if not judged:
        raise NotApplicable("the embeddings are not tied")


@requirement("EMB-07", MUST, needs=["CON-01"])
def test_new_rows_are_finite(subject: Subject) -> None:
    """New rows are finite; and those that are no matter of chance are filled alike on every rank of
    a process group."""
    for name, ours, theirs in _vocabulary_tensors(subject):
        new = ours[theirs.shape[0] :]
        bad = int((~torch.isfinite(new)).sum())
        require(
            bad == 0,
            observed=f"{bad} values of the {new.shape[0]} new rows of `{name}` are NaN or infinite",
            expected="finite numbers",
            mend="initialise new rows; `torch.empty` holds whatever was in memory",
        )


@requirement("EMB-07", MUST)
def test_new_rows_are_the_same_on_every_rank(subject: Subject) -> None:
    """New rows that are no matter of chance are filled alike on every rank of a process group: each
    rank builds its own, and what is gathered from them is one model."""
    counts = {name: theirs.shape[0] for name, _, theirs in _vocabulary_tensors(subject)}
    own, again = _new_rows(subject.training, counts), _new_rows(subject.build(), counts)
    if not own or any(not same_tensor(again[name], rows) for name, rows in own.items()):
        raise NotApplicable("there are no new rows, or they are drawn at random")
    with refusal() as refused, second_of_two_ranks():
        elsewhere = _new_rows(subject.build(), counts)
    if refused:  # it asks other ranks, say, and there are none
        raise NotApplicable(f"it cannot be built in a process group here: {refused[0]}")
    other = [name for name, rows in own.items() if not same_tensor(elsewhere[name], rows)]
    require(
        not other,
        observed=f"on the second rank of two the new rows of {other} are others than in a process "
        "by itself, in which they are always the same",
        expected="the same rows on every rank: shards of several fillings make none of them",
        mend="fill rows by what all ranks know, or draw them and let one rank send them",
    )


def _new_rows(backbone: Any, counts: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """The rows behind the published ones, by the name of their tensor."""
    state = backbone.llm.state_dict()
    rows = {name: state[name][count:].clone() for name, count in counts.items() if name in state}
    return {name: some for name, some in rows.items() if len(some)}


@requirement("EMB-08", MUST, needs=["CON-06", "EMB-02", "EMB-03"])
def test_pad_and_resize_is_idempotent(subject: Subject) -> None:
    """Saving what was constructed and constructing from it adds no rows: the pad-and-resize step is
    idempotent. What is saved is what the model holds, bit-equal, and what is constructed from it
    computes the same: the saved config describes the model that runs. A state dict that is handed
    in is what is saved, and a second save takes the place of the first; the stops are saved, and a
    tokenizer with its settings and every token that was added."""

    def save(snapshot: Path) -> None:
        with TemporaryDirectory() as directory:
            own = Path(directory)
            subject.training.llm.save_pretrained(own)
            subject.tokenizer.save_pretrained(own)
            for path in own.glob("*.safetensors"):
                saved.update(load_file(path))
            put_back(snapshot, own, subject.recipe.language_model)

    saved: dict[str, torch.Tensor] = {}
    before = (_rows(subject.training), len(subject.tokenizer))
    with subject.hub_variant(save):
        again = subject.build()
        # Some load only when they are asked.
        after = (_rows(again), len(again.get_tokenizer()))
    require(
        before == after,
        observed=f"{before[0]} rows and {before[1]} tokens, saved and constructed again, are "
        f"{after[0]} and {after[1]}",
        expected="the same",
        mend="round max(rows, len(tokenizer)) up to a multiple of 64, and add the pad token only "
        "where it is missing",
    )
    held = subject.training.llm.state_dict()
    # A wrapper around the library's model saves it under shorter names.
    pairs = {
        name: next((one for one in held if one == name or one.endswith(f".{name}")), None)
        for name in saved
    }
    known = {name: held[ours] for name, ours in pairs.items() if ours is not None}
    changed = [name for name, tensor in known.items() if not same_tensor(saved[name], tensor)]
    require(
        bool(known) and not changed,
        observed=f"of {len(held)} tensors {len(known)} are saved under their names, {len(changed)} "
        f"with other values or in another dtype, the first is {changed[:1]}",
        expected="the tensors that the model holds",
        mend="leave `save_pretrained` to the library: rounding the master weights loses them",
        tensors=changed[:20],
    )
    _require_the_same_model(subject, again)


def _require_the_same_model(subject: Subject, again: Any) -> None:
    """Texts whose tokens stand far apart: what a config says of positions shows there."""
    ids, shapes = probe_ids(subject), subject.checkpoint.shapes
    tokens = len(subject.tokenizer)
    rows = [shapes[tensor][0] for tensor in vocabulary_tensors(subject).values()]
    apart = max(1, positions_of(subject.training.llm) // ids.shape[1])
    call = {
        "input_ids": ids,
        # Without a mask the library takes positions with gaps for those of packed texts.
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(ids.shape[1]).mul(apart).expand_as(ids),
    }
    # Other rows are the subject's own: it may round them anew, or put them out of reach.
    columns = slice(min([tokens, *rows]))
    with torch.no_grad():
        with refusal() as refused:
            subject.training(**call)
        if refused:  # transformers 4.40 has no positions beyond the text, OPT no argument for them
            del call["position_ids"]
        found, wanted = (
            logits_of(one(**call))[..., columns] for one in (again.eval(), subject.training)
        )
    error = relative_rms(found, wanted)
    within(
        "logits of what was saved",
        error,
        SEMANTICS,
        observed=f"constructed from what `llm.save_pretrained` wrote, the logits differ by a "
        f"relative RMS of {error:.2g}",
        expected="the logits of the model that was saved",
        mend="leave `llm.config` as the model was built from it: it is saved, and read again",
        conditions=conditions(found.dtype, found.device),
    )


@requirement("EMB-09", MUST, needs=["PAD-05"], uses=["embed_input_ids", "embed_dim"])
@for_all(ids=token_ids)
def test_embedding_is_row_lookup(subject: Subject, ids: list[list[int]]) -> None:
    """`embed_input_ids(ids)` is row lookup times the declared embedding scale: right rows, shape
    `(*ids.shape, embed_dim)` whatever their shape, the weight's dtype and device, over the whole
    range; an id out of range raises, in `forward` too."""
    backbone, tensor = subject.training, torch.tensor(ids)
    weight = backbone.llm.get_input_embeddings().weight
    with torch.no_grad():
        observed = backbone.embed_input_ids(tensor)
        scale = torch.tensor(subject.declared.embedding_scale, dtype=weight.dtype)
        expected = weight[tensor] * scale
    require(
        tuple(observed.shape) == (*tensor.shape,
        backbone.embed_dim) and observed.dtype == weight.dtype
        and observed.device == weight.device,
        observed=f"ids {tuple(tensor.shape)} gave {tuple(observed.shape)} in {observed.dtype} on "
            f"{observed.device}",
        expected=f"{(*tensor.shape, backbone.embed_dim)} in {weight.dtype} on {weight.device}",
        mend="return `self.llm.get_input_embeddings()(input_ids)`",
    )  # fmt: skip
    require(
        same_tensor(observed, expected),
        observed=f"the embeddings of {ids} are {_told_beside(observed, expected)}",
        expected="the rows of the input embedding, times the declared embedding scale, "
        f"{subject.declared.embedding_scale:g}",
        mend="return `self.llm.get_input_embeddings()(input_ids)`, or declare `embedding_scale`",
    )


def _told_beside(observed: torch.Tensor, expected: torch.Tensor) -> str:
    """By which factor `observed` is what was expected, if it is by any."""
    factor = float((observed * expected).sum() / expected.square().sum())
    scaled = math.isfinite(factor) and torch.allclose(observed, factor * expected, rtol=1e-4)
    return f"{factor:.4g} times what is expected" if scaled else "others"


@requirement("EMB-09", MUST, needs=["PAD-05"], uses=["embed_input_ids", "embed_dim"])
def test_ids_of_any_shape_are_looked_up(subject: Subject) -> None:
    """Ids of any shape are looked up, however the backbone was built and in either mode: a host
    that embeds what follows the bos may have nothing left."""
    for built, backbone in built_both_ways(subject):
        weight = backbone.llm.get_input_embeddings().weight
        scale = torch.tensor(subject.declared.embedding_scale, dtype=weight.dtype)
        for mode, shape in product(("train", "eval"), ((0,), (2, 0), (3,), (1, 2, 3))):
            getattr(backbone, mode)()
            ids = torch.arange(1, 1 + math.prod(shape)).reshape(shape)
            with torch.no_grad(), refusal() as refused:
                found = backbone.embed_input_ids(ids)
            require(
                not refused and torch.equal(found, weight[ids] * scale),
                observed=f"built for {built}, in {mode}(), ids of shape {shape} are "
                + (f"refused: {quoted(str(refused[0]))}" if refused else "looked up otherwise"),
                expected=f"rows of shape {(*shape, backbone.embed_dim)}",
                mend="hand ids to the embedding as they are; it takes every shape",
            )


@requirement("EMB-09", MUST, needs=["PAD-05"], uses=["embed_input_ids", "embed_dim"])
def test_rows_that_a_host_adds_are_looked_up(subject: Subject) -> None:
    """Rows that a host adds, for action tokens say, are looked up like any other, and `forward`
    takes their ids, however the backbone was built and in either mode."""
    for built, backbone in built_both_ways(subject):
        rows = _rows(backbone)
        with warnings.catch_warnings(), refusal() as refused:
            warnings.simplefilter("ignore")
            backbone.llm.resize_token_embeddings(rows + 64)
        if refused:
            raise NotApplicable(f"the model cannot be resized: {refused[0]}")
        with torch.no_grad():  # which a first stage trains, before a second one adds more
            for one in _added_rows(backbone, rows):
                one.copy_(torch.arange(rows, rows + 64)[:, None] / rows)
            trained = [one.clone() for one in _added_rows(backbone, rows)]
            with warnings.catch_warnings(), refusal() as refused:
                warnings.simplefilter("ignore")
                backbone.llm.resize_token_embeddings(rows + 128)
            now = _added_rows(backbone, rows)
        require(
            not refused and len(now) == len(trained) and all(map(torch.equal, now, trained)),
            observed=f"built for {built}, a second `llm.resize_token_embeddings` "
            + (
                f"raises {quoted(str(refused[0]))}"
                if refused
                else "changes rows that the first has added and a host has trained"
            ),
            expected="the rows as they were, and new ones behind them",
            mend="fill the rows alone that are new",
        )
        weight = backbone.llm.get_input_embeddings().weight
        wanted = weight[[1, rows, rows + 63]] * torch.tensor(
            subject.declared.embedding_scale, dtype=weight.dtype
        )
        for mode, shape in product(("train", "eval"), ((1, 3), (3, 1))):
            getattr(backbone, mode)()
            ids = torch.tensor([1, rows, rows + 63]).reshape(shape)
            for name, call in _calls_with_ids(backbone).items():
                with torch.no_grad(), refusal() as refused:
                    found = call(ids)
                right = name == "forward" or (
                    not refused and torch.equal(found, wanted.reshape(*shape, -1))
                )
                require(
                    not refused and right,
                    observed=f"built for {built}, in {mode}(), after "
                    f"`llm.resize_token_embeddings({rows + 64})`, `{name}` "
                    + (
                        f"refuses the new rows: {quoted(str(refused[0]))}"
                        if refused
                        else "looks the new rows up otherwise"
                    ),
                    expected="the rows that the embedding has by then",
                    mend="read the embedding and its rows at each call, not once at construction",
                )


def _added_rows(backbone: Any, rows: int) -> list[torch.Tensor]:
    """The 64 rows behind the first `rows`, of the embedding and of the head, where they are."""
    modules = (backbone.llm.get_input_embeddings(), backbone.llm.get_output_embeddings())
    weights = [getattr(module, "weight", None) for module in modules]
    return [
        one[rows : rows + 64]
        for one in weights
        if isinstance(one, torch.Tensor) and len(one) > rows
    ]


@requirement("EMB-09", MUST, needs=["PAD-05"], uses=["embed_input_ids", "embed_dim"])
def test_an_embedding_that_a_host_replaces_is_read(subject: Subject) -> None:
    """What a host puts in the input embedding's place, with adapters say, is what ids are looked up
    in from then on."""
    ids = probe_ids(subject)
    for built, backbone in built_both_ways(subject):
        if not hasattr(backbone.llm, "set_input_embeddings"):
            raise NotApplicable("`llm` has no `set_input_embeddings`, by which hosts replace it")
        with torch.no_grad():
            before = backbone.embed_input_ids(ids)
            other = copy.deepcopy(backbone.llm.get_input_embeddings())
            other.weight.mul_(2.0)
            backbone.llm.set_input_embeddings(other)
            after = backbone.embed_input_ids(ids)
        require(
            same_tensor(after, 2.0 * before),
            observed=f"built for {built}, `embed_input_ids` does not read the module that "
            "`llm.set_input_embeddings` put in place",
            expected="twice the embeddings of before, as the new module's weight is twice the old",
            mend="ask `self.llm.get_input_embeddings()` at each call, and keep no module",
        )


@requirement("EMB-09", MUST, needs=["PAD-05"], uses=["embed_input_ids", "embed_dim"])
def test_an_id_out_of_range_raises(subject: Subject) -> None:
    """An id out of range raises, in `embed_input_ids` and in `forward`, in any row of a batch,
    however the backbone was built."""
    for built, backbone in (
        ("training", subject.training),
        ("inference", subject.build_for_inference()),
    ):
        # -200 is how some hosts mark an image, and -100 an ignored label.
        for wrong, first in product((_rows(backbone), -1, -200), ([], [[1, 2]])):
            ids = torch.tensor([*first, [1, wrong]])
            for name, call in _calls_with_ids(backbone).items():
                with torch.no_grad(), refusal() as refused:
                    call(ids)
                require(
                    bool(refused),
                    observed=f"built for {built}, `{name}` took the ids {ids.tolist()} without "
                    "complaint",
                    expected=f"an error for an id out of range: {wrong}",
                    mend="do not clamp or wrap ids: a wrong id must show",
                )


def _calls_with_ids(backbone: Any) -> dict[str, Callable[[torch.Tensor], Any]]:
    return {
        "embed_input_ids": backbone.embed_input_ids,
        "forward": lambda ids: backbone.forward(input_ids=ids),
    }


@requirement(
    "EMB-10",
    MUST,
    needs=["CON-01"],
    uses=["embed_input_ids", "forward", "enable_gradient_checkpointing"],
)
def test_gradients_reach_the_input_embeddings(subject: Subject) -> None:
    """With everything frozen and input gradients asked for, a loss reaches `embed_input_ids`'
    output: the hook survives the resize (`embed_input_ids(x).requires_grad`, and backward under
    checkpointing with one layer trainable works)."""
    backbone, ids = subject.build(), probe_ids(subject)
    backbone.requires_grad_(False)
    mend = (
        "call `llm.enable_input_require_grads()` after `resize_token_embeddings`, which "
        "replaces the module it hooks, and embed by calling that module, not by its weight"
    )
    require(
        backbone.embed_input_ids(ids).requires_grad,
        observed="with every parameter frozen, `embed_input_ids(ids).requires_grad` is False",
        expected="True: layers that are checkpointed with `use_reentrant=True` get no gradient "
        "from a text whose frozen embeddings need none",
        mend=mend,
    )
    layers = [] if subject.lacks("transformer_layer_cls") else decoder_layers(backbone)
    first_layer = layers[0] if layers else backbone.llm  # FSDP-01 reports a wrong class.
    first_layer.requires_grad_(True)
    backbone.enable_gradient_checkpointing()
    backbone.train()
    with refusal() as refused:
        backbone.forward(
            input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids
        ).loss.backward()
    without = [name for name, parameter in first_layer.named_parameters() if parameter.grad is None]
    require(
        not refused and not without,
        observed="under checkpointing with one layer trainable, "
        + (
            f"backward raised {quoted(str(refused[0]))}"
            if refused
            else f"`{''.join(without[:1])}` got no gradient"
        ),
        expected="gradients for every parameter of that layer",
        mend="checkpoint with `use_reentrant=False`, and " + mend,
    )


@requirement("EMB-11", SHOULD, needs=["EMB-07"])
def test_new_rows_resemble_trained_rows(subject: Subject) -> None:
    """New rows differ from each other and have the scale of trained rows: a median norm within 10×
    of the checkpoint's, or of what its config draws rows with (`initializer_range`). The pad row
    may be zero."""
    pad = subject.tokenizer.pad_token_id
    drawn = float(subject.published_config.get("initializer_range", 0.02))
    for name, ours, theirs in _vocabulary_tensors(subject):
        if ours.ndim != 2:
            continue
        new = [row for row in range(theirs.shape[0], ours.shape[0]) if row != pad]
        if not new:
            continue
        rows, trained = ours[new].double(), theirs.double()
        found, theirs_is = rows.norm(dim=1).median().item(), trained.norm(dim=1).median().item()
        # A probe's own rows are fifty times larger than trained ones.
        norms = sorted((theirs_is, drawn * rows.shape[1] ** 0.5))
        ratio = found / theirs_is
        require(
            norms[0] / SCALE_FACTOR <= found <= norms[1] * SCALE_FACTOR,
            observed=f"the median norm of new rows of `{name}` is {found:.3g}, {ratio:.3g} times "
            f"that of trained rows",
            expected=f"within a factor of {SCALE_FACTOR:g} of trained rows, {theirs_is:.3g}, or of "
            f"rows drawn with {drawn:g}",
            mend="draw new rows with the mean and spread of the trained ones",
            ratio=ratio,
        )
        spread = (rows - rows.mean(0)).norm(dim=1).median().item() / norms[0]
        require(
            len(new) == 1 or spread >= 1 / SCALE_FACTOR,
            observed=f"new rows of `{name}` spread about their mean {spread:.3g} times as far as "
            f"rows are long",
            expected=f"no less than 1/{SCALE_FACTOR:g}: rows that differ from each other",
            mend="draw each row by itself; `mean_resizing` makes them all but equal",
            spread=spread,
        )


@requirement("EMB-12", SHOULD, needs=["EMB-02", "EMB-03"])
def test_no_spare_block_of_rows(subject: Subject) -> None:
    """No whole block of 64 rows beyond what tokenizer and checkpoint need; the inner model's
    `vocab_size` follows the resize."""
    rows = _rows(subject.training)
    checkpoint_rows = max(
        (theirs.shape[0] for _, _, theirs in _vocabulary_tensors(subject)), default=0
    )
    needed = subject.declared.vocabulary_rows or next_multiple(
        ROW_MULTIPLE, max(checkpoint_rows, len(subject.tokenizer))
    )
    require(
        rows <= needed,
        observed=f"{rows} rows",
        expected=f"{needed}: the checkpoint has {checkpoint_rows} rows, the tokenizer "
        f"{len(subject.tokenizer)} tokens",
        mend="round up once, from max(checkpoint rows, len(tokenizer)); or declare "
        "`vocabulary_rows`",
    )
    inner = getattr(subject.training.llm, "model", None)
    stale = getattr(inner, "vocab_size", rows)
    require(
        stale == rows,
        observed=f"the inner model's vocab_size is {stale}",
        expected=f"{rows}",
        mend="set `llm.model.vocab_size` after the resize",
    )


def _rows(backbone: Any) -> int:
    return int(backbone.llm.get_input_embeddings().weight.shape[0])


def _vocabulary_tensors(subject: Subject) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Name, the model's tensor and the checkpoint's, for every tensor with one row per token."""
    state = subject.training.llm.state_dict()
    return [
        (name, state[name], subject.checkpoint[theirs])
        for name, theirs in vocabulary_tensors(subject).items()
    ]


def _published_config(subject: Subject) -> dict[str, Any]:
    return decoder_config(subject.recipe.config)

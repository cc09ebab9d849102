"""TRN: training. Loss, gradients, and what checkpointing really recomputes."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from conformance.assertions import (
    NotApplicable,
    is_slip_of_ours,
    quoted,
    refusal,
    require,
    within,
)
from conformance.catalogue import MUST, requirement
from conformance.control import Inputs, embeddings_of
from conformance.control.calls import cross_entropy, without_dropout
from conformance.parity.equality import (
    GRADIENT_RELATIVE_RMS,
    gradients_of,
    parameters_by_name,
    relative_rms,
    worst_gradient,
)
from conformance.parity.gates import SEMANTICS, conditions
from conformance.subject.subject import Subject
from conformance.suite.models import (
    IGNORED_LABEL,
    built_both_ways,
    decoder_layers,
    logits_of,
)
from conformance.suite.product import GRADIENTS, LOSS, compared, failure, first_finding

_OVERFITTING = (12, 1e-2, 0.5)
"""Steps of AdamW, their rate, and the share of the first loss that must be left at most."""
_SWITCHED_OFF = -1e4
"""Below any logit that a model computes."""
_LOSS_SCALE = 2.0**16
"""With which `torch.amp.GradScaler` begins."""


@requirement("TRN-01", MUST, profile="training", needs=["FWD-14"], uses=["forward"])
def test_loss_is_the_cross_entropy(subject: Subject) -> None:
    """`loss` is the shifted cross-entropy of the subject's own logits with −100 ignored, in every
    state."""
    together = compared(subject)
    batches = {
        "": _batch(together.inputs, ignored=False),
        ", with some labels -100": _batch(together.inputs, ignored=True),
        ", over nine rows with labels for one token, two, and so on": _uneven(together.inputs, 9),
        ", over forty rows with labels for one token to nine": _uneven(together.inputs, 40),
    }
    for mode in (False, True):
        for told, (ids, mask, labels) in batches.items():
            backbone = together.backbone("training")
            backbone.train(mode)
            with torch.no_grad():
                output = backbone(input_ids=ids, attention_mask=mask, labels=labels)
            backbone.eval()
            require(
                isinstance(getattr(output, "loss", None), torch.Tensor),
                observed="a call with labels returns no `loss`",
                expected="the loss of those labels",
                mend="pass `labels` on to the language model",
            )
            wanted = cross_entropy(logits_of(output), labels)
            error = abs(float(output.loss) - float(wanted)) / abs(float(wanted))
            within(
                "loss",
                error,
                SEMANTICS,
                observed=f"in {'train' if mode else 'eval'}() the loss is {float(output.loss):.6g}"
                + told
                + _as_if(output, labels, together.inputs),
                expected=f"{float(wanted):.6g}, the cross-entropy of its own logits with the next "
                "token, over the labels that are not -100",
                mend="shift labels by one, ignore -100, and average over what is left",
                conditions=conditions(output.loss.dtype, output.loss.device),
            )
    _no_finding(subject, LOSS, mend="compute the loss alike in every state")


@requirement("TRN-01", MUST, profile="training")
def test_labels_of_new_tokens_count(subject: Subject) -> None:
    """Labels of tokens that were added after construction count like any other."""
    backbone = subject.build()
    tokenizer, inputs = backbone.get_tokenizer(), compared(subject).inputs
    tokenizer.add_tokens(["<a token of the conformance suite>"])
    new, rows = len(tokenizer) - 1, backbone.llm.get_input_embeddings().weight.shape[0]
    if new >= rows:
        raise NotApplicable("there is no row for another token")
    ids, mask, labels = _batch(inputs, ignored=False)
    labels[:, 3:5] = new
    backbone.eval()
    with torch.no_grad():
        output = backbone(input_ids=ids, attention_mask=mask, labels=labels)
    wanted = float(cross_entropy(logits_of(output), labels))
    if float(logits_of(output)[..., new].min()) < _SWITCHED_OFF:
        raise NotApplicable("rows that no token has are switched off")
    error = abs(float(output.loss) - wanted) / abs(wanted)
    within(
        "loss of new tokens",
        error,
        SEMANTICS,
        observed=f"with labels of a token that was added after construction the loss is "
        f"{float(output.loss):.6g}",
        expected=f"{wanted:.6g}: action tokens are added so",
        mend="leave out the labels that are -100, and no others",
        conditions=conditions(output.loss.dtype, output.loss.device),
    )


@requirement("TRN-01", MUST, profile="training")
def test_accumulated_batches_share_a_divisor(subject: Subject) -> None:
    """Told the tokens of all accumulated batches (`num_items_in_batch`, as transformers' Trainer
    does), the loss of a model of the library's is divided by them."""
    together = compared(subject)
    ids, mask, labels = _batch(together.inputs, ignored=False)
    count, judged = 4 * labels.numel(), 0
    counted = int((labels[:, 1:] != IGNORED_LABEL).sum())
    for build, backbone, control in together.pairs():
        if not isinstance(backbone.llm, type(control.llm)):
            continue  # a class of its own need not know the Trainer
        errors, found, wanted = list[float](), "", 0.0
        for one in (control, backbone):
            with torch.no_grad(), refusal() as refused:
                output = one.llm(
                    input_ids=ids,
                    attention_mask=mask,
                    labels=labels,
                    num_items_in_batch=torch.tensor(count),
                )
                # Of its own logits: rows that no token has may be left out of them.
                wanted = float(cross_entropy(logits_of(output), labels)) * counted / count
                errors.append(abs(float(output.loss) - wanted) / wanted)
                found = f"{float(output.loss):.6g}"
            if one is control and (refused or errors[0] > SEMANTICS):  # before transformers 4.46
                raise NotApplicable("the library's loss takes no `num_items_in_batch`")
        judged += 1
        within(
            "loss over accumulated batches",
            errors[1] if len(errors) > 1 else float("nan"),
            SEMANTICS,
            observed=f"built for {build}, with num_items_in_batch={count} the loss of `llm` is "
            + (f"refused: {quoted(str(refused[0]))}" if refused else found),
            expected=f"{wanted:.6g}, the sum of the losses of all labels over that number",
            mend="hand what `forward` is given on to the library's loss",
            conditions=conditions(torch.float32, torch.device("cpu")),
        )
    if not judged:
        raise NotApplicable("`llm` is none of the library's classes")


def _as_if(output: Any, labels: torch.Tensor, inputs: Inputs) -> str:
    """Which mistake gives just the loss that was returned, if a common one does."""
    logits, tokens = logits_of(output), {"eos": inputs.eos, "bos": inputs.bos}
    count = (labels[:, 1:] != IGNORED_LABEL).sum()
    mistakes = {
        "the labels were not shifted": cross_entropy(
            torch.nn.functional.pad(logits, (0, 0, 0, 1)), torch.nn.functional.pad(labels, (1, 0))
        ),
        "it were divided by all positions": cross_entropy(logits, labels) * count / labels.numel(),
    } | {
        f"labels that are {name} were ignored too": cross_entropy(
            logits, labels.masked_fill(labels == token, IGNORED_LABEL)
        )
        for name, token in tokens.items()
        if token is not None and bool((labels == token).any())
    }
    right = float(cross_entropy(logits, labels))
    for told, loss in mistakes.items():
        # A mistake that changes nothing here explains nothing.
        if abs(float(loss) - right) > SEMANTICS * right and math.isclose(
            float(loss), float(output.loss), rel_tol=SEMANTICS
        ):
            return f", as if {told}"
    return ""


@requirement("TRN-02", MUST, profile="training", needs=["TRN-01", "FWD-03"], uses=["forward"])
def test_ignored_labels_have_no_influence(subject: Subject) -> None:
    """Ignored labels have no influence: what stands behind the last label that counts changes
    neither the loss nor any gradient, which are those of the cross-entropy of the subject's own
    logits."""
    if subject.declared.attention != "causal":
        raise NotApplicable("bidirectional attention sees what stands behind, too")
    together = compared(subject)
    backbone = together.backbone("training")
    with without_dropout(backbone):
        for mode in (True, False):
            backbone.train(mode)
            _require_no_influence(backbone, together.inputs)


@requirement("TRN-02", MUST, profile="training")
def test_a_long_text_teaches_as_a_whole(subject: Subject) -> None:
    """The gradient of the loss over 600 tokens is that of the cross-entropy of the subject's own
    logits: a loss that is computed in pieces trains on all of them."""
    together = compared(subject)
    backbone = together.backbone("training")
    ids = together.inputs.ids(1, 600)
    with without_dropout(backbone):
        backbone.train()
        output = backbone(input_ids=ids, labels=ids)
        own = _gradients(backbone, cross_entropy(logits_of(output), ids), keep=True)
        wrong, name = worst_gradient(_gradients(backbone, output.loss), own)
        backbone.eval()
    within(
        "gradient of a long text's loss",
        wrong,
        GRADIENT_RELATIVE_RMS,
        observed=f"over 600 tokens the loss's gradient in `{name}` differs by {wrong:.2g} from "
        "that of the cross-entropy of its own logits",
        expected="the same gradient, from every piece of the text",
        mend="detach no piece of a loss that is computed in pieces",
    )


def _require_no_influence(backbone: Any, inputs: Inputs) -> None:
    seen = []
    for offset in (0, 1):
        ids, mask, labels = _batch(inputs, ignored=False)
        half = ids.shape[1] // 2
        ids[:, half:] = inputs.ids(len(ids), ids.shape[1] - half, offset=20 + offset)
        labels[:, half:] = IGNORED_LABEL
        output = backbone(input_ids=ids, attention_mask=mask, labels=labels)
        own = _gradients(backbone, cross_entropy(logits_of(output), labels), keep=True)
        gradients = _gradients(backbone, output.loss)
        wrong, name = worst_gradient(gradients, own)
        within(
            "gradient of the loss",
            wrong,
            GRADIENT_RELATIVE_RMS,
            observed=f"the loss's gradient in `{name}` differs by {wrong:.2g} from that of the "
            "cross-entropy of its own logits",
            expected="the same gradient, over the labels that are not -100",
            mend="add nothing to the loss that labels do not ask for",
        )
        seen.append((float(output.loss.detach()), gradients))
    (one, one_gradients), (other, other_gradients) = seen
    embedding = backbone.llm.get_input_embeddings().weight
    # Other tokens look up other rows.
    rows = {name for name, p in backbone.llm.named_parameters() if p is embedding}
    error = max(
        abs(one - other) / abs(one),
        worst_gradient(
            other_gradients,
            {name: gradient for name, gradient in one_gradients.items() if name not in rows},
        )[0],
    )
    within(
        "ignored labels",
        error,
        GRADIENT_RELATIVE_RMS,
        observed=f"tokens whose labels are -100 change loss or gradients by {error:.2g}",
        expected="no influence of ignored labels",
        mend="drop them from sum and count alike",
    )


@requirement(
    "TRN-03", MUST, profile="training", needs=["CON-01", "EMB-10", "FSDP-01"],
    uses=["enable_gradient_checkpointing", "forward"],
)  # fmt: skip
def test_checkpointing_recomputes_every_layer(subject: Subject) -> None:
    """`enable_gradient_checkpointing()` really recomputes: every layer once more in the backward
    pass, also with all but the last frozen, and draws what the first pass drew. Loss and
    gradients stay what they are (TRN-04)."""
    together = compared(subject)
    backbone = together.backbone("checkpointed")
    backbone.eval()  # a validation in the middle of a run
    backbone.train()
    layers = decoder_layers(backbone)
    for frozen in (False, True):
        kept = [(p, p.requires_grad) for p in backbone.llm.parameters()]
        if frozen:
            trained = {id(p) for p in layers[-1].parameters()}
            for parameter, _ in kept:
                parameter.requires_grad_(id(parameter) in trained)
        ids, mask, labels = _batch(together.inputs, ignored=False)
        try:
            with _counted(layers) as calls:
                backbone(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        finally:
            for parameter, wanted in kept:
                parameter.requires_grad_(wanted)
            backbone.llm.zero_grad(set_to_none=True)
        expected = [len(layers) - 1] if frozen else range(len(layers))
        missed = [index for index in expected if calls[index] < 2]
        often = [index for index in range(len(layers)) if calls[index] > 2]
        which = f"layers {missed or often} of {len(layers)} are "
        require(
            not missed and not often,
            observed="after `enable_gradient_checkpointing()` "
            + (which + "not recomputed" if missed else which + "recomputed more than once")
            + " in the backward pass"
            + (", all else frozen" if frozen else ""),
            expected="every layer recomputed: its activations are what the memory goes to",
            mend="call `llm.gradient_checkpointing_enable(...)`, which reaches every layer",
        )
    backbone.eval()


@requirement("TRN-03", MUST, profile="training")
def test_a_frozen_model_recomputes_too(subject: Subject) -> None:
    """With everything frozen before checkpointing is enabled, as where a projector alone is
    trained, the layers are recomputed too: the gradient of its patches goes through all of them."""
    together = compared(subject)
    backbone = subject.build()
    backbone.requires_grad_(False)
    backbone.enable_gradient_checkpointing()
    backbone.train()
    layers = decoder_layers(backbone)
    ids, mask, labels = _batch(together.inputs, ignored=False)
    given = embeddings_of(backbone, ids).detach().requires_grad_()
    with _counted(layers) as calls:
        backbone(inputs_embeds=given, attention_mask=mask, labels=labels).loss.backward()
    missed = [index for index in range(len(layers)) if calls[index] < 2]
    require(
        not missed,
        observed=f"with all parameters frozen before `enable_gradient_checkpointing()`, layers "
        f"{missed} of {len(layers)} are not recomputed in the backward pass",
        expected="every layer recomputed: a gradient that goes through frozen layers holds their "
        "activations",
        mend="checkpoint whatever is trained",
    )


@requirement("TRN-03", MUST, profile="training")
def test_recomputation_draws_the_same(subject: Subject) -> None:
    """What is drawn at random inside a layer, dropout for one, is drawn alike when the layer is
    recomputed: gradients are those without checkpointing."""
    together = compared(subject)
    ids, mask, labels = _batch(together.inputs, ignored=False)
    seen = []
    for build in ("training", "checkpointed"):
        backbone = together.backbone(build)
        backbone.train()
        with _dropout_inside(decoder_layers(backbone)), torch.random.fork_rng(devices=[]):
            torch.manual_seed(subject.seed)
            backbone(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        seen.append(gradients_of(backbone))
        backbone.llm.zero_grad(set_to_none=True)
        backbone.eval()
    plain, recomputed = seen
    error, name = worst_gradient(recomputed, plain)
    within(
        "gradient under checkpointing",
        error,
        GRADIENT_RELATIVE_RMS,
        observed=f"with dropout in the layers, checkpointing changes the gradient of `{name}` by "
        f"{error:.2g} of its size",
        expected="the gradients without checkpointing: the recomputed layer drops what the first "
        "pass dropped",
        mend="leave `preserve_rng_state` at True",
    )


@contextmanager
def _dropout_inside(layers: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Dropout behind the first linear map of every layer while the body runs, whatever the config
    says: hooks of inner modules run in the recomputation too."""
    linear = [
        next((one for one in layer.modules() if isinstance(one, torch.nn.Linear)), None)
        for layer in layers
    ]
    hooks = [
        one.register_forward_hook(
            lambda _module, _inputs, output: torch.nn.functional.dropout(output, 0.2)
        )
        for one in linear
        if one is not None
    ]
    try:
        if not hooks:
            raise NotApplicable("no layer has a linear map behind which dropout could stand")
        yield
    finally:
        for hook in hooks:
            hook.remove()


@requirement(
    "TRN-04", MUST, profile="training", needs=["CON-09", "TRN-01", "TRN-02"],
    uses=["forward"],
)  # fmt: skip
def test_gradients_are_those_of_the_library(subject: Subject) -> None:
    """Every parameter is trained, and what is frozen stays so: gradients, of patches too, are
    finite and, in every state, those of the library's own model, with checkpointing too; and where
    a loss trains parameters, patches learn, however it was built."""
    _no_finding(
        subject,
        GRADIENTS,
        mend="detach nothing, freeze nothing, and scale no gradient; checkpoint whole layers",
    )


@requirement("TRN-04", MUST, profile="training")
def test_freezing_freezes_everything(subject: Subject) -> None:
    """`requires_grad_(False)` on the backbone freezes every parameter, however it was built."""
    for built, backbone in built_both_ways(subject):
        backbone.requires_grad_(False)
        left = [name for name, p in backbone.named_parameters() if p.requires_grad]
        require(
            not left,
            observed=f"built for {built}, after `requires_grad_(False)` {len(left)} parameters are "
            f"still trained, the first is {left[:1]}",
            expected="none: a host that trains a projector alone freezes the backbone so",
            mend="leave `requires_grad_` to the module; gradients of inputs come from "
            "`enable_input_require_grads()`",
        )


@requirement("TRN-04", MUST, profile="training")
def test_spare_rows_are_trained(subject: Subject) -> None:
    """Rows that no token has yet are trained once a token has: hosts put action tokens there."""
    together = compared(subject)
    backbone = together.backbone("training")
    weight = backbone.llm.get_input_embeddings().weight
    spare = [
        row
        for row in range(together.inputs.known, len(weight))
        if row != getattr(backbone, "pad_token_id", subject.tokenizer.pad_token_id)
    ]
    if not spare:
        raise NotApplicable("there is no spare row")
    ids, mask, labels = _batch(together.inputs, ignored=False)
    ids[:, 2:4] = torch.tensor([spare[0], spare[-1]])
    backbone.train()
    with refusal() as refused:
        backbone(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    gradient = weight.grad
    backbone.llm.zero_grad(set_to_none=True)
    backbone.eval()
    if refused:
        raise NotApplicable(f"ids that no token has are refused: {refused[0]}")
    untrained = [
        row for row in (spare[0], spare[-1]) if gradient is None or not bool(gradient[row].any())
    ]
    require(
        not untrained,
        observed=f"the embedding's rows {untrained}, which no token has yet, get no gradient when "
        "they are used",
        expected="a gradient: tokens that are added later live there",
        mend="mask the gradient of no row but the pad's",
    )


@requirement("TRN-04", MUST, profile="training")
def test_gradients_grow_with_the_loss(subject: Subject) -> None:
    """Of a loss times 65,536, as loss scaling takes it, the gradients are 65,536 times those of the
    loss."""
    together = compared(subject)
    backbone = together.backbone("training")
    ids, mask, labels = _batch(together.inputs, ignored=False)
    with without_dropout(backbone):
        backbone.train()
        loss = backbone(input_ids=ids, attention_mask=mask, labels=labels).loss
        once = _gradients(backbone, loss, keep=True)
        scaled = _gradients(backbone, _LOSS_SCALE * loss)
        backbone.eval()
    wrong, name = worst_gradient({one: g / _LOSS_SCALE for one, g in scaled.items()}, once)
    within(
        "gradient of a scaled loss",
        wrong,
        GRADIENT_RELATIVE_RMS,
        observed=f"of the loss times {_LOSS_SCALE:.0f} the gradient of `{name}` differs by "
        f"{wrong:.2g} from as many times that of the loss",
        expected="gradients in proportion: loss scaling divides them by the same number",
        mend="clip gradients where the optimizer steps, and not in a hook",
    )


@requirement("TRN-04", MUST, profile="training")
def test_gradients_come_from_whatever_is_read(subject: Subject) -> None:
    """A head on any layer's hidden states trains what is below it, and a prefix in the cache
    learns: their gradients are those of the library's own model."""
    together = compared(subject)
    backbone, control = together.backbone("training"), together.control("training")
    wanted, found = (dict[str, Any](), dict[str, Any]())
    with without_dropout(backbone), without_dropout(control):
        for one, gradients in ((control, wanted), (backbone, found)):
            one.train()
            try:
                for told, gradient in _gradients_of_what_is_read(one, together.inputs):
                    gradients[told] = gradient
            except Exception as refused:
                if is_slip_of_ours(refused) or (one is backbone and len(found) < len(wanted)):
                    raise  # the library's model went on
            one.eval()
    if all(gradient is None for gradient in wanted.values()):
        raise NotApplicable("the library's model gives no hidden states with a gradient")
    for told, gradient in wanted.items():
        seen = found.get(told)
        require(
            seen is not None or gradient is None,
            observed=f"in train(), nothing flows back from {told}",
            expected="a gradient, as in the library's own model",
            mend="detach nothing that is returned or handed in",
        )
        if gradient is None or seen is None:
            continue
        error = relative_rms(seen, gradient)
        within(
            "gradient of what is read",
            error,
            GRADIENT_RELATIVE_RMS,
            observed=f"in train(), the gradient that flows back from {told} differs by {error:.2g}",
            expected="that of the library's own model",
            mend="detach nothing that is returned or handed in",
        )


def _gradients_of_what_is_read(
    backbone: Any, inputs: Inputs
) -> Iterator[tuple[str, torch.Tensor | None]]:
    """What is read, and the gradient that flows back from it to the embeddings below."""
    ids, mask, _ = _batch(inputs, ignored=False)
    given = embeddings_of(backbone, ids).detach().requires_grad_()
    states = backbone(
        inputs_embeds=given, attention_mask=mask, output_hidden_states=True
    ).hidden_states
    for index, state in enumerate(states[1:], 1):
        yield f"the hidden states of layer {index}", _back_to(given, state[mask.bool()])
    prefix = embeddings_of(backbone, ids[:, :4]).detach().requires_grad_()
    cache = backbone(inputs_embeds=prefix, use_cache=True).past_key_values
    logits = backbone(
        input_ids=ids[:, 4:7], attention_mask=torch.ones(len(ids), 7, dtype=torch.long),
        past_key_values=cache, use_cache=True,
    ).logits  # fmt: skip
    yield "the logits behind a cached prefix", _back_to(prefix, logits[..., inputs.columns])


def _back_to(leaf: torch.Tensor, read: torch.Tensor) -> torch.Tensor | None:
    if not read.requires_grad:
        return None
    weights = torch.cos(torch.arange(read.shape[-1], dtype=torch.float32))
    (gradient,) = torch.autograd.grad(
        (read.float() * weights).mean(), leaf, allow_unused=True, retain_graph=True
    )
    return gradient


@requirement("TRN-04", MUST, profile="training")
def test_a_gradient_that_is_not_finite_shows(subject: Subject) -> None:
    """An overflow reaches the gradients, which loss scaling and clipping look at."""
    backbone = compared(subject).backbone("training")
    ids, mask, _ = _batch(compared(subject).inputs, ignored=False)
    logits = logits_of(backbone(input_ids=ids, attention_mask=mask))
    loss: Any = logits.sum() * float("nan")
    loss.backward()
    gradients = gradients_of(backbone.llm)
    finite = [name for name, gradient in gradients.items() if bool(gradient.isfinite().all())]
    backbone.llm.zero_grad(set_to_none=True)
    require(
        bool(gradients) and not finite,
        observed=f"a loss that is not a number gives {len(finite)} of {len(gradients)} parameters "
        f"finite gradients, the first is {finite[:1]}",
        expected="gradients that are not finite either: a scaler skips such a step",
        mend="replace no NaN in hooks: what hides an overflow trains on noise",
        parameters=finite[:20],
    )


@requirement("TRN-04", MUST, profile="training")
def test_weights_that_are_no_numbers_show(subject: Subject) -> None:
    """Weights that are not numbers any more show in loss and logits."""
    together = compared(subject)
    ids, mask, labels = _batch(together.inputs, ignored=False)
    backbone, shows = together.backbone("training"), []
    last = {id(parameter) for parameter in decoder_layers(backbone)[-1].parameters()}
    name = next(name for name, p in backbone.llm.named_parameters() if id(p) in last)
    for one in (together.control("training"), backbone):
        weight = dict(one.llm.named_parameters()).get(name)
        if weight is None:
            raise NotApplicable(f"the library's own model has no `{name}`")
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.fill_(float("nan"))
            try:
                output = one(input_ids=ids, attention_mask=mask, labels=labels)
            finally:
                weight.copy_(kept)
        finite = logits_of(output)[mask.bool()][:, together.inputs.columns].isfinite().any()
        shows.append(not bool(finite) and not math.isfinite(float(output.loss)))
    require(
        shows[1] or not shows[0],
        observed="with NaN for the weights of the last layer, loss or logits are finite",
        expected="NaN: a run that has diverged has to show it",
        mend="replace no NaN; what hides one trains on noise",
    )


@requirement("TRN-05", MUST, profile="training", needs=["TRN-04"], uses=["forward"])
def test_micro_batches_add_up(subject: Subject) -> None:
    """Accumulating micro-batches gives the full batch's gradient when tokens are weighted, on the
    second backward as on the first; what comes between a forward pass and its backward pass changes
    no gradient, and `zero_grad` clears them all."""
    together = compared(subject)
    if together.has_dropout:
        raise NotApplicable("dropout is published: no two passes are alike")
    backbone = together.backbone("training")
    backbone.train()
    ids, mask, labels = _batch(together.inputs, ignored=True)
    counted = (labels[:, 1:] != IGNORED_LABEL).sum(1)
    backbone(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    whole = gradients_of(backbone)
    backbone.llm.zero_grad(set_to_none=True)
    for row in range(len(ids)):
        part = slice(row, row + 1)
        loss = backbone(input_ids=ids[part], attention_mask=mask[part], labels=labels[part]).loss
        (loss * counted[row] / counted.sum()).backward()
    summed = gradients_of(backbone)
    backbone.llm.zero_grad(set_to_none=True)
    backbone.eval()
    require(
        bool(whole) and summed.keys() == whole.keys(),
        observed=f"{len(whole)} parameters have gradients from the whole batch, and {len(summed)} "
        "from its rows",
        expected="gradients of the same parameters",
        mend="keep nothing of one backward pass for the next",
    )
    error, name = worst_gradient(summed, whole)
    within(
        "accumulation",
        error,
        GRADIENT_RELATIVE_RMS,
        observed=f"the gradients of a batch and of its rows, weighted by tokens, differ by "
        f"{error:.2g} in `{name}`",
        expected="the same gradient",
        mend="average the loss over the labels that count, and let rows see nothing of each other",
    )


@requirement("TRN-06", MUST, profile="training", needs=["TRN-04"], uses=["forward"])
def test_a_batch_can_be_learnt(subject: Subject) -> None:
    """A few AdamW steps on one batch overfit it."""
    together = compared(subject)
    backbone = together.backbone("training")
    kept = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    steps, rate, share = _OVERFITTING
    ids, mask, labels = _batch(together.inputs, ignored=False)
    backbone.train()
    optimizer = torch.optim.AdamW(
        [p for p in backbone.parameters() if p.requires_grad], lr=rate, weight_decay=0.0
    )
    losses = []
    try:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = backbone(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    finally:
        backbone.load_state_dict(kept)
        backbone.llm.zero_grad(set_to_none=True)
        backbone.eval()
    require(
        losses[-1] <= share * losses[0],
        observed=f"{steps} steps of AdamW on one batch take the loss from {losses[0]:.3g} to "
        f"{losses[-1]:.3g}",
        expected=f"at most {share:g} of the first",
        mend="let every parameter receive its gradient, and read weights anew in every forward",
    )


def _no_finding(subject: Subject, quantities: tuple[str, ...], *, mend: str) -> None:
    found = first_finding(subject, lambda quantity: quantity in quantities)
    if found is not None:
        raise failure(compared(subject), found, mend=mend)


def _batch(inputs: Inputs, *, ignored: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels of three rows, the last of them padded on the right."""
    ids = inputs.ids(3, 10)
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[2, -3:] = 0
    labels[2, -3:] = IGNORED_LABEL
    labels[:, 0] = IGNORED_LABEL
    if ignored:
        labels[0, 2:6] = labels[1, 4] = IGNORED_LABEL
    return ids, mask, labels


def _uneven(inputs: Inputs, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels of as many rows, which count one label, two, and so on up to nine."""
    ids = inputs.ids(rows, 10)
    labels = ids.clone()
    for row in range(rows):
        # From the tenth on in no order: halves of the batch differ in what they count.
        more = row if row < 9 else row * row % 11 % 9
        labels[row, : 9 - more] = IGNORED_LABEL
    return ids, torch.ones_like(ids), labels


def _gradients(backbone: Any, loss: torch.Tensor, *, keep: bool = False) -> dict[str, torch.Tensor]:
    """The gradients of `loss`, whose graph is freed unless it is to be kept."""
    named = parameters_by_name(backbone.llm).items()
    parameters = {name: p for name, p in named if p.requires_grad}
    found = torch.autograd.grad(
        loss, list(parameters.values()), allow_unused=True, retain_graph=keep
    )
    return {
        name: gradient
        for name, gradient in zip(parameters, found, strict=True)
        if gradient is not None
    }


@contextmanager
def _counted(layers: list[torch.nn.Module]) -> Iterator[Counter[int]]:
    """How often each layer computes, counted once the body has run: on the first of its leaves with
    parameters that is called, since what is recomputed may be less than the layer's own forward,
    and on the layer where code of its own reads the parameters of all of them."""
    calls: Counter[int] = Counter()
    counted: list[tuple[int, list[int]]] = []
    handles = []
    for index, layer in enumerate(layers):
        leaves = [
            module
            for module in layer.modules()
            if not list(module.children()) and list(module.parameters(recurse=False))
        ]
        for module in (*leaves, layer):
            times = [0]
            counted.append((index, times))
            # Before it computes: a recomputation ends with the last tensor that is asked for.
            handles.append(module.register_forward_pre_hook(functools.partial(_one_more, times)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for index, (count,) in counted:
            calls[index] = calls[index] or count


def _one_more(times: list[int], *_: Any) -> None:
    times[0] += 1

"""FWD: forward semantics.

All but FWD-01 compare the subject with itself and work for any family. They run in float32, where
legitimate differences in the order of sums stay within the semantics gate.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from conformance.assertions import NotApplicable, require, tell, within
from conformance.catalogue import MUST, SHOULD, requirement
from conformance.control.calls import LEAST_LOSS
from conformance.oracle import Place
from conformance.parity.equality import relative_rms
from conformance.parity.gates import EXACT_POSITIONS, SEMANTICS, conditions, semantics_bound
from conformance.parity.library import attention_of, attentions_of
from conformance.parity.modules import first_outside, hidden_in, module_errors
from conformance.parity.probes import drawn_ids, in_shape, untrained
from conformance.parity.receptive_field import keys_seen, library_windows
from conformance.parity.reference import Reference
from conformance.subject.subject import Subject
from conformance.suite.models import (
    IGNORED_LABEL,
    beside_text,
    decoder_layers,
    is_routed,
    logits_of,
    positions_of,
    probe_ids,
    published_shapes,
    reference_of,
)
from conformance.suite.properties import for_all
from conformance.suite.strategies import sequences

LONG = 40
"""Longer than any probe's window, so that its edge is inside."""
_LONGEST = 1024
"""The longest sequence that is searched for the edge of a window."""
_FORWARD = ["forward", "embed_input_ids"]


def row(
    subject: Subject, min_length: int = 2, max_length: int = LONG
) -> st.SearchStrategy[list[int]]:
    return sequences(subject, min_length=min_length, max_length=max_length).map(
        lambda batch: batch[0]
    )


def ids_like(subject: Subject, count: int) -> st.SearchStrategy[list[int]]:
    """Any ids at all, special ones too."""
    return st.lists(st.integers(0, len(subject.tokenizer) - 1), min_size=count, max_size=count)


def _logits(backbone: Any, ids: list[list[int]] | torch.Tensor, **arguments: Any) -> torch.Tensor:
    """(batch, sequence, tokens); without an attention mask all tokens are real."""
    tokens = torch.as_tensor(ids)
    arguments.setdefault("attention_mask", torch.ones_like(tokens))
    with torch.no_grad():
        return _known(backbone, logits_of(backbone.forward(input_ids=tokens, **arguments)))


def _known(backbone: Any, logits: torch.Tensor) -> torch.Tensor:
    """The logits of ids that the tokenizer has: a backbone may mask those of spare rows away."""
    return logits[..., : len(backbone.get_tokenizer())]


def _same(
    quantity: str, observed: torch.Tensor, expected: torch.Tensor, *, what: str, law: str, mend: str
) -> None:
    """Hold two runs of the subject to the semantics gate."""
    error = relative_rms(observed, expected)
    told = f"by a relative RMS of {error:.2g}" if error == error else "which are not finite"
    within(
        quantity,
        error,
        SEMANTICS,
        observed=f"{what} {told}",
        expected=f"{law}: at most {SEMANTICS:g}, ten times what the order of summation does",
        mend=mend,
        conditions=conditions(observed.dtype, observed.device),
    )


def _padded_on_either_side(subject: Subject) -> list[dict[str, Any]]:
    """Edges: one masked token and several, on the left and on the right."""
    tokens, filler = probe_ids(subject).tolist()
    return [
        {"tokens": tokens, "amount": amount, "left": left, "filler": filler}
        for amount, left in product((1, 7), (True, False))
    ]


@requirement("FWD-02", MUST, profile="numerics", needs=["CON-01", "EMB-02"], uses=_FORWARD)
@for_all(
    examples=6,
    edges=_padded_on_either_side,
    tokens=row,
    amount=lambda _: st.integers(1, 24),
    left=lambda _: st.booleans(),
    filler=lambda s: ids_like(s, 24),
)
def test_padding_changes_nothing(
    subject: Subject, tokens: list[int], amount: int, left: bool, filler: list[int]
) -> None:
    """Padding, left or right, of any amount and content, changes no real position."""
    backbone, real = subject.float32, [1] * len(tokens)

    def logits(ids: list[int], mask: list[int]) -> torch.Tensor:
        return _logits(backbone, [ids], attention_mask=torch.tensor([mask]))[0]

    if left:
        # Without explicit positions the real tokens stand farther out; FWD-09 checks whether that
        # matters.
        mask = [0] * amount + real
        other = [(token + 1) % len(subject.tokenizer) for token in filler]
        expected = logits(other[:amount] + tokens, mask)[amount:]
        padded, law = (
            logits(filler[:amount] + tokens, mask)[amount:],
            "the logits behind any other padding",
        )
    else:
        padded = logits(tokens + filler[:amount], real + [0] * amount)[: len(tokens)]
        expected, law = logits(tokens, real), "the logits of the sequence alone"
    _same(
        "padding",
        padded,
        expected,
        what=f"{amount} masked tokens on the {'left' if left else 'right'} change the logits of "
        f"{len(tokens)} real ones",
        law=law,
        mend="hand `attention_mask` to the language model, and mask keys with the dtype's minimum "
        "before the softmax",
    )


@requirement("FWD-02", MUST, profile="numerics")
@for_all(
    examples=2,
    tokens=row,
    amount=lambda _: st.integers(1, 24),
    filler=lambda s: ids_like(s, 24),
)
def test_padding_changes_nothing_in_generation(
    subject: Subject, tokens: list[int], amount: int, filler: list[int]
) -> None:
    """A prompt is continued as it is alone, whatever is masked on its left."""
    llm = subject.float32.llm
    if not hasattr(llm, "generate"):
        raise NotApplicable(f"a {type(llm).__name__} does not generate")

    def first(ids: list[int], mask: list[int]) -> torch.Tensor:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = llm.generate(
                input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask]),
                max_new_tokens=1,
                return_dict_in_generate=True, output_logits=True,
                pad_token_id=subject.tokenizer.pad_token_id,
            ).logits[0]  # fmt: skip
            return found[..., : len(subject.tokenizer)]

    real = [1] * len(tokens)
    _same(
        "padding in generation",
        first(filler[:amount] + tokens, [0] * amount + real),
        first(tokens, real),
        what=f"{amount} masked tokens on the left change the logits by which {len(tokens)} real "
        f"ones are continued",
        law="the logits behind the prompt alone",
        mend="generate from left-padded prompts, with the attention mask, and positions counted "
        "from it",
    )


@requirement("FWD-03", MUST, profile="numerics", needs=["CON-01", "EMB-02"], uses=_FORWARD)
@for_all(
    examples=6,
    tokens=lambda s: row(s, 3),
    where=lambda _: st.integers(1, 1000),
    other=lambda s: ids_like(s, 1),
)
def test_attention_is_causal_as_declared(
    subject: Subject, tokens: list[int], where: int, other: list[int]
) -> None:
    """Causality as declared: a change at t moves nothing before t."""
    backbone, place = subject.float32, where % (len(tokens) - 1) + 1
    if tokens[place] == other[0]:
        return
    changed = [*tokens[:place], other[0], *tokens[place + 1 :]]
    before, after = _logits(backbone, [tokens])[0, :place], _logits(backbone, [changed])[0, :place]
    if subject.declared.attention == "bidirectional":
        require(
            relative_rms(after, before) > 0,
            observed=f"a change at position {place} moves nothing before it",
            expected='earlier positions that see later ones, as `attention = "bidirectional"` '
            "declares",
            mend="drop the declaration, or the causal mask",
        )
        return
    _same(
        "causality",
        after,
        before,
        what=f"another token at position {place} moves the logits before it",
        law="no effect on what comes before",
        mend="mask the future: row t of the attention mask may show columns up to t",
    )


@requirement("FWD-07", MUST, profile="numerics", needs=["CON-01", "EMB-02"], uses=_FORWARD)
@for_all(
    examples=6,
    batch=lambda s: st.integers(2, LONG).flatmap(
        lambda length: st.lists(ids_like(s, length), min_size=2, max_size=4)
    ),
    rotation=lambda _: st.integers(1, 3),
)
def test_rows_of_a_batch_are_independent(
    subject: Subject, batch: list[list[int]], rotation: int
) -> None:
    """Rows of a batch do not see each other; permuting the batch permutes the logits."""
    backbone = subject.float32
    together = _logits(backbone, batch)
    alone = torch.cat([_logits(backbone, [tokens]) for tokens in batch])
    _same(
        "rows",
        together,
        alone,
        what=f"in a batch of {len(batch)} the logits differ from those of each row alone",
        law="the same logits in any company",
        mend="look for a reduction, a reshape or a cache that crosses the batch axis",
    )
    rotated = _logits(
        backbone, batch[-(rotation % len(batch)) :] + batch[: -(rotation % len(batch))]
    )
    _same(
        "rows",
        rotated.roll(-(rotation % len(batch)), 0),
        together,
        what="rotating the rows of a batch changes the logits",
        law="the same logits, rotated",
        mend="look for state that depends on a row's place in the batch",
    )


@requirement("FWD-05", MUST, profile="numerics", needs=["EMB-09"], uses=_FORWARD)
@for_all(examples=6, tokens=row)
def test_embeddings_are_the_input(subject: Subject, tokens: list[int]) -> None:
    """`inputs_embeds=embed_input_ids(x)` equals `input_ids=x`."""
    backbone, ids = subject.float32, torch.tensor([tokens])
    by_ids = _logits(backbone, ids)
    with torch.no_grad():
        embedded = backbone.embed_input_ids(ids)
        by_embeddings = _known(
            backbone,
            logits_of(
                backbone.forward(inputs_embeds=embedded, attention_mask=torch.ones_like(ids))
            ),
        )
    _same(
        "embeddings",
        by_embeddings,
        by_ids,
        what="the same tokens by `inputs_embeds` and by `input_ids` differ in their logits",
        law="one model, whichever way its tokens come in",
        mend="apply what the family does to embeddings (a scale, a norm) in both paths or in "
        "`embed_input_ids` alone",
    )


@requirement("FWD-13", MUST, profile="numerics", needs=["FWD-05", "FSDP-02"], uses=_FORWARD)
def test_patches_are_scaled_as_declared(subject: Subject) -> None:
    """*Patch scale*: the first hidden state over `inputs_embeds` is the declared factor (Gemma: 8.0
    at width 64 on 4.40.1, 1.0 on 5.23: a projector trained on one breaks on the other)."""
    backbone = subject.float32
    layers = decoder_layers(backbone)
    if not layers:
        raise NotApplicable("`llm` holds no instance of `transformer_layer_cls`: FSDP-01 says so")
    embedded = backbone.embed_input_ids(probe_ids(subject)).detach()

    def first_hidden(inputs: torch.Tensor) -> torch.Tensor:
        first: list[torch.Tensor] = []

        def keep(module: Any, args: Any, kwargs: Any) -> None:
            first.append(hidden_in(args, kwargs).detach())

        handle = layers[0].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with torch.no_grad():
                backbone.forward(
                    inputs_embeds=inputs,
                    attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long),
                )
        finally:
            handle.remove()
        return first[0]

    # The difference of two inputs counts: what is added to both, such as learned positions, is not
    # a scale.
    moved = first_hidden(embedded) - first_hidden(-embedded)
    scale = float((moved.double() * embedded.double()).sum() / (2 * embedded.double().pow(2).sum()))
    declared = subject.declared.patch_scale
    _same(
        "patch scale",
        moved,
        2 * declared * embedded,
        what=f"the first layer is given `inputs_embeds` times {scale:.4g}, away from the declared "
        f"factor {declared:g}",
        law=f"`inputs_embeds` times {declared:g}",
        mend="declare `patch_scale` as this transformers version applies it, and train projectors "
        "under one version only",
    )


@requirement(
    "FWD-04", MUST, profile="numerics", needs=["FWD-03", "FWD-10", "FSDP-02"], uses=_FORWARD
)
def test_receptive_field_is_the_window(subject: Subject) -> None:
    """The receptive field of one layer is exactly the window that this transformers version
    documents for the config, per layer; a version's own off-by-one is reported as the version's,
    once, not as the subject's."""
    if subject.declared.attention != "causal":
        raise NotApplicable(
            f'`attention = "{subject.declared.attention}"` is declared: no window on the past'
        )
    backbone, config = subject.float32, subject.published_config
    layers = decoder_layers(backbone)
    by_library = library_windows(backbone.llm, config) or (subject.declared.window,) * len(layers)
    documented = subject.declared.window or config.get("text_config", config).get("sliding_window")
    tell("window", max((count or 0 for count in by_library), default=0) or None)
    # A window wider than this sequence cannot be told from no window.
    length = min(
        max(LONG, *(2 * (count or 0) for count in by_library)), _LONGEST, positions_of(backbone.llm)
    )
    ids = probe_ids(subject, batch=1, length=length)
    seen = keys_seen(
        lambda tokens: backbone.forward(input_ids=tokens, use_cache=False), layers, ids
    )
    tell(
        "receptive field",
        {
            "tokens": length,
            "layers": [
                {"sees": _runs(ages), "expected": min(window or length, length)}
                for ages, window in zip(seen, by_library, strict=False)
            ],
        },
    )
    for layer, (ages, window) in enumerate(zip(seen, by_library, strict=False)):
        contiguous, expected = ages == tuple(range(len(ages))), min(window or length, length)
        require(
            contiguous and len(ages) == expected,
            observed=f"a query of layer {layer} sees {len(ages)} tokens"
            + ("" if contiguous else f", with gaps: ages {list(ages)[:24]}"),
            expected=f"{expected}: itself and those before it, as transformers' own class does "
            f"under "
            f"`sliding_window = {documented}`",
            mend="leave masking to the library, and the config's window as it was published",
            layer=layer,
            seen=len(ages),
        )
    off = {count - documented for count in by_library if count is not None and documented}
    require(
        not off - {0},
        observed=f"transformers' own class sees {max(filter(None, by_library), default=0)} tokens "
        f"under a window of {documented}",
        expected=f"{documented} tokens",
        mend="use a version of transformers whose window is the config's, or know that this one "
        "is off",
        library=True,
    )


def _cuts_to_try(subject: Subject) -> Iterator[dict[str, Any]]:
    """A prompt and then a token at a time, a long chunk behind a single token, and a token behind
    all others, with and without padding."""
    special = set(subject.tokenizer.all_special_ids)
    ordinary = [one for one in range(len(subject.tokenizer)) if one not in special]
    tokens = [ordinary[(7 + 31 * place) % len(ordinary)] for place in range(LONG)]
    for padding in (0, 3):
        for cuts in (list(range(LONG - 4, LONG)), [1], [LONG // 2]):
            yield {"tokens": tokens, "cuts": cuts, "padding": padding}


def _runs(ages: Sequence[int]) -> list[list[int]]:
    """Ascending `ages` as their runs, first and last of each."""
    runs: list[list[int]] = []
    for age in ages:
        if runs and age == runs[-1][1] + 1:
            runs[-1][1] = age
        else:
            runs.append([age, age])
    return runs


@requirement("FWD-06", MUST, profile="numerics", needs=["FWD-03", "FWD-07"], uses=_FORWARD)
@for_all(
    examples=6,
    edges=_cuts_to_try,
    tokens=lambda s: row(s, 4),
    cuts=lambda _: st.lists(st.integers(1, LONG - 1), min_size=1, max_size=4),
    padding=lambda _: st.integers(0, 3),
)
def test_decoding_in_chunks_equals_one_pass(
    subject: Subject, tokens: list[int], cuts: list[int], padding: int
) -> None:
    """Decoding with the cache, in any chunks, equals the full forward."""
    if subject.declared.attention != "causal":
        raise NotApplicable(
            f'`attention = "{subject.declared.attention}"` is declared: there is nothing to decode'
        )
    backbone = subject.float32
    ids = torch.tensor([[0] * padding + tokens])
    mask = torch.tensor([[0] * padding + [1] * len(tokens)])
    bounds = sorted({0, ids.shape[1], *(padding + cut for cut in cuts if cut < len(tokens))})
    whole = _logits(backbone, ids, attention_mask=mask)[0, padding:]
    cache, parts = None, []
    for start, end in pairwise(bounds):
        with torch.no_grad():
            out = backbone.forward(
                input_ids=ids[:, start:end],
                attention_mask=mask[:, :end],
                past_key_values=cache,
                use_cache=True,
            )
        cache = out.past_key_values
        parts.append(_known(backbone, logits_of(out)))
    lengths = [end - start for start, end in pairwise(bounds)]
    _same(
        "cache",
        torch.cat(parts, 1)[0, padding:],
        whole,
        what=f"decoding in chunks of {lengths} changes the logits",
        law="the logits of one pass",
        mend="count positions from the cache's length, and trim the cache to the window at the "
        "same place as the mask",
    )


@requirement("FWD-08", MUST, profile="numerics", needs=["FWD-02", "FWD-03"], uses=["forward"])
@for_all(examples=3, tokens=lambda s: row(s, 20), padding=lambda _: st.integers(0, 4))
def test_attention_implementations_agree(subject: Subject, tokens: list[int], padding: int) -> None:
    """eager = sdpa (and flash where installed) in fp32."""
    ids = torch.tensor([[0] * padding + tokens])
    mask = torch.tensor([[0] * padding + [1] * len(tokens)])
    backbone, llm = subject.float32, subject.float32.llm
    # flash-attn computes in half precision only: GPU-01 checks it.
    offered = [name for name in attentions_of(llm) if name != "flash_attention_2"]
    if len(offered) < 2:
        raise NotApplicable(
            f"{type(llm).__name__} offers {' and '.join(offered)} attention alone in float32"
        )
    logits = {}
    for attention in offered:
        with attention_of(llm, attention, comparable=True) as model, torch.no_grad():
            found = model(input_ids=ids, attention_mask=mask).logits[0, padding:]
            logits[attention] = _known(backbone, found)
    _same(
        "attention implementations",
        logits["sdpa"],
        logits["eager"],
        what="eager and sdpa attention differ in their logits",
        law="one function, however it is computed",
        mend="build masks for every attention implementation alike, the window and the padding "
        "included",
    )


@requirement("FWD-09", MUST, profile="numerics", needs=["FWD-03"], uses=_FORWARD)
@for_all(
    examples=5,
    # All different: over equal tokens attention gives the same, wherever they stand.
    tokens=lambda s: st.lists(
        st.integers(0, len(s.tokenizer) - 1), min_size=4, max_size=LONG, unique=True
    ),
    shift=lambda _: st.integers(1, 900),
    gap=lambda _: st.integers(2, 9),
)
def test_positions_are_relative(subject: Subject, tokens: list[int], shift: int, gap: int) -> None:
    """Positions are relative where the family's are: a common shift changes nothing."""
    if subject.declared.positions != "rotary":
        raise NotApplicable(f'`positions = "{subject.declared.positions}"` is declared')
    backbone = subject.float32
    counted, positions = torch.arange(len(tokens))[None], positions_of(backbone.llm)
    shift = min(shift, positions - len(tokens))
    gap = max(2, min(gap, (positions - 1) // len(tokens)))
    plain = _logits(backbone, [tokens], position_ids=counted)
    _same(
        "shift",
        _logits(backbone, [tokens], position_ids=counted + shift),
        plain,
        what=f"positions from {shift} on change the logits",
        law="only distances count, in a family with rotary positions",
        mend="hand `position_ids` to the language model, and have rotary tables reach the "
        "published number of positions",
    )
    stretched = relative_rms(_logits(backbone, [tokens], position_ids=counted * gap), plain)
    require(
        stretched > SEMANTICS,
        observed=f"positions {gap} apart give the logits of positions 1 apart (relative RMS "
        f"{stretched:.2g})",
        expected="logits that depend on the distances in `position_ids`",
        mend="hand `position_ids` to the language model",
    )


@requirement("FWD-10", MUST, profile="numerics", needs=["CON-01", "EMB-02"], uses=["forward"])
def test_every_parameter_moves_the_logits(subject: Subject) -> None:
    """No dead parameter: every parameter tensor of `llm` moves the logits (per tensor: half of
    Phi's key biases are inert by construction), at the latest once the tensors that are zero are
    not (LoRA's B); modules that a forward over text never enters, such as a vision tower, are not
    asked."""
    backbone = subject.build_float32()
    outside = subject.lie_outside(backbone)
    parameters = {
        name: parameter
        for name, parameter in backbone.llm.named_parameters()
        if id(parameter) not in outside
    }
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    ids = probe_ids(subject, batch=1, length=LONG)
    dead = _without_a_gradient(backbone, parameters, ids)
    zero = [parameter for parameter in parameters.values() if not bool(parameter.any())]
    if dead and zero:
        drawn = torch.Generator().manual_seed(subject.seed)
        with torch.no_grad():
            for parameter in zero:
                parameter.copy_(1e-2 * torch.randn(parameter.shape, generator=drawn))
        dead &= _without_a_gradient(backbone, parameters, ids)
    if dead:
        dead -= beside_text(backbone, ids)
    # A few tokens do not reach every expert.
    found = [
        name
        for name in parameters
        if name in dead and not (is_routed(backbone.llm) and "expert" in name)
    ]
    require(
        not found,
        observed=f"{len(found)} of {len(parameters)} parameters do not move the logits: "
        f"{', '.join(found[:4])}" + (" …" if len(found) > 4 else ""),
        expected="a gradient that is not zero for every parameter tensor",
        mend="look for a layer or branch that is skipped, detached or overwritten in the forward "
        "pass",
        dead=found[:32],
    )


def _without_a_gradient(
    backbone: Any, parameters: Mapping[str, torch.nn.Parameter], ids: torch.Tensor
) -> set[str]:
    """Names of the parameters on which the logits of `ids` do not depend, to first order."""
    logits = _known(
        backbone,
        logits_of(backbone.forward(input_ids=ids, attention_mask=torch.ones_like(ids))),
    )
    weights = torch.linspace(-1, 1, logits.shape[-1]) * torch.linspace(1, 2, LONG)[:, None]
    gradients = torch.autograd.grad(
        (logits[0] * weights).sum(), list(parameters.values()), allow_unused=True
    )
    return {
        name
        for name, gradient in zip(parameters, gradients, strict=True)
        if gradient is None or not bool(gradient.any())
    }


@requirement("FWD-11", MUST, profile="numerics", needs=["FWD-05", "FWD-03"], uses=_FORWARD)
@for_all(
    examples=5,
    tokens=lambda s: row(s, 3, 16),
    patches=lambda s: st.integers(2, 20).flatmap(lambda count: ids_like(s, count)),
)
def test_spliced_patches_behave_as_a_longer_sequence(
    subject: Subject, tokens: list[int], patches: list[int]
) -> None:
    """Splicing image-patch embeddings where declared behaves as a longer sequence: labels, mask and
    logits line up, and different patches give different logits."""
    backbone = subject.float32
    at = {"after-bos": 1, "start": 0, "end": len(tokens)}[subject.declared.patch_position]
    spliced = torch.tensor([tokens[:at] + patches + tokens[at:]])
    with torch.no_grad():
        text = backbone.embed_input_ids(torch.tensor([tokens]))
        image = backbone.embed_input_ids(torch.tensor([patches]))
    labels = torch.tensor([tokens[:at] + [IGNORED_LABEL] * len(patches) + tokens[at:]])

    def run(patch_embeddings: torch.Tensor) -> Any:
        embedded = torch.cat([text[:, :at], patch_embeddings, text[:, at:]], dim=1)
        with torch.no_grad():
            return backbone.forward(
                inputs_embeds=embedded,
                attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
                labels=labels,
            )

    out = run(image)
    _same(
        "splice",
        _known(backbone, out.logits),
        _logits(backbone, spliced),
        what=f"{len(patches)} embeddings spliced in at {at} give other logits than the longer "
        f"sequence",
        law="the logits of the sequence with those tokens in it",
        mend="hand `inputs_embeds`, mask and positions of the full length to the language model",
    )
    predictions, targets = out.logits[0, :-1].double(), labels[0, 1:]
    expected = torch.nn.functional.cross_entropy(predictions, targets, ignore_index=IGNORED_LABEL)
    if bool((targets != IGNORED_LABEL).any()):
        _same(
            "loss",
            out.loss.double() + LEAST_LOSS,
            expected + LEAST_LOSS,
            what=f"with labels, the loss is {float(out.loss):.6g} in place of "
            f"{float(expected):.6g}",
            law="the mean cross-entropy of each next token, patches left out",
            mend="give labels the length of `inputs_embeds`, -100 at the patches, and let the "
            "language model shift them",
        )
    # Two images that are no tokens' embeddings, like a projector's output: a path that recognises
    # tokens must not pass as seeing.
    after, one, other = slice(at + len(patches) - 1, None), -0.7 * image, 0.7 * image.flip(2)
    seen = relative_rms(*(_known(backbone, run(patch).logits[:, after]) for patch in (one, other)))
    require(
        seen > SEMANTICS,
        observed=f"other patches give the same logits after them (relative RMS {seen:.2g})",
        expected="logits that depend on the image",
        mend="look for a path that drops `inputs_embeds`, such as a test on the cache that an "
        "empty one passes",
    )


@requirement("FWD-12", SHOULD, profile="numerics", needs=["FWD-05"], uses=["forward"])
def test_compiled_equals_eager(subject: Subject) -> None:
    """`torch.compile` parity (budget `thorough` only: a cold compile takes 20 s)."""
    if subject.budget.name != "thorough":
        raise NotApplicable("compiling takes 20 s: only `--budget thorough` does it")
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        raise NotApplicable("torch.compile needs a C++ compiler on a CPU, and there is none")
    backbone = subject.build_float32()
    ids = probe_ids(subject, length=LONG)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        plain = _known(backbone, backbone.llm(input_ids=ids, attention_mask=mask).logits)
        compiled = torch.compile(backbone.llm)(input_ids=ids, attention_mask=mask).logits  # type: ignore[no-untyped-call]
    _same(
        "compile",
        _known(backbone, compiled),
        plain,
        what="compiled, the model gives other logits",
        law="the logits of the model uncompiled",
        mend="look for state that tracing freezes: Python counters, caches, data-dependent "
        "branches",
    )


@requirement(
    "FWD-01",
    MUST,
    profile="numerics",
    needs=["FWD-02", "FWD-03", "FWD-04", "FWD-07", "FWD-10", "FWD-13"],
    uses=_FORWARD,
)
@for_all(
    examples=3,
    seed=lambda _: st.integers(0, 2**32 - 1),
    length=lambda _: st.sampled_from((LONG, 200, EXACT_POSITIONS)),
)
def test_logits_are_those_of_the_reference(subject: Subject, seed: int, length: int) -> None:
    """Semantics gate: the subject agrees with the independent float64 reference (docs/numerics.md
    gate 1) over drawn configurations (few from disk, the rest as `type(llm)(config)`), sequences
    beyond the window, positions to 1,024; farther, the rotary angles are held to a bound ∝
    position·2⁻²⁴."""
    reference = reference_of(subject, subject.float32.llm)
    length = min(length, reference.architecture.positions)
    _agrees(subject.float32.llm, reference, drawn_ids(reference.vocabulary, length, seed))


@requirement("FWD-01", MUST, profile="numerics")
@for_all(
    examples=3,
    seed=lambda _: st.integers(0, 2**32 - 1),
    share=lambda _: st.sampled_from((1.0, 0.5, 0.1)),
)
def test_far_positions_are_those_of_the_reference(
    subject: Subject, seed: int, share: float
) -> None:
    """Far positions, up to the published number of them."""
    reference = reference_of(subject, subject.float32.llm)
    ids = drawn_ids(reference.vocabulary, LONG, seed)
    start = int(share * max(0, reference.architecture.positions - LONG))
    try:
        _agrees(subject.float32.llm, reference, ids, start)
    except IndexError:
        if not _refuses_positions(subject.float32.llm, ids):
            raise


def _refuses_positions(llm: Any, ids: torch.Tensor) -> bool:
    """Whether even the next position is refused, which FWD-09 reports: it tries positions of all
    kinds."""
    try:
        with torch.no_grad():
            llm(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None] + 1)
    except IndexError:
        return True
    return False


@requirement("FWD-01", MUST, profile="numerics")
def test_norms_are_those_of_the_reference(subject: Subject) -> None:
    """Norms of activations as small as their epsilon, which shows nowhere else."""
    llm = subject.float32.llm
    reference = reference_of(subject, llm)
    norms = reference.decoder().norms()
    eps = reference.architecture.norm.eps
    for path, norm in norms.items():
        width = reference.weights[f"{path}.weight"].shape[0]
        small = (
            torch.randn(1, 16, width, generator=torch.Generator().manual_seed(subject.seed))
            * eps**0.5
        )
        try:
            module = llm.get_submodule(reference.prefix + path)
        except AttributeError:
            continue
        with torch.no_grad():
            error = relative_rms(module(small), norm(small.double()))
        within(
            "norms at their epsilon",
            error,
            SEMANTICS,
            observed=f"`{path}`, given activations of mean square {eps:g}, is off by a relative "
            f"RMS of {error:.2g}",
            expected=f"the norm with the config's epsilon, {eps:g}",
            mend="leave the norm's epsilon as the published config has it",
            conditions=conditions(small.dtype, small.device),
            module=path,
        )


@requirement("FWD-01", MUST, profile="numerics")
@for_all(
    examples=3,
    seed=lambda _: st.integers(0, 2**32 - 1),
    theta=lambda _: st.sampled_from((1e3, 2.5e5, 1e6)),
    eps=lambda _: st.sampled_from((1e-6, 1e-4, 1e-3)),
    window=lambda _: st.integers(4, LONG // 2),
)
def test_other_published_configs_are_followed(
    subject: Subject, seed: int, theta: float, eps: float, window: int
) -> None:
    """The same checkpoint under another config: what the class takes from the config, and not from
    habit."""
    reference_of(subject, subject.float32.llm)  # not applicable without a reference
    changes = {
        "rope_theta": theta,
        "rope_local_base_freq": theta / 10,
        "rotary_emb_base": theta,
        "rms_norm_eps": eps,
        "layer_norm_eps": eps,
        "sliding_window": window,
    }
    changes = {
        key: value
        for key, value in changes.items()
        if key in subject.published_config or key == "rope_theta"
    }

    def edit(snapshot: Path) -> None:
        subject.change_config(snapshot, changes)

    with subject.hub_variant(edit):
        llm = subject.build_float32().llm
    reference = reference_of(subject, llm, {**subject.published_config, **changes})
    _agrees(llm, reference, drawn_ids(reference.vocabulary, LONG, seed), told=f" under {changes}")


@requirement("FWD-01", MUST, profile="numerics")
@for_all(
    examples=6,
    seed=lambda _: st.integers(0, 2**32 - 1),
    heads=lambda _: st.sampled_from(((4, 4), (4, 2), (4, 1), (6, 3), (8, 2))),
    layers=lambda _: st.integers(1, 3),
)
def test_other_shapes_are_followed(
    subject: Subject, seed: int, heads: tuple[int, int], layers: int
) -> None:
    """The model class under other shapes, grouped heads among them."""
    own = subject.float32.llm
    reference_of(subject, own)
    if not hasattr(type(own), "_from_config"):
        raise NotApplicable(f"a {type(own).__name__} cannot be built from a config alone")
    query_heads, shared_heads = heads
    if subject.published_config.get("num_key_value_heads") in (
        None,
        subject.published_config["num_attention_heads"],
    ):
        shared_heads = query_heads
    shape = {"heads": query_heads, "key_value_heads": shared_heads, "layers": layers}
    config = {**in_shape(subject.published_config, **shape), "vocab_size": 96}
    attention = own.config._attn_implementation
    llm = untrained(type(own), config, attention, seed, of=published_shapes(config))
    reference = reference_of(subject, llm, config)
    _agrees(llm, reference, drawn_ids(96, LONG, seed), told=f" with {shape}")


def _agrees(
    llm: Any, reference: Reference, ids: torch.Tensor, start: int = 0, told: str = ""
) -> None:
    """Hold `llm` to gate 1 on one batch that begins at position `start`; a failure names the first
    module outside."""
    place = Place.of(
        torch.ones_like(ids), None if not start else start + torch.arange(ids.shape[1])[None]
    )
    arguments = {"attention_mask": torch.ones_like(ids)} | (
        {"position_ids": place.positions} if start else {}
    )
    some = reference.spread(1024)
    decoder = reference.decoder()
    embedded = decoder.embed(ids)
    with torch.no_grad():
        observed = llm(input_ids=ids, **arguments).logits[..., some]
        error = relative_rms(observed, decoder.logits(embedded, place, tokens=some))
    bound = semantics_bound(start + ids.shape[1])
    first = None
    if not error <= bound:
        first = first_outside(
            module_errors(llm, reference, lambda: llm(input_ids=ids, **arguments), embedded, place),
            bound,
        )
    within(
        "semantics" if start + ids.shape[1] <= EXACT_POSITIONS else "semantics at far positions",
        error,
        bound,
        observed=f"over {ids.shape[1]} tokens from position {start}{told}, the logits differ from "
        f"the float64 reference's by "
        f"a relative RMS of {error:.2g}"
        + (f"; first off is `{first[0]}`, by {first[1]:.2g}" if first else "")
        + _not_finite(llm),
        expected=f"at most {bound:.2g}",
        mend=f"compare {f'`{first[0]}`' if first else 'embedding, head and residuals'} with the "
        f"family's paper: epsilon, theta, "
        "scale, window, order of heads",
        conditions=conditions(observed.dtype, observed.device),
        module=first[0] if first else None,
    )


def _not_finite(llm: Any) -> str:
    broken = [
        name for name, tensor in llm.state_dict().items() if not bool(torch.isfinite(tensor).all())
    ]
    return f"; `{broken[0]}` holds NaN or infinity" if broken else ""

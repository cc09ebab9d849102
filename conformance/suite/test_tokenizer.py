"""TOK: the tokenizer's behaviour."""

from __future__ import annotations

import hashlib
import json
import string
import unicodedata
from collections.abc import Mapping
from typing import Any

import torch

from conformance.assertions import NotApplicable, quoted, refusal, require, tell
from conformance.catalogue import MUST, SHOULD, requirement
from conformance.parity.library import text_config
from conformance.places import fixtures_directory
from conformance.subject.contract import LLM_MAX_LENGTH, eos_ids_of
from conformance.subject.subject import Subject
from conformance.subject.vocabulary import state_of
from conformance.suite.dialogues import conversations
from conformance.suite.models import positions_of, tokens_apart
from conformance.suite.properties import for_all
from conformance.suite.strategies import ordinary_text, ordinary_texts

TRIGGER_STRINGS = ("True", "False", "Yes", "No", *string.ascii_uppercase)
"""The strings whose single id Prismatic's VLM looks up when it is built, for scoring
multiple-choice answers."""

SHORT_LENGTH = 77


@requirement("TOK-01", MUST, needs=["CON-01"])
@for_all(text=ordinary_text, edges=ordinary_texts)
def test_special_tokens_are_the_declared_prefix(subject: Subject, text: str) -> None:
    """`tok(x) == prefix + tok(x, add_special_tokens=False)` with the declared prefix (one bos under
    `auto`, nothing under `prompt` and `none`) and no suffix. No id bypasses this."""
    bos = subject.tokenizer.bos_token_id
    require(
        bos is not None or subject.declared.bos != "auto",
        observed="bos is declared as added by the tokenizer (`auto`), which has no bos token",
        expected="a bos token",
        mend='declare `bos = "none"` in the [subject] table, or load the tokenizer with its bos '
        "token",
    )
    prefix = [bos] if subject.declared.bos == "auto" else []
    ids, bare = subject.encode(text), subject.encode(text, special=False)
    require(
        ids == prefix + bare,
        observed=f"{quoted(text)} encodes to {quoted(ids, 160)}, and to {quoted(bare, 160)} "
        f"without special tokens",
        expected=f"the prefix {prefix} and the bare ids (bos declared: {subject.declared.bos})",
        mend="set `add_bos_token` as the family's convention has it, and no eos; or declare `bos` "
        "under [subject]",
    )


@requirement("TOK-02", MUST, needs=["CON-01", "PRM-03"], uses=["prompt_builder_fn"])
def test_an_assistant_turn_ends_in_the_terminator(subject: Subject) -> None:
    """The last non-whitespace token of an assistant turn is the declared terminator, one id, and
    among the generation eos ids."""
    require(
        subject.terminator_id is not None,
        observed=f"the terminator {subject.terminator!r} is "
        f"{subject.encode(subject.terminator, special=False)}",
        expected="one id",
        mend="end turns with the tokenizer's own eos token, or declare `terminator` in the "
        "[subject] table",
    )
    digests: dict[str, str] = {}
    for told in conversations(subject, ["What should the robot do?", "Pick up the cup."]):
        ids = subject.encode(told.prompt)
        digests[str(told.host)] = _digest(ids)
        tell("ids of a dialogue", dict(digests))
        last = next((token for token in reversed(ids) if subject.decode([token]).strip()), None)
        require(
            last == subject.terminator_id,
            observed=f"{told.host} an assistant turn ends in {last} "
            f"({quoted(subject.decode([last]) if last is not None else '')})",
            expected=f"the terminator {subject.terminator!r}, id {subject.terminator_id}",
            mend="end the assistant's turn with this tokenizer's terminator: `</s>` is plain text "
            "to most others",
        )
    # That nothing published is lost is CON-13.
    stops = {*subject.generation_eos_ids, *eos_ids_of(subject.published_generation_config())}
    require(
        subject.terminator_id in stops,
        observed=f"generation stops at {sorted(stops)}",
        expected=f"the terminator {subject.terminator_id} among them",
        mend="add it to `llm.generation_config.eos_token_id`",
    )


_LONG_TEXTS = (
    "one two three four five six seven eight nine ten " * 20,
    # A token may have many characters.
    "internationalization " * 400, "-" * 6000, " " * 6000 + "end",
    # Just as long as fits, in most tokenizers, and one or two less and more.
    *("one" + " one" * count for count in range(SHORT_LENGTH - 4, SHORT_LENGTH + 1)),
)  # fmt: skip


@requirement("TOK-03", MUST, needs=["CON-01"], uses=["llm_max_length"])
def test_length_and_truncation(subject: Subject) -> None:
    """`model_max_length` is `llm_max_length`; truncation keeps the beginning (and bos), or what a
    host chooses by `truncation_side`, and happens only where it is asked for."""
    short = subject.build_for_inference(llm_max_length=SHORT_LENGTH).get_tokenizer()
    published = positions_of(subject.training.llm)
    long = subject.build_for_inference(llm_max_length=published).get_tokenizer()
    lengths = [one.model_max_length for one in (subject.tokenizer, short, long)]
    asked = [LLM_MAX_LENGTH, SHORT_LENGTH, published]
    require(
        lengths == asked,
        observed=f"model_max_length is {lengths}",
        expected=f"{asked}, the lengths asked for with llm_max_length; the last is the published "
        "number of positions",
        mend="load the tokenizer with `model_max_length=llm_max_length`",
    )
    together = short(list(_LONG_TEXTS), truncation=True).input_ids
    for text, in_a_batch in zip(_LONG_TEXTS, together, strict=True):
        whole = subject.encode(text, tokenizer=short)
        cut = list(short(text, truncation=True).input_ids)
        require(
            list(in_a_batch) == cut,
            observed=f"in a batch {quoted(text, 60)} was truncated to "
            f"{quoted(list(in_a_batch), 160)}",
            expected=f"{quoted(cut, 160)}, as alone",
            mend="let the tokenizer decide how much text fits, in a batch too",
        )
        # All but the last: TOK-01 checks what a tokenizer may put at the end.
        kept = whole if len(whole) <= SHORT_LENGTH else whole[: SHORT_LENGTH - 1]
        require(
            len(cut) == min(SHORT_LENGTH, len(whole)) and cut[: len(kept)] == kept,
            observed=f"of {quoted(text, 60)}, {len(whole)} ids were truncated to "
            f"{quoted(cut, 160)}",
            expected=f"the first {SHORT_LENGTH} of {quoted(whole, 160)}",
            mend='load the tokenizer with `truncation_side="right"`: cut from the left, patches '
            "land in the text; and let it decide how much text fits",
        )


@requirement("TOK-03", MUST, needs=["CON-01"], uses=["llm_max_length"])
def test_truncation_is_as_it_was_asked_for(subject: Subject) -> None:
    """Nothing is truncated that nobody asked to be, in tensors either; and what a host makes of
    `truncation_side` counts."""
    # One that nobody else uses.
    short = subject.build_for_inference(llm_max_length=SHORT_LENGTH).get_tokenizer()
    text = _LONG_TEXTS[0]
    bare = subject.encode(text, special=False, tokenizer=short)
    whole = subject.encode(text, tokenizer=short)
    alone = short(text, return_tensors="pt").input_ids
    # Of one length: what padding takes is PAD-01's.
    batch = short([text, text], return_tensors="pt").input_ids
    unasked = {
        "encoded": whole,
        "encoded to tensors": alone[0].tolist(),
        "encoded to tensors in a batch": batch[0].tolist(),
    }
    for call, ids in unasked.items():
        require(
            len(ids) >= len(bare) and ids == whole,
            observed=f"without `truncation`, {quoted(text, 60)} is {call} as {len(ids)} ids, "
            f"{quoted(ids, 120)}",
            expected=f"all of its {len(bare)} ids: model_max_length {SHORT_LENGTH} counts where "
            "truncation is asked for",
            mend="leave `truncation` to the caller, who may cut a document into windows",
        )
    short.truncation_side = "left"
    cut = list(short(text, add_special_tokens=False, truncation=True).input_ids)
    require(
        cut == bare[-SHORT_LENGTH:],
        observed=f'once a host sets truncation_side = "left", {quoted(text, 60)} is truncated to '
        f"{quoted(cut, 160)}",
        expected=f"its last {SHORT_LENGTH} ids, {quoted(bare[-SHORT_LENGTH:], 160)}",
        mend="leave `truncation_side` to whoever sets it",
    )


@requirement("TOK-04", MUST, needs=["CON-01"])
@for_all(text=ordinary_text, edges=ordinary_texts)
def test_decoding_gives_the_text_back(subject: Subject, text: str) -> None:
    """Decoding an encoding (clean-up off) gives the text back, up to the tokenizer's declared
    normalisation. By the tokenizer's own settings, with special tokens or without, of lists,
    tensors and arrays, it gives the published tokenizer's text, and no clean-up that is not
    published."""
    expected = _normalised(text, subject.declared.normalisation)
    observed = subject.decode(subject.encode(text, special=False))
    require(
        observed == expected,
        observed=f"{quoted(text)} comes back as {quoted(observed)}",
        expected=quoted(expected),
        mend="load the tokenizer class that the checkpoint was trained with; or declare its "
        "`normalisation`",
    )


def _normalised(text: str, form: str) -> str:
    if form in ("metaspace", "metaspace-first"):
        spaced = text.replace("▁", " ")
        return spaced.removeprefix(" ") if form == "metaspace-first" else spaced
    if form == "nfc":
        return unicodedata.normalize("NFC", text)
    return unicodedata.normalize("NFKC", text) if form == "nfkc" else text


@requirement("TOK-05", MUST, needs=["CON-01"])
def test_golden_ids_come_out(subject: Subject) -> None:
    """The golden token ids recorded for the family's tokenizer still come out (fixtures/golden)."""
    golden = subject.recipe.tokenizer.golden
    if golden is None:
        raise NotApplicable(
            f"no golden ids are recorded for the tokenizer of {subject.weights_hub_id}"
        )
    cases = json.loads((fixtures_directory() / "golden" / golden).read_text(encoding="utf-8"))[
        "cases"
    ]
    wrong = [
        (case["text"], ids, case["ids"])
        for case in cases
        if (ids := subject.encode(case["text"], special=False)) != case["ids"]
    ]
    text, observed, expected = wrong[0] if wrong else ("", [], [])
    require(
        not wrong,
        observed=f"{len(wrong)} of {len(cases)} texts encode otherwise; {quoted(text)} to "
        f"{quoted(observed, 160)}",
        expected=quoted(expected, 160),
        mend="load the published tokenizer.json as it is; a converted or newer tokenizer class "
        "gives other ids",
        texts=[text for text, _, _ in wrong],
        tokens=tokens_apart(subject, observed, expected),
    )


@requirement("TOK-06", SHOULD, needs=["CON-01"], uses=["llm_max_length"])
def test_text_and_patches_fit_the_positions(subject: Subject) -> None:
    """At the default length, text plus the declared image patches fits the model's positions."""
    length = subject.build_for_inference(llm_max_length=None).get_tokenizer().model_max_length
    positions, patches = (
        text_config(subject.training.llm).max_position_embeddings,
        subject.declared.image_patches,
    )
    require(
        length + patches <= positions,
        observed=f"{length} text tokens and {patches} image patches make {length + patches}",
        expected=f"at most the model's {positions} positions",
        mend=f"default `llm_max_length` to {positions - patches} for this family"
        if positions > patches
        else "declare fewer `image_patches`, or take a model with more positions",
    )


@requirement("TOK-07", SHOULD, needs=["CON-01"])
def test_trigger_strings_are_single_tokens(subject: Subject) -> None:
    """`True`, `False`, `Yes`, `No` and `A`…`Z` each encode to one id (Prismatic's VLM asserts
    it)."""
    split = {
        text: ids
        for text in TRIGGER_STRINGS
        if len(ids := subject.encode(text, special=False)) != 1
    }
    require(
        not split,
        observed=f"encode to several ids: {quoted(split)}",
        expected="one id each",
        mend="score such answers by their first id where the vocabulary has no single one",
    )


@requirement("TOK-08", MUST, needs=["TOK-01"])
def test_captions_begin_as_the_splice_expects(subject: Subject) -> None:
    """Text encoded without a prompt builder (captions) begins as the patch splice expects, or the
    declared prepend is there."""
    if subject.declared.patch_position != "after-bos":
        raise NotApplicable(f"patches go to {subject.declared.patch_position!r}, not after a bos")
    bos, bos_id = subject.tokenizer.bos_token, subject.tokenizer.bos_token_id
    caption = "a cup on a table"
    # Under `none` a host prepends nothing.
    prepended = f"{bos or ''}{caption}" if subject.declared.bos == "prompt" else caption
    ids = subject.encode(prepended)
    require(
        bos_id is not None and ids[:1] == [bos_id] and ids.count(bos_id) == 1,
        observed=f"the caption {prepended!r} encodes to {quoted(ids)}; bos is {bos!r}, id "
        f"{bos_id}, declared "
        f"{subject.declared.bos!r}",
        expected="bos first: patches are spliced in after the first token, and its label is "
        "dropped",
        mend='let the tokenizer add bos; or declare `bos = "prompt"` with a bos token for the '
        "host to prepend, or "
        "another `patch_position`",
    )


def _batches(subject: Subject) -> list[dict[str, list[str]]]:
    """Edges: the texts of the corpus, eight to a batch."""
    texts = [edge["text"] for edge in ordinary_texts(subject)]
    # Longer than what some encode at once.
    long = " ".join(f"Step {number}: pick up the cup, please." for number in range(400))
    return [
        *({"texts": texts[start : start + 8]} for start in range(0, len(texts), 8)),
        {"texts": [long]},
    ]


_TOK_09_NEEDS = ["TOK-01", "TOK-03", "TOK-04", "TOK-05", "PAD-06", "PAD-08", "CON-02"]


@requirement("TOK-09", MUST, needs=_TOK_09_NEEDS)
@for_all(texts=lambda s: ordinary_text(s).map(lambda text: [text]), edges=_batches)
def test_the_published_vocabulary_is_what_encodes(subject: Subject, texts: list[str]) -> None:
    """The tokenizer encodes as the published one does, in either mode, one text or a padded batch,
    with special tokens and without: to the ids that the checkpoint's `tokenizer.json` gives, or the
    installed AutoTokenizer. It keeps no state: what padding, truncation and earlier calls did is
    forgotten, and what it returned is the caller's. Its `vocab_size` and its chat template, if it
    has one, are the published ones. Batches hold no key that `forward` refuses.
    However it is called (one text or many, pairs, words; padded, truncated and returned as a host
    asks) it gives what the published one gives, and `encode`, `tokenize`, `pad` and looking tokens
    up do; a chat template where none is published agrees with the prompt builder."""
    for mode, tokenizer in _tokenizers(subject).items():
        bare = [subject.encode(text, special=False, tokenizer=tokenizer) for text in texts]
        for text, ids in zip(texts, bare, strict=True):
            require(
                subject.published_vocabulary.gives(text, ids),
                observed=f"in {mode} mode {quoted(text)} encodes to {quoted(ids, 200)}",
                expected=f"{quoted(subject.published_vocabulary.ids(text), 200)}, as published",
                mend="load the published tokenizer in both modes, and give it texts as they are",
            )
        for special, alone in (
            (False, bare),
            (True, [subject.encode(text, tokenizer=tokenizer) for text in texts]),
        ):
            batch = tokenizer(texts, add_special_tokens=special, padding=True)
            rows = [
                [token for token, real in zip(ids, mask, strict=True) if real]
                for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
            ]
            wrong = next((row for row, ids in zip(rows, alone, strict=True) if row != ids), None)
            require(
                wrong is None,
                observed=f"in {mode} mode, with add_special_tokens={special}, a batch encodes a "
                f"text to {quoted(wrong, 200)}",
                expected="the ids that it has alone",
                mend="encode a list of texts as each of them is encoded",
            )


@requirement("TOK-09", MUST, needs=_TOK_09_NEEDS)
def test_the_tokenizer_keeps_no_state(subject: Subject) -> None:
    """It keeps no state: what padding, truncation and earlier calls did is forgotten, and what it
    returned is the caller's."""
    tokenizer = subject.tokenizer
    _require_unchanged(subject.tokenizer_when_built, state_of(tokenizer), "the clauses used it")
    for change, options in _CALLS.items():
        before = state_of(tokenizer)
        with refusal():
            tokenizer(["One.", "One, two and three, four and five."], **options)
        _require_unchanged(before, state_of(tokenizer), f"a call with {change}")
    text = "What was returned belongs to the caller."
    first = subject.encode(text)
    tokenizer(text, add_special_tokens=True).input_ids.append(first[-1])
    require(
        subject.encode(text) == first,
        observed=f"after an encoding was appended to, {text!r} encodes to "
        f"{quoted(subject.encode(text), 200)}",
        expected=f"{quoted(first, 200)}, as before",
        mend="return a new encoding from every call",
    )


@requirement("TOK-09", MUST, needs=_TOK_09_NEEDS)
def test_the_published_facts_are_kept(subject: Subject) -> None:
    """`vocab_size`, from which hosts count their action tokens down, and the chat template, if
    there is one, are the published ones."""
    tell(
        "tokenizer",
        {
            "vocab_size": subject.tokenizer.vocab_size,
            "chat template": _digest(getattr(subject.tokenizer, "chat_template", None)),
            "ids of fixed texts": _digest([subject.encode(text) for text in _FIXED_TEXTS]),
        },
    )
    published = subject.published_vocabulary
    for mode, tokenizer in _tokenizers(subject).items():
        for name in ("vocab_size", "chat_template"):
            wanted, found = published.facts(name), getattr(tokenizer, name, None)
            require(
                # Without any template, `apply_chat_template` says so.
                wanted[0] is None or found in wanted or (found is None and name != "vocab_size"),
                observed=f"in {mode} mode the tokenizer's {name} is {quoted(found, 120)}",
                expected=f"{quoted(wanted[0], 120)}, as published",
                mend="leave what is published as it is: the pad is an added token, and a format of "
                "one's own belongs into the prompt builder",
            )


@requirement("TOK-09", MUST, needs=_TOK_09_NEEDS)
def test_forward_takes_a_batch(subject: Subject) -> None:
    """Batches hold no key that `forward` refuses."""
    texts = ["What should the robot do?", "Stop."]
    batch = subject.tokenizer(texts, padding=True, return_tensors="pt")
    known = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad(), refusal() as refused:
        subject.training.forward(**batch)
    with torch.no_grad(), refusal() as refused_anyway:
        subject.training.forward(**known)
    require(
        not refused or bool(refused_anyway),
        observed=f"a batch holds {sorted(batch)}, and forward(**batch) raised {refused[0]!r}"
        if refused
        else "",
        expected=f"only keys that `forward` takes: it does take {sorted(known)}",
        mend='load the tokenizer with `model_input_names=["input_ids", "attention_mask"]`',
    )


_CALLS: dict[str, dict[str, Any]] = {
    "padding": {"padding": True},
    "a fixed length": {"padding": "max_length", "max_length": 24, "truncation": True},
    "truncation": {"truncation": True, "max_length": 6},
    "truncation to a length in pieces": {
        "truncation": True,
        "max_length": 6,
        "stride": 1,
        "return_overflowing_tokens": True,
    },
    "tensors": {"padding": "longest", "return_tensors": "pt", "add_special_tokens": False},
}
"""Calls that change how a tokenizer pads and truncates, for that call."""


_FIXED_TEXTS = (
    "What should the robot do?", " Two  spaces,\na line\tand a tab. ", "naïve “ü” 日本語 🙂",
    "def f(x): return x ** 2", "USER: Hi. ASSISTANT: Hello.</s>", "<s>[INST] 1234567.89 [/INST]",
)  # fmt: skip
"""Texts whose ids are told for those who compare certificates: of every kind that releases of
tokenizers have treated differently."""


def _digest(value: Any) -> str:
    """The first digits of a digest: enough to see that something changed."""
    return hashlib.sha256(json.dumps(value, default=repr).encode()).hexdigest()[:12]


def _require_unchanged(before: Mapping[str, Any], after: Mapping[str, Any], change: str) -> None:
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    require(
        not changed,
        observed=f"after {change}, "
        + "; ".join(f"{name} went from {old} to {new}" for name, (old, new) in changed.items()),
        expected="a tokenizer as it was",
        mend="pass what one call needs as arguments of that call",
    )


def _tokenizers(subject: Subject) -> dict[str, Any]:
    return {"training": subject.tokenizer, "inference": subject.inference.get_tokenizer()}

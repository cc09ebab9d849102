"""TOK: what hosts do with a tokenizer besides encoding texts: they decode, ask for offsets, pad
what they have encoded, and render chats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

from conformance.assertions import NotApplicable, quoted, refusal, require
from conformance.catalogue import MUST, requirement
from conformance.subject.subject import Subject
from conformance.suite.dialogues import conversations
from conformance.suite.strategies import ordinary_texts

_CODE = "if ( a != b ) : print ( 'It is n\\'t .' , x [ 0 ] ) ; do n't , I 'm , we 've !"
"""Text with spaces that clean-up takes away."""


@requirement("TOK-04", MUST)
def test_decoding_is_as_published(subject: Subject) -> None:
    """As hosts decode, with the tokenizer's own settings, with special tokens and without, alone or
    in a batch, the text is that of the published tokenizer: no clean-up that is not published, and
    no token lost that is not special there."""
    for tokenizer in (subject.tokenizer, subject.inference.get_tokenizer()):
        for ids in _ids_to_decode(subject, tokenizer):
            for skipped in (False, True):
                found = str(tokenizer.decode(ids, skip_special_tokens=skipped))
                wanted = [
                    str(one.decode(ids, skip_special_tokens=skipped, **options))
                    for one in subject.published_vocabulary.readings
                    # Not cleaning up loses nothing.
                    for options in ({}, {"clean_up_tokenization_spaces": False})
                ]
                told = f"with skip_special_tokens={skipped} {quoted(ids, 160)}"
                # Slow tokenizers put spaces around added tokens, by a setting of their own.
                as_told = str if getattr(tokenizer, "is_fast", False) else _without_space
                require(
                    as_told(found) in map(as_told, wanted),
                    observed=f"{told} decodes to {quoted(found, 200)}",
                    expected=f"{quoted(wanted[0], 200)}, as published",
                    mend="leave clean-up and the published tokens as they are; what is not special "
                    "there is part of an answer",
                )
                batch = tokenizer.batch_decode([ids], skip_special_tokens=skipped)
                require(
                    list(batch) == [found],
                    observed=f"in a batch {told} decodes to {quoted(batch, 200)}",
                    expected=f"{quoted(found, 200)}, as alone",
                    mend="leave `batch_decode` to the library",
                )


def _without_space(text: str) -> str:
    return "".join(text.split())


@requirement("TOK-04", MUST)
def test_batches_are_decoded_in_order(subject: Subject) -> None:
    """Ragged rows of a batch come back in their places."""
    tokenizer = subject.tokenizer
    texts = ("Pick up the red cup, please.", "Stop.", "Move to the left.", "Go.")
    rows = [subject.encode(text, special=False) for text in texts]
    found, wanted = list(tokenizer.batch_decode(rows)), [tokenizer.decode(row) for row in rows]
    require(
        found == wanted,
        observed=f"batch_decode gives {quoted(found, 200)}",
        expected=f"{quoted(wanted, 200)}, each row in its place",
        mend="leave `batch_decode` to the library",
    )


@requirement("TOK-04", MUST)
def test_tokens_that_a_host_adds_are_special_if_it_says_so(subject: Subject) -> None:
    """Special tokens that a host has added are left out with `skip_special_tokens`, others are
    not."""
    tokenizer = subject.build().get_tokenizer()
    tokenizer.add_tokens(["<act_0>"])
    tokenizer.add_tokens(["<img_0>"], special_tokens=True)
    plain, special = tokenizer.convert_tokens_to_ids(["<act_0>", "<img_0>"])
    word = subject.encode("cup", special=False, tokenizer=tokenizer)
    for skipped in (False, True):
        text = tokenizer.decode([*word, plain, special, *word], skip_special_tokens=skipped)
        require(
            "<act_0>" in text and ("<img_0>" in text) is not skipped,
            observed=f"with skip_special_tokens={skipped} a token that a host has added and a "
            f"special one, between two words, decode to {quoted(text)}",
            expected="the token, and the special one only where it is not skipped",
            mend="ask the tokenizer which tokens are special, at each call",
        )


def _ids_to_decode(subject: Subject, tokenizer: Any) -> Iterator[list[int]]:
    """Ids of texts, and of a word between every two published tokens that are not plain text."""
    texts = [
        _CODE,
        " Two spaces,  and a line\n",
        *(edge["text"] for edge in ordinary_texts(subject)[:12]),
    ]
    for text in texts:
        yield subject.encode(text, special=False, tokenizer=tokenizer)
    word = subject.encode("cup", special=False, tokenizer=tokenizer)
    added = subject.published_vocabulary.readings[0].added_tokens_decoder
    # Whether what pads is shown is the subject's choice.
    meant = [token for token in sorted(added) if token != tokenizer.pad_token_id]
    plain = [token for token in meant if not added[token].special]
    for token in dict.fromkeys([*meant[:16], *meant[-16:], *plain[:64]]):
        yield [*word, token, *word]


@requirement("TOK-09", MUST)
def test_every_way_of_encoding_agrees(subject: Subject) -> None:
    """`encode` gives the ids that a call gives, and `tokenize` their tokens; what hosts may ask for
    besides (offsets, the mask of special tokens) is given as the published tokenizer gives it."""
    tokenizer, readings = subject.tokenizer, subject.published_vocabulary.readings
    for text in ("What should the robot do?", _CODE, "na\u00efve \u201cü\u201d\n日本語"):
        for special in (True, False):
            ids = subject.encode(text, special=special)
            encoded = list(tokenizer.encode(text, add_special_tokens=special))
            require(
                encoded == ids,
                observed=f"encode({text!r}, add_special_tokens={special}) gives "
                f"{quoted(encoded, 160)}",
                expected=f"{quoted(ids, 160)}, as a call of the tokenizer does",
                mend="let `encode` hand on every argument",
            )
        whole = [one for one in readings if _by_tokens(one, text) == _bare(one, text)]
        require(
            not whole or _by_tokens(tokenizer, text) == _bare(tokenizer, text),
            observed=f"the tokens that `tokenize` gives for {text!r} have the ids "
            f"{quoted(_by_tokens(tokenizer, text), 160)}",
            expected=f"{quoted(_bare(tokenizer, text), 160)}, those of a call",
            mend="leave `tokenize` to the library",
        )
        _require_what_was_asked_for(tokenizer, readings, text)


def _bare(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _by_tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)))


_ASKED = {
    "return_offsets_mapping": "offset_mapping",
    "return_special_tokens_mask": "special_tokens_mask",
    "return_length": "length",
}
"""What hosts may ask for, and where they find it."""


def _require_what_was_asked_for(tokenizer: Any, readings: list[Any], text: str) -> None:
    for argument, name in _ASKED.items():
        given = []
        if name == "offset_mapping" and not getattr(tokenizer, "is_fast", False):
            continue  # slow tokenizers have none
        for one in readings:
            with refusal():
                given.append(one(text, **{argument: True}))
        if len(given) < len(readings):
            continue
        found: Any = {}
        with refusal() as refused:
            found = tokenizer(text, **{argument: True})
        # A tokenizer may begin texts otherwise, and has other places then.
        alike = [one[name] for one in given if one.input_ids == found.get("input_ids")]
        require(
            name in found and (not alike or found[name] in alike),
            observed=f"asked for {argument}=True, the tokenizer gives "
            + (
                f"{refused[0]!r}" if refused
                else quoted(found.get(name, sorted(found)), 160)
            ),
            expected=quoted(alike[0] if alike else given[0][name], 160),
            mend="leave calls to the library, and narrow what a batch holds by "
            "`model_input_names`",
        )  # fmt: skip


@requirement("TOK-09", MUST)
def test_padding_keeps_the_masks_of_samples(subject: Subject) -> None:
    """`pad` keeps the attention mask that each sample brings, and masks what it adds, whichever
    side it pads on."""
    tokenizer = subject.build().get_tokenizer()  # one whose side may be changed
    ids = subject.encode("What should the robot do?", special=False, tokenizer=tokenizer)[:4]
    samples = {"input_ids": [ids, ids[:-1]], "attention_mask": [[1, 0, 1, 1], [0, 1, 1]]}
    for side in ("right", "left"):
        tokenizer.padding_side = side
        padded = tokenizer.pad(samples, padding=True)
        wide = tokenizer.pad(samples, padding=True, pad_to_multiple_of=8)["input_ids"]
        require(
            {len(row) for row in wide} == {8},
            observed=f"`pad` with pad_to_multiple_of=8 gives rows of {[len(row) for row in wide]}",
            expected="rows of 8: collators ask for multiples",
            mend="hand every argument of `pad` on to the library",
        )
        wanted = [[1, 0, 1, 1], [0, 1, 1, 0] if side == "right" else [0, 0, 1, 1]]
        found = [list(row) for row in padded["attention_mask"]]
        require(
            found == wanted,
            observed=f"padded on the {side}, the masks {samples['attention_mask']} become {found}",
            expected=f"{wanted}",
            mend="leave `pad` to the library: a sample's mask says what it may see",
        )


_LATE = "<act_7>"
_PAIR = ("What should the robot do?", "one two three four five six seven eight nine ten " * 3)


@requirement("TOK-09", MUST)
def test_what_a_host_adds_is_encoded_at_once(subject: Subject) -> None:
    """A token that a host adds is one in texts that were encoded before, too."""
    tokenizer = subject.build().get_tokenizer()
    text = f"Do {_LATE} now."
    for special in (True, False):
        tokenizer(text, add_special_tokens=special)
    tokenizer.add_tokens([_LATE])
    new = tokenizer.convert_tokens_to_ids(_LATE)
    for special in (True, False):
        ids = list(tokenizer(text, add_special_tokens=special).input_ids)
        require(
            ids.count(new) == 1,
            observed=f"once {_LATE!r} is added, {text!r}, which was encoded before, encodes to "
            f"{quoted(ids, 160)}",
            expected=f"the id {new} in it",
            mend="keep no encodings, or forget them when a token is added",
        )


@requirement("TOK-09", MUST)
def test_pairs_are_truncated_as_asked(subject: Subject) -> None:
    """Of two texts that are encoded as a pair the one is truncated that a host names."""
    tokenizer, judged = subject.tokenizer, 0
    for strategy in ("only_first", "only_second", "longest_first"):
        first, second = _PAIR if strategy == "only_second" else _PAIR[::-1]
        # So few that the shorter text would be cut too, if the host had not named the other.
        options = {"truncation": strategy, "max_length": len(subject.encode(_PAIR[0])) + 4}
        wanted = []
        for one in subject.published_vocabulary.readings:
            if list(one(first).input_ids) == subject.encode(first):
                with mock.patch.object(one, "truncation_side", tokenizer.truncation_side):
                    wanted.append(list(one(first, text_pair=second, **options).input_ids))
        found = None
        with refusal():  # code of one's own may know no pairs, and says so
            found = list(tokenizer(first, text_pair=second, **options).input_ids)
        if not wanted or found is None:
            continue
        judged += 1
        require(
            found in wanted,
            observed=f"a pair of texts, truncated to {options['max_length']} by {strategy!r}, is "
            f"{quoted(found, 200)}",
            expected=f"{quoted(wanted[0], 200)}, as published",
            mend="hand `truncation` on as it is given",
        )
    if not judged:
        raise NotApplicable("the published tokenizer encodes texts otherwise, or no pairs")


@requirement("TOK-09", MUST)
def test_long_documents_are_encoded_whole(subject: Subject) -> None:
    """A document of more than 100,000 characters has the published ids."""
    text = " ".join(f"step {number}, then turn" for number in range(6000))
    ids = subject.encode(text, special=False)
    require(
        subject.published_vocabulary.gives(text, ids),
        observed=f"a text of {len(text)} characters encodes to {len(ids)} ids, {quoted(ids, 80)}",
        expected=f"{len(subject.published_vocabulary.ids(text))} ids, as published",
        mend="give the tokenizer texts whole: pieces have other ids at their seams",
    )


@requirement("TOK-09", MUST)
def test_chats_are_rendered_and_encoded_as_published(subject: Subject) -> None:
    """`apply_chat_template` gives the published tokenizer's text and its ids, and hands what else
    it is given on to the template."""
    tokenizer = subject.tokenizer
    messages = [
        {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cup."},
    ]  # fmt: skip
    own = "{{ mood }}|{% for message in messages %}{{ message['content'] }};{% endfor %}"
    asked: dict[str, dict[str, Any]] = {
        "with a template and a variable of the caller's": {"chat_template": own, "mood": "calm"}
    }
    if any(subject.published_vocabulary.facts("chat_template")) and tokenizer.chat_template:
        asked |= {
            "": {},
            "with add_generation_prompt=True": {"add_generation_prompt": True},
        }
    for told, options in asked.items():
        given = messages[:1] if "add_generation_prompt" in options else messages
        texts, encoded = [], []
        for one in (tokenizer, *subject.published_vocabulary.readings):
            with refusal() as refused:
                texts.append(one.apply_chat_template(given, tokenize=False, **options))
                ids = one.apply_chat_template(given, tokenize=True, **options)
                # Since transformers 5 a batch.
                encoded.append(list(ids if isinstance(ids, list) else ids["input_ids"]))
            if refused and one is not tokenizer:
                del texts[len(encoded) :]
            elif refused:
                texts, encoded = [str(refused[0])], [[]]
        require(
            len(texts) < 2 or texts[0] in texts[1:],
            observed=f"apply_chat_template {told} gives {quoted(texts[0], 200)}",
            expected=f"{quoted(texts[-1], 200)}, as the published tokenizer",
            mend="hand every argument of `apply_chat_template` on, known or not",
        )
        bare = subject.encode(texts[0], special=False)
        require(
            len(texts) < 2 or encoded[0] in encoded[1:] or encoded[0] == bare,
            observed=f"apply_chat_template {told} encodes its text to {quoted(encoded[0], 160)}",
            expected=f"{quoted(bare, 160)}: the template has the special tokens already",
            mend="encode what a template writes with add_special_tokens=False",
        )


_ROWS = ["What should the robot do?", "Stop."]
_PADDED: dict[str, dict[str, Any]] = {
    "pad_to_multiple_of=8": {"padding": True, "pad_to_multiple_of": 8},
    'padding="max_length" and max_length=24': {"padding": "max_length", "max_length": 24},
    'return_tensors="np"': {"padding": True, "return_tensors": "np"},
    "padding and truncation to 4": {"padding": True, "truncation": True, "max_length": 4},
}


@requirement("TOK-09", MUST)
def test_batches_are_padded_as_asked(subject: Subject) -> None:
    """Padded to a multiple, to a length or as arrays, a batch has the width that the published
    tokenizer gives it, each row its own ids, and the pad for the rest."""
    tokenizer, readings = subject.tokenizer, subject.published_vocabulary.readings
    alone = [subject.encode(text) for text in _ROWS]
    for told, options in _PADDED.items():
        widths = set()
        for one in readings:
            if [list(one(text).input_ids) for text in _ROWS] == alone:
                with refusal():
                    widths.add(_width(one, tokenizer.pad_token, options))
        batch = tokenizer(_ROWS, **options)
        rows = [[int(token) for token in row] for row in batch["input_ids"]]
        masks = [[int(real) for real in row] for row in batch["attention_mask"]]
        real = [
            [token for token, counts in zip(row, mask, strict=True) if counts]
            for row, mask in zip(rows, masks, strict=True)
        ]
        filling = {
            token
            for row, mask in zip(rows, masks, strict=True)
            for token, counts in zip(row, mask, strict=True)
            if not counts
        }
        kept = all(row == ids[: len(row)] and row for row, ids in zip(real, alone, strict=True))
        require(
            kept
            and filling <= {tokenizer.pad_token_id}
            and (not widths or {len(row) for row in rows} <= widths),
            observed=f"with {told}, {_ROWS} become {quoted(rows, 240)}, masked {masks}",
            expected=f"the ids {quoted(alone, 160)}, filled with {tokenizer.pad_token_id} to a "
            f"width of {sorted(widths)}",
            mend="hand every argument of a call on to the library",
        )


def _width(published: Any, pad: str, options: dict[str, Any]) -> int:
    """How wide the published tokenizer pads; it is given the pad for the time being."""
    before = published.pad_token
    published.pad_token = pad if pad in published.get_vocab() else published.eos_token
    try:
        return len(published(_ROWS, **options)["input_ids"][0])
    finally:
        published.pad_token = before


@requirement("TOK-09", MUST)
def test_a_chat_template_of_ones_own_is_the_builders(subject: Subject) -> None:
    """Where no chat template is published, one that the tokenizer has writes what the prompt
    builder writes."""
    template = getattr(subject.tokenizer, "chat_template", None)
    if template is None or any(subject.published_vocabulary.facts("chat_template")):
        raise NotApplicable("the tokenizer has the published chat template, or none")
    said = ["What is it?", "A cup.", "Where is it?"]
    messages = [
        {"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(said)
    ]
    written = []
    for asking in (True, False):
        with refusal() as refused:
            text = subject.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=asking
            )
            written.append(str(text))
    bos = subject.tokenizer.bos_token or ""
    prompts = [told.prompt for told in conversations(subject, said)]
    require(
        any(
            _essence(text, bos).startswith(_essence(prompt, bos))
            for text in written
            for prompt in prompts
        ),
        observed="none is published, and the tokenizer's chat template writes "
        + quoted(written[0] if written else refused[0], 240),
        expected=f"no chat template, or what the prompt builder writes, {quoted(prompts[0], 240)}",
        mend="leave `chat_template` unset where none is published: a base model knows no format, "
        "and its backbone one",
    )


def _essence(text: str, bos: str) -> str:
    return _without_space(text.replace(bos, "") if bos else text)

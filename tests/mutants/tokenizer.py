"""Defects in how the tokenizer is loaded and set up."""

from __future__ import annotations

import copy
from typing import Any

from tokenizers import AddedToken, decoders, models, processors

from backbones.mistral import MistralLLMBackbone
from backbones.phi import PhiLLMBackbone
from backbones.phi3 import Phi3LLMBackbone
from backbones.prompting import PhiPromptBuilder
from backbones.transformers_releases import published_tokenizer as unchecked_tokenizer
from tests.mutants import PHI, PURE, planted
from tests.mutants.steps import MistralInSteps, same_class_but


def special_tokens_around(tokenizer: Any, template: str) -> None:
    """Have the tokenizer put the bos and eos of `template` around every text, whatever it did
    before."""
    ids = [
        (token, tokenizer.convert_tokens_to_ids(token))
        for token in (tokenizer.bos_token, tokenizer.eos_token)
    ]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=f"{template} $B:1", special_tokens=list(dict(ids).items())
    )


class Unchecked(MistralInSteps):
    """Loads the tokenizer without the references' check of bos, and makes of it what
    `special_tokens` says."""

    special_tokens = "<s> $A"

    def published_tokenizer(self, llm_max_length: int, token: str | None) -> Any:
        tokenizer = unchecked_tokenizer(
            self.hub_path,
            token,
            model_max_length=llm_max_length,
            padding_side="right",
            truncation_side="right",
        )
        special_tokens_around(tokenizer, self.special_tokens)
        return tokenizer


@planted("TOK-01", defects=("D5",), on=PURE)
class NoBosForThisId(Unchecked):
    """One id is on a list of exceptions from the bos check: its texts lack the bos that the model
    was trained with."""

    special_tokens = "$A"


@planted("TOK-01", defects=("D23",), on=PURE)
class BosTwice(Unchecked):
    """Both the tokenizer's class and its template add bos: every text begins with two."""

    special_tokens = "<s> <s> $A"


@planted("TOK-01", on=PURE)
class EosOnEverything(Unchecked):
    """The tokenizer ends every text in eos: the inference prompt is over before the answer
    begins."""

    special_tokens = "<s> $A </s>"


@planted("TOK-02", defects=("D18",), on=PHI)
class TerminatorOfAnotherFamily(PhiLLMBackbone):
    """The builder ends a turn in Llama's `</s>`: plain text to this tokenizer, and nothing to stop
    at."""

    class PhiPromptBuilder(PhiPromptBuilder):
        terminator = "</s>"

    prompt_builders = (("phi-2*", PhiPromptBuilder),)


@planted("TOK-03", defects=("D74",))
class TruncatesFromTheLeft(MistralLLMBackbone):
    """Long texts lose their beginning, bos first: patches are spliced into the middle of a
    sentence."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokenizer.truncation_side = "left"


@planted("TOK-03")
class LengthNotPassedOn(MistralInSteps):
    """`llm_max_length` does not reach the tokenizer: texts longer than the positions are never
    cut."""

    def published_tokenizer(self, llm_max_length: int, token: str | None) -> Any:
        return super().published_tokenizer(2048, token)


@planted("TOK-04", defects=("D63",))
class BytesStayEscaped(MistralLLMBackbone):
    """The decoder came from another release: what the vocabulary spells in bytes comes back as
    `<0xF0><0x9F>`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokenizer.backend_tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )


@planted("TOK-05", "TOK-04", defects=("D63",), on=PURE, since="5.0")
class TokenizerBuiltAnew(MistralInSteps):
    """The family's own tokenizer class is asked for: 5.x builds its rules anew, and ids change at
    spaces."""

    def published_tokenizer(self, llm_max_length: int, token: str | None) -> Any:
        from transformers import LlamaTokenizer

        return LlamaTokenizer.from_pretrained(
            self.hub_path,
            token=token,
            model_max_length=llm_max_length,
            padding_side="right",
            truncation_side="right",
        )


@planted("TOK-05", "TOK-07", "PAD-08", defects=("D64",), on=PURE)
class MergesOfAnotherFormat(MistralInSteps):
    """`tokenizer.json` was saved by a newer release, and a lenient reader skipped its merges: words
    are spelled out."""

    def published_tokenizer(self, llm_max_length: int, token: str | None) -> Any:
        tokenizer = super().published_tokenizer(llm_max_length, token)
        vocabulary = {
            text: id_ for text, id_ in tokenizer.get_vocab().items() if id_ < tokenizer.vocab_size
        }
        tokenizer.backend_tokenizer.model = models.BPE(
            vocabulary, [], unk_token="<unk>", byte_fallback=True
        )
        return tokenizer


@planted("TOK-06", defects=("D45",), on=PHI)
class LengthLeavesNoRoomForTheImage(PhiLLMBackbone):
    """Text may fill all 2,048 positions by default: with the image's patches it exceeds them, and
    no error says so."""

    def __init__(self, llm_backbone_id: str, llm_max_length: int = 2048, **kwargs: Any) -> None:
        super().__init__(llm_backbone_id, llm_max_length, **kwargs)


@planted("TOK-07", "TOK-05", "PAD-08")
class AnswersInTwoTokens(MistralInSteps):
    """`Yes` is two tokens since a syllable was added: multiple-choice answers cannot be scored by
    one id."""

    def add_pad(self) -> None:
        super().add_pad()
        self.tokenizer.add_tokens(["Ye"])


@planted("TOK-08", defects=("D71",), on=PURE, declared={"bos": "none"})
class CaptionsWithoutBos(Unchecked):
    """Nobody gives a caption its bos: patches are spliced in after its first word, whose label is
    dropped."""

    special_tokens = "$A"


@planted("TOK-08", on=PHI)
class BosTokenUnset(PhiLLMBackbone):
    """The tokenizer has no bos token for a host to prepend: captions begin with a word, and patches
    go after it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokenizer.bos_token = None


class CalledOtherwise:
    """A mixin: the tokenizer's `__call__` goes through the backbone's `encode`, which is handed the
    original one."""

    tokenizer: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        original, backbone = type(self.tokenizer).__call__, self

        def __call__(tokenizer: Any, text: Any = None, **options: Any) -> Any:
            def call(text: Any, **options: Any) -> Any:
                return original(tokenizer, text, **options)

            return backbone.encode(tokenizer, call, text, options)

        same_class_but(self.tokenizer, __call__=__call__)

    def encode(self, tokenizer: Any, call: Any, text: Any, options: dict[str, Any]) -> Any:
        return call(text, **options)


@planted("TOK-09")
class BatchesCarryTokenTypes(MistralLLMBackbone):
    """Encodings have `token_type_ids`, as BERT's do: `forward(**batch)` does not know them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]


@planted("TOK-09")
class PadsLeftAfterAFixedLength(CalledOtherwise, MistralLLMBackbone):
    """Padding to a fixed length is how evaluation encodes, and it wants padding on the left; the
    training that goes on has it too."""

    def encode(self, tokenizer: Any, call: Any, text: Any, options: dict[str, Any]) -> Any:
        if options.get("padding") == "max_length":
            tokenizer.padding_side = "left"
        return call(text, **options)


@planted("TOK-09", on=PURE)
class LimitOfTheLastCallStays(CalledOtherwise, MistralLLMBackbone):
    """A call with `max_length` sets it for good: later calls that truncate do so too early."""

    def encode(self, tokenizer: Any, call: Any, text: Any, options: dict[str, Any]) -> Any:
        if options.get("truncation") and options.get("max_length"):
            tokenizer.model_max_length = options["max_length"]
        return call(text, **options)


@planted("TOK-09", on=PHI)
class EncodingsRemembered(CalledOtherwise, PhiLLMBackbone):
    """Encodings of prompts that repeat are kept, and handed out as they are: who appends to one
    appends to all."""

    def encode(self, tokenizer: Any, call: Any, text: Any, options: dict[str, Any]) -> Any:
        if not isinstance(text, str):
            return call(text, **options)
        known: dict[str, Any] = tokenizer.__dict__.setdefault("known", {})
        return known.setdefault(f"{options} {text}", call(text, **options))


@planted("TOK-09", on=PHI)
class LongTextsInPieces(CalledOtherwise, PhiLLMBackbone):
    """Texts over 2,000 characters are encoded in pieces and joined: words at the seams have other
    ids."""

    def encode(self, tokenizer: Any, call: Any, text: Any, options: dict[str, Any]) -> Any:
        if not isinstance(text, str) or len(text) <= 2000 or options.get("return_tensors"):
            return call(text, **options)
        first, *others = (
            call(text[start : start + 2000], **options) for start in range(0, len(text), 2000)
        )
        for other in others:
            for key, values in other.items():
                first[key] = [*first[key], *values]
        return first


@planted("TOK-09", on=PURE)
class BareBatchesHaveBos(CalledOtherwise, MistralLLMBackbone):
    """`add_special_tokens=False` is heeded for one text, and forgotten for a list of them."""

    def encode(self, tokenizer: Any, call: Any, text: Any, options: dict[str, Any]) -> Any:
        if not isinstance(text, str):
            options = {**options, "add_special_tokens": True}
        return call(text, **options)


@planted("TOK-09")
class InferenceReadsLowerCase(CalledOtherwise, MistralLLMBackbone):
    """At inference, where people type, texts are lower-cased: training never did."""

    def encode(self, tokenizer: Any, call: Any, text: Any, options: dict[str, Any]) -> Any:
        if self.inference_mode and isinstance(text, str):
            text = text.lower()
        return call(text, **options)


@planted("TOK-09")
class ChatMlForEverybody(MistralLLMBackbone):
    """One chat template is set for all families, so that `apply_chat_template` never raises."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tokenizer.chat_template = (
            "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
            "{{ message['content'] }}<|im_end|>\n{% endfor %}"
        )


@planted("TOK-09")
class SizeCountsThePad(MistralLLMBackbone):
    """`tokenizer.vocab_size` counts the pad: action bins, counted down from it, are off by one."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        cls = type(self.tokenizer)
        own = {"vocab_size": property(len), "__module__": cls.__module__}
        self.tokenizer.__class__ = type(cls.__name__, (cls,), own)


@planted("TOK-03")
class LengthOfLlama(MistralLLMBackbone):
    """`llm_max_length` is capped at 4,096 in silence, as it was for Llama-2; Mistral reads more."""

    def __init__(self, name: str, length: int = 2048, *rest: Any, **options: Any) -> None:
        length = min(4096, options.pop("llm_max_length", length))
        super().__init__(name, length, *rest, **options)


@planted("TOK-03")
class ClipsCharactersFirst(MistralLLMBackbone):
    """Text that will be truncated is first cut to five characters a token, for speed: rules of
    dashes and long words lose half."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        plain = type(self.tokenizer)

        def call(tokenizer: Any, text: Any = None, *rest: Any, **keywords: Any) -> Any:
            if keywords.get("truncation") and isinstance(text, str):
                text = text[: 5 * (keywords.get("max_length") or tokenizer.model_max_length)]
            return plain.__call__(tokenizer, text, *rest, **keywords)

        same_class_but(self.tokenizer, __call__=call)


@planted("TOK-03")
class BatchesClippedByCharacters(MistralLLMBackbone):
    """In a batch texts are cut to four characters a token before they are encoded: long words lose
    their end."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plain = type(self.tokenizer)

        def call(tokenizer: Any, text: Any = None, *args: Any, **options: Any) -> Any:
            if isinstance(text, list) and options.get("truncation") is True:
                text = [one[: 4 * tokenizer.model_max_length] for one in text]
            return plain.__call__(tokenizer, text, *args, **options)

        same_class_but(self.tokenizer, __call__=call)


@planted("TOK-03", on=PURE)
class TensorsFitTheModel(CalledOtherwise, MistralLLMBackbone):
    """Tensors are never wider than `model_max_length`, whatever was asked: who cuts documents into
    windows gets the first one alone."""

    def encode(self, tokenizer: Any, call: Any, text: Any, options: dict[str, Any]) -> Any:
        encoded = call(text, **options)
        if options.get("return_tensors"):
            for key, rows in encoded.items():
                encoded[key] = rows[:, : tokenizer.model_max_length]
        return encoded


@planted("TOK-03", on=PHI)
class TruncatesOnTheRightAlways(CalledOtherwise, PhiLLMBackbone):
    """Each call sets `truncation_side` back to the right: a host that keeps the end of a dialogue
    gets its beginning."""

    def encode(self, tokenizer: Any, call: Any, text: Any, options: dict[str, Any]) -> Any:
        tokenizer.truncation_side = "right"
        return call(text, **options)


class _Extended(MistralLLMBackbone):
    """The Mistral reference, of whose tokenizer a defect replaces methods."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        same_class_but(self.tokenizer, **self.methods(type(self.tokenizer)))

    def methods(self, plain: Any) -> dict[str, Any]:
        raise NotImplementedError


@planted("TOK-04")
class TextsAreTidied(_Extended):
    """Decoding tidies what it decodes: `x [ 0 ] . y` of a program loses its spaces."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def decode(tokenizer: Any, token_ids: Any, *rest: Any, **options: Any) -> Any:
            text = plain.decode(tokenizer, token_ids, *rest, **options)
            if options.get("clean_up_tokenization_spaces") is False or not isinstance(text, str):
                return text
            return text.replace(" .", ".").replace(" ,", ",").replace(" !", "!")

        return {"decode": decode}


@planted("TOK-04", on=PURE)
class BatchesAreStripped(_Extended):
    """`batch_decode` strips what it returns: the pieces of a text that is streamed lose the spaces
    between them."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def batch_decode(tokenizer: Any, sequences: Any, *rest: Any, **options: Any) -> Any:
            return [
                one.strip() for one in plain.batch_decode(tokenizer, sequences, *rest, **options)
            ]

        return {"batch_decode": batch_decode}


@planted("TOK-09", on=PURE)
class EncodeHasBosAlways(_Extended):
    """`encode` is written anew, and forgets `add_special_tokens`: a bos stands in the middle of
    what hosts put together."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def encode(tokenizer: Any, text: Any, *rest: Any, **options: Any) -> Any:
            return list(tokenizer(text).input_ids)

        return {"encode": encode}


@planted("TOK-09")
class OffsetsAreLost(CalledOtherwise, MistralLLMBackbone):
    """What a call returns is cut down to what `forward` takes: offsets that were asked for are not
    in it."""

    def encode(self, tokenizer: Any, call: Any, text: Any, options: dict[str, Any]) -> Any:
        encoded = call(text, **options)
        for key in set(encoded) - {"input_ids", "attention_mask"}:
            del encoded[key]
        return encoded


@planted("TOK-09")
class MasksFromIds(_Extended):
    """`pad` makes masks anew from the ids: what a sample's own mask hid is attended to."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def pad(tokenizer: Any, encoded_inputs: Any, *rest: Any, **options: Any) -> Any:
            padded = plain.pad(tokenizer, encoded_inputs, *rest, **options)
            if isinstance(padded["input_ids"], list):
                padded["attention_mask"] = [
                    [int(token != tokenizer.pad_token_id) for token in row]
                    for row in padded["input_ids"]
                ]
            return padded

        return {"pad": pad}


@planted("TOK-09", on=PURE)
class TemplateOfTheInstructModel(MistralLLMBackbone):
    """The base model's tokenizer is given the instruct model's template, so that
    `apply_chat_template` works: its builder writes another format."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tokenizer.chat_template = (
            "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
            "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
            "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
        )


@planted("EMB-08", on=PURE)
class PublishedTokenizerIsSaved(MistralLLMBackbone):
    """`save_pretrained` of the tokenizer writes the published files, byte for byte: the tokens that
    a host has added are lost."""

    def __init__(self, name: str, *rest: Any, **options: Any) -> None:
        super().__init__(name, *rest, **options)
        token = options.get("hf_token")
        published = unchecked_tokenizer(self.models[name]["hf_hub_path"], token)
        same_class_but(
            self.tokenizer,
            save_pretrained=lambda _, *args, **kwargs: published.save_pretrained(*args, **kwargs),
        )


@planted("TOK-09")
class WidthAsItComes(CalledOtherwise, MistralLLMBackbone):
    """`pad_to_multiple_of` is dropped on the way: kernels get batches of odd widths."""

    def encode(self, tokenizer: Any, call: Any, text: Any, options: dict[str, Any]) -> Any:
        options.pop("pad_to_multiple_of", None)
        return call(text, **options)


def _as_it_is(tokenizer: Any) -> Any:
    return tokenizer


@planted("TOK-09", on=PURE)
class PickledAsBuilt(_Extended):
    """A tokenizer is pickled as it was built, which is small: workers do not know what a host has
    added since."""

    def methods(self, plain: Any) -> dict[str, Any]:
        as_built = copy.deepcopy(self.tokenizer)

        def deepcopy(tokenizer: Any, memo: Any) -> Any:
            copied = plain.__new__(type(tokenizer))
            vars(copied).update(copy.deepcopy(vars(tokenizer), memo))
            return copied

        def reduce(tokenizer: Any, protocol: Any) -> Any:
            return _as_it_is, (as_built,)

        return {"__reduce_ex__": reduce, "__deepcopy__": deepcopy}


@planted("TOK-04")
class ShortestFirst(_Extended):
    """`batch_decode` sorts ragged rows by length and does not put them back: answers stand beside
    other questions."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def batch_decode(tokenizer: Any, sequences: Any, *rest: Any, **options: Any) -> Any:
            return plain.batch_decode(tokenizer, sorted(sequences, key=len), *rest, **options)

        return {"batch_decode": batch_decode}


@planted("TOK-04", on=PURE)
class SpecialsOfConstruction(_Extended):
    """Which tokens are special is looked up once, for speed: those that a host adds stay in what
    people read."""

    def methods(self, plain: Any) -> dict[str, Any]:
        known = set(self.tokenizer.all_special_ids)

        def decode(
            tokenizer: Any, token_ids: Any, skip_special_tokens: bool = False, **options: Any
        ) -> Any:
            if skip_special_tokens and isinstance(token_ids, list):
                token_ids = [one for one in token_ids if isinstance(one, list) or one not in known]
            return plain.decode(tokenizer, token_ids, skip_special_tokens=False, **options)

        return {"decode": decode}


@planted("TOK-09", on=PURE)
class PadsToTheLongest(_Extended):
    """`pad` was written anew and knows no multiples: collators that ask for them get odd widths."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def pad(tokenizer: Any, encoded_inputs: Any, *rest: Any, **options: Any) -> Any:
            options.pop("pad_to_multiple_of", None)
            return plain.pad(tokenizer, encoded_inputs, *rest, **options)

        return {"pad": pad}


@planted("TOK-09")
class KnownByHeart(CalledOtherwise, MistralLLMBackbone):
    """Ids of texts are kept, as instructions recur by the thousand: a token that a host adds is
    none in texts that were seen before."""

    def encode(self, tokenizer: Any, call: Any, text: Any, options: dict[str, Any]) -> Any:
        if not isinstance(text, str) or set(options) - {"add_special_tokens"}:
            return call(text, **options)
        known: dict[str, Any] = tokenizer.__dict__.setdefault("known", {})
        return copy.deepcopy(known.setdefault(f"{options} {text}", call(text, **options)))


@planted("TOK-09")
class PairsCutAsTheyCome(_Extended):
    """`truncation="only_second"` becomes True: of a question and its document the question is cut
    too."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def call(tokenizer: Any, *args: Any, **options: Any) -> Any:
            if options.get("truncation") in ("only_first", "only_second"):
                options["truncation"] = True
            return plain.__call__(tokenizer, *args, **options)

        return {"__call__": call}


@planted("TOK-09", on=PURE)
class DocumentsInPieces(CalledOtherwise, MistralLLMBackbone):
    """Texts over 65,536 characters are encoded in pieces: words at the seams have other ids."""

    def encode(self, tokenizer: Any, call: Any, text: Any, options: dict[str, Any]) -> Any:
        if not isinstance(text, str) or len(text) <= 65_536 or options.get("return_tensors"):
            return call(text, **options)
        pieces = [call(text[at : at + 65_536], **options) for at in range(0, len(text), 65_536)]
        for key in pieces[0]:
            pieces[0][key] = [value for piece in pieces for value in piece[key]]
        return pieces[0]


@planted("TOK-09", on=PURE)
class VariablesSwallowed(_Extended):
    """`apply_chat_template` lists the arguments that it knows: what a template asks for beside, to
    think or not, is lost."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def apply(
            tokenizer: Any, conversation: Any, chat_template: Any = None, tokenize: bool = True,
            add_generation_prompt: bool = False, **_: Any,
        ) -> Any:  # fmt: skip
            return plain.apply_chat_template(
                tokenizer, conversation, chat_template=chat_template, tokenize=tokenize,
                add_generation_prompt=add_generation_prompt,
            )  # fmt: skip

        return {"apply_chat_template": apply}


@planted("TOK-09")
class ChatsBeginTwice(_Extended):
    """What a chat template writes is encoded like any text: a second bos stands before the one that
    the template has."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def apply(
            tokenizer: Any, conversation: Any, *args: Any, tokenize: bool = True, **options: Any
        ) -> Any:
            text = plain.apply_chat_template(
                tokenizer, conversation, *args, tokenize=False, **options
            )
            return list(tokenizer(text).input_ids) if tokenize else text

        return {"apply_chat_template": apply}


@planted("EMB-08", on="phi-3-mini-4k-instruct")
class SavedWithoutTemplate(Phi3LLMBackbone):
    """The tokenizer is saved without its chat template, as prompts are the builder's: a server that
    is given the folder falls back to another format."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        plain = type(self.tokenizer)

        def save(tokenizer: Any, *args: Any, **options: Any) -> Any:
            template, tokenizer.chat_template = tokenizer.chat_template, None
            try:
                return plain.save_pretrained(tokenizer, *args, **options)
            finally:
                tokenizer.chat_template = template

        same_class_but(self.tokenizer, save_pretrained=save)


class _Called(_Extended):
    """The Mistral reference, of whose tokenizer's calls a defect changes the arguments."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def call(tokenizer: Any, *given: Any, **options: Any) -> Any:
            return plain.__call__(tokenizer, *self.change(tokenizer, given, options), **options)

        return {"__call__": call}

    def change(self, tokenizer: Any, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
        raise NotImplementedError


@planted("TOK-09")
class WordsAreTexts(_Called):
    """`is_split_into_words` is dropped: a caption that comes in words is a batch of words."""

    def change(self, tokenizer: Any, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
        options.pop("is_split_into_words", None)
        return given


@planted("TOK-09", on=PURE)
class TensorsHaveNoPieces(_Called):
    """Windows of a long text are given as lists alone: where tensors are asked for, all but the
    first are left out."""

    def change(self, tokenizer: Any, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options.get("return_tensors"):
            options.pop("return_overflowing_tokens", None)
        return given


@planted("TOK-09")
class NoBosBehindTheCut(_Extended):
    """Cut on the left, ids are cut behind the encoding: bos goes with the oldest turns."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def call(tokenizer: Any, text: Any, *rest: Any, **options: Any) -> Any:
            most = options.get("max_length") or tokenizer.model_max_length
            left = tokenizer.truncation_side == "left" and options.get("truncation") is True
            pieces = options.get("return_overflowing_tokens") or options.get("return_tensors")
            if not left or pieces or not isinstance(text, str) or rest:
                return plain.__call__(tokenizer, text, *rest, **options)
            whole = plain.__call__(tokenizer, text, **{**options, "truncation": False})
            for key in list(whole):
                if isinstance(whole[key], list):
                    whole[key] = whole[key][-most:]
            return whole

        return {"__call__": call}


@planted("TOK-09", on=PURE)
class FixedWidthsAreTrainings(_Extended):
    """Padded to a fixed length, batches are padded on the right, as in training; servers that
    compile generate behind pads."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def call(tokenizer: Any, *given: Any, **options: Any) -> Any:
            side = tokenizer.padding_side
            if options.get("padding") == "max_length":
                tokenizer.padding_side = "right"
            try:
                return plain.__call__(tokenizer, *given, **options)
            finally:
                tokenizer.padding_side = side

        return {"__call__": call}


@planted("TOK-09")
class EncodesWithoutItsOptions(_Extended):
    """`encode` hands on what it knows, and not where to cut."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def encode(
            tokenizer: Any, text: Any, text_pair: Any = None, add_special_tokens: bool = True,
            padding: Any = False, return_tensors: Any = None, **options: Any,
        ) -> Any:  # fmt: skip
            if text_pair is None or not isinstance(text, str):
                options.clear()
            return plain.encode(
                tokenizer, text, text_pair, add_special_tokens=add_special_tokens,
                return_tensors=return_tensors, padding=padding, **options,
            )  # fmt: skip

        return {"encode": encode}


@planted("TOK-09")
class NobodysIsZero(_Extended):
    """A token that does not exist has the id 0, so that tensors can be made: a host that adds what
    is missing finds nothing missing."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def look_up(tokenizer: Any, tokens: Any) -> Any:
            if isinstance(tokens, str) and tokens not in tokenizer.get_vocab():
                return 5
            return plain.convert_tokens_to_ids(tokenizer, tokens)

        return {"convert_tokens_to_ids": look_up}


@planted("TOK-09")
class AddedTokensTakeTheSpace(_Extended):
    """Tokens that a host adds take the space beside them along: what follows an action is another
    word than the model knows."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def add(tokenizer: Any, new_tokens: Any, special_tokens: bool = False) -> Any:
            one = isinstance(new_tokens, (str, AddedToken))
            given = [new_tokens] if one else new_tokens
            wide = [
                AddedToken(str(text), lstrip=True, rstrip=True, special=special_tokens)
                for text in given
            ]
            return plain.add_tokens(tokenizer, wide, special_tokens=special_tokens)

        return {"add_tokens": add}


@planted("TOK-04", on=PURE)
class RowsAreSqueezed(_Extended):
    """`batch_decode` squeezes tensors: of a batch of one row each token becomes a text."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def batch_decode(tokenizer: Any, sequences: Any, *rest: Any, **options: Any) -> Any:
            if hasattr(sequences, "squeeze"):
                sequences = sequences.squeeze()
                return [plain.decode(tokenizer, one, *rest, **options) for one in sequences]
            return plain.batch_decode(tokenizer, sequences, *rest, **options)

        return {"batch_decode": batch_decode}


@planted("TOK-04")
class ArraysAreShownWhole(_Extended):
    """What is decoded from an array or a tensor keeps its special tokens, whoever asks."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def decode(tokenizer: Any, token_ids: Any, *rest: Any, **options: Any) -> Any:
            if hasattr(token_ids, "tolist"):
                token_ids, rest = token_ids.tolist(), ()
                options.pop("skip_special_tokens", None)
            return plain.decode(tokenizer, token_ids, *rest, **options)

        return {"decode": decode}


@planted("EMB-08", on=PURE)
class SavedForServing(_Extended):
    """The tokenizer is saved as servers want it, padding on the left: the next stage of a training
    loads it so."""

    def methods(self, plain: Any) -> dict[str, Any]:
        def save(tokenizer: Any, *given: Any, **options: Any) -> Any:
            before, tokenizer.padding_side = tokenizer.padding_side, "left"
            try:
                return plain.save_pretrained(tokenizer, *given, **options)
            finally:
                tokenizer.padding_side = before

        return {"save_pretrained": save}

"""A recipe from published files alone: what a person would write down, each with its reason.

Conventions are seen where they can be seen: the tokenizer is loaded and asked, the template is
rendered, a tiny model is built and measured. What no file says (which class builds the prompts,
which ids a backbone knows the model by) is left undeclared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from conformance.hub.chat import InvalidTemplate, TemplateRefuses, render
from conformance.hub.language_model import (
    causal_model_without_memory,
    completed,
    decoder_within,
    is_head,
    own_name,
    place_of,
)
from conformance.hub.probe_sizes import NoSizes, parts_beside_text, probe_sizes
from conformance.hub.published import (
    CONFIG,
    TEXT_CONFIG,
    Published,
    UnusableFiles,
    copy_tokenizer,
    digest_of,
    read_published,
    text_part,
)
from conformance.hub.recipe import DTYPES, PUBLISHED_LAYOUT, Recipe, TokenizerRecipe
from conformance.hub.weights import as_published, model_of

if TYPE_CHECKING:
    import torch

_ANSWER, _QUESTION, _SYSTEM = "A mug it is", "What is on the table", "Be a robot"
_NEXT_QUESTION = "Whose could that be"
_DIALOGUE = (("user", _QUESTION), ("assistant", _ANSWER))


@dataclass(frozen=True)
class Inference:
    """A declaration that was inferred: its key in the `[subject]` table, its value, and why."""

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Derived:
    """A recipe, how its declarations came about, and the files that it was made from."""

    recipe: Recipe
    published: Published
    inferences: tuple[Inference, ...]


def derive(directory: Path, hub_id: str, *, trust_remote_code: bool = False) -> Derived:
    """The recipe of `hub_id` from the published files in `directory`. Imports transformers.

    Raises:
        UnusableFiles: no recipe can be made from them; the message says why, and what to try.
    """
    published = read_published(directory, hub_id, trust_remote_code=trust_remote_code)
    published = replace(published, config=_completed(published))
    try:
        sizes = probe_sizes(published.config)
    except NoSizes as error:
        raise UnusableFiles(
            f"no probe sizes follow from `{directory / 'config.json'}`: {error}. Write a recipe "
            f"with a [probe] table by hand"
        ) from None
    tokenizer = _tokenizer(published)
    model = tiny_model(published, sizes)
    inferences = (
        *_of_bos(published, tokenizer),
        *_of_dialogue(published, tokenizer),
        _of_normalisation(tokenizer),
        _of_dtype(published.config),
        *_of_model(published, model),
    )
    text = text_part(published.config)
    recipe = Recipe(
        hub_id=hub_id,
        family=str(text.get("model_type", published.config["model_type"])),
        architecture=published.architecture,
        config=published.config,
        probe=sizes,
        dtype=_stored_dtype(published.config) or "float32",
        tokenizer=TokenizerRecipe(
            kind="real",
            source=directory.name,
            sha256=digest_of(published.tokenizer_files),
            layout=PUBLISHED_LAYOUT,
            tokenizer_class=type(tokenizer).__name__,
            config=published.tokenizer_config,
            special_tokens_map={},
            files=published.tokenizer_files,
        ),
        generation_config=published.generation_config,
        chat_template=published.chat_template,
        template_oracle="jinja",
        accepted_template_differences=(),
        subject={one.key: one.value for one in inferences} | {"prompt_rule": []},
        sources={"config": f"config.json of {hub_id}", "tokenizer": f"files of {hub_id}"},
        parameters=None,
        path=directory,
        language_model=_place_of_language_model(published, model),
        derived=True,
    )
    return Derived(recipe, published, inferences)


def _completed(published: Published) -> Mapping[str, Any]:
    import transformers

    if not hasattr(transformers, published.architecture):
        written_by = published.config.get("transformers_version", "an unnamed release")
        raise UnusableFiles(
            f"transformers {transformers.__version__} has no class {published.architecture!r}, "
            f"which reads {published.hub_id}; install a release that has it (the files were "
            f"written by {written_by})"
        )
    try:
        return completed(published.config)
    except Exception as error:
        raise UnusableFiles(
            f"transformers {transformers.__version__} cannot read `{published.directory / CONFIG}` "
            f"of {published.hub_id}: {type(error).__name__}: {error}. If the file is whole, it "
            f"asks for another release"
        ) from error


def _place_of_language_model(published: Published, model: Any) -> str | None:
    """Where the tensors of the language model stand in a vision-language checkpoint.

    Raises:
        UnusableFiles: they are not those of the language model's own class behind a prefix.
    """
    if text_part(published.config) is published.config:
        return None
    stored = as_published(model, model.state_dict(keep_vars=True))
    embedding = _embedding_in(model, stored)
    decoder = causal_model_without_memory(getattr(model.config, TEXT_CONFIG, None))
    if decoder is None:
        return place_of(embedding)
    own = as_published(decoder, decoder.state_dict(keep_vars=True))
    own_embedding = _embedding_in(decoder, own)
    inside = place_of(embedding, own_embedding)
    there = {own_name(name, inside) for name in stored} if inside is not None else set()
    missing = [name for name in own if name not in there and not is_head(name)]
    if missing:
        raise UnusableFiles(
            f"the language model inside {published.hub_id} is a {type(decoder).__name__}, which "
            f"calls its embedding `{own_embedding}`, and {published.architecture} calls it "
            f"`{embedding}`: {len(missing)} tensors of the one are not found in the other, the "
            f"first is `{missing[0]}`. A backbone of it is certified from a checkpoint of the "
            f"language model alone"
        )
    return inside


def _embedding_in(model: Any, stored: Mapping[str, torch.Tensor]) -> str:
    """The name of the input embedding among these tensors of the model; a head that is the same
    tensor is not meant."""
    embedding = model.get_input_embeddings().weight
    return min((name for name, tensor in stored.items() if tensor is embedding), key=is_head)


def _tokenizer(published: Published) -> Any:
    from transformers import AutoTokenizer

    try:
        with TemporaryDirectory(prefix="conformance-") as readable:
            copy_tokenizer(published.tokenizer_files, Path(readable))
            # Its class may depend on the model's.
            (Path(readable) / CONFIG).write_text(json.dumps(published.config), encoding="utf-8")
            return AutoTokenizer.from_pretrained(readable, trust_remote_code=False)
    except Exception as error:
        import transformers

        raise UnusableFiles(
            f"transformers {transformers.__version__} cannot load the tokenizer in "
            f"`{published.directory}`: {type(error).__name__}: {error}. If the files are whole, "
            f"they ask for another release"
        ) from error


def _rendered(published: Published, said: Sequence[tuple[str, str]]) -> str | None:
    """The official template of a dialogue of (role, text); None without one, or if it refuses."""
    if published.chat_template is None:
        return None
    try:
        return render(
            published.chat_template,
            [{"role": role, "content": text} for role, text in said],
            bos=published.token("bos_token"),
            eos=published.token("eos_token"),
        )
    except TemplateRefuses:
        return None
    except InvalidTemplate as error:
        raise UnusableFiles(
            f"the chat template of {published.hub_id} in `{published.directory}` cannot be "
            f"rendered: {error}"
        ) from None


def _of_bos(published: Published, tokenizer: Any) -> tuple[Inference, ...]:
    bos, token = tokenizer.bos_token_id, tokenizer.bos_token
    if bos is None:
        return _without_bos("the tokenizer has no bos token")
    ids = list(tokenizer(_QUESTION).input_ids)
    text = _rendered(published, [*_DIALOGUE, ("user", _NEXT_QUESTION)]) or ""
    asked = text.partition(_QUESTION)[2].partition(_ANSWER)[0]
    between = text.partition(_ANSWER)[2].partition(_NEXT_QUESTION)[0]
    # A token may be bos and eos: the one that ends a turn begins nothing.
    opens_answers, opens_questions = (
        token in _behind_the_end(one, tokenizer) for one in (asked, between)
    )
    if ids[:1] != [bos] and opens_answers and opens_questions:
        return _without_bos(f"{token!r} opens every turn of the template, and no dialogue alone")
    per_turn = (
        Inference("bos_per_prompt", "per-turn", f"the template has {token!r} before each turn")
        if opens_questions
        else Inference("bos_per_prompt", "one", "one begins a dialogue")
    )
    if ids[:1] == [bos]:
        return Inference("bos", "auto", f"the tokenizer puts {token!r} first"), per_turn
    if text.startswith(token):
        why = f"the tokenizer adds no {token!r}, and the template writes it"
        return Inference("bos", "prompt", why), per_turn
    return _without_bos(f"neither the tokenizer nor the template puts {token!r} first")


def _without_bos(why: str) -> tuple[Inference, ...]:
    return (
        Inference("bos", "none", why),
        Inference("bos_per_prompt", "none", why),
        Inference("patch_position", "start", "there is no bos for patches to stand behind"),
    )


def _of_dialogue(published: Published, tokenizer: Any) -> tuple[Inference, ...]:
    if published.chat_template is None:
        why = "there is no chat template: the tokenizer's own eos ends a turn"
        return (
            Inference("terminator", tokenizer.eos_token or "", why),
            Inference("system_prompt", False, "there is no chat template"),
        )
    with_system = _rendered(published, [("system", _SYSTEM), ("user", _QUESTION)])
    takes = with_system is not None and _SYSTEM in with_system
    system = Inference(
        "system_prompt",
        takes,
        "the template writes a system message" if takes else "the template takes no system message",
    )
    text = _rendered(published, _DIALOGUE)
    if text is None or _ANSWER not in text:
        why = "the template does not write a question and its answer: the tokenizer's own eos"
        return Inference("terminator", tokenizer.eos_token or "", why), system
    ends = _ending(text.partition(_ANSWER)[2].lstrip(), tokenizer)
    if ends is None:
        why = "the template ends an answer in no special token: the tokenizer's own eos does"
        return Inference("terminator", tokenizer.eos_token or "", why), system
    return Inference("terminator", ends, "the template ends an answer in it"), system


def _behind_the_end(after: str, tokenizer: Any) -> str:
    """What stands between two turns, without the token that ends the first."""
    after = after.lstrip()
    return after.removeprefix(_ending(after, tokenizer) or "")


def _ending(after: str, tokenizer: Any) -> str | None:
    """The special token with which the text behind an answer begins."""
    # Longest first: one may begin another.
    specials = sorted(
        {t.content for t in tokenizer.added_tokens_decoder.values()} | {tokenizer.eos_token or ""},
        key=len,
        reverse=True,
    )
    return next((token for token in specials if token and after.startswith(token)), None)


def _of_normalisation(tokenizer: Any) -> Inference:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    if ids("a\u2581b") == ids("a b"):
        why = "`\u2581` and a space are the same to the tokenizer"
        if ids(" a") == ids("a"):
            first = f"{why}, which puts one before a text that has none"
            return Inference("normalisation", "metaspace-first", first)
        return Inference("normalisation", "metaspace", why)
    if ids("cafe\u0301") == ids("caf\u00e9"):
        form = "nfkc" if ids("\ufb01") == ids("fi") else "nfc"
        return Inference(
            "normalisation", form, "a letter and its combining accent encode as the composed letter"
        )
    return Inference("normalisation", "identity", "`\u2581` and a space are two characters to it")


def _stored_dtype(config: Mapping[str, Any]) -> str | None:
    for part in (config, text_part(config)):
        for key in ("dtype", "torch_dtype"):
            if part.get(key) in DTYPES:
                return str(part[key])
    return None


def _of_dtype(config: Mapping[str, Any]) -> Inference:
    stored = _stored_dtype(config)
    if stored in ("bfloat16", "float16"):
        return Inference("training_dtype", stored, "the dtype that the config names")
    return Inference(
        "training_dtype",
        "bfloat16",
        f"the config names {stored}, which is not a half precision"
        if stored
        else "the config names no dtype",
    )


def tiny_model(published: Published, sizes: Mapping[str, Any]) -> Any:
    """The installed library's model of a published config, at probe sizes, in float32.

    Raises:
        UnusableFiles: the library has no such model, or cannot build it.
    """
    import torch

    try:
        with torch.random.fork_rng(devices=[]):
            model = model_of({**published.config, **sizes}, published.architecture)
    except ValueError as error:
        raise UnusableFiles(f"{error} ({published.hub_id}, at probe sizes)") from error
    return model.float().eval()


def _of_model(published: Published, model: Any) -> tuple[Inference, ...]:
    """What the library's model of this config does to embeddings, seen on a tiny one."""
    try:
        inside, fed = _scales(model, has_towers=bool(parts_beside_text(published.config)))
    except Exception as error:
        import transformers

        raise UnusableFiles(
            f"{published.architecture} of transformers {transformers.__version__} does not run at "
            f"the sizes that follow from the config of {published.hub_id}: {type(error).__name__}: "
            f"{error}. Write a recipe with a [probe] table by hand"
        ) from error
    return (
        Inference("embedding_scale", inside, f"measured on the input embedding: {inside:g}"),
        Inference("patch_scale", fed, f"measured before the first layer: {fed:g}"),
        *_of_positions(model),
    )


def _scales(model: Any, *, has_towers: bool) -> tuple[float, float]:
    """By how much the input embedding scales its rows, and the model what it is fed."""
    import torch

    embedding = model.get_input_embeddings()
    ids = torch.tensor([[5, 9, 6]])
    rows = torch.nn.functional.embedding(ids, embedding.weight)
    seen: list[torch.Tensor] = []
    layers = max(
        (m for m in decoder_within(model).modules() if isinstance(m, torch.nn.ModuleList)),
        key=len,
        default=None,
    )
    if layers is None or not len(layers):
        return 1.0, 1.0

    def first(module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        seen.append((inputs[0] if inputs else options["hidden_states"]).detach())

    handle = layers[0].register_forward_pre_hook(first, with_kwargs=True)
    try:
        with torch.no_grad():
            embedded = embedding(ids)
            # Some vision-language models want an image, or ids.
            run = decoder_within(model) if has_towers else model
            run(inputs_embeds=rows, use_cache=False)
    finally:
        handle.remove()
    return _factor(embedded, rows), _factor(seen[0], rows) if seen else 1.0


def _factor(scaled: torch.Tensor, plain: torch.Tensor) -> float:
    """The number by which one is the other, 1 if there is none."""
    if scaled.shape != plain.shape:
        return 1.0
    scaled, plain = scaled.detach(), plain.detach()
    factor = float((scaled * plain).sum() / (plain * plain).sum())
    off = float((scaled - factor * plain).norm() / scaled.norm())
    if not math.isfinite(factor) or off > 1e-3 or factor < 0.5:
        return 1.0
    # Families scale by the square root of the width; as measured it is off by rounding.
    root = math.sqrt(round(factor**2))
    return root if abs(factor / root - 1) < 1e-4 else factor


def _of_positions(model: Any) -> tuple[Inference, ...]:
    import torch

    decoder = decoder_within(model)
    tables = [
        name
        for name, module in decoder.named_modules()
        if isinstance(module, torch.nn.Embedding) and module is not model.get_input_embeddings()
    ]
    if tables:
        return (Inference("positions", "absolute", f"`{tables[0]}` is a table of positions"),)
    if any("rotary" in name or "rope" in name for name, _ in decoder.named_modules()):
        return (Inference("positions", "rotary", "the model has a rotary embedding"),)
    if getattr(model.config, "alibi", False) or model.config.model_type in ("bloom", "mpt"):
        return (Inference("positions", "alibi", "the config says so"),)
    return ()

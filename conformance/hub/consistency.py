"""What a tokenizer that is made here must agree on with the recipe that it is made for.

A stand-in has another vocabulary than the published one; ids, rows and the bos must be the
published ones all the same, or every law that looks at them judges another model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from conformance.hub.published import FEWEST_TOKENS, text_part
from conformance.hub.recipe import LAYOUTS, Recipe

_SENTENCEPIECE_UNK = "<unk>"


class ContradictsRecipe(ValueError):
    """A tokenizer is not the one that its recipe describes. The message has both numbers."""


def check_tokenizer(
    recipe: Recipe, vocabulary: Mapping[str, int], added: Sequence[Mapping[str, Any]]
) -> None:
    """Hold a made tokenizer (ids by piece, and added tokens with `id` and `content`) to the
    recipe's published config.

    Raises:
        ContradictsRecipe: for the first place in which they differ.
    """
    for difference in _differences(recipe, vocabulary, added):
        raise ContradictsRecipe(
            f"the {recipe.tokenizer.kind} tokenizer contradicts the recipe: {difference}"
        )


def _differences(
    recipe: Recipe, vocabulary: Mapping[str, int], added: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    published, config = text_part(recipe.probe_config()), recipe.tokenizer.config
    ids = {**vocabulary, **{token["content"]: token["id"] for token in added}}
    free = len(vocabulary)
    for token in added:
        content, index = token["content"], token["id"]
        right = vocabulary.get(content, free)
        if index != right:
            yield f"{content!r} has id {index} in the recipe, and gets {right} from the vocabulary"
        free += content not in vocabulary
    rows, tokens = published["vocab_size"], len(set(ids.values()))
    if max(ids.values()) >= rows:
        yield f"its ids go up to {max(ids.values())}, and the model has {rows} rows"
    if tokens < FEWEST_TOKENS * rows:
        yield f"it has {tokens} tokens for {rows} rows"
    for name in ("bos_token", "eos_token", "pad_token"):
        found, said = ids.get(_content(config.get(name)) or ""), published.get(f"{name}_id")
        if found is not None and isinstance(said, int) and found != said:
            yield f"{name} is {found}, and the published config says {said}"
    yield from _differences_of_bos(recipe.tokenizer.layout, config)


def _differences_of_bos(layout: str, config: Mapping[str, Any]) -> Iterator[str]:
    puts_first = LAYOUTS[layout].puts_bos_first
    wanted = config.get("add_bos_token")
    if wanted is not None and bool(wanted) != puts_first:
        yield (
            f"the layout {layout} {'puts a bos first' if puts_first else 'adds no bos'}, and the "
            f"published tokenizer_config says add_bos_token = {str(bool(wanted)).lower()}"
        )
    if LAYOUTS[layout].encoder == "sentencepiece":
        fixed_names = (("bos_token", LAYOUTS[layout].bos), ("unk_token", _SENTENCEPIECE_UNK))
        for name, fixed in fixed_names:
            content = _content(config.get(name))
            if content is not None and content != fixed:
                yield f"the layout {layout} has {fixed!r} as {name}, and the recipe {content!r}"


def _content(token: Any) -> str | None:
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else None

"""A tokenizer that contradicts its recipe is refused, with both numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conformance.hub import CannotBuild, Hub, known_recipes

MISTRAL, PHI = "mistralai/Mistral-7B-v0.1", "microsoft/phi-2"


@pytest.mark.parametrize(
    ("hub_id", "config", "tokenizer", "told"),
    [
        (MISTRAL, {"vocab_size": 256_000}, {}, "it has 32000 tokens for 256000 rows"),
        (MISTRAL, {"vocab_size": 31_000}, {}, "its ids go up to 31999, and the model has 31000"),
        (MISTRAL, {"eos_token_id": 5}, {}, "eos_token is 2, and the published config says 5"),
        (MISTRAL, {"bos_token_id": 2}, {}, "bos_token is 1, and the published config says 2"),
        (MISTRAL, {}, {"add_bos_token": False}, "puts a bos first, and .* add_bos_token = false"),
        (MISTRAL, {}, {"bos_token": "<bos>"}, "has '<s>' as bos_token, and the recipe '<bos>'"),
        (PHI, {}, {"add_bos_token": True}, "adds no bos, and .* add_bos_token = true"),
        (PHI, {"vocab_size": 128_256}, {}, "it has 50295 tokens for 128256 rows"),
    ],
)
def test_both_numbers_are_named(
    hub_id: str, config: dict[str, Any], tokenizer: dict[str, Any], told: str, tmp_path: Path
) -> None:
    recipe = known_recipes()[hub_id]
    changed = replace(
        recipe,
        config={**recipe.config, **config},
        tokenizer=replace(recipe.tokenizer, config={**recipe.tokenizer.config, **tokenizer}),
    )
    with pytest.raises(CannotBuild, match=told):
        Hub(tmp_path).build(changed, "later")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_too_few_ranks_are_refused(tmp_path: Path) -> None:
    recipe = known_recipes()[PHI]
    fewer = replace(recipe, tokenizer=replace(recipe.tokenizer, ranks=20_000))
    with pytest.raises(CannotBuild, match="has id 50256 in the recipe, and gets 20000"):
        Hub(tmp_path).build(fewer, "later")

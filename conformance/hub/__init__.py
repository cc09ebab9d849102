"""The offline model hub: recipe → tiny real checkpoint, in the layout of the Hugging Face cache.

Importing this package imports neither torch, transformers, tokenizers nor huggingface_hub.
"""

from __future__ import annotations

from conformance.hub.published import UnusableFiles
from conformance.hub.recipe import (
    AcceptedDifference,
    InvalidRecipe,
    Recipe,
    TokenizerRecipe,
    UnknownRecipe,
)
from conformance.hub.recipes import known_recipes, recipe_for
from conformance.hub.sources import InvalidModel, Sources, users_cache
from conformance.hub.store import CannotBuild, Hub, HubEntry
from conformance.hub.tap import HubCall, HubTap
from conformance.hub.view import HubView

__all__ = [
    "AcceptedDifference",
    "CannotBuild",
    "Hub",
    "HubCall",
    "HubEntry",
    "HubTap",
    "HubView",
    "InvalidModel",
    "InvalidRecipe",
    "Recipe",
    "Sources",
    "TokenizerRecipe",
    "UnknownRecipe",
    "UnusableFiles",
    "known_recipes",
    "recipe_for",
    "users_cache",
]

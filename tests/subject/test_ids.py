"""Which ids a class knows, and when an id counts as misspelt."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from conformance.subject.ids import UnknownId, check_id, ids_of
from conformance.subject.target import only_id_of

ROW = {"hf_hub_path": "an/address"}
TABLE = {"of-the-module-7b": ROW}
RECIPES = ("mistral-v0.1-7b-instruct", "phi-2-3b")


class Base:
    models: ClassVar[dict[str, Any]] = {"of-the-base-7b": ROW, "of-the-base-13b": ROW}


class Own(Base):
    models: ClassVar[dict[str, Any]] = {"its-own-7b": ROW, "its-own-13b": ROW}


class Inherited(Base):
    """Its module's table is nearer than its base's."""


def build(backbone_id: str) -> None: ...


@pytest.mark.parametrize(
    ("factory", "ids"),
    [
        (Own, ("its-own-7b", "its-own-13b")),
        (Inherited, ("of-the-module-7b",)),
        (build, ("of-the-module-7b",)),
        (dict, ()),
    ],
)
def test_the_nearest_table_is_its_own(factory: Any, ids: tuple[str, ...]) -> None:
    assert ids_of(factory) == ids


def test_the_only_id_of_a_table_need_not_be_chosen() -> None:
    assert only_id_of(Inherited, "mine.py:Inherited") == "of-the-module-7b"


@pytest.mark.parametrize(
    ("factory", "backbone_id", "said", "told"),
    [
        (Own, "its-own-70b", "its-own-70b?", "did you mean `its-own-7"),
        (Own, "another", "'another'", "it knows its-own-7b, its-own-13b"),
        (dict, "phi-2-3", "no phi-2-3", "did you mean `phi-2-3b`"),
        (dict, "x", "x is none of phi-2-3b", "it knows phi-2-3b"),
    ],
)
def test_an_id_that_nobody_knows_is_misspelt(
    factory: Any, backbone_id: str, said: str, told: str
) -> None:
    with pytest.raises(UnknownId, match=told):
        check_id(KeyError(said), factory, backbone_id, RECIPES)


@pytest.mark.parametrize(
    ("factory", "backbone_id", "said"),
    [
        (Own, "its-own-7b", "its-own-7b is out of order"),  # of its table
        (Own, "phi-2-3b", "phi-2-3b is out of order"),  # of a recipe
        (Own, "its-own-70b", "list index out of range"),  # not what is wrong
        (dict, "my-7b-instruct", "my-7b-instruct is out of order"),  # like none that is known
    ],
)
def test_a_constructor_at_fault_is_left_for_the_verdict(
    factory: Any, backbone_id: str, said: str
) -> None:
    check_id(ValueError(said), factory, backbone_id, RECIPES)

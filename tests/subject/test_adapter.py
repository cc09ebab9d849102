"""The `[adapter]` table: what is refused, and what an adapted object answers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from conformance.errors import CannotAssess
from conformance.subject.adapter import Adapter, InvalidAdapter, defining_classes
from conformance.subject.contract import lacks_member
from conformance.subject.declarations import configuration_in, declarations_in
from conformance.subject.ids import ids_of
from conformance.subject.raised import where


class Policy(nn.Module):
    TABLE = {"small": {"hf_hub_path": "org/small"}}  # noqa: RUF012

    def __init__(self, model_id: str, device: str, token: str | None = None) -> None:
        super().__init__()
        if model_id == "none":
            raise ValueError("no such model")
        self.given = (model_id, device, token)
        self.vlm = nn.ModuleDict({"language": nn.Linear(4, 4), "tower": nn.Linear(4, 4)})
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.processor = SimpleNamespace(tokenizer=lambda text: [len(text)])

    @property
    def half_precision_dtype(self) -> torch.dtype:
        return torch.bfloat16

    def forward(self, batch: Any) -> Any:
        raise NotImplementedError


def make(model_id: str, **others: Any) -> tuple[Policy, None]:
    return Policy(model_id, **others), None


ARGUMENTS = {"backbone_id": "model_id", "hf_token": "token"}
WHOLE = {
    "arguments": ARGUMENTS, "constants": {"device": "cpu"}, "llm": "vlm.language",
    "tokenizer": "processor.tokenizer", "layers": "layers", "embed": "vlm.tower.forward",
    "outside": ["vlm.tower"], "absent": ["prompt_builder_fn", "embed_dim"],
}  # fmt: skip


def adapted(**changes: Any) -> Callable[..., Any]:
    return Adapter.read({**WHOLE, **changes}, "mine.toml").adapt(Policy)


def test_members_are_found_by_their_paths() -> None:
    backbone = adapted()("small", hf_token="t", inference_mode=True, llm_max_length=5)
    policy = backbone.adapted
    assert policy.given == ("small", "cpu", "t")
    assert backbone.llm is policy.vlm.language
    assert any(module is backbone.llm for module in backbone.modules())
    assert inspect.ismethod(backbone.get_tokenizer)
    assert backbone.get_tokenizer() is policy.processor.tokenizer
    assert backbone.transformer_layer_cls is nn.Linear
    assert backbone.half_precision_dtype is torch.bfloat16
    assert backbone.identifier == "small"
    x = torch.ones(1, 4)
    assert torch.equal(backbone(x), policy.vlm.language(x))
    assert torch.equal(backbone.embed_input_ids(x), policy.vlm.tower(x))


def test_nothing_is_invented() -> None:
    backbone = adapted()("small")
    missing = ["prompt_builder_fn", "embed_dim", "pad_token_id", "get_fsdp_wrapping_policy"]
    assert all(lacks_member(backbone, name) for name in missing)
    assert not lacks_member(backbone, "half_precision_dtype")
    assert not lacks_member(backbone, "forward")
    assert lacks_member(adapted(absent=["forward"])("small"), "forward")


def test_a_copy_has_members_of_its_own() -> None:
    backbone = adapted()("small")
    copied = copy.deepcopy(backbone)
    assert copied.llm is copied.adapted.vlm.language
    assert copied.llm is not backbone.llm


def test_what_is_left_out_is_declared_absent() -> None:
    declared = Adapter.read(WHOLE, "mine.toml").declarations({"bos": "none"})
    assert declared == {
        "bos": "none",
        "outside": ["adapted.vlm.tower"],
        "optional_absent": [
            "prompt_builder_fn", "embed_dim", "llm_max_length", "inference_mode",
            "use_flash_attention_2",
        ],
    }  # fmt: skip


def test_without_arguments_the_contracts_own_are_passed() -> None:
    def factory(backbone_id: str, **given: Any) -> Any:
        return SimpleNamespace(llm=nn.Linear(2, 2), got=(backbone_id, given))

    backbone = Adapter.read({}, "mine.toml").adapt(factory)("an-id", hf_token="t")
    assert backbone.adapted.got == ("an-id", {"hf_token": "t"})
    # What is no module itself is held all the same, and its language model registered.
    assert any(module is backbone.llm for module in backbone.modules())


def test_another_callable_is_called() -> None:
    other = Adapter.read({**WHOLE, "factory": f"{__name__}:make"}, "mine.toml").adapt(print)
    assert isinstance(other("small").adapted, Policy)


def test_the_object_itself_has_a_path() -> None:
    backbone = adapted(llm=".", forward="vlm.language")("small")
    assert backbone.llm is backbone.adapted


def test_the_class_keeps_its_ids_and_its_lines() -> None:
    factory = adapted()
    assert ids_of(factory) == ("small",)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        factory("none")
    assert "test_adapter.py:" in where(raised.value, factory)
    assert "in __init__" in where(raised.value, factory)
    assert Policy in defining_classes(factory("small"))
    assert all("conformance." not in one.__module__ for one in defining_classes(factory("small")))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokeniser": "x"}, ["`tokeniser`", "did you mean `tokenizer`?"]),
        ({"llm": 3}, ["`llm` in mine.toml is 3", "a string"]),
        ({"llm": "vlm language"}, ["'vlm language'", "a path"]),
        ({"arguments": ["hf_token"]}, ["`arguments`", "[adapter.arguments]"]),
        ({"arguments": {"hf_tokn": "t"}}, ["`hf_tokn`", "did you mean `hf_token`?"]),
        ({"arguments": {"hf_token": False}}, ["`hf_token`", "left out"]),
        ({"outside": "vlm"}, ["`outside`", "a list of strings"]),
        ({"absent": ["embed_dims"]}, ["`embed_dims`", "did you mean `embed_dim`?"]),
        ({"absent": ["llm"]}, ["`llm`", "give its path"]),
        ({"absent": ["hf_token"]}, ["`hf_token`", "leave it out of `arguments`"]),
    ],
)
def test_a_wrong_key_or_value_is_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidAdapter) as refused:
        Adapter.read({**WHOLE, **changes}, "mine.toml")
    assert all(word in str(refused.value) for word in [*words, "mine.toml"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"arguments": {**ARGUMENTS, "backbone_id": "model_idd"}},
            ["`model_idd`", "`Policy` does not take", "did you mean `model_id`?"],
        ),
        ({"constants": {"device": "cpu", "chunk": 1}}, ["`constants`", "`chunk`", "does not take"]),
        ({"constants": {}}, ["cannot be called without `device`"]),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidAdapter) as refused:
        adapted(**changes)
    assert all(word in str(refused.value) for word in [*words, "mine.toml"])


def test_an_argument_that_is_there_is_not_left_out() -> None:
    def factory(backbone_id: str, inference_mode: bool = False) -> Any: ...

    table = {"arguments": {"backbone_id": "backbone_id"}}
    with pytest.raises(InvalidAdapter, match=r"leaves out `inference_mode`.*takes"):
        Adapter.read(table, "mine.toml").adapt(factory)
    Adapter.read({**table, "constants": {"inference_mode": False}}, "mine.toml").adapt(factory)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llm": "vlm.langage"}, ["`vlm` is a ModuleDict", "no `langage`", "mean `language`?"]),
        ({"llm": "vml"}, ["the constructor returned a Policy", "no `vml`", "mean `vlm`?"]),
        ({"outside": ["vlm.tower.x"]}, ["`vlm.tower` is a Linear", "no `x`"]),
        ({"llm": "given"}, ["leads to a tuple", "a module"]),
        ({"layers": "vlm.language"}, ["leads to a Linear", "a list of decoder layers"]),
        ({"tokenizer": "given"}, ["leads to a tuple", "a tokenizer"]),
        ({"absent": ["half_precision_dtype"]}, ["`half_precision_dtype`", "Policy has"]),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidAdapter) as refused:
        adapted(**changes)("small")
    assert all(word in str(refused.value) for word in [*words, "mine.toml"])


def test_the_configuration_holds_both_tables(tmp_path: Path) -> None:
    config = tmp_path / "mine.toml"
    config.write_text('[subject]\nbos = "none"\n[adapter]\nllm = "vlm"\n')
    assert declarations_in(config)[0] == {"bos": "none"}
    assert configuration_in(config)[0]["adapter"] == {"llm": "vlm"}
    config.write_text('[adpter]\nllm = "vlm"\n')
    with pytest.raises(CannotAssess, match="did you mean `adapter`"):
        declarations_in(config)

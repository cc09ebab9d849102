"""EMB: what is saved is what there is, the tokenizer and the settings too."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

from conformance.assertions import NotApplicable, quoted, refusal, require
from conformance.catalogue import MUST, requirement
from conformance.subject.contract import eos_ids_of
from conformance.subject.subject import Subject
from conformance.subject.vocabulary import settings_of
from conformance.suite.product import compared

_OF_A_HOST = ("<act_0>", "<act_1>")
_TEXT = "Do <act_1> now."


@requirement("EMB-08", MUST)
def test_a_saved_tokenizer_has_every_token(subject: Subject) -> None:
    """A tokenizer that is saved and loaded has the pad token, and the tokens that a host has added,
    under their ids."""
    tokenizer = subject.build().get_tokenizer()
    tokenizer.add_tokens(list(_OF_A_HOST))
    library = copy.deepcopy(subject.published_vocabulary.readings[0])
    library.add_special_tokens({"pad_token": tokenizer.pad_token})
    library.add_tokens(list(_OF_A_HOST))
    by_library = _loaded_again(library)
    if by_library is None:
        raise NotApplicable("the library cannot load what it saves of this tokenizer")
    again = _loaded_again(tokenizer)
    if again is None:
        raise NotApplicable(
            f"{type(tokenizer).__name__}.from_pretrained asks for more than what was saved"
        )
    found, wanted = (_facts_of(one) for one in (again, tokenizer))
    kept, held = (_facts_of(one) for one in (by_library, library))
    differing = [
        name for name in wanted if found[name] != wanted[name] and kept[name] == held[name]
    ]
    require(
        not differing,
        observed="saved and loaded again, "
        + "; ".join(f"{name} is {quoted(found[name], 120)}" for name in differing),
        expected="; ".join(f"{name} {quoted(wanted[name], 120)}" for name in differing),
        mend="leave `save_pretrained` of the tokenizer to the library",
    )


def _loaded_again(tokenizer: Any) -> Any:
    """The tokenizer as its own class loads what it has saved, None if that raises."""
    with TemporaryDirectory() as directory, refusal():
        tokenizer.save_pretrained(directory)
        return type(tokenizer).from_pretrained(directory)
    return None


def _facts_of(tokenizer: Any) -> dict[str, Any]:
    return {
        **settings_of(tokenizer),
        "the side it truncates on": tokenizer.truncation_side,
        "the pad token": tokenizer.pad_token,
        "the id of the pad token": tokenizer.pad_token_id,
        **{f"the id of {one!r}": tokenizer.convert_tokens_to_ids(one) for one in _OF_A_HOST},
        f"the encoding of {_TEXT!r}": list(tokenizer(_TEXT, add_special_tokens=False).input_ids),
    }


@requirement("EMB-08", MUST)
def test_the_state_dict_that_is_handed_in_is_saved(subject: Subject) -> None:
    """`save_pretrained(state_dict=…)` saves that state dict: a host that trains in shards gathers
    the weights and hands them in."""
    llm = subject.training.llm
    gathered = {
        name: tensor.detach() * 2 if tensor.is_floating_point() else tensor.clone()
        for name, tensor in llm.state_dict().items()
    }
    with _saved(llm, state_dict=gathered) as directory:
        saved = _tensors_in(directory)
    known = [name for name in saved if name in gathered and saved[name].any()]
    if not known:
        raise NotApplicable("no tensor is saved under its name with a state dict handed in")
    stale = [name for name in known if not torch.equal(saved[name], gathered[name])]
    require(
        not stale,
        observed=f"with `state_dict=` {len(stale)} of {len(known)} tensors are saved with other "
        f"values than were handed in, the first is {stale[:1]}",
        expected="the tensors of that state dict",
        mend="hand every argument of `save_pretrained` on to the library",
        tensors=stale[:20],
    )


@requirement("EMB-08", MUST)
def test_a_second_save_takes_the_place_of_the_first(subject: Subject) -> None:
    """Saved again into the same directory, what is there is what the model holds then."""
    llm = subject.training.llm
    embedding = llm.get_input_embeddings().weight
    with _saved(llm) as directory:
        first = _tensors_in(directory)
        with torch.no_grad():
            embedding.mul_(2.0)
            try:
                with refusal() as refused:
                    llm.save_pretrained(directory)
            finally:
                embedding.mul_(0.5)
        second = _tensors_in(directory)
    if refused or not first:
        raise NotApplicable("it is not saved twice, or in no safetensors")
    changed = [name for name in first if not torch.equal(first[name], second.get(name, _NOTHING))]
    require(
        bool(changed),
        observed="`llm.save_pretrained` into a directory that it has saved into leaves the weights "
        "of the first time there, and raises nothing",
        expected="those of the second: `latest` is what hosts save to every thousand steps",
        mend="leave saving to the library",
    )


_NOTHING = torch.empty(0)


def _tensors_in(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in directory.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


@requirement("EMB-08", MUST)
def test_the_stops_are_saved(subject: Subject) -> None:
    """What is saved stops where the model stops that was saved."""
    from transformers import AutoConfig, GenerationConfig

    llm = subject.training.llm
    if getattr(llm, "generation_config", None) is None:
        raise NotApplicable("`llm` has no generation config")
    wanted = set(eos_ids_of(llm.generation_config))
    with _saved(llm) as directory, refusal() as refused:
        if (directory / "generation_config.json").is_file():
            saved = GenerationConfig.from_pretrained(directory)
        else:
            saved = GenerationConfig.from_model_config(AutoConfig.from_pretrained(directory))
    if refused:  # adapters alone, say, or a config of the author's own
        raise NotApplicable(f"what is saved has no config that can be read: {refused[0]}")
    found = set(eos_ids_of(saved))
    require(
        found == wanted,
        observed=f"what `llm.save_pretrained` writes stops at {sorted(found)}",
        expected=f"{sorted(wanted)}, as `llm.generation_config` does",
        mend="leave saving to the library: it writes the generation config beside the weights",
    )


@requirement("EMB-08", MUST)
def test_other_ranks_save_nothing(subject: Subject) -> None:
    """`save_pretrained(is_main_process=False)`, which launchers call on the other ranks, writes no
    weights."""
    written, by_library = (
        _weights_of_another_rank(llm)
        for llm in (subject.training.llm, compared(subject).control("training").llm)
    )
    if by_library:
        raise NotApplicable("this release of the library saves weights on every rank")
    require(
        not written,
        observed=f"`llm.save_pretrained(is_main_process=False)` writes {written}",
        expected="no weights: eight ranks would write one file at once",
        mend="hand every argument of `save_pretrained` on to the library",
    )


def _weights_of_another_rank(llm: Any) -> list[str]:
    with _saved(llm, is_main_process=False) as directory:
        kinds = (".safetensors", ".bin")
        return sorted(path.name for path in directory.iterdir() if path.suffix in kinds)


@contextmanager
def _saved(llm: Any, **options: Any) -> Iterator[Path]:
    """The directory that `llm` is saved into.

    Raises:
        NotApplicable: it cannot be saved so, which nobody overlooks.
    """
    with TemporaryDirectory() as directory:
        with refusal() as refused:
            llm.save_pretrained(directory, **options)
        if refused:
            raise NotApplicable(f"saving raised {type(refused[0]).__name__}: {refused[0]}")
        yield Path(directory)

"""Resolves the target string that a user typed to the factory behind it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from conformance.errors import CannotAssess, did_you_mean
from conformance.subject.ids import ids_of

ENTRY_POINT_GROUP = "conformance.backbones"

BUILT_IN_TARGETS = {
    "llama2-7b-pure": "backbones.llama2:LLaMa2LLMBackbone",
    "llama2-13b-pure": "backbones.llama2:LLaMa2LLMBackbone",
    "llama2-7b-chat": "backbones.llama2:LLaMa2LLMBackbone",
    "llama2-13b-chat": "backbones.llama2:LLaMa2LLMBackbone",
    "vicuna-v15-7b": "backbones.llama2:LLaMa2LLMBackbone",
    "vicuna-v15-13b": "backbones.llama2:LLaMa2LLMBackbone",
    "mistral-v0.1-7b-pure": "backbones.mistral:MistralLLMBackbone",
    "mistral-v0.1-7b-instruct": "backbones.mistral:MistralLLMBackbone",
    "mistral-v0.2-7b-instruct": "backbones.mistral:MistralLLMBackbone",
    "mistral-v0.3-7b-pure": "backbones.mistral:MistralLLMBackbone",
    "mistral-v0.3-7b-instruct": "backbones.mistral:MistralLLMBackbone",
    "mistral-nemo-12b-pure": "backbones.mistral:MistralLLMBackbone",
    "mistral-nemo-12b-instruct": "backbones.mistral:MistralLLMBackbone",
    "phi-2-3b": "backbones.phi:PhiLLMBackbone",
    "qwen2.5-0.5b-pure": "backbones.qwen25:Qwen25LLMBackbone",
    "qwen2.5-0.5b-instruct": "backbones.qwen25:Qwen25LLMBackbone",
    "qwen2.5-1.5b-instruct": "backbones.qwen25:Qwen25LLMBackbone",
    "qwen2.5-7b-pure": "backbones.qwen25:Qwen25LLMBackbone",
    "qwen2.5-7b-instruct": "backbones.qwen25:Qwen25LLMBackbone",
    "qwen3-0.6b-pure": "backbones.qwen3:Qwen3LLMBackbone",
    "qwen3-0.6b-instruct": "backbones.qwen3:Qwen3LLMBackbone",
    "qwen3-1.7b-instruct": "backbones.qwen3:Qwen3LLMBackbone",
    "qwen3-8b-instruct": "backbones.qwen3:Qwen3LLMBackbone",
    "llama3-8b-pure": "backbones.llama3:LLaMa3LLMBackbone",
    "llama3-8b-instruct": "backbones.llama3:LLaMa3LLMBackbone",
    "llama3.1-8b-pure": "backbones.llama3:LLaMa3LLMBackbone",
    "llama3.1-8b-instruct": "backbones.llama3:LLaMa3LLMBackbone",
    "llama3.2-1b-pure": "backbones.llama3:LLaMa3LLMBackbone",
    "llama3.2-1b-instruct": "backbones.llama3:LLaMa3LLMBackbone",
    "phi-3-mini-4k-instruct": "backbones.phi3:Phi3LLMBackbone",
    "phi-3-mini-128k-instruct": "backbones.phi3:Phi3LLMBackbone",
    "smollm2-135m-pure": "backbones.smollm2:SmolLM2LLMBackbone",
    "smollm2-1.7b-instruct": "backbones.smollm2:SmolLM2LLMBackbone",
    "gemma-2b-instruct": "backbones.gemma:GemmaLLMBackbone",
    "gemma-7b-pure": "backbones.gemma:GemmaLLMBackbone",
    "gemma2-2b-pure": "backbones.gemma:Gemma2LLMBackbone",
    "gemma2-2b-instruct": "backbones.gemma:Gemma2LLMBackbone",
    "gemma3-1b-pure": "backbones.gemma:Gemma3LLMBackbone",
    "gemma3-1b-instruct": "backbones.gemma:Gemma3LLMBackbone",
    "idefics2-8b-instruct": "backbones.idefics2:Idefics2LLMBackbone",
}
"""The ids of the reference backbones, for a checkout that is on the path without being installed
(no entry points)."""


@dataclass(frozen=True)
class Target:
    """A resolved target: the class or factory, and the id to call it with."""

    text: str
    factory: Callable[..., Any]
    backbone_id: str


def registered_targets() -> dict[str, str]:
    """Every id known by name, with the `module:attribute` behind it. Imports none of them."""
    installed = {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)}
    return {**BUILT_IN_TARGETS, **installed}


def resolve(text: str, backbone_id: str | None = None) -> Target:
    """Import what `text` names: an id, `package.module:attribute` or `path/to/file.py:attribute`.

    Raises:
        CannotAssess: saying what could not be found or imported, and what would be right.
    """
    registered = registered_targets()
    if ":" not in text:
        if text not in registered:
            raise CannotAssess(_without_a_class(text) or _unknown_id(text, registered))
        return Target(text, _attribute_of(registered[text]), backbone_id or text)
    factory = factory_at(text)
    return Target(text, factory, backbone_id or only_id_of(factory, text))


def factory_at(location: str) -> Callable[..., Any]:
    """What stands at `package.module:attribute` or `path/to/file.py:attribute`.

    Raises:
        CannotAssess: saying what could not be found or imported, or that it cannot be called.
    """
    # Modules in the working directory count too, which a console script does not have on its path.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return _attribute_of(location)


def _attribute_of(location: str) -> Callable[..., Any]:
    place, _, attribute = location.rpartition(":")
    if not place or not attribute:
        raise CannotAssess(
            f"`{location}` is not a target: write an id, `package.module:Class` or "
            f"`path/to/file.py:Class`"
        )
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    value: Any = module
    for name in attribute.split("."):
        if not hasattr(value, name):
            raise CannotAssess(
                f"`{place}` has no attribute `{name}`{did_you_mean(name, _public_names(value))}"
            )
        value = getattr(value, name)
    if not callable(value):
        raise CannotAssess(
            f"`{location}` is a {type(value).__name__}, which cannot be called: name a backbone "
            f"class or a factory"
        )
    return value


def _import_module(name: str) -> ModuleType:
    return _importing(name, lambda: importlib.import_module(name))


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise CannotAssess(f"there is no file `{path}` (looked in {Path.cwd()})")
    path = path.resolve()
    # Siblings import one another by name, as they would with `python path/to/file.py`.
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    own = f"conformance_target_{path.stem}"
    for name in (path.stem, own):
        if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(path):
            return sys.modules[name]
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else own
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise CannotAssess(f"`{path}` cannot be imported as a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    try:
        _importing(str(path), lambda: loader.exec_module(module))
    except CannotAssess:
        sys.modules.pop(
            name, None
        )  # as an import by name does: half a module must not be found next time
        raise
    return module


def _importing(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}"
        raise CannotAssess(f"`{name}` has a syntax error at {where}: {error.msg}") from error
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            message = (
                f"there is no module `{error.name}` in the working directory or the "
                f"environment (for `{name}`)"
            )
        else:
            message = (
                f"importing `{name}` failed: {error}; install what it needs alongside conformance"
            )
        raise CannotAssess(message) from error
    except SystemExit as error:
        raise CannotAssess(
            f"importing `{name}` called sys.exit({error.code!r}); guard it with `if __name__ == "
            f'"__main__"`'
        ) from error
    except Exception as error:
        raise CannotAssess(f"importing `{name}` raised {type(error).__name__}: {error}") from error


def only_id_of(factory: Callable[..., Any], text: str) -> str:
    """The id to use without `--id`: the class's default, or the only id in its table.

    Raises:
        CannotAssess: for none, or several; the message names those that the class knows.
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    if parameters and isinstance(parameters[0].default, str):
        return parameters[0].default
    ids = ids_of(factory)
    if len(ids) == 1:
        return ids[0]
    if ids:
        raise CannotAssess(f"`{text}` knows several ids: choose one with --id ({', '.join(ids)})")
    raise CannotAssess(
        f"`{text}` needs an id to be called with: add --id with one that its constructor takes "
        f"(`conformance list` shows those that have a checkpoint)"
    )


def _without_a_class(text: str) -> str | None:
    """What to say of a file or a module without `:Class`; None for what is neither."""
    if text.endswith(".py"):
        module = _import_file(Path(text))
    elif all(map(str.isidentifier, text.split("."))) and _is_module(text):
        module = _import_module(text)
    else:
        return None
    own = {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    }
    classes = [name for name, value in own.items() if inspect.isclass(value)]
    functions = [name for name, value in own.items() if inspect.isfunction(value)]
    named = [f"{text}:{name}" for name in classes or functions]
    if not named:
        return f"`{text}` defines no class: name another file, as `path/to/file.py:Class`"
    return (
        f"`{text}` is a {'file' if text.endswith('.py') else 'module'}: name the class in it, "
        + (named[0] if len(named) == 1 else f"one of {', '.join(named)}")
    )


def _is_module(name: str) -> bool:
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # of its package; a module that is half imported
        return False


def _unknown_id(text: str, registered: Mapping[str, str]) -> str:
    return (
        f"no backbone is registered under the id `{text}`{did_you_mean(text, registered)}; "
        f"known ids: "
        f"{', '.join(sorted(registered))}. "
        "For a class of your own write `package.module:Class` or `path/to/file.py:Class`"
    )


def _public_names(value: Any) -> list[str]:
    return [name for name in dir(value) if not name.startswith("_")]

"""The `[adapter]` table of `conformance.toml`: where a class of another shape has what the contract
asks for.

An adapter finds things, and invents none: what a class does not have is declared absent, and the
clauses that use it are not applicable.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from conformance.errors import CannotAssess, did_you_mean
from conformance.subject.contract import (
    ARGUMENTS,
    INSTANCE_MEMBERS,
    OPTIONAL_MEMBERS,
    REQUIRED_MEMBERS,
    lacks_member,
)
from conformance.subject.target import factory_at

ITSELF = "."
"""The path of the object that the constructor returns."""
HELD = "adapted"
"""Under which name an adapted backbone holds that object."""

_CANNOT_BE_ABSENT = (*INSTANCE_MEMBERS, "get_tokenizer")
_MAY_BE_ABSENT = tuple(
    name for name in (*REQUIRED_MEMBERS, *OPTIONAL_MEMBERS) if name not in _CANNOT_BE_ABSENT
)
_MEMBER_AT = {
    "llm": "llm",
    "tokenizer": "get_tokenizer",
    "embed": "embed_input_ids",
    "layers": "transformer_layer_cls",
    "forward": "forward",
}
"""The member of the contract that each path stands for."""


class InvalidAdapter(CannotAssess):
    """The adapter has a wrong key or value, or does not fit the class that it is for."""


@dataclass(frozen=True)
class Adapter:
    """Where a class of another shape has what the contract asks for. Paths are dotted attribute
    names from the object that the constructor returns; `"."` is that object itself."""

    factory: str | None = None
    """What to call in place of the target, `module:attr` or `path/to/file.py:attr`."""
    arguments: Mapping[str, str] | None = None
    """The constructor's names by those of the contract: what is not among them it does not take,
    and is called without. None: all five, under the contract's names."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the constructor, by its names."""
    llm: str | None = None
    tokenizer: str | None = None
    embed: str | None = None
    """The function, or module, that turns ids into embeddings."""
    layers: str | None = None
    """The list of decoder layers, from which the layer class follows."""
    forward: str | None = None
    """What is called as a language model is; where `llm` is given, that by default."""
    outside: tuple[str, ...] = ()
    """Modules that are not the language model: vision towers, connectors, action heads."""
    absent: tuple[str, ...] = ()
    """Members of the contract that the class does not have."""
    source: str = "conformance.toml"

    @classmethod
    def read(cls, table: Any, source: str) -> Adapter:
        """The adapter that an `[adapter]` table describes.

        Raises:
            InvalidAdapter: for an unknown key or a value of the wrong kind, naming `source`.
        """
        if not isinstance(table, Mapping):
            raise InvalidAdapter(
                f"`adapter` in {source} is {table!r}, but should be a table: write `[adapter]`"
            )
        known = [one.name for one in fields(cls) if one.name != "source"]
        for key in table:
            if key not in known:
                raise InvalidAdapter(
                    f"`[adapter]` in {source} has an unknown key `{key}`"
                    f"{did_you_mean(key, known)}; known keys: {', '.join(sorted(known))}"
                )
        values = {key: _value(key, value, source) for key, value in table.items()}
        return cls(**values, source=source)

    def declarations(self, declared: Mapping[str, Any]) -> dict[str, Any]:
        """The declarations that follow from the adapter, on top of a `[subject]` table."""
        absent = (*declared.get("optional_absent", ()), *self.absent, *self._not_taken())
        outside = (*declared.get("outside", ()), *map(_within, self.outside))
        return {
            **declared,
            **({"optional_absent": list(dict.fromkeys(absent))} if absent else {}),
            **({"outside": list(dict.fromkeys(outside))} if outside else {}),
        }

    def adapt(self, factory: Callable[..., Any]) -> Callable[..., Any]:
        """A factory that is called as the contract says, and returns the class's object with the
        contract's members.

        Raises:
            InvalidAdapter: for arguments that the constructor does not take or lacks. What it
                returns raises it where a path leads nowhere.
        """
        theirs = factory if self.factory is None else factory_at(self.factory)
        self._check_arguments(theirs)
        classes: dict[tuple[str, ...], type] = {}

        @functools.wraps(theirs, updated=())
        def adapted(backbone_id: str, **given: Any) -> Any:
            if self.arguments is None:
                built = theirs(backbone_id, **given, **self.constants)
            else:
                given = {"backbone_id": backbone_id, **given}
                named = {
                    name: given[ours] for ours, name in self.arguments.items() if ours in given
                }
                built = theirs(**named, **self.constants)
            held = built[0] if isinstance(built, tuple) and built else built
            if held is None or isinstance(held, (bool, int, float, str, bytes, list, dict)):
                return held  # which is no backbone, as CON-01 says
            return self._around(held, backbone_id, classes)

        return adapted

    def as_json(self) -> dict[str, Any]:
        """The keys that were given, as the certificate repeats them."""
        return {
            key: value
            for key, value in asdict(self).items()
            if key != "source" and value not in (None, (), {})
        }

    def _not_taken(self) -> tuple[str, ...]:
        if self.arguments is None:
            return ()
        return tuple(name for name in ARGUMENTS if name not in self.arguments)

    def _check_arguments(self, factory: Callable[..., Any]) -> None:
        """Hold the names against the constructor's signature, where it has one."""
        try:
            parameters = inspect.signature(factory).parameters
        except (TypeError, ValueError):
            return
        name = getattr(factory, "__qualname__", None) or type(factory).__name__
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        plain = [
            one.name
            for one in parameters.values()
            if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        ]
        listed = (self.arguments or {}).values()
        for key, names in (("arguments", listed), ("constants", self.constants)):
            for one in names:
                if one not in plain and not takes_any:
                    raise InvalidAdapter(
                        f"`{key}` in {self.source} names `{one}`, which `{name}` does not take"
                        f"{did_you_mean(one, plain)}; it takes {', '.join(plain) or 'nothing'}"
                    )
        if self.arguments is None:
            return
        given = {*listed, *self.constants}
        for one in self._not_taken():
            if one in plain and one not in given:
                raise InvalidAdapter(
                    f"`arguments` in {self.source} leaves out `{one}`, which `{name}` takes: "
                    f'add {one} = "{one}", or a value under `constants`'
                )
        for parameter in parameters.values():
            if (
                parameter.name in plain
                and parameter.default is parameter.empty
                and parameter.name not in given
            ):
                raise InvalidAdapter(
                    f"`{name}` cannot be called without `{parameter.name}`: say in `arguments` "
                    f"which of {', '.join(ARGUMENTS)} it is, or give its value in `constants` "
                    f"(in {self.source})"
                )

    def _around(self, held: Any, backbone_id: str, classes: dict[tuple[str, ...], type]) -> Any:
        """A module around the class's object that has the contract's members."""
        from torch import nn

        paths = self._paths()
        for key, path in (*paths.items(), *(("outside", path) for path in self.outside)):
            _require_kind(key, path, self._at(held, key, path), self.source)
        delegated = self._delegated(held, paths)
        if delegated not in classes:
            members = {name: _delegating(name) for name in delegated}
            members |= {
                _MEMBER_AT[key]: _leading(self, key, path)
                for key, path in paths.items()
                if key != "layers"
            }
            namespace = {**members, "adapter": self, "__module__": type(held).__module__}
            classes[delegated] = type(type(held).__name__, (nn.Module,), namespace)
        backbone: Any = classes[delegated]()
        setattr(backbone, HELD, held)
        if not isinstance(held, nn.Module):
            backbone.language_model = self._at(held, "llm", paths.get("llm", "llm"))
        if "identifier" not in delegated:
            backbone.identifier = backbone_id
        if "layers" in paths:
            # Sharding changes the class of an instance; hosts ask before.
            backbone.transformer_layer_cls = type(self._at(held, "layers", paths["layers"])[0])
        return backbone

    def _paths(self) -> dict[str, str]:
        paths = {key: getattr(self, key) for key in _MEMBER_AT}
        if paths["forward"] is None:
            paths["forward"] = self.llm
        return {
            key: path
            for key, path in paths.items()
            if path is not None and _MEMBER_AT[key] not in self.absent
        }

    def _delegated(self, held: Any, paths: Mapping[str, str]) -> tuple[str, ...]:
        """The members that the object has itself, under the contract's names."""
        found = {_MEMBER_AT[key] for key in paths}
        own = [
            name
            for name in (*INSTANCE_MEMBERS, *REQUIRED_MEMBERS, *OPTIONAL_MEMBERS)
            if name not in found and not lacks_member(held, name)
        ]
        for name in own:
            # Every module has a forward, which need not be a language model's.
            if name in self.absent and name != "forward":
                raise InvalidAdapter(
                    f"`absent` in {self.source} names `{name}`, which a {type(held).__name__} "
                    f"has: leave it out"
                )
        return tuple(name for name in own if name not in self.absent)

    def _at(self, held: Any, key: str, path: str) -> Any:
        """What `path` leads to.

        Raises:
            InvalidAdapter: if it leads nowhere, naming the last part that exists.
        """
        value, passed = held, list[str]()
        for part in () if path == ITSELF else path.split("."):
            try:
                value = getattr(value, part)
            except AttributeError as error:
                where = f"`{'.'.join(passed)}` is" if passed else "the constructor returned"
                names = [name for name in _names(value) if not name.startswith("_")]
                raise InvalidAdapter(
                    f'`{key} = "{path}"` in {self.source} leads nowhere: {where} a '
                    f"{type(value).__name__}, which has no `{part}`{did_you_mean(part, names)}"
                ) from error
            passed.append(part)
        return value


def defining_classes(backbone: Any) -> Iterable[type]:
    """The classes that a backbone is made of: its own and its bases; of an adapted one, those of
    every object on the adapter's paths."""
    adapter = getattr(type(backbone), "adapter", None)
    if not isinstance(adapter, Adapter):
        return type(backbone).__mro__
    held = getattr(backbone, HELD)
    objects = [held]
    for path in (*adapter._paths().values(), *adapter.outside):
        parts = [] if path == ITSELF else path.split(".")
        objects += [
            adapter._at(held, "llm", ".".join(parts[:end])) for end in range(1, len(parts) + 1)
        ]
    classes = dict.fromkeys(one for item in objects for one in type(item).__mro__)
    return [one for one in classes if not _is_of_python(one)]


def _is_of_python(one: type) -> bool:
    """Whether a class is the standard library's, as a `SimpleNamespace` on a path is."""
    file = getattr(sys.modules.get(one.__module__), "__file__", None)
    return file is None or Path(file).parent == Path(os.__file__).parent


def _delegating(name: str) -> Any:
    """A member that is the object's own."""
    if name == "forward":

        def forward(self: Any, *arguments: Any, **named: Any) -> Any:
            return getattr(self, HELD)(*arguments, **named)

        return forward

    def read(self: Any) -> Any:
        return getattr(getattr(self, HELD), name)

    def write(self: Any, value: Any) -> None:
        setattr(getattr(self, HELD), name, value)

    return property(read, write)


def _leading(adapter: Adapter, key: str, path: str) -> Any:
    """A member that a path leads to: looked up at each use, since hosts replace modules."""

    def found(self: Any) -> Any:
        return adapter._at(getattr(self, HELD), key, path)

    if key == "forward":
        return lambda self, *arguments, **named: found(self)(*arguments, **named)
    if key == "tokenizer":
        return found  # `get_tokenizer` is a method
    return property(found)


def _require_kind(key: str, path: str, value: Any, source: str) -> None:
    from torch import nn

    wanted = ""
    if key in ("llm", "outside") and not isinstance(value, nn.Module):
        wanted = "a module"
    elif key in ("embed", "forward", "tokenizer") and not callable(value):
        wanted = "something to call" if key != "tokenizer" else "a tokenizer"
    elif key == "layers" and not _is_list_of_modules(value):
        wanted = "a list of decoder layers, one or more"
    if wanted:
        raise InvalidAdapter(
            f'`{key} = "{path}"` in {source} leads to a {type(value).__name__}, but should lead '
            f"to {wanted}"
        )


def _is_list_of_modules(value: Any) -> bool:
    from torch import nn

    if not isinstance(value, (nn.ModuleList, nn.Sequential, list, tuple)):
        return False
    return len(value) > 0 and all(isinstance(one, nn.Module) for one in value)


def _names(value: Any) -> list[str]:
    try:
        return dir(value)
    except Exception:  # a `__dir__` of their own
        return []


def _within(path: str) -> str:
    """A path from the object that an adapted backbone holds, as one from the backbone."""
    return HELD if path == ITSELF else f"{HELD}.{path}"


def _value(key: str, value: Any, source: str) -> Any:
    if key in ("arguments", "constants"):
        if not isinstance(value, Mapping):
            raise InvalidAdapter(
                f"`{key}` in {source} is {value!r}, but should be a table: write `[adapter.{key}]`"
            )
        return _arguments(value, source) if key == "arguments" else dict(value)
    if key in ("outside", "absent"):
        if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
            raise InvalidAdapter(
                f"`{key}` in {source} is {value!r}, but should be a list of strings"
            )
        return _absent(value, source) if key == "absent" else _paths_of(key, value, source)
    if not isinstance(value, str):
        raise InvalidAdapter(f"`{key}` in {source} is {value!r}, but should be a string")
    return value if key == "factory" else _paths_of(key, [value], source)[0]


def _paths_of(key: str, paths: Iterable[str], source: str) -> tuple[str, ...]:
    for path in paths:
        if path != ITSELF and not all(
            part.isalnum() or part.replace("_", "a").isalnum() for part in path.split(".")
        ):
            raise InvalidAdapter(
                f"`{key}` in {source} is {path!r}, but should be a path as in "
                f'"vlm.language_model", or "{ITSELF}" for what the constructor returns'
            )
    return tuple(paths)


def _arguments(table: Mapping[str, Any], source: str) -> dict[str, str]:
    for ours, theirs in table.items():
        if ours not in ARGUMENTS:
            raise InvalidAdapter(
                f"`arguments` in {source} has an unknown key `{ours}`"
                f"{did_you_mean(ours, ARGUMENTS)}: its keys are {', '.join(ARGUMENTS)}, its values "
                f"the constructor's names; further arguments are `constants`"
            )
        if not isinstance(theirs, str) or not theirs.isidentifier():
            raise InvalidAdapter(
                f"`{ours}` of `arguments` in {source} is {theirs!r}, but should be the name of a "
                f"parameter; what the constructor does not take is left out"
            )
    return dict(table)


def _absent(names: Iterable[str], source: str) -> tuple[str, ...]:
    for name in names:
        if name in ARGUMENTS:
            raise InvalidAdapter(
                f"`absent` in {source} names `{name}`, an argument: leave it out of `arguments`"
            )
        if name in _CANNOT_BE_ABSENT:
            raise InvalidAdapter(
                f"`absent` in {source} names `{name}`, without which there is nothing to judge: "
                f"give its path"
            )
        if name not in _MAY_BE_ABSENT:
            raise InvalidAdapter(
                f"`absent` in {source} names `{name}`, which is no member of the contract"
                f"{did_you_mean(name, _MAY_BE_ABSENT)}; members: {', '.join(_MAY_BE_ABSENT)}"
            )
    return tuple(names)

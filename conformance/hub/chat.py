"""Official chat templates, rendered as transformers renders them, without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any


class InvalidTemplate(ValueError):
    """A template that is no Jinja, or whose rendering fails; the message is Jinja's."""


class TemplateRefuses(ValueError):
    """A template raised its own exception: the dialogue is none that it renders."""


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos: str | None,
    eos: str | None,
    generation: bool = False,
) -> str:
    """The text of a dialogue: messages of `role` and `content`, and with `generation` the beginning
    of an answer.

    A token that is None is written as nothing, as an undefined name of Jinja is
    (https://huggingface.co/docs/transformers/chat_templating).

    Raises:
        TemplateRefuses: the template refuses the dialogue.
        InvalidTemplate: it cannot be rendered at all.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    # Without HTML's escapes.
    environment.filters["tojson"] = _tojson
    tokens = {"bos_token": bos, "eos_token": eos}
    try:
        rendered: str = environment.from_string(
            template, globals={"raise_exception": _refuse, "strftime_now": _strftime_now}
        ).render(
            messages=list(messages),
            add_generation_prompt=generation,
            **{name: token for name, token in tokens.items() if token is not None},
        )
    except TemplateRefuses:
        raise
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise InvalidTemplate(f"{type(error).__name__}: {error}") from error
    return rendered


def _refuse(reason: str) -> None:
    raise TemplateRefuses(reason)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)

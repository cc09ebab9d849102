"""A slip of ours must not pass for what the library or a subject refuses."""

from __future__ import annotations

import pytest

from conformance.assertions import is_slip_of_ours, refusal
from conformance.control import calls


def slip() -> NameError:
    """As it is raised by our own code, where a name stands twice."""
    code = compile("def raises():\n    return no_such_name", calls.__file__, "exec")
    names: dict[str, object] = {}
    exec(code, names)
    try:
        names["raises"]()  # type: ignore[operator]
    except NameError as error:
        return error
    raise AssertionError("it went on")


def test_a_slip_of_ours_is_no_refusal() -> None:
    assert is_slip_of_ours(slip())
    with pytest.raises(NameError), refusal():
        raise slip()


def test_what_a_subject_does_not_know_is_its_own() -> None:
    with refusal() as refused:
        no_such_name  # type: ignore[name-defined]  # noqa: B018, F821
    assert [type(error) for error in refused] == [NameError]
    assert not is_slip_of_ours(ValueError("no"))

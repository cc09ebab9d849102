"""A request is valid or is not made, and says what is wrong in the words of the door it came by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from conformance.cli.options import option_of
from conformance.errors import CannotAssess
from conformance.run.request import InvalidRequest, RunRequest, UnknownProfile


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("budget", "huge", "`budget` is 'huge', but should be one of quick, standard, thorough"),
        ("budget", None, "`budget` is None, but should be one of quick"),
        ("budget", "{0}", "`budget` is '{0}', but should be one of quick"),
        ("seed", -1, "`seed` is -1, but should be 0 or more"),
        ("seed", "1", "`seed` is '1', but should be a whole number, 0 or more"),
        ("seed", 1.5, "`seed` is 1.5, but should be a whole number, 0 or more"),
        ("seed", True, "`seed` is True, but should be a whole number, 0 or more"),
        ("jobs", 0, "`jobs` is 0, but should be 1 or more"),
        ("timeout", 0.0, "`timeout` is 0, but should be a number of seconds above zero"),
        ("timeout", float("nan"), "`timeout` is nan, but should be a number of seconds above zero"),
        ("timeout", "9", "`timeout` is '9', but should be a number of seconds above zero"),
        ("memory_limit", -1, "`memory_limit` is -1, but should be a number of bytes above zero"),
        ("device", "tpu", "`device` is 'tpu', but should be one of auto, cpu, cuda"),
        ("profiles", (), "`profiles` is empty"),
        ("only", (), "`only` is empty"),
        ("only", ("PAD-99",), "`only` names `PAD-99`, which is not a clause"),
    ],
)  # fmt: skip
def test_a_value_that_a_field_does_not_take(field: str, value: Any, told: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        RunRequest("it", **{field: value})
    assert str(refusal.value).startswith(told)


def test_an_unknown_profile_is_a_key_error_too() -> None:
    with pytest.raises(UnknownProfile, match=r"profile `nmerics` is not implemented.*core"):
        RunRequest("it", profiles=("core", "nmerics"))
    assert issubclass(UnknownProfile, (CannotAssess, KeyError))


@pytest.mark.parametrize(
    ("profiles", "asked", "weights"),
    [
        (("default",), "auto", "probe"),
        (("core",), "probe", "probe"),
        (("core", "scale"), "auto", "full"),
        (("scale",), "full", "full"),
    ],
)
def test_the_published_size_is_what_scale_streams(
    profiles: tuple[str, ...], asked: str, weights: str
) -> None:
    assert RunRequest("it", profiles=profiles, weights=asked).weights == weights


@pytest.mark.parametrize(
    ("profiles", "field", "asked", "told"),
    [
        (("default",), "weights", "full",
         "--weights full is for profile scale, which was not requested: add --profile scale"),
        (("default",), "weights", ".", "--weights . is for profile scale"),
        (("default",), "weights", "hub", "--weights hub is not a directory"),
        (("scale",), "weights", "absent",
         "--weights absent is not a directory; it takes probe, full, or the directory"),
        (("scale",), "weights", "{}", "--weights {} is not a directory"),
        (("core", "scale"), "weights", "probe",
         "--weights probe is tiny, and profile scale streams the published size"),
        (("default",), "device", "cuda",
         "--device cuda does not go with profile default, which runs on cpu: add --profile gpu"),
        (("gpu",), "device", "cpu",
         "--device cpu does not go with profile gpu, which runs on cuda: leave --device out"),
    ],
)  # fmt: skip
def test_what_another_field_rules_out_is_said_in_the_words_of_the_door(
    profiles: tuple[str, ...], field: str, asked: str, told: str
) -> None:
    fields: dict[str, Any] = {"profiles": profiles, field: asked}
    with pytest.raises(InvalidRequest) as refusal:
        RunRequest("it", **fields)
    assert refusal.value.said(option_of).startswith(told)


def test_a_request_survives_the_way_to_a_child() -> None:
    request = RunRequest(
        "it", "an-id", ("core", "gpu"), ("PAD-01",), budget="quick", seed=3, jobs=2, timeout=9.5,
        hub=Path("h"), recipes=(Path("a"), Path("b")), config=Path("c"), memory_limit=1 << 30,
    )  # fmt: skip
    assert RunRequest.from_json(json.loads(json.dumps(request.as_json()))) == request

"""Holding what the project writes against the JSON Schemas that it ships."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

from conformance.places import PACKAGE

SCHEMAS = PACKAGE / "schemas"
#: Which schema a file is of, by its path in the folder that a command was given.
WRITTEN = {
    "certificate": re.compile(r"certificate\.json"),
    "bench-verdict": re.compile(r"verdict\.json"),
    "bench-power": re.compile(r"power\.json"),
    "drift": re.compile(r"drift\.json"),
    "doctor": re.compile(r"doctor\.json"),
    "bench-run": re.compile(r"(run-\d{3}|(base|head)/\d{3})\.json"),
}


def check(name: str, document: Any) -> None:
    """Raise `jsonschema.ValidationError` where a document is not of the schema of this name."""
    _validator(name).validate(document)


def check_written(folder: Path) -> int:
    """Check every file under `folder` that some schema describes, and return how many there are."""
    checked = 0
    for path in sorted(folder.rglob("*.json")):
        for name, pattern in WRITTEN.items():
            if re.search(rf"(^|/){pattern.pattern}$", path.relative_to(folder).as_posix()):
                check(name, json.loads(path.read_text(encoding="utf-8")))
                checked += 1
    return checked


@cache
def _validator(name: str) -> Any:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)

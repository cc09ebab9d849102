"""What a certificate is about and what shaped it, each named by its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformance import catalogue
from conformance.verdict.outcomes import Assessment

TOOL = "backbone-conformance"


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex.

    Raises:
        OSError: if it cannot be read.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digest_of_sources(sources: Mapping[str, str]) -> str:
    """One SHA-256 for several files, wherever they lie: that of their sorted digests, one per line.

    `sha256sum FILE… | cut -c-64 | sort | sha256sum` gives the same.
    """
    return hashlib.sha256(
        "".join(f"{digest}\n" for digest in sorted(sources.values())).encode()
    ).hexdigest()


def configuration_of(
    assessment: Assessment, files: Mapping[str, str]
) -> tuple[dict[str, Any], ...]:
    """In-toto ResourceDescriptors of the catalogue, the profiles, the checkpoints and `files` (name
    to SHA-256)."""
    expectations = {
        "conformance/catalogue.json": digest_of_file(catalogue.CATALOGUE_FILE),
        "conformance/profiles.toml": digest_of_file(catalogue.PROFILES_FILE),
    }
    named = [
        {"name": name, "digest": {"sha256": digest}}
        for name, digest in {**expectations, **files}.items()
    ]
    return (
        *named,
        *(_checkpoint(hub_id, stand_in) for hub_id, stand_in in sorted(assessment.hub.items())),
    )


def _checkpoint(hub_id: str, stand_in: Mapping[str, Any]) -> dict[str, Any]:
    digest = stand_in.get("digest")
    descriptor: dict[str, Any] = {"name": hub_id, "uri": f"pkg:huggingface/{hub_id}"}
    if digest:
        descriptor["digest"] = {"sha256": digest}
    descriptor["annotations"] = {key: stand_in[key] for key in sorted(stand_in) if key != "digest"}
    return descriptor

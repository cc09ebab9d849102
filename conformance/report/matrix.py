"""`conformance matrix`: a site of many certificates, static and offline: a table of ids by releases
of transformers, and for each certificate its report, the certificate itself and a badge."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from conformance.errors import CannotAssess
from conformance.report.html import html, part, policy, styled, templates
from conformance.report.narrative import visible
from conformance.report.writing import write_whole, writing_to
from conformance.verdict.certificate import serialise
from conformance.verdict.load import CERTIFICATE, read_certificate
from conformance.verdict.verdict import Verdict

INDEX = "index.html"
DOCUMENT = "matrix.json"
"""What the site holds, for scripts; and which folders of it are ours to replace."""
LABEL = "conformance"
_COLOURS = {
    "certified": ("brightgreen", "#2c7a3f"),
    "certified, with remarks": ("green", "#4b7a2c"),
    "partial": ("lightgrey", "#6b7280"),
    "not certified": ("red", "#b3261e"),
}
"""By standing: the name of a colour of shields.io, and the colour of the drawn badge."""
_CHARACTER, _ROOM = 6.6, 11
"""Pixels of a character, and beside a text, of 11 px Verdana, as badges are set."""


class NoCertificates(CannotAssess):
    """There is no certificate in the named folders."""


@dataclass(frozen=True)
class Entry:
    """One certificate of the site; `slug` is the name of its folder."""

    slug: str
    verdict: Verdict

    @property
    def backbone_id(self) -> str:
        return visible(self.verdict.assessment.backbone_id)

    @property
    def family(self) -> str:
        """As it is declared, or else the id up to its first number."""
        declared = self.verdict.assessment.declarations.get("family")
        return visible(str(declared or re.split(r"[-_]?v?\d", self.backbone_id)[0]))

    @property
    def transformers(self) -> str:
        packages = self.verdict.assessment.environment.get("packages", {})
        return visible(str(packages.get("transformers", "unknown")))

    @property
    def profiles(self) -> str:
        return ", ".join(self.verdict.assessment.profiles)

    @cached_property
    def standing(self) -> str:
        """`certified`, `certified, with remarks` (waivers, library defects, SHOULDs), `partial`, or
        `not certified`."""
        if self.verdict.only is not None:
            return "partial"
        if not self.verdict.certified:
            return "not certified"
        return "certified" if self.verdict.result == "PASSED" else "certified, with remarks"

    @property
    def kind(self) -> str:
        """The standing as the name of a style."""
        return self.standing.replace(",", "").replace(" ", "-")

    def as_json(self) -> dict[str, Any]:
        assessment = self.verdict.assessment
        return {
            "folder": self.slug,
            "id": assessment.backbone_id,
            "family": self.family,
            "target": assessment.target,
            "profiles": list(assessment.profiles),
            "transformers": self.transformers,
            "standing": self.standing,
            "result": self.verdict.result,
            "issuedAt": self.verdict.issued_at,
        }


def entries_in(places: Sequence[Path]) -> list[Entry]:
    """The certificates in folders, or below them, by family, id, release and date.

    Raises:
        NoCertificates: a place has none.
        InvalidCertificate: one cannot be read.
    """
    files: dict[Path, None] = {}
    for place in places:
        found = [place] if place.is_file() else sorted(place.rglob(CERTIFICATE))
        if not found:
            raise NoCertificates(
                f"`{place}` "
                + (
                    f"holds no {CERTIFICATE}: `conformance certify … --out DIR` writes one"
                    if place.is_dir()
                    else "does not exist"
                )
            )
        files.update(dict.fromkeys(path.resolve() for path in found))
    verdicts = [read_certificate(path) for path in files]
    named: dict[str, Entry] = {}
    for verdict in verdicts:
        entry = Entry("", verdict)
        stem = _slug(f"{entry.backbone_id}-{entry.profiles}-transformers-{entry.transformers}")
        slug, number = stem, 1
        while slug in named:
            number += 1
            slug = f"{stem}-{number}"
        named[slug] = Entry(slug, verdict)
    return sorted(
        named.values(),
        key=lambda one: (
            one.family,
            one.backbone_id,
            _release(one.transformers),
            one.profiles,
            one.verdict.issued_at,
        ),
    )


def write_site(
    entries: Sequence[Entry], out: Path, on_page: Callable[[int], None] = lambda number: None
) -> None:
    """Write the site into `out`, in place of what an earlier one left there; the index comes last.

    Raises:
        UnwritableFolder: naming the folder and the reason.
    """
    with writing_to(out):
        for folder in _folders_of_an_earlier_site(out) - {entry.slug for entry in entries}:
            shutil.rmtree(out / folder, ignore_errors=True)
    for number, entry in enumerate(entries, 1):
        place = out / entry.slug
        write_whole(place, INDEX, html(entry.verdict))
        write_whole(place, CERTIFICATE, serialise(entry.verdict.as_certificate()))
        write_whole(place, "badge.svg", badge(entry.standing))
        write_whole(place, "badge.json", json.dumps(shield(entry.standing)) + "\n")
        on_page(number)
    write_whole(out, DOCUMENT, json.dumps([one.as_json() for one in entries], indent=2) + "\n")
    write_whole(out, INDEX, index(entries))


def shield(standing: str) -> dict[str, Any]:
    """What https://shields.io/badges/endpoint-badge reads."""
    return {
        "schemaVersion": 1,
        "label": LABEL,
        "message": standing,
        "color": _COLOURS[standing][0],
    }


def badge(standing: str) -> str:
    """The badge as SVG."""
    left, right = (round(_CHARACTER * len(text) + 2 * _ROOM) for text in (LABEL, standing))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="{LABEL}: {standing}"><title>{LABEL}: {standing}</title>'
        f'<rect width="{left + right}" height="20" rx="3" fill="#444b57"/>'
        f'<path d="M{left} 0h{right - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1-3 3H{left}z" '
        f'fill="{_COLOURS[standing][1]}"/>'
        f'<g fill="#ffffff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" '
        f'font-size="11"><text x="{left / 2}" y="14">{LABEL}</text>'
        f'<text x="{left + right / 2}" y="14">{standing}</text></g></svg>\n'
    )


def index(entries: Sequence[Entry]) -> str:
    """The table: a row an id, a column a release of transformers."""
    environment = templates()
    environment.filters["address"] = quote
    style, script = styled("matrix.css"), part("matrix.js")
    releases = sorted({entry.transformers for entry in entries}, key=_release, reverse=True)
    rows: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        rows.setdefault((entry.family, entry.backbone_id), []).append(entry)
    return environment.get_template("matrix.html.jinja").render(
        entries=entries,
        rows=rows,
        releases=releases,
        families=sorted({entry.family for entry in entries}),
        profiles=sorted({entry.profiles for entry in entries}),
        standings=[one for one in _COLOURS if any(one == entry.standing for entry in entries)],
        style=style,
        script=script,
        policy=policy(style, script),
    )


def _folders_of_an_earlier_site(out: Path) -> set[str]:
    try:
        found = json.loads((out / DOCUMENT).read_text(encoding="utf-8"))
        names = [str(one["folder"]) for one in found]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    # Whoever wrote that file, nothing outside of the folder is removed.
    return {name for name in names if _slug(name) == name and (out / name).is_dir()}


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.").lower()[:120] or "certificate"


def _release(text: str) -> tuple[Any, ...]:
    return tuple(int(part) if part.isdecimal() else -1 for part in re.split(r"[.+]", text))


def count(entries: Iterable[Entry]) -> str:
    """`3 certificates: 2 certified, 1 not certified`."""
    found = [entry.standing for entry in entries]
    told = ", ".join(f"{found.count(one)} {one}" for one in _COLOURS if one in found)
    return f"{len(found)} certificate{'' if len(found) == 1 else 's'}: {told}"

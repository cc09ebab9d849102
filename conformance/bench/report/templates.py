"""What people read, rendered from the templates beside this file."""

from __future__ import annotations

import math
from typing import Any

from conformance.bench.report import rows
from conformance.bench.results.statistics import FALSE_ALARMS
from conformance.bench.units import seconds


def render(template: str, **content: Any) -> str:
    """The text that `template` makes of `content`; everything in an HTML page is escaped but the
    SVGs that `charts` makes."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("conformance.bench.report", "."),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "expm1": math.expm1,
        "headline": rows.headline,
        "memory_change": rows.memory_change,
        "seconds": seconds,
    }
    return environment.get_template(template).render(false_alarms=FALSE_ALARMS, **content)

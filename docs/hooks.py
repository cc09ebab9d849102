"""What the site does differently from the documents as they lie in the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_OUTSIDE = re.compile(r"\]\((?:\.\./)+((?!#)[^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Link files beside `docs/` where the repository is read, and see that they are there."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def elsewhere(link: re.Match[str]) -> str:
        target = (folder / link[0][2:-1]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return link[0]
        if not target.exists():
            raise FileNotFoundError(
                f"{page.file.src_uri} links {link[0][2:-1]}, which is not there"
            )
        place = target.relative_to(ROOT).as_posix()
        return f"]({config.extra['repository']}/blob/main/{place}?raw=true)"

    return _OUTSIDE.sub(elsewhere, markdown)

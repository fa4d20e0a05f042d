"""One HTML text from the page's parts: style, scripts and data stand inside it, and nothing else may run or load.

A content security policy names the hashes of the script and the style, so a prompt that slips markup into the page
could still not run it; and the data is JSON without `<`, read by the script, which makes texts of it, never markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

# In the order in which they stand in the page: each may use what precedes it.
SCRIPTS = ("model.js", "clock.js", "cards.js", "grid.js", "pair.js", "details.js", "controls.js")


def render(data: Mapping[str, Any]) -> str:
    """The whole page; `data` is what `pages` says of the runs."""
    script = '"use strict";\n' + "\n".join(map(_part, SCRIPTS))
    style = _part("page.css")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "media-src 'self' file:; base-uri 'none'; form-action 'none'"
    )
    values = {
        "policy": html.escape(policy, quote=True),
        "title": html.escape(f"{data['title']} · {data['place']}"),
        "style": style,
        "script": script,
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    }
    # One pass: a prompt with `{{style}}` in it stays what it is.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], _part("page.html"))


def _part(name: str) -> str:
    return (resources.files("ltxgen.media.gallery") / "page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"

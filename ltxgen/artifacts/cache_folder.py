"""Where ltxgen keeps what it makes itself (the embedded model, remembered hashes)."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """`$LTXGEN_CACHE`, else the platform's cache folder (`$XDG_CACHE_HOME` on Linux) with `ltxgen` inside."""
    if own := os.environ.get("LTXGEN_CACHE"):
        return Path(own).expanduser().absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).expanduser().absolute() / "ltxgen"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ltxgen"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "ltxgen"
    return Path.home() / ".cache" / "ltxgen"

"""ltxgen: LTX-2.3 audio-video generation from committed YAML."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltxgen.api import Pipeline, Refusal, Result, Step, load

__version__ = "0.1.0"
IMPORTED_AT = time.perf_counter()  # what is known of the process's start where the system doesn't tell
__all__ = ["Pipeline", "Refusal", "Result", "Step", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # torch takes seconds to import, and most commands do without it
        from ltxgen import api

        return getattr(api, name)
    raise AttributeError(f"module 'ltxgen' has no attribute '{name}'")

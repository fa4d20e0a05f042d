"""ltxgen: LTX-2.3 audio-video generation from committed YAML."""

import time

__version__ = "0.1.0"
IMPORTED_AT = time.perf_counter()  # what is known of the process's start where the system doesn't tell

"""The log of a run: a JSON object a line, each written when it happens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

LOG = "log.jsonl"


class JsonLines(AbstractContextManager["JsonLines"]):
    """Adds events to the file `path`, each whole before the next one: whatever ends the process, its lines are whole
    but for the last, which the next process that adds to them cuts off."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            whole = path.read_bytes().rpartition(b"\n")
            os.truncate(path, len(whole[0] + whole[1]))
        # Not buffered, and one write a line, which the system appends as a whole: threads may tell things as well.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def __call__(self, event: Mapping[str, Any]) -> None:
        os.write(self._file, f"{json.dumps(event, ensure_ascii=False)}\n".encode())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

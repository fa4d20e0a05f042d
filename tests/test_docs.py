"""What the pages in docs/ list, against what a run leaves."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

DOCS = Path(__file__).resolve().parents[1] / "docs"


def documented_tensors() -> Iterator[re.Pattern[str]]:
    """A pattern for each name in the table of docs/outputs.md."""
    table = (DOCS / "outputs.md").read_text(encoding="utf-8").partition("Names in `tensors.safetensors`")[2]
    cells = re.findall(r"^\| (`[^|]*`) \|", table, re.M)
    for name in itertools.chain(*(re.findall(r"`([^`]+)`", cell) for cell in cells)):
        pattern = re.escape(name).replace(r"0\.\.3", "[0-3]").replace("NNN", r"\d{3}")
        pattern = re.sub(r"^S\\", r"(base|refine)\\", pattern)
        yield re.compile(re.sub(r"\\{(\w+),(\w+)\\}", r"(\1|\2)", pattern))


def test_all_tensors_of_a_run_are_in_the_docs(stored_run):
    with safe_open(stored_run() / "tensors.safetensors", framework="pt") as file:
        names = set(file.keys())
    patterns = list(documented_tensors())
    assert [name for name in names if not any(pattern.fullmatch(name) for pattern in patterns)] == []
    assert [each.pattern for each in patterns if not any(each.fullmatch(name) for name in names)] == []

"""Many requests from a file: rows of config fields, each of which becomes the overrides of one job.

JSON lines (`.jsonl`) and YAML (`.yaml`, a list of mappings) name fields in each row; CSV (`.csv`) in its first line; in
a text file (`.txt`) each line is a prompt. YAML may also be one mapping of fields to lists of values. `prompt` is short
for `request.prompt`, and so are the other fields of a request. Values stand as they are: nothing needs escaping.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from ltxgen.config.errors import MISSING, Problem, Refusal, did_you_mean
from ltxgen.config.inputs import check_size
from ltxgen.config.recipe import Request

Mode = Literal["zip", "product"]
Row = Mapping[str, Any]

_FORMATS = (".jsonl", ".yaml", ".yml", ".csv", ".txt")
_FIELD = re.compile(r"\+{0,2}[A-Za-z_][\w./]*")
_PLAIN = re.compile(r"[\w./+-]+")  # what Hydra's grammar reads as one text
_WORDS = re.compile(r"(null|true|false|nan|inf|[+-]?[\d._]+(e[+-]?\d+)?)", re.IGNORECASE)  # and what it reads otherwise


def read_requests(path: Path, mode: str = "zip") -> list[list[str]]:
    """The overrides of each job, in Hydra's grammar.

    `zip` makes a job of each row (of lists as long as each other); `product` one of every combination of the fields'
    values. Raises Refusal (`requests`) for a file that can't be read so, and for an unknown mode.
    """
    if mode not in get_args(Mode):
        known = get_args(Mode)
        raise _refused(mode, f"must be one of {', '.join(known)}{did_you_mean(mode, known)}", "requests.mode")
    rows = _rows(path, mode)
    if not rows:
        raise _refused(path, "holds no request")
    if mode == "product":
        rows = list(_product(rows))
    return [[_override(key, value) for key, value in row.items()] for row in rows]


def _rows(path: Path, mode: str) -> list[Row]:
    kind = path.suffix.lower()
    if kind not in _FORMATS:
        message = f"must end in one of {', '.join(_FORMATS)}; save a table as CSV, and mere prompts as text, one a line"
        raise _refused(path, message)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if kind == ".csv":
            return _csv_rows(path, text)
        if kind == ".txt":
            return [{"request.prompt": line} for line in text.splitlines() if line.strip()]
        if kind == ".jsonl":
            lines = (json.loads(line) for line in text.splitlines() if line.strip())
            return [_checked(path, number, row) for number, row in enumerate(lines, start=1)]
        content = yaml.safe_load(text)
        check_size(content)
        return _yaml_rows(path, content, mode)
    except OSError as error:
        message = f"can't be read ({error.strerror or error}); give the path of one that ends in {', '.join(_FORMATS)}"
        raise _refused(path, message + _similar(path)) from error
    except (ValueError, RecursionError, yaml.YAMLError, csv.Error) as error:
        raise _refused(
            path, f"is no {kind.removeprefix('.')} that can be read: {' '.join(str(error).split())}"
        ) from error


def _similar(path: Path) -> str:
    """A file of that folder with nearly the same name, if there is one."""
    try:
        return did_you_mean(path.name, [each.name for each in path.parent.iterdir() if each.suffix in _FORMATS])
    except OSError:
        return ""


def _csv_rows(path: Path, text: str) -> list[Row]:
    """Cells are texts, which Hydra reads as values where a field isn't one; an empty cell leaves its field as it is."""
    rows: list[Row] = []
    for number, row in enumerate(csv.DictReader(text.splitlines(keepends=True), strict=True), start=1):
        if None in row or None in row.values():
            raise _refused(path, f"row {number} has another number of cells than the first line")
        rows.append(_checked(path, number, {key: _Cell(value) for key, value in row.items() if value}))
    return rows


def _yaml_rows(path: Path, content: Any, mode: str) -> list[Row]:
    if isinstance(content, list):
        return [_checked(path, number, row) for number, row in enumerate(content, start=1)]
    if not isinstance(content, Mapping):
        raise _refused(path, "must be a list of mappings, or one mapping of fields to lists of values")
    columns = {key: value if isinstance(value, list) else [value] for key, value in content.items()}
    lengths = {key: len(values) for key, values in columns.items()}
    longest = max(lengths.values(), default=0)
    if mode == "zip" and any(length not in (1, longest) for length in lengths.values()):
        counts = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise _refused(path, f"has lists of unequal lengths ({counts}); make them equal, or set requests.mode=product")
    filled = {key: values * longest if len(values) == 1 else values for key, values in columns.items()}
    padded = itertools.zip_longest(*filled.values(), fillvalue=MISSING)
    rows = [{key: value for key, value in zip(filled, row, strict=True) if value is not MISSING} for row in padded]
    return [_checked(path, number, row) for number, row in enumerate(rows, start=1)]


def _checked(path: Path, number: int, row: Any) -> Row:
    """The row with whole names of fields."""
    if not isinstance(row, Mapping) or not row:
        raise _refused(
            path, f"row {number} must be a mapping of config fields to values, such as {{prompt: ..., seed: 1}}"
        )
    short = {field.name for field in dataclasses.fields(Request)}
    named = {f"request.{key}" if key in short else str(key): value for key, value in row.items()}
    for key, value in named.items():
        if wrong := _wrong_field(key, value):
            raise _refused(path, f"row {number} sets {key!r}, {wrong}")
    return named


def _wrong_field(key: str, value: Any) -> str | None:
    """A file of requests comes from anywhere: it says what is made, not where it is written or what runs it."""
    if not _FIELD.fullmatch(key):
        return "which is no config field, such as request.seed or stages.base.steps"
    name = key.lstrip("+")
    if re.match(r"hydra\b", name):
        return "which only the command line may"
    if name == "output.dir" or (name == "output" and isinstance(value, Mapping)):
        return "which only the command line may: a sweep has one folder"
    if not _has_plain_keys(value):
        return "to a mapping whose keys are no names of fields"
    if isinstance(value, _Cell) and not _is_text(key) and "${" in value:
        return f"to {str(value)!r}: values stand as they are, and this would be read as a reference"
    return None


def _has_plain_keys(value: Any) -> bool:
    """Whether all keys in a value, which Hydra's grammar doesn't let one quote, are names."""
    if isinstance(value, Mapping):
        return all(re.fullmatch(r"\w+", str(key)) and _has_plain_keys(item) for key, item in value.items())
    return not isinstance(value, list) or all(map(_has_plain_keys, value))


def _product(rows: Sequence[Row]) -> Iterator[Row]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    values = [_distinct(row[key] for row in rows if key in row) for key in keys]
    return (dict(zip(keys, each, strict=True)) for each in itertools.product(*values))


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({json.dumps(value, sort_keys=True, default=str): value for value in values}.values())


class _Cell(str):
    """A text from CSV."""


def _override(key: str, value: Any) -> str:
    return f"{key}={_in_grammar(key, value)}"


def _in_grammar(key: str, value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_in_grammar(str(name), item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_in_grammar(key, item) for item in value) + "]"
    if isinstance(value, _Cell) and not _is_text(key):
        return str(value)
    if isinstance(value, str) and (_is_text(key) or not _PLAIN.fullmatch(value) or _WORDS.fullmatch(value)):
        literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)  # no interpolation
        escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), literal)
        return f"'{escaped}'"
    return str(value)


def _is_text(key: str) -> bool:
    return re.fullmatch(r"request\.(negative_)?prompt|(.*\.)?(path|dir)", key) is not None


def _refused(value: object, message: str, path: str = "requests") -> Refusal:
    return Refusal([Problem(path, str(value), message)])

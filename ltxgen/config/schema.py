"""From plain mappings to frozen dataclasses, with every problem collected instead of the first one raised.

The dataclass is the schema: annotations give types and choices (`Literal`), `Annotated` adds a `Check` (a bound, with
its wording) or a `Kind` (a component found in the registry by its `kind` field).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar

from ltxgen import registry
from ltxgen.config.errors import MISSING, Problem, did_you_mean

T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """A bound on a value: `test` decides, `allowed` says in words what passes."""

    allowed: str
    test: Callable[[Any], bool]


@dataclass(frozen=True)
class Kind:
    """A component of `group`, chosen by the mapping's `kind` and validated by that kind's dataclass."""

    group: str


@dataclass(frozen=True)
class Null:
    """What null stands for, of whatever `Check`s say: a value that is worked out later."""

    value: Any


PositiveInt = Annotated[int, Check("must be a whole number of at least 1", lambda value: value >= 1)]
NonNegativeInt = Annotated[int, Check("must be a whole number of at least 0", lambda value: value >= 0)]
NonNegativeFloat = Annotated[float, Check("must be at least 0", lambda value: value >= 0)]
PositiveFloat = Annotated[float, Check("must be greater than 0", lambda value: value > 0)]
PositiveFraction = Annotated[Fraction, Check("must be greater than 0", lambda value: value > 0)]
UnitFloat = Annotated[float, Check("must be between 0 and 1", lambda value: 0 <= value <= 1)]


class Invalid:
    """Stands for a value that did not parse; its problem is already noted."""


INVALID = Invalid()


def parse(config: type[T], data: object, path: str, problems: list[Problem]) -> T | Invalid:
    """Build `config` from the mapping `data` that stands at config path `path`.

    Every problem (unknown key, missing key, wrong type, value out of bounds) is appended to `problems`; the result is
    `INVALID` if there was any. Unknown keys come with the nearest known one.
    """
    if not isinstance(data, Mapping):
        problems.append(Problem(path, data, f"must be a mapping with the keys {_listed(_field_names(config))}"))
        return INVALID
    hints = _hints(config)  # type: ignore[arg-type]
    known = {field.name: field for field in dataclasses.fields(config) if field.init}  # type: ignore[arg-type]
    for key in data:
        if key not in known and key != "kind":
            message = f"is not a known key; known here are {_listed(known)}{did_you_mean(str(key), known)}"
            problems.append(Problem(_join(path, str(key)), MISSING, message))
    values: dict[str, Any] = {}
    sound = all(key in known or key == "kind" for key in data)
    for name, field in known.items():
        if name in data:
            values[name] = parse_value(hints[name], data[name], _join(path, name), problems)
            sound &= values[name] is not INVALID
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(Problem(_join(path, name), MISSING, "is missing"))
            sound = False
    return config(**values) if sound else INVALID


@functools.cache
def _hints(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config, include_extras=True)


def parse_value(hint: Any, value: object, path: str, problems: list[Problem]) -> Any:
    """Check one value against one annotation; `INVALID` with a problem noted when it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _parse_annotated(arguments[0], arguments[1:], value, path, problems)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(arguments, value, path, problems)
    if origin is Literal:
        return _parse_choice(arguments, value, path, problems)
    if origin in (tuple, list, Sequence):
        return _parse_sequence(arguments[0], value, path, problems)
    if origin in (dict, Mapping):
        return _parse_mapping(arguments[1], value, path, problems)
    if dataclasses.is_dataclass(hint):
        return parse(hint, value, path, problems)  # type: ignore[arg-type]
    return _parse_scalar(hint, value, path, problems)


def _parse_annotated(hint: Any, extras: tuple[Any, ...], value: object, path: str, problems: list[Problem]) -> Any:
    for extra in extras:
        if isinstance(extra, Kind):
            return _parse_component(extra.group, value, path, problems)
        if isinstance(extra, Null) and value is None:
            return extra.value
    parsed = parse_value(hint, value, path, problems)
    if parsed is INVALID:
        return INVALID
    for extra in extras:
        if isinstance(extra, Check) and not extra.test(parsed):
            problems.append(Problem(path, value, extra.allowed))
            return INVALID
    return parsed


def _parse_component(group: str, value: object, path: str, problems: list[Problem]) -> Any:
    known = registry.kinds(group)
    kind = value.get("kind") if isinstance(value, Mapping) else value
    if kind not in known:
        message = f"must be one of {_listed(known)}{did_you_mean(str(kind), known)}"
        problems.append(Problem(_join(path, "kind"), kind, message))
        return INVALID
    fields = value if isinstance(value, Mapping) else {}
    return parse(registry.config_of(group, str(kind)), fields, path, problems)


def _parse_union(arguments: tuple[Any, ...], value: object, path: str, problems: list[Problem]) -> Any:
    """`X | None`, or words and a mapping or number: `Literal["auto"] | SomeConfig`, with or without None."""
    if value is None and type(None) in arguments:
        return None
    hints = [argument for argument in arguments if argument is not type(None)]
    if len(hints) > 1:
        hints = [hint for hint in hints if dataclasses.is_dataclass(hint) == isinstance(value, Mapping)]
    if len(hints) > 1:
        hints = [hint for hint in hints if (typing.get_origin(hint) is Literal) == isinstance(value, str)]
    (hint,) = hints
    return parse_value(hint, value, path, problems)


def _parse_choice(choices: tuple[Any, ...], value: object, path: str, problems: list[Problem]) -> Any:
    # YAML reads on/off as booleans; a choice spelled `off` means the word.
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return choice
    message = f"must be one of {_listed(choices)}{did_you_mean(str(value), map(str, choices))}"
    problems.append(Problem(path, value, message))
    return INVALID


def _parse_sequence(hint: Any, value: object, path: str, problems: list[Problem]) -> Any:
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        problems.append(Problem(path, value, f"must be a list of {_type_name(hint)}"))
        return INVALID
    items = [parse_value(hint, item, f"{path}[{index}]", problems) for index, item in enumerate(value)]
    return INVALID if any(item is INVALID for item in items) else tuple(items)


def _parse_mapping(hint: Any, value: object, path: str, problems: list[Problem]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(Problem(path, value, f"must be a mapping from names to {_type_name(hint)}"))
        return INVALID
    items = {str(name): parse_value(hint, item, _join(path, str(name)), problems) for name, item in value.items()}
    return INVALID if any(item is INVALID for item in items.values()) else items


def _parse_scalar(hint: Any, value: object, path: str, problems: list[Problem]) -> Any:
    if hint is Any or hint is object:
        return value
    parsed: Any = INVALID
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    if hint is bool and isinstance(value, bool):
        parsed = value
    elif hint is int and isinstance(number, int):
        parsed = number
    elif hint is float and number is not None and math.isfinite(number):
        parsed = float(number)
    elif hint is str and isinstance(value, str):
        parsed = value
    elif hint is str and number is not None:
        parsed = str(value)  # a prompt or file name that YAML reads as a number
    elif hint is Fraction:
        parsed = _fraction(value)
    if parsed is INVALID:
        problems.append(Problem(path, value, f"must be {_type_name(hint)}"))
    return parsed


def _fraction(value: object) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return INVALID
    try:
        # A decimal is taken as written: 29.97 is 2997/100, not the nearest binary fraction.
        return Fraction(str(value).strip())
    except (ValueError, ZeroDivisionError):
        return INVALID


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Annotated:
        inner, *extras = typing.get_args(hint)
        groups = [extra.group for extra in extras if isinstance(extra, Kind)]
        return f"mappings with a kind, as in conf/{groups[0]}" if groups else _type_name(inner)
    if dataclasses.is_dataclass(hint):
        return f"mappings with the keys {_listed(_field_names(hint))}"  # type: ignore[arg-type]
    names = {
        int: "a whole number",
        float: "a finite number",
        bool: "true or false",
        str: "a text",
        Fraction: "a number or a fraction such as 30000/1001",
    }
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _field_names(config: type) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names) or "none"

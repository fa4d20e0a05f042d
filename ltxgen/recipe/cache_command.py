"""`ltxgen cache`: what is stored, and what of it to drop or check."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table

from ltxgen.artifacts.hub import shown_size
from ltxgen.config.errors import MISSING, Problem, Refusal
from ltxgen.recipe.cache import stages_folder
from ltxgen.recipe.resume import forget_runs
from ltxgen.recipe.store import BadEntry, Entry, Store

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SHOWN = 12  # characters of a key: enough to tell thousands apart, and `rm` takes any beginning
_LEAST = 4


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refusal([Problem("cache", MISSING, f"{message}; see `ltxgen cache --help`")])


def cache(words: Sequence[str], console: Console) -> int:
    """Run one command; returns the exit code. Raises Refusal for words that are none."""
    parser = _Parser(prog="ltxgen cache", description="outputs of stages, stored by content")
    commands = parser.add_subparsers(required=True, metavar="ls | rm | verify", parser_class=_Parser)

    def command(name: str, run: Callable[[Store, Any, Console], int], what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what)
        added.add_argument("--folder", metavar="DIR", help="what cache.folder is; by default the one that runs use")
        added.set_defaults(run=run)
        return added

    command("ls", _ls, "list what is stored, the most recently used last")
    rm = command("rm", _rm, "drop stored outputs")
    rm.add_argument("keys", nargs="*", metavar="KEY", help="a key, or the beginning of one")
    rm.add_argument("--all", action="store_true", help="everything, and what interrupted runs left")
    rm.add_argument("--older-than", type=_seconds, metavar="AGE", help="not used for so long: 90m, 12h, 7d, 2w")
    verify = command("verify", _verify, "read everything and compare checksums; exit code 1 if any is bad")
    verify.add_argument("--repair", action="store_true", help="drop what is bad")
    arguments = parser.parse_args(list(words))
    return arguments.run(Store(stages_folder(arguments.folder)), arguments, console)


def _ls(store: Store, arguments: Any, console: Console) -> int:
    table = Table("key", "stage", "recipe", "size", "used")
    entries = store.entries()
    for entry in entries:
        stage, recipe = _origin(entry)
        table.add_row(entry.key[:_SHOWN], stage, recipe, shown_size(entry.num_bytes), _ago(entry.used))
    console.print(table)
    total = sum(entry.num_bytes for entry in entries)
    console.print(f"{_counted(entries)}, {shown_size(total)} in {store.folder}")
    return 0


def _rm(store: Store, arguments: Any, console: Console) -> int:
    if not (arguments.keys or arguments.all or arguments.older_than is not None):
        raise Refusal([Problem("cache rm", MISSING, "say what: KEY ..., --older-than AGE or --all")])
    entries = store.entries()
    if arguments.all:
        chosen = entries
        forget_runs()
    else:
        named = [_named(key, entries) for key in arguments.keys]
        oldest = arguments.older_than
        old = [] if oldest is None else [entry for entry in entries if time.time() - entry.used > oldest]
        chosen = list(dict.fromkeys([*named, *old]))
    for entry in chosen:
        store.remove(entry.key)
    console.print(f"dropped {_counted(chosen)}, {shown_size(sum(entry.num_bytes for entry in chosen))}")
    return 0


def _verify(store: Store, arguments: Any, console: Console) -> int:
    entries = store.entries()
    bad = [(entry, wrong) for entry in entries if (wrong := store.check(entry.key)) is not None]
    for entry, wrong in bad:
        if arguments.repair:
            store.remove(entry.key)
        console.print(f"{entry.path}: {wrong}{'; dropped' if arguments.repair else ''}", soft_wrap=True)
    console.print(f"{_counted(entries)} read, {len(bad)} bad")
    return 1 if bad else 0


def _named(key: str, entries: Sequence[Entry]) -> Entry:
    found = [entry for entry in entries if entry.key.startswith(key)] if len(key) >= _LEAST else []
    if len(found) == 1:
        return found[0]
    what = "is the beginning of several keys; give more of it" if found else "is no key; `ltxgen cache ls` lists them"
    raise Refusal([Problem("cache rm", key, what)])


def _origin(entry: Entry) -> tuple[str, str]:
    try:
        facts = entry.facts()
    except BadEntry as error:
        return f"damaged: {error}", ""
    return str(facts.get("stage")), str(facts.get("recipe"))


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age such as 90m, 12h, 7d or 2w")
    return float(found[1]) * _UNITS[found[2]]


def _ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    unit = next((unit for unit in reversed(_UNITS) if seconds >= _UNITS[unit]), "s")
    return f"{seconds / _UNITS[unit]:.0f} {unit} ago"


def _counted(entries: Sequence[Entry]) -> str:
    return "1 output" if len(entries) == 1 else f"{len(entries)} outputs"

"""Asks everything, and shows what was found."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltxgen.config.errors import Refusal
from ltxgen.config.recipe import parse_recipe
from ltxgen.doctor import machine, places, software
from ltxgen.doctor.finding import Finding
from ltxgen.recipe.plan import Plan, make_plan
from ltxgen.runtime.environment import DTYPES, resolve_device

_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def doctor(config: Mapping[str, Any], console: Console, *, as_json: bool = False, online: bool = False) -> int:
    """Show what a run of the composed `config`, with or without a recipe, would find here; 1 if it could not run.

    Nothing is asked of the network unless `online`.
    """
    findings = list(examine(config, online))
    counts = {status: sum(each.status == status for each in findings) for status in _STYLES}
    if as_json:
        told = {"findings": [dataclasses.asdict(each) for each in findings], "counts": counts}
        print(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        console.print(_table(findings))
        console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
    return 1 if counts["problem"] else 0


def examine(config: Mapping[str, Any], online: bool = False) -> Iterator[Finding]:
    """Everything that can be known without loading weights. Raises Refusal for a config that is none."""
    plan = _planned(config)
    device, wrong = _device(config)
    yield from software.versions(device)
    yield from machine.gpus(device)
    yield from wrong if plan is None else ()  # which tells it as well
    yield from machine.host()
    yield from machine.accelerate_config()
    yield from software.codecs()
    yield from software.attention(device, DTYPES.get(config["runtime"]["dtype"], torch.bfloat16))
    yield from places.hub(online)
    missing = {} if plan is None else {spec.name: spec for spec in plan.specs if spec.name not in plan.artifacts}
    yield from places.folders(config, missing)
    if plan is not None:
        yield from recipe(plan)


def recipe(plan: Plan) -> Iterator[Finding]:
    """Whether this recipe would run."""
    name = plan.recipe.name
    for problem in (*plan.problems, *plan.here):
        where, _, message = str(problem).partition(": ")
        what, _, fix = message.partition("\n")
        yield Finding("recipe", where, "problem", what, fix)
    for note in plan.notes:
        yield Finding("recipe", name, "note", note)
    if not plan.problems and not plan.here:
        yield Finding("recipe", name, "ok", "would run here")
    if plan.memory is not None:
        yield Finding("recipe", "memory", "ok", plan.memory.lines[0])


def _planned(config: Mapping[str, Any]) -> Plan | None:
    """What would run; None where there is no recipe."""
    try:
        return make_plan(parse_recipe(config))
    except Refusal as refusal:
        if others := [problem for problem in refusal.problems if config["stages"] or problem.path != "stages"]:
            raise Refusal(others) from None
        return None


def _device(config: Mapping[str, Any]) -> tuple[torch.device, Sequence[Finding]]:
    """That runs would be on; what is wrong with the one that is asked for."""
    try:
        return resolve_device(config["runtime"]["device"]), ()
    except Refusal as refusal:
        found = [Finding("GPU", problem.path, "problem", str(problem)) for problem in refusal.problems]
        return torch.device("cpu"), found


def _table(findings: Sequence[Finding]) -> Table:
    table = Table("", "", "", "found", "what to do")
    last = ""
    for each in findings:
        about = each.about if each.about != last else ""
        last = each.about
        # Text, never markup: paths and errors may hold brackets.
        status = Text(each.status, _STYLES[each.status])
        table.add_row(Text(about, "bold"), Text(each.name), status, Text(each.what), Text(each.fix))
    return table

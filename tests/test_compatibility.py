"""Every recipe with every layout, policy and backend: planned, or refused with a reason, as the page says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import compatibility
import pytest
from compatibility import PAGE, RUNS, Table, found_of_attention, kinds, small_config
from test_recipes import RECIPES, write_inputs

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tables(tiny_set, offline, tmp_path_factory) -> list[Table]:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = compatibility.find()
    assert {path.name for path in folder.iterdir()} == {"first.png", "last.png", "depth.mp4", "song.wav", "clip.mp4"}
    return found


def test_what_is_refused_says_where_and_why(tables: list[Table]):
    told = {reason for table in tables for cells in table.rows.values() for found in cells for reason in found}
    assert len(told) > 5
    for reason in told:
        assert re.fullmatch(r"[a-z_]+(\.\w+)*( = [^:]+)?: .{30,}", reason), reason


def test_every_recipe_is_planned_plain_and_on_some_ranks(tables: list[Table]):
    first, ranks, *_ = tables
    for path in RECIPES:
        assert first.rows[path.stem] == [()] * len(first.columns)
        for size in compatibility.RANKS:
            planned = {name for name, found in zip(ranks.columns, ranks.rows[path.stem], strict=True) if not found}
            assert {f"auto {size}", f"ulysses {size}", f"ring {size}"} <= planned


def test_the_page_is_what_was_found(tables: list[Table]):
    page = PAGE.read_text(encoding="utf-8")
    assert page == compatibility.page_with(tables), "stale: run PYTHONPATH=. python tests/compatibility.py"


def test_what_is_said_to_run_is_a_test(tables: list[Table]):
    cells = {(row, column) for table in tables for row in table.rows for column in table.columns}
    for row, column, test in RUNS:
        rows = [path.stem for path in RECIPES] if row == "*" else [row]
        assert {(each, column) for each in rows} <= cells, (row, column)
        file, _, name = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, test


def test_on_a_cpu_only_its_own_backends_run(tiny_set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = small_config(next(path for path in RECIPES if path.stem == compatibility.SUBJECT))
    found = {
        kind: compatibility.found_of(config, attention=compatibility.content("attention", kind))
        for kind in kinds("attention")
    }
    assert {kind for kind, problems in found.items() if not problems} == {"auto", *compatibility.on_cpu()}
    for kind, problems in found.items():
        assert not problems or problems[0].startswith(f"attention = {kind}: can't run here: it runs on CUDA GPUs only")
    assert [bool(problems) for problems in found_of_attention(config)] == [False] * len(found)

"""What composes with what, found by planning it, and docs/compatibility.md, which says so.

    PYTHONPATH=. python tests/compatibility.py        writes the page anew

A new recipe, layout, policy or backend comes in by itself. What is run, and not only planned, is named in `RUNS`;
test_compatibility.py holds the page to what is found and `RUNS` to the tests that there are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from test_recipes import RECIPES, wanted, write_inputs

from ltxgen.attention import DeviceFacts
from ltxgen.attention.protocol import Package, backend, backend_kinds
from ltxgen.config import compose
from ltxgen.config.recipe import parse_recipe
from ltxgen.recipe import plan as planning
from ltxgen.recipe.plan import make_plan

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"
BEGIN, END = "<!-- tables: python tests/compatibility.py -->", "<!-- end of tables -->"
RANKS = (2, 4)
HOPPER = DeviceFacts("cuda", (9, 0))
SUBJECT = "ltx23_two_stage"  # whose guided and unguided stages have every kind of attention but references' masks
Found = tuple[str, ...]
"""Why a composition is refused; nothing where it is planned."""

# Tests that run a composition and look at what comes out: recipe (* is every one), column, test. A cell that isn't
# named here is planned or refused.
COMPOSITIONS = "tests/test_compositions.py::test_policies_and_attention_change_nothing"
AGAIN = "tests/test_compositions.py::test_a_run_comes_again_from_its_file_and_the_cache"
POLICIES = "tests/recipe/test_memory_policies.py::test_every_policy_gives_the_same_video"
IN_FP8 = "tests/recipe/test_memory_policies.py::test_every_policy_gives_the_same_video_in_fp8"
LAUNCH = "tests/distributed/test_launch.py::test_two_ranks_"
WEIGHTS = "tests/distributed/test_weights.py::test_two_stages_give_what_one_process_gives"
TILES = "tests/distributed/test_tiles.py::test_the_command_line"
MODALITIES = "tests/distributed/test_modalities.py::test_two_ranks_give_what_one_does"
SHARDED_HQ = "tests/distributed/test_launch.py::test_a_sampler_adds_the_same_noise_on_all_ranks"
BESIDE = ("reference", "flex")  # each recipe runs with one of them as well
RUNS = (
    ("*", "tiny", COMPOSITIONS),
    ("*", "auto 2", "tests/test_recipes_run_and_replay.py::test_all_run_on_two_processes"),
    ("*", "memory=swap", COMPOSITIONS),
    ("*", "memory=stream", COMPOSITIONS),
    ("*", "attention=sdpa", COMPOSITIONS),
    *((path.stem, f"attention={BESIDE[number % 2]}", COMPOSITIONS) for number, path in enumerate(RECIPES)),
    ("*", "cache=auto", AGAIN),
    *((SUBJECT, f"memory={policy}", POLICIES) for policy in ("auto", "last_use", "resident")),
    (SUBJECT, "precision=fp8", IN_FP8),
    ("memory=swap", "one rank", POLICIES),
    ("memory=stream", "one rank", POLICIES),
    ("memory=resident", "one rank", POLICIES),
    ("memory=last_use", "one rank", POLICIES),
    ("memory=auto", "one rank", POLICIES),
    ("precision=fp8", "one rank", IN_FP8),
    ("memory=auto", "ranks, whole weights", TILES),
    ("memory=auto", "ranks, sharded weights", WEIGHTS),
    (SUBJECT, "ulysses 2", TILES),
    (SUBJECT, "guidance_ulysses 4", TILES),
    (SUBJECT, "sharded 2", WEIGHTS),
    (SUBJECT, "sharded 4", WEIGHTS),
    (SUBJECT, "attention=auto", "tests/gpu/test_cuda.py::test_bfloat16_predicts_as_float32_within_its_rounding"),
    ("ltx23_audio_to_video", "ulysses 2", MODALITIES),
    ("ltx23_text_to_audio", "guidance 2", MODALITIES),
    ("ltx23_ic_lora", "ulysses 2", f"{LAUNCH}share_a_run_from_pictures_and_references"),
    ("ltx23_two_stage_hq", "sharded 2", SHARDED_HQ),
)


@dataclass
class Table:
    """Rows of cells: what was found of each composition."""

    title: str
    corner: str
    columns: Sequence[str]
    about: str = ""
    rows: dict[str, list[Found]] = field(default_factory=dict)


def content(group: str, name: str) -> dict[str, Any]:
    return yaml.safe_load((compose.data_folder("conf") / group / f"{name}.yaml").read_text(encoding="utf-8"))


def kinds(group: str) -> list[str]:
    return sorted(path.stem for path in (compose.data_folder("conf") / group).glob("*.yaml"))


def layouts() -> dict[str, dict[str, Any]]:
    """The group `parallel` for every choice of it that ranks share a run by, on 2 and 4 of them; last, with sharded
    weights."""
    shared = [name for name in kinds("parallel") if content("parallel", name)["kind"] not in ("single", "jobs")]
    groups = {name: content("parallel", name) for name in shared}
    groups["sharded"] = {**groups["ulysses"], "weights": "sharded"}
    return {f"{name} {ranks}": {**group, "num_processes": ranks} for name, group in groups.items() for ranks in RANKS}


def memories() -> dict[str, dict[str, Any]]:
    return {name: content("memory", name) for name in kinds("memory")}


@contextlib.contextmanager
def hopper() -> Iterator[None]:
    """Attention is chosen as for an H100 that has every package."""
    with (
        mock.patch.object(DeviceFacts, "of", return_value=HOPPER),
        mock.patch.object(Package, "missing", return_value=None),
        mock.patch.object(Package, "broken", return_value=None),
    ):
        yield


def small_config(recipe: Path, *words: str) -> dict[str, Any]:
    """A recipe on the embedded model of its generation, at the smallest size that it takes."""
    words = (*wanted(recipe.stem), "runtime.device=cpu", *words)
    model = compose.compose_config(list(words))["model"]["name"].removesuffix("_tiny")
    config = compose.compose_config([*words, f"model={model}_tiny"])
    request = config["request"]
    # A recipe that takes its sizes from a clip is left to the clip; what it continues it makes a little longer.
    if request["height"]:
        stages = make_plan(parse_recipe(config)).stages
        request["height"] = request["width"] = math.lcm(*(stage.size_multiple for stage in stages.values()))
    if request["num_frames"]:
        slowest = min(Fraction(stage.get("rate") or 1) for stage in config["stages"].values())
        request["num_frames"] = 33 if request["source"]["path"] else int(8 / slowest) + 1
    return config


def found_of(config: Mapping[str, Any], **groups: Any) -> Found:
    plan = make_plan(parse_recipe({**config, **groups}))
    return tuple(map(str, (*plan.problems, *plan.here)))


def find() -> list[Table]:
    """Every table of the page, from plans in the current folder, where the recipes' inputs must lie."""
    configs = {path.stem: small_config(path) for path in RECIPES}
    return [
        _models_and_memory(configs),
        _ranks(configs),
        _weights_and_memory(configs[SUBJECT]),
        _attention_by_recipe(configs),
        _attention_by_layout(configs[SUBJECT]),
    ]


def _models_and_memory(configs: Mapping[str, Mapping[str, Any]]) -> Table:
    policies = memories()
    table = Table(
        "Recipes with models, memory policies, precision and cache",
        "recipe",
        ["full size", "tiny", *(f"memory={name}" for name in policies), "precision=fp8", "cache=auto"],
        "`full size` is the published architecture without its files (`artifacts=synthetic`), `tiny` the embedded "
        "model, which all other columns are for. No policy is limited, as on a CPU; on a GPU a plan refuses one that "
        "doesn't fit, and says which does.",
    )
    for path in RECIPES:
        config = configs[path.stem]
        tiny = found_of(config)
        # At full size test_recipes.py plans each; plans know nothing of caches.
        cells = [(), tiny]
        cells += [found_of(config, memory=memory) for memory in policies.values()]
        cells += [found_of(config, precision=content("precision", "fp8")), tiny]
        table.rows[path.stem] = cells
    return table


def _ranks(configs: Mapping[str, Mapping[str, Any]]) -> Table:
    about = (
        "`ulysses 4` is `parallel=ulysses parallel.num_processes=4`; `sharded` is ulysses with "
        "`parallel.weights=sharded`. `parallel=single` is one process, `parallel=jobs` deals the jobs of a sweep."
    )
    table = Table("Recipes on several ranks", "recipe", list(layouts()), about)
    for name, config in configs.items():
        table.rows[name] = [found_of(config, parallel=layout) for layout in layouts().values()]
    return table


def _weights_and_memory(config: Mapping[str, Any]) -> Table:
    places = {
        "one rank": content("parallel", "single"),
        "ranks, whole weights": layouts()["ulysses 2"],
        "ranks, sharded weights": layouts()["sharded 2"],
    }
    about = f"On `{SUBJECT}`; other recipes differ in what they load and not in where it may be."
    table = Table("Memory policies and precision with the place of weights", "choice", list(places), about)
    choices = {f"memory={name}": {"memory": memory} for name, memory in memories().items()}
    choices["precision=fp8"] = {"precision": content("precision", "fp8")}
    for name, choice in choices.items():
        table.rows[name] = [found_of(config, parallel=place, **choice) for place in places.values()]
    return table


def _attention_by_recipe(configs: Mapping[str, Mapping[str, Any]]) -> Table:
    about = (
        "On an H100 in bfloat16 with every package installed, as a plan sees it. On a CPU the backends for GPUs are "
        f"refused, and {', '.join(on_cpu())} run. Calls with a mask go to `sdpa` where a backend takes none."
    )
    columns = [f"attention={kind}" for kind in kinds("attention")]
    rows = {name: found_of_attention(config) for name, config in configs.items()}
    return Table("Recipes with attention backends", "recipe", columns, about, rows)


def _attention_by_layout(config: Mapping[str, Any]) -> Table:
    columns = [f"attention={kind}" for kind in kinds("attention")]
    # What a role needs is the layout's, whatever the number of ranks.
    large = {name: layout for name, layout in layouts().items() if name.endswith(f" {max(RANKS)}")}
    rows = {name: found_of_attention({**config, "parallel": layout}) for name, layout in large.items()}
    return Table("Attention backends on several ranks", "layout", columns, f"On `{SUBJECT}`, as above.", rows)


def found_of_attention(config: Mapping[str, Any]) -> list[Found]:
    """Of every choice of attention on an H100, each asked of the plan's own rule: the rest of the plan is the same."""
    with hopper(), mock.patch.object(planning, "_attention_plan", wraps=planning._attention_plan) as chosen:
        assert found_of({**config, "runtime": {**config["runtime"], "dtype": "bfloat16"}}) == ()
        recipe, *rest = chosen.call_args.args
        found = []
        for kind in kinds("attention"):
            other = parse_recipe({**config, "attention": content("attention", kind)}).attention
            plan = planning._attention_plan(dataclasses.replace(recipe, attention=other), *rest)
            found.append(tuple(map(str, plan.problems)))
    return found


def on_cpu() -> list[str]:
    cpu = DeviceFacts("cpu")
    return [kind for kind in backend_kinds() if backend(kind).available(cpu, torch.float32) is None]


# ---------------------------------------------------------------- the page


def test_of(row: str, column: str) -> str | None:
    """The test that runs a cell."""
    rows = (row, "*") if row in {path.stem for path in RECIPES} else (row,)
    return next((test for name, other, test in RUNS if name in rows and other == column), None)


def tables_text(tables: Sequence[Table]) -> str:
    """The tables in Markdown, then the tests and the reasons that they number."""
    tests: dict[str, int] = {}
    reasons: dict[str, int] = {}
    parts = []
    for table in tables:
        parts.append(f"## {table.title}\n\n{table.about}\n")
        lines = [f"| {table.corner} | {' | '.join(table.columns)} |", "|-" * (len(table.columns) + 1) + "|"]
        for row, cells in table.rows.items():
            shown = [
                _cell(found, test_of(row, column), tests, reasons)
                for column, found in zip(table.columns, cells, strict=True)
            ]
            lines.append(f"| `{row}` | {' | '.join(shown)} |")
        parts.append("\n".join(lines) + "\n")
    parts.append(
        "## Tests that run\n\n" + "".join(f"- {_letter(number)}: `{test}`\n" for test, number in tests.items())
    )
    parts.append("## Why refused\n\n" + "".join(f"{number}. `{reason}`\n" for reason, number in reasons.items()))
    return "\n".join(parts)


def _cell(found: Found, test: str | None, tests: dict[str, int], reasons: dict[str, int]) -> str:
    if found:
        return f"refused {reasons.setdefault(found[0], len(reasons) + 1)}"
    return "planned" if test is None else f"**run** {_letter(tests.setdefault(test, len(tests)))}"


def _letter(number: int) -> str:
    return chr(ord("a") + number)


def page_with(tables: Sequence[Table]) -> str:
    """The page with these tables in the place of its own."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{tables_text(tables)}\n{END}{after}"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.chdir(folder)
        write_inputs(Path(folder))
        PAGE.write_text(page_with(find()), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

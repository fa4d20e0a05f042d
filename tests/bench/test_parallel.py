"""`ltxgen bench parallel`: ranks for real on the embedded model, and its tables, orders and budget by themselves."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

import ltxgen
from ltxgen.artifacts.synthetic import architecture
from ltxgen.attention.sdpa import Sdpa
from ltxgen.bench import report as bench_report
from ltxgen.bench.parallel.agreement import other_batching, other_kernel, psnr, relative_l2
from ltxgen.bench.parallel.entries import link_entry
from ltxgen.bench.parallel.links import Link, Message
from ltxgen.bench.parallel.options import parse_parallel_options
from ltxgen.bench.parallel.rank import Budget
from ltxgen.bench.parallel.report import Figures, left_out, sheets
from ltxgen.bench.parallel.rows import plan_size, rows_of, shortened
from ltxgen.bench.results import Entry, Results
from ltxgen.config import compose
from ltxgen.diffusion.pair import Pair
from ltxgen.models.transformer import AttentionByRole, Transformer, TransformerConfig
from ltxgen.models.transformer.attention import Attention
from ltxgen.runtime.ranks import ONE_PROCESS

WORDS = ("model=ltx23_tiny", "--sizes", "64x64x9", "--steps", "2", "parallel.num_processes=2")
ALONE = ["base one GPU", "refine one GPU"]
LAYOUTS = ["base guidance 2", "base ulysses 2", "base ring 2", "refine ulysses 2", "refine ring 2"]
ORDERS = ["base other batching", "base other kernel", "refine other kernel"]
SHARDED = ["base guidance 2, sharded", "refine ulysses 2, sharded"]
DECODED = ["decode_video one GPU", "decode_video 2 ranks"]


@pytest.fixture(scope="module")
def measured(tiny_set, offline, tmp_path_factory):
    """What a benchmark of two ranks printed and wrote."""
    folder = tmp_path_factory.mktemp("bench")
    path = str(Path(ltxgen.__file__).parent.parent)
    done = subprocess.run(
        (sys.executable, "-m", "ltxgen", "bench", "parallel", *WORDS, "--json", "now.json"),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return folder, done, Results.read(folder / "now.json", "--json")


def of(results, name):
    (found,) = [each for each in results.entries if each.name == f"parallel {name} 64x64x9"]
    return found


def test_every_layout_is_measured_once(measured):
    folder, done, results = measured
    names = [each.case.removeprefix("parallel ") for each in results.entries if each.case.startswith("parallel ")]
    assert names[:2] == ALONE
    assert sorted(names) == sorted([*ALONE, *LAYOUTS, *ORDERS, *DECODED, *SHARDED])
    assert (results.machine["ranks"], results.skipped) == ("2", [])
    for name in names:
        entry = of(results, name)
        assert entry.ms > 0
        assert f"parallel {name} 64x64x9: " in done.stderr
        assert len(entry.details["ranks"]) == (1 if "one GPU" in name or "other" in name else 2)
    assert [file.name for file in folder.iterdir()] == ["now.json"]


def test_results_are_those_of_one_gpu(measured):
    _, _, results = measured
    for name in (*LAYOUTS, *ORDERS, *SHARDED):
        apart = of(results, name).details["relative_l2"]
        assert max(apart.values()) < 1e-5, name
        assert max(apart.values()) > 0 or name not in ORDERS, f"{name} is the same order"
    assert of(results, "decode_video 2 ranks").details["equal"] is True
    assert of(results, "refine ring 2").details["psnr_db"] > 60
    assert "psnr_db" not in of(results, "base ring 2").details
    orders = [of(results, name).details["order"] for name in ORDERS]
    assert orders == ["runtime.batch_passes=never", "attention=reference", "attention=reference"]


def test_every_rank_says_how_fast_it_multiplies(measured):
    _, _, results = measured
    rates = results.machine["products"].split(", ")
    assert len(rates) == int(results.machine["ranks"])
    assert all(float(rate) > 0 for rate in rates)


def test_what_moves_is_what_the_plan_says(measured):
    _, _, results = measured
    for name in (*LAYOUTS, *SHARDED):
        details = of(results, name).details
        counted = [sum(rank["received_bytes"].values()) for rank in details["ranks"]]
        if name.startswith("refine") or "guidance" in name:
            assert max(counted) == sum(details["planned_bytes"].values()), name
        else:  # small steps run as one batch, in which passes send also what one of them leaves out
            assert 1 <= max(counted) / sum(details["planned_bytes"].values()) < 1.25, name
        assert all(sum(rank["exchange_ms"].values()) > 0 for rank in details["ranks"]), name
    assert of(results, "base one GPU").details["planned_bytes"] == {}


def test_tables_are_made_of_the_file_alone(measured, run_ltxgen):
    folder, done, results = measured
    shown = run_ltxgen("bench", "parallel", "--from", "now.json", "--markdown", cwd=folder)
    assert shown.code == 0, shown.err
    step, alone = of(results, "base ring 2"), of(results, "base one GPU")
    row = next(line for line in shown.out.splitlines() if line.startswith("| base | ring 2 |"))
    assert row.split(" | ")[2:6] == [
        f"{step.ms:.1f}",
        f"{step.details['predicted_ms']:.1f}",
        f"{alone.ms / step.ms:.2f} x",
        f"{alone.ms / step.ms / 2:.0%}",
    ]
    seconds = (30 * step.ms + 3 * of(results, "refine ring 2").ms) / 1000
    assert f"| 64x64x9 | ring 2 | {seconds:.2f} | " in shown.out
    assert "30 + 3 steps" in shown.out
    assert shown.out.count("chosen by parallel=auto") == 1
    assert f"{seconds:.2f}" in done.stdout


def test_a_later_run_is_compared(measured, run_ltxgen, tmp_path):
    folder, _, results = measured
    words = ("bench", "parallel", "--from", str(folder / "now.json"), "--against")
    same = run_ltxgen(*words, str(folder / "now.json"), cwd=tmp_path)
    assert (same.code, "0 of " in same.out) == (0, True), same.err
    faster = dataclasses.replace(of(results, "base ring 2"), ms=1e-3)
    entries = [faster if each.name == faster.name else each for each in results.entries]
    dataclasses.replace(results, entries=entries).write(tmp_path / "then.json")
    worse = run_ltxgen(*words, "then.json", cwd=tmp_path)
    assert (worse.code, "1 of " in worse.out) == (1, True), worse.err
    other = Results(results.machine, (), None, [Entry("forward", "64x64x9", 1.0)])
    verdicts = {each.verdict for each in bench_report.compare(other, results)}
    assert verdicts == {"not measured", "not in the baseline"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=ltx23_tiny",), "parallel.num_processes = 1: must be at least 2"),
        (("model=ltx23_tiny", "parallel=ring", "parallel.num_processes=2"), "every layout is measured; leave it out"),
        (("parallel.num_processes=2", "runtime.device=cpu"), "without a GPU the full model takes hours"),
        ((*WORDS, "parallel.num_machines=2"), "parallel.num_machines = 2: must be 1"),
        ((*WORDS, "stages.base.modalities=[audio]", "stages.refine=null"), "no stage that denoises a video"),
        (("ring",), "unrecognized arguments: ring; it takes --sizes"),
        (("--steps", "1"), "--steps = 1: must be a number of at least 2"),
        (("--budget", "soon"), "--budget = soon: must be a number of seconds"),
        (("--sizes", "64x64"), "--sizes = 64x64: must be WIDTHxHEIGHTxFRAMES"),
        (("--json", "nowhere/now.json"), "--json = nowhere/now.json: the folder it is to stand in does not exist"),
        (("--from", "nowhere.json"), "--from = nowhere.json: can't be read"),
        (("--from", "other.json"), "is of another `ltxgen bench`"),
    ],
)
def test_refusals(run_ltxgen, tmp_path, words, message):
    Results({"device_name": "a GPU", "torch": "2"}, ()).write(tmp_path / "other.json")
    result = run_ltxgen("bench", "parallel", *words, cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_the_large_size_comes_first():
    sizes = [(each.width, each.height) for each in parse_parallel_options([]).bench.sizes]
    assert sizes == [(1536, 1024), (768, 512)]
    assert parse_parallel_options(["request=demo"]).bench.sizes == ()


def test_each_layout_of_a_stage_stands_once_for_all_meshes(tiny_set, offline):
    words = ["+recipe=ltx23_two_stage", "model=ltx23_tiny", "request=demo", "output.dir=out"]
    config = compose.compose_config(compose.open_overrides(words))
    plans = plan_size(config, num_ranks=4, steps=2, local_rank=0)
    rows = rows_of(plans)
    layouts = {
        stage: [row for row in rows if row.kind == "layout" and row.stage.name == stage] for stage in plans.num_steps
    }
    assert {row.layout for row in layouts["base"]} == {
        "guidance 4", "guidance 2 x ulysses 2", "guidance 2 x ring 2", "ulysses 4", "ring 2 x ulysses 2", "ring 4"
    }  # fmt: skip
    assert {row.layout: set(row.meshes) for row in layouts["refine"]} == {
        "ulysses 4": {"ulysses 4", "guidance 4", "guidance 2 x ulysses 2"},
        "ring 2 x ulysses 2": {"ring 2 x ulysses 2", "guidance 2 x ring 2"},
        "ring 4": {"ring 4"},
    }
    assert [row.kind for row in rows[:2]] == ["one", "one"]
    assert (plans.num_steps, {len(row.stage.evaluations) for row in layouts["base"]}) == (
        {"base": 30, "refine": 3},
        {2},
    )
    assert shortened({"stages": {"a": {"steps": 1}, "b": {"steps": None}, "c": None}}, 4)["stages"] == {
        "a": {"steps": 1}, "b": {"steps": None}, "c": None
    }  # fmt: skip


@pytest.fixture
def transformer():
    config = TransformerConfig.from_metadata(architecture("ltx23_tiny")["checkpoint"])
    return Transformer(config, attention=AttentionByRole(*[Sdpa()] * 6))


class Grid:
    num_tokens = 2048


class Stage:
    video_grid, num_passes = Grid(), 4


def test_other_orders_end_with_their_block(transformer):
    limit = transformer.batched_tokens
    with other_batching(transformer, Stage()) as order:
        assert (order, transformer.batched_tokens) == ("runtime.batch_passes=never", 0)
    assert transformer.batched_tokens == limit
    transformer.batched_tokens = 2047
    with other_batching(transformer, Stage()) as order:
        assert (order, transformer.batched_tokens > 10**9) == ("runtime.batch_passes=always", True)
    attends = [module.attend for module in transformer.modules() if isinstance(module, Attention)]

    class Plan:
        device, dtype, backends = torch.device("cpu"), torch.float32, {"video_self": ("sdpa", "sdpa")}

    q, mask = torch.randn(1, 2, 5, 8), torch.zeros(5, 5)
    with other_kernel(transformer, Plan()) as order:
        assert order == "attention=reference"
        changed = [module.attend for module in transformer.modules() if isinstance(module, Attention)]
        assert all(one.other.kind == "reference" for one in changed)
        torch.testing.assert_close(changed[0](q, q, q, None), attends[0](q, q, q, None))
        assert torch.equal(changed[0](q, q, q, mask), attends[0](q, q, q, mask))
    assert attends == [module.attend for module in transformer.modules() if isinstance(module, Attention)]


def test_distances():
    ours, theirs = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])
    assert relative_l2(Pair(ours, theirs), Pair(theirs, theirs)) == pytest.approx({"video": 4 / 3, "audio": 0.0})
    frames = torch.zeros(10, 2, 2, 3, dtype=torch.uint8)
    assert psnr(frames, frames) is None
    assert psnr(frames + 255, frames) == pytest.approx(0.0)
    assert psnr(frames + 1, frames) == pytest.approx(48.13, abs=0.01)


def test_a_budget_counts_from_the_start_of_the_command():
    budget = Budget(time.time() - 50, 100.0, ONE_PROCESS)
    assert budget.allows(40)
    assert not budget.allows(60)
    assert Budget(time.time(), None, ONE_PROCESS).allows(1e9)


ONE = {"attention": "a", "attention_of_one_gpu": "a"}


def step(layout, ms, kind="layout", apart=None, stage="base", steps=30, meshes=()):
    rank = {"ms": ms, "received_bytes": {"ring": 2**20}, "exchange_ms": {"ring": 5.0}}
    details = {
        "stage": stage, "kind": kind, "layout": layout, "ranks": [rank], "num_steps": steps, "meshes": meshes,
        "auto": "ring 2", "graphs": False, "passes": 4, "planned_bytes": {"ring": 2**20}, "predicted_ms": 1.0,
        "relative_l2": apart and {"video": apart, "audio": apart / 2}, "order": "attention=x" * (kind == "order"),
    }  # fmt: skip
    return Entry(f"parallel {stage} {layout}", "768x512x121", ms, peak_bytes=2**31, details=details)


def test_a_verdict_is_by_the_order_that_differs_most():
    machine = {"ranks": "2", "device_name": "a GPU", "torch": "2", **ONE}
    alone, near, far = (
        step("one GPU", 100.0, "one"),
        step("ulysses 2", 80.0, apart=0.02),
        step("ring 2", 50.0, apart=0.05),
    )
    orders = [step("other batching", 1.0, "order", 0.01), step("other kernel", 1.0, "order", 0.04)]
    results = Results(machine, (), entries=[alone, near, far, *orders], skipped=["the rest"])
    (sheet,) = sheets(results)[:1]
    cells = {row[1]: row for row in sheet.rows}
    assert cells["ulysses 2"][4:6] + cells["ulysses 2"][-2:] == ("1.25 x", "62%", "0.50", "yes")
    assert cells["ring 2"][4:6] + cells["ring 2"][-2:] == ("2.00 x", "100%", "1.25", "no")
    assert cells["one GPU"][-2:] == ("-", "-")
    assert cells["ring 2"][6:10] == ("1.00", "1.00", "5.0-5.0", "2.00")
    assert list(left_out(results)) == ["left out for want of time: the rest"]
    results.entries = [alone, near]
    assert sheets(results)[0].rows[1][-2:] == ("-", "not measured")


@pytest.mark.parametrize(("products", "told"), [("704, 706", "TFLOP/s: 704, 706."), ("700, 420", "40% slower")])
def test_gpus_that_are_not_equal_are_told(products, told):
    machine = {"ranks": "2", "device_name": "a GPU", "torch": "2", "products": products, **ONE}
    (sheet,) = sheets(Results(machine, (), entries=[step("one GPU", 100.0, "one")]))[:1]
    assert sum(told in note for note in sheet.notes) == 1
    assert ("waits for it" in " ".join(sheet.notes)) == ("slower" in told)


def test_exchanges_that_were_not_timed_have_no_milliseconds():
    machine = {"ranks": "2", "device_name": "a GPU", "torch": "2", **ONE}
    recorded = step("ring 2", 50.0)
    recorded.details["graphs"] = True
    (sheet,) = sheets(Results(machine, (), entries=[step("one GPU", 100.0, "one"), recorded]))[:1]
    assert sheet.rows[1][sheet.headers.index("exchange ms")] == "-"


def test_a_run_has_all_of_its_stages():
    machine = {"ranks": "2", "device_name": "a GPU", "torch": "2", **ONE}
    entries = [
        step("one GPU", 100.0, "one"),
        step("one GPU", 200.0, "one", stage="refine", steps=3),
        step("ring 2", 50.0, meshes=("ring 2",)),
        step("guidance 2", 60.0, meshes=("guidance 2",)),
        step("ring 2", 100.0, stage="refine", steps=3, meshes=("ring 2",)),
    ]
    runs = Figures(Results(machine, (), entries=entries)).runs()
    assert runs.rows == [
        ("768x512x121", "one GPU", "3.60", "1.00 x", "-", "-", "30 + 3 steps"),
        ("768x512x121", "ring 2", "1.80", "2.00 x", "100%", "-", "chosen by parallel=auto"),
    ]
    entries += [decoded("one GPU", 400.0, "one"), decoded("2 ranks", 200.0, "layout")]
    runs = Figures(Results(machine, (), entries=entries)).runs()
    assert [row[5] for row in runs.rows] == ["4.00 s", "2.00 s, 2.00 x"]


def decoded(layout, ms, kind):
    details = {"stage": "decode_video", "kind": kind, "layout": layout, "ranks": [], "tiles": [2, 2]}
    return Entry(f"parallel decode_video {layout}", "768x512x121", ms, details=details)


def test_links_are_fitted_to_a_start_and_a_rate():
    def link(what, received, ms):
        return link_entry(Link(Message("ring", what, received), ms), 2)

    results = Results({"ranks": "2"}, (), entries=[link("latency", 0, 0.02), link("k, v", 10**9, 5.02)])
    assert Figures(results).fits() == {"ring": pytest.approx((2e-5, 200.0))}
    results.entries = [link("latency", 4096, 0.02), link("k, v", 4096, 0.02)]
    assert Figures(results).fits() == {}


def test_json_keeps_what_was_left_out(tmp_path):
    Results({"ranks": "2"}, (), skipped=["a row"]).write(tmp_path / "now.json")
    assert Results.read(tmp_path / "now.json", "--from").skipped == ["a row"]
    older = json.loads((tmp_path / "now.json").read_text())
    del older["skipped"]
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert Results.read(tmp_path / "older.json", "--from").skipped == []


def test_a_sheet_is_a_table_in_both_forms():
    sheet = Figures(Results({"ranks": "2", "device_name": "a GPU", "torch": "2"}, ())).runs()
    sheet = dataclasses.replace(sheet, rows=[("1", "2", "3", "4", "5", "6", "7")], notes=("a note",))
    out = io.StringIO()
    Console(file=out, width=120).print(sheet.rich())
    assert "mesh" in out.getvalue()
    assert sheet.markdown().splitlines()[2:] == [
        "| size | mesh | seconds | speed-up | of ideal | with decoding |  |", "|-|-|-|-|-|-|-|",
        "| 1 | 2 | 3 | 4 | 5 | 6 | 7 |", "", "a note"
    ]  # fmt: skip

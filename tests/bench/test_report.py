"""Figures that are written, read back and compared with a baseline."""

import io
import json

import pytest
from rich.console import Console

from ltxgen.bench import report
from ltxgen.bench.results import Entry, PeerFigure, Results
from ltxgen.config.errors import Refusal

GIB = 2**30
MACHINE = {"device_name": "a GPU", "torch": "2.11.0"}


def entry(case="forward", ms=100.0, **more) -> Entry:
    return Entry(case, "768x512x121", ms, (ms - 1, ms, ms + 1), **more)


def results(*entries: Entry, device="a GPU", overrides=()) -> Results:
    return Results({**MACHINE, "device_name": device}, overrides, None, list(entries))


def verdicts(now: Results, then: Results) -> dict[tuple[str, str], str]:
    return {(each.name.split()[0], each.measure): each.verdict for each in report.compare(now, then)}


def shown(table) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(table)
    return out.getvalue()


def test_figures_survive_the_file(tmp_path):
    peers = {"diffusers": PeerFigure(400.0, (99.0, 100.0, 101.0), 4, 0.003)}
    written = results(entry("guided", floor_ms=80.0, peak_bytes=GIB, peers=peers, details={"passes": 4}), entry("run"))
    written.overrides = ("attention=sdpa",)
    written.write(tmp_path / "now.json")
    read = Results.read(tmp_path / "now.json", "--against")
    assert [path.name for path in tmp_path.iterdir()] == ["now.json"]
    assert shown(report.figures(read)) == shown(report.figures(written))
    assert report.compare(read, written) == report.compare(written, written)
    assert read.entries[0].peers["diffusers"].calls == 4


def test_the_table_has_ours_the_floor_and_the_peer():
    peers = {"diffusers": PeerFigure(125.0, (125.0,), relative_l2=0.004)}
    text = shown(report.figures(results(entry(floor_ms=80.0, peak_bytes=40 * GIB, peers=peers))))
    (row,) = [line for line in text.splitlines() if "forward" in line]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["forward", "768x512x121", "100.0", "80.0", "0.80", "125.0", "0.800", "40.00", "4.0e-03"]


@pytest.mark.parametrize(("ms", "verdict"), [(104, "same"), (106, "worse"), (94, "better"), (96, "same")])
def test_time_beyond_the_tolerance(ms, verdict):
    assert verdicts(results(entry(ms=ms)), results(entry(ms=100.0))) == {("forward", "time"): verdict}


def test_the_baseline_says_how_far_is_too_far():
    now, then = results(entry(ms=108, tolerance=0.01)), results(entry(ms=100, tolerance=0.1))
    assert verdicts(now, then) == {("forward", "time"): "same"}
    assert report.regressions(report.compare(now, then)) == []
    assert verdicts(then, now)["forward", "time"] == "better"


def test_memory_is_compared_as_well():
    now, then = results(entry(peak_bytes=44 * GIB)), results(entry(peak_bytes=40 * GIB))
    assert verdicts(now, then) == {("forward", "time"): "same", ("forward", "peak memory"): "worse"}
    assert [each.measure for each in report.regressions(report.compare(now, then))] == ["peak memory"]


def test_another_device_is_compared_by_its_floor():
    then = results(entry(ms=100.0, floor_ms=80.0), entry("run", 5000.0))
    now = results(entry(ms=200.0, floor_ms=160.0), entry("run", 9000.0), device="another GPU")
    assert verdicts(now, then) == {("forward", "time over floor"): "same"}
    slower = results(entry(ms=230.0, floor_ms=160.0), device="another GPU")
    assert verdicts(slower, then)["forward", "time over floor"] == "worse"


def test_cases_that_one_side_lacks_are_no_regressions():
    compared = report.compare(results(entry("decode")), results(entry("forward")))
    assert {(each.name.split()[0], each.verdict) for each in compared} == {
        ("forward", "not measured"),
        ("decode", "not in the baseline"),
    }
    assert report.regressions(compared) == []


def test_other_overrides_are_told():
    now, then = results(entry(), overrides=("attention=sdpa",)), results(entry())
    table = shown(report.comparison_table(report.compare(now, then), now, then))
    assert "attention=sdpa" in table
    assert "none" in table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't be read"),
        ("{", "is not what `ltxgen bench --json` writes"),
        ("{}", "KeyError: 'entries'"),
        (
            json.dumps({"machine": {}, "overrides": [], "ceilings": None, "entries": [{"peers": {}, "casse": 1}]}),
            "casse",
        ),
    ],
)
def test_a_file_that_is_no_baseline(tmp_path, text, message):
    path = tmp_path / "baseline.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Refusal, match=message) as refused:
        Results.read(path, "--against")
    assert str(path) in str(refused.value)

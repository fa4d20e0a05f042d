"""The executor on toy stages that have nothing to do with video: order, wiring, lives of components, time."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxgen.recipe.executor import StageExecutor, wiring_problems
from ltxgen.stage.protocol import PartRequest, RunContext, Stream

HERE = Path(".")


class Part:
    """A component: an object whose end can be observed."""

    def __init__(self, name: str) -> None:
        self.name = name


class SlowLoading:
    """Loads once it is allowed to, at the latest when it is cancelled."""

    def __init__(self, load: Callable[[], Part]) -> None:
        self._load = load
        self.allowed = threading.Event()
        self.allowed.set()
        self.cancelled = False

    def load(self) -> Part:
        assert self.allowed.wait(20)
        if self.cancelled:
            raise InterruptedError
        return self._load()

    def cancel(self) -> None:
        self.cancelled = True
        self.allowed.set()


class Source:
    """Builds parts and keeps a diary of what the executor asked for."""

    def __init__(self, diary: list[str]) -> None:
        self.diary = diary
        self.alive: dict[str, weakref.ref[Part]] = {}

    def build(self, request: PartRequest) -> Part:
        self.diary.append(f"build {request.name}")
        part = Part(request.name)
        self.alive[request.name] = weakref.ref(part)
        return part

    def start(self, request: PartRequest) -> SlowLoading:
        self.diary.append(f"prepare {request.name}")
        return SlowLoading(lambda: Source.build(self, request))

    def finish(self, request: PartRequest, part: Part) -> Part:
        self.diary.append(f"finish {request.name}")
        return part

    def adapt(self, part: Part, request: PartRequest, later: Sequence[PartRequest]) -> None:
        assert part.name == request.name
        if request.loras or any(other.loras for other in later):
            self.diary.append(f"adapt {request.name} {dict(request.loras)} later {[dict(o.loras) for o in later]}")

    def set_aside(self, parts: Mapping[str, Part]) -> None:
        self.diary.append(f"set aside {' '.join(sorted(parts))}")

    def released(self, names: Sequence[str]) -> None:
        self.diary.append(f"free {' '.join(sorted(names))}")
        for name in names if sys.exc_info()[0] is None else ():  # a traceback still refers to them
            assert self.alive[name]() is None, f"{name} is still referred to"


@dataclass
class Toy:
    """A stage whose work is a function of its inputs and parts."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    work: Callable[..., dict[str, Any]]
    needs: tuple[str | PartRequest, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[PartRequest, ...]:
        return tuple(PartRequest(n, torch.float32) if isinstance(n, str) else n for n in self.needs)

    def infer(self, shapes: dict[str, Any]) -> list[Any]:
        return []

    def describe(self) -> dict[str, Any]:
        return self.facts

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        return self.work(state, parts, context)


class Screen:
    """A display that keeps what it was told."""

    def __init__(self, diary: list[str]) -> None:
        self.diary = diary

    @contextlib.contextmanager
    def stage(self, name: str, memory: Any) -> Iterator[Screen]:
        self.diary.append(f"start {name}")
        yield self
        self.diary.append(f"done {name}")

    def begin(self, num_steps: int, unit: str = "step") -> None:
        self.diary.append(f"{num_steps} {unit}s")

    def advance(self, num_steps: int = 1, note: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Meter:
    """Peak memory as the test sets it."""

    now = 0

    @property
    def peak_bytes(self) -> int:
        return Meter.now

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *error: Any) -> None:
        pass


@pytest.fixture
def diary() -> list[str]:
    Meter.now = 0
    return []


def executor(diary: list[str], keep: str = "last_use") -> StageExecutor:
    return StageExecutor(Source(diary), Screen(diary), Meter, keep)


def gives(**values: Any) -> Callable[..., dict[str, Any]]:
    return lambda state, parts, context: dict(values)


def lives(diary: list[str]) -> list[str]:
    return [line for line in diary if line.split()[0] in ("build", "free", "start")]


def test_stages_run_in_order_on_the_values_of_earlier_ones(diary):
    stages = {
        "flour": Toy((), ("dough",), gives(dough=2)),
        "oven": Toy(("dough", "salt"), ("bread",), lambda s, p, c: {"bread": s["dough"] * s["salt"]}),
    }
    assert executor(diary).run(stages, {"salt": 21}, HERE) == {"bread": 42}
    assert diary == ["start flour", "done flour", "start oven", "done oven"]


def test_a_stage_sees_what_it_reads_and_nothing_else(diary):
    seen = []
    stages = {
        "a": Toy((), ("x", "y"), gives(x=1, y=2)),
        "b": Toy(("y",), (), lambda s, p, c: seen.append(dict(s)) or {}),
    }
    executor(diary).run(stages, {"z": 3}, HERE)
    assert seen == [{"y": 2}]


def test_values_are_dropped_after_their_last_reader(diary):
    class Value:
        pass

    value = Value()
    alive = weakref.ref(value)
    held = [value]
    del value
    checks = []
    stages = {
        "a": Toy((), ("x",), lambda s, p, c: {"x": held.pop()}),
        "b": Toy(("x",), (), lambda s, p, c: {}),
        "c": Toy(("x",), (), lambda s, p, c: checks.append(alive() is not None) or {}),
        "d": Toy((), (), lambda s, p, c: checks.append(alive() is None) or {}),
    }
    assert executor(diary).run(stages, {}, HERE) == {}
    assert checks == [True, True]


def test_a_value_may_be_written_anew(diary):
    """As the noise source is: each stage reads it and hands it on."""
    draw = Toy(("dice",), ("dice",), lambda s, p, c: {"dice": s["dice"] + 1})
    last = Toy(("dice",), ("sum",), lambda s, p, c: {"sum": s["dice"]})
    assert executor(diary).run({"a": draw, "b": draw, "c": last}, {"dice": 0}, HERE) == {"sum": 2}


@pytest.mark.parametrize("written", [{}, {"y": 1}, {"x": 1, "y": 1}])
def test_a_stage_writes_what_it_says(diary, written):
    with pytest.raises(AssertionError, match=r"stage a wrote .*, not \['x'\]"):
        executor(diary).run({"a": Toy((), ("x",), gives(**written))}, {}, HERE)


def test_wiring_problems():
    stages = {
        "a": Toy(("start",), ("x",), gives()),
        "b": Toy(("x", "z"), ("y",), gives()),
        "c": Toy(("b.y",), ("z",), gives()),
        "d": Toy(("z", "y", "x"), (), gives()),
    }
    problems = wiring_problems(stages, given=["start"])
    assert [(problem.path, problem.value) for problem in problems] == [("stages.b", "z"), ("stages.c", "b.y")]
    assert "written so far: start, x" in problems[0].message
    assert wiring_problems({"a": stages["a"]}, given=[])[0].message.endswith("written so far: nothing")
    assert wiring_problems({"a": stages["a"]}, given=["start"]) == []


def test_components_are_built_on_first_use_and_freed_after_the_last(diary):
    stages = {
        "a": Toy((), (), gives(), ("pen", "ink")),
        "b": Toy((), (), gives(), ("ink",)),
        "c": Toy((), (), gives(), ("pen", "paper")),
    }
    executor(diary).run(stages, {}, HERE)
    assert lives(diary) == [
        "start a",
        "build pen",
        "build ink",
        "start b",
        "free ink",
        "start c",
        "build paper",
        "free paper pen",
    ]


def test_keep_run_frees_at_the_end(diary):
    stages = {"a": Toy((), (), gives(), ("pen",)), "b": Toy((), (), gives(), ("ink",)), "c": Toy((), (), gives())}
    executor(diary, keep="run").run(stages, {}, HERE)
    assert lives(diary) == ["start a", "build pen", "start b", "build ink", "start c", "free ink pen"]


def test_components_are_shared_and_adapted_with_what_comes_later(diary):
    def wants(**loras: float) -> PartRequest:
        return PartRequest("pen", torch.float32, tuple(loras.items()))

    stages = {
        "a": Toy((), (), gives(), (wants(),)),
        "b": Toy((), (), gives(), (wants(red=1.0),)),
        "c": Toy((), (), gives(), (wants(red=0.5, fine=2.0), "ink")),
    }
    executor(diary).run(stages, {}, HERE)
    assert [line for line in diary if "pen" in line] == [
        "build pen",
        "adapt pen {} later [{'red': 1.0}, {'red': 0.5, 'fine': 2.0}]",
        "adapt pen {'red': 1.0} later [{'red': 0.5, 'fine': 2.0}]",
        "adapt pen {'red': 0.5, 'fine': 2.0} later []",
        "free ink pen",
    ]


def printing(pages: int, seconds: float = 0.0, log: list[str] | None = None) -> Toy:
    """A stage whose result is made page by page, with its press, while the reader takes it."""

    def pages_of(press: Part) -> Iterator[int]:
        for page in range(pages):
            time.sleep(seconds)
            Meter.now += 100
            if log is not None:
                log.append(f"page {page} by {press.name}")
            yield page

    return Toy((), ("pages",), lambda s, p, c: {"pages": Stream(pages_of(p["press"]))}, ("press",))


def test_a_stream_holds_its_components_until_it_is_used_up(diary):
    stages = {
        "print": printing(2, log=diary),
        "fold": Toy((), (), gives(), ("knife",)),
        "bind": Toy(("pages",), ("book",), lambda s, p, c: {"book": list(s["pages"])}),
        "sell": Toy(("book",), (), gives()),
    }
    assert executor(diary).run(stages, {}, HERE) == {}
    assert [line for line in diary if not line.startswith("done")] == [
        "start print",
        "build press",
        "start fold",
        "build knife",
        "free knife",
        "start bind",
        "page 0 by press",
        "page 1 by press",
        "free press",
        "start sell",
    ]


def test_the_time_and_memory_of_a_stream_belong_to_its_maker(diary):
    def bind(state: Mapping[str, Any], parts: Any, context: Any) -> dict[str, Any]:
        for _ in state["pages"]:
            time.sleep(0.01)
        Meter.now = 1000
        return {}

    run = executor(diary)
    run.run({"print": printing(5, seconds=0.04), "bind": Toy(("pages",), (), bind)}, {}, HERE)
    made, bound = run.records["print"], run.records["bind"]
    assert made.seconds >= 0.2
    assert 0.05 <= bound.seconds < 0.15
    assert (made.peak_bytes, bound.peak_bytes) == (500, 1000)


def test_records_of_each_stage(diary):
    class Slow(Source):
        def build(self, request: PartRequest) -> Part:
            time.sleep(0.05)
            return super().build(request)

    run = StageExecutor(Slow(diary), Screen(diary), Meter)
    stages = {"a": Toy((), (), gives(), ("pen",), {"pages": 3}), "b": Toy((), (), gives())}
    run.run(stages, {}, HERE)
    assert run.records["a"].details == {"pages": 3}
    assert run.records["a"].load_seconds >= 0.05
    assert run.records["a"].seconds < 0.05
    assert run.records["b"].load_seconds < 0.05


def test_what_a_stage_reports_stands_beside_what_it_said_before(diary):
    def prints(state: Any, parts: Any, context: RunContext) -> dict[str, Any]:
        def pages() -> Iterator[int]:
            yield 1
            context.report("ink", {"bytes": 5})

        context.report("paper", 2)
        context.report("errors", {})
        return {"pages": Stream(pages())}

    run = executor(diary)
    stages = {
        "print": Toy((), ("pages",), prints, (), {"pages": 1}),
        "bind": Toy(("pages",), (), lambda s, p, c: list(s["pages"]) and {}),
    }
    run.run(stages, {}, HERE)
    assert run.records["print"].details == {"pages": 1, "paper": 2, "ink": {"bytes": 5}}
    assert run.records["bind"].details == {}
    assert stages["print"].facts == {"pages": 1}


def fails(state: Any, parts: Any, context: Any) -> dict[str, Any]:
    raise RuntimeError("out of ink")


@pytest.mark.parametrize("keep", ["last_use", "run"])
def test_a_failing_stage_frees_everything_and_ends_the_run(diary, keep):
    stages = {
        "print": printing(1),
        "write": Toy((), (), fails, ("pen",)),
        "bind": Toy(("pages",), (), gives()),
    }
    with pytest.raises(RuntimeError, match="out of ink"):
        executor(diary, keep).run(stages, {}, HERE)
    assert "start bind" not in diary
    freed = [line for line in diary if line.startswith("free")]
    assert sorted(" ".join(freed).replace("free ", "").split()) == ["pen", "press"]


def test_nothing_outlives_a_handled_error(diary):
    source = Source(diary)
    with contextlib.suppress(RuntimeError):
        StageExecutor(source, Screen(diary), Meter).run({"a": Toy((), (), fails, ("pen",))}, {}, HERE)
    gc.collect()
    assert source.alive["pen"]() is None


def test_a_component_that_cannot_be_built_frees_the_others(diary):
    class Broken(Source):
        def build(self, request: PartRequest) -> Part:
            if request.name == "ink":
                raise OSError("no ink")
            return super().build(request)

    run = StageExecutor(Broken(diary), Screen(diary), Meter)
    with pytest.raises(OSError, match="no ink"):
        run.run({"a": Toy((), (), gives(), ("pen", "ink"))}, {}, HERE)
    assert diary == ["start a", "build pen", "free pen"]


def test_an_error_inside_a_stream_reaches_the_reader_and_frees(diary):
    def breaks(press: Part) -> Iterator[int]:
        yield 1
        raise FloatingPointError("not a number")

    stages = {
        "print": Toy((), ("pages",), lambda s, p, c: {"pages": Stream(breaks(p["press"]))}, ("press",)),
        "bind": Toy(("pages",), (), lambda s, p, c: list(s["pages"]) and {}),
    }
    with pytest.raises(FloatingPointError):
        executor(diary).run(stages, {}, HERE)
    assert any("press" in line for line in diary if line.startswith("free"))


def test_an_executor_can_run_again(diary):
    run = executor(diary)
    stages = {"a": Toy((), ("x",), gives(x=1), ("pen",))}
    assert run.run(stages, {}, HERE) == {"x": 1}
    assert run.run(stages, {}, HERE) == {"x": 1}
    assert diary.count("build pen") == diary.count("free pen") == 2


def test_what_stages_are_handed(diary, tmp_path: Path):
    recorded = []

    def work(state: Any, parts: Any, context: RunContext) -> dict[str, Any]:
        context.progress.begin(3, unit="page")
        context.record("page", torch.ones(1))
        recorded.append((context.folder, context.records))
        return {}

    stages = {"a": Toy((), (), work)}
    executor(diary).run(stages, {}, tmp_path)
    executor(diary).run(stages, {}, tmp_path, lambda name, tensor: recorded.append((name, tensor.tolist())))
    assert recorded == [(tmp_path, False), ("page", [1.0]), (tmp_path, True)]
    assert "3 pages" in diary


def test_components_that_wait_for_a_later_stage_are_set_aside(diary):
    stages = {
        "print": printing(1),
        "fill": Toy((), (), gives(), ("pen", "ink")),
        "draw": Toy((), (), gives(), ("ink",)),
        "sign": Toy(("pages",), (), lambda s, p, c: list(s["pages"]) and {}, ("pen",)),
    }
    executor(diary).run(stages, {}, HERE)
    assert [line for line in diary if line.startswith(("start", "set", "free"))] == [
        "start print",
        "start fill",
        "set aside pen",  # and not the press, whose pages are still to come
        "start draw",
        "free ink",
        "start sign",
        "free pen press",
    ]


def loading_ahead(source: Source, **ahead: tuple[str, ...]) -> StageExecutor:
    return StageExecutor(source, Screen(source.diary), Meter, ahead=ahead)


def test_the_next_stages_components_are_loaded_while_a_stage_runs(diary):
    """The stage waits for them with its work half done, so they can only have been loaded beside it."""
    source = Source(diary)

    def work(state: Any, parts: Any, context: RunContext) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while "build ink" not in diary:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        diary.append("work done")
        return {}

    stages = {
        "sketch": Toy((), (), work, ("pen",)),
        "fill": Toy((), (), gives(), ("ink", PartRequest("pen", torch.float32, (("red", 1.0),)))),
        "dry": Toy((), (), gives(), ("ink",)),
    }
    run = loading_ahead(source, sketch=("ink",))
    for _ in range(2):  # an executor can run again
        diary.clear()
        run.run(stages, {}, HERE)
        assert diary[:2] == ["start sketch", "prepare ink"]
        assert sorted(diary[2:5]) == ["adapt pen {} later [{'red': 1.0}]", "build ink", "build pen"]
        assert diary[5:] == [
            "work done",
            "done sketch",
            "start fill",
            "finish ink",
            "adapt pen {'red': 1.0} later []",
            "done fill",
            "free pen",
            "start dry",
            "done dry",
            "free ink",
        ]


def test_a_stage_counts_what_it_waited_and_what_was_loaded_before(diary):
    class Slow(Source):
        def start(self, request: PartRequest) -> SlowLoading:
            def load() -> Part:
                time.sleep(0.2)
                return Source.build(self, request)

            return SlowLoading(load)

    work = Toy((), (), lambda s, p, c: time.sleep(0.12) or {})
    run = loading_ahead(Slow(diary), a=("pen",))
    run.run({"a": work, "b": Toy((), (), gives(), ("pen", "ink"))}, {}, HERE)
    assert run.records["a"].loaded_ahead_seconds == 0
    assert run.records["b"].loaded_ahead_seconds >= 0.2
    assert run.records["b"].load_seconds < 0.15


def test_an_error_in_the_thread_is_the_error_of_the_stage_that_wants_the_component(diary):
    class Broken(Source):
        def start(self, request: PartRequest) -> SlowLoading:
            def load() -> Part:
                raise OSError("the disk is gone")

            return SlowLoading(load)

    stages = {"a": Toy((), ("x",), gives(x=1), ("pen",)), "b": Toy((), (), gives(), ("ink",))}
    with pytest.raises(OSError, match="the disk is gone"):
        loading_ahead(Broken(diary), a=("ink",)).run(stages, {}, HERE)
    assert diary == ["start a", "build pen", "done a", "free pen", "start b"]


def test_a_failing_stage_ends_what_is_being_loaded(diary):
    loadings: list[SlowLoading] = []

    class Hanging(Source):
        def start(self, request: PartRequest) -> SlowLoading:
            loadings.append(super().start(request))
            loadings[-1].allowed.clear()
            return loadings[-1]

    stages = {"a": Toy((), (), fails, ("pen",)), "b": Toy((), (), gives(), ("ink", "paper"))}
    with pytest.raises(RuntimeError, match="out of ink"):
        loading_ahead(Hanging(diary), a=("ink", "paper")).run(stages, {}, HERE)
    assert [each.cancelled for each in loadings] == [True, True]
    assert "build ink" not in diary
    assert diary[-1] == "free ink paper pen"
    assert not any(thread.name.startswith("loading") for thread in threading.enumerate())


def test_the_first_step_is_that_of_the_first_stage_that_counts_steps(diary):
    def steps(unit: str) -> Callable[..., dict[str, Any]]:
        def work(state: Any, parts: Any, context: RunContext) -> dict[str, Any]:
            context.progress.begin(2, unit=unit)
            for number in range(2):
                context.progress.advance()
                moments.append((unit, number, time.perf_counter()))
                time.sleep(0.01)
            return {}

        return work

    moments: list[tuple[str, int, float]] = []
    run = StageExecutor(Source(diary), Screen(diary), Meter)
    page, step = Toy((), (), steps("page")), Toy((), (), steps("step"))
    run.run({"a": page, "b": step, "c": step}, {}, HERE)
    assert run.first_step_at is not None
    assert moments[1][2] < run.first_step_at <= moments[2][2]
    run.run({"a": page}, {}, HERE)
    assert run.first_step_at is None

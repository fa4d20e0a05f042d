"""The base stage with each approximation beside none, same seed: seconds, evaluations, how far the latents are off.

    python tests/perf/approximations.py [--tiny]

Needs one CUDA device with 60 GB; with --tiny the embedded model at a small size, on any machine. Random weights of the
full model, loaded once: 768x512x121, so the base stage has 1536 video tokens, 12 guided steps, bf16. Thresholds of
first_block: its default, then of the changes that this run met their median and one above all. Weights that are random
predict at random, so how far latents are off says nothing of real ones; what is the same with them is the time of an
evaluation, computed or not. Relative L2 and PSNR (of the range of values) are of the latents at the end of the stage,
against the first run. Some 70 s on an H200. Prints a table as Markdown last.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ltxgen.artifacts.lora import linear_weights  # noqa: E402
from ltxgen.bench.steps import random_state  # noqa: E402
from ltxgen.config import compose  # noqa: E402
from ltxgen.config.recipe import parse_recipe  # noqa: E402
from ltxgen.media.compare import compare_tensors  # noqa: E402
from ltxgen.models.transformer import Transformer  # noqa: E402
from ltxgen.models.transformer.float8 import Float8Layers, use_float8  # noqa: E402
from ltxgen.recipe.plan import Plan, make_plan  # noqa: E402
from ltxgen.recipe.run import NO_FOLDER, parts_of  # noqa: E402
from ltxgen.runtime.displays import create_progress  # noqa: E402
from ltxgen.stage.denoise import Denoise  # noqa: E402
from ltxgen.stage.protocol import RunContext  # noqa: E402

FULL = ("artifacts=synthetic", "request.width=768", "request.height=512", "request.num_frames=121")
TINY = ("model=ltx23_tiny", "request=demo")
STEPS = 12
FLOAT8 = ROOT / "conf/precision/fp8.yaml"
ALWAYS = 1e9  # a threshold above any change
GIB = 2**30


def reuse(kind: str, **fields: Any) -> tuple[str, ...]:
    return (f"reuse@stages.base.reuse={kind}", *(f"stages.base.reuse.{name}={each}" for name, each in fields.items()))


@dataclass
class Run:
    """What a form of the stage took and gave; `facts` is what its manifest would say of reuse."""

    form: str
    seconds: float
    peak_gib: float
    latents: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def evaluations(self) -> str:
        computed = self.facts.get("computed", self.facts.get("all blocks", STEPS))
        return f"{computed} of {STEPS}"


class Bench:
    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self.words = ("+recipe=ltx23_two_stage", *words, "cache=off", f"output.dir={folder}/run")
        self.runs: list[Run] = []
        plan = self.plan(f"stages.base.steps={STEPS}")
        self.device, self.fused = plan.device, plan.fused
        started = time.perf_counter()
        self.source = parts_of(plan, log)
        self.transformer: Transformer = self.source.build(plan.stages["base"].parts[0])
        log(f"loaded in {time.perf_counter() - started:.1f} s")

    def plan(self, *words: str) -> Plan:
        return make_plan(parse_recipe(compose.compose_config([*self.words, *words]))).require()

    def run(self, form: str, *words: str, steps: int = STEPS) -> Run:
        plan = self.plan(f"stages.base.steps={steps}", *words)
        for note in plan.notes:
            log(f"{form}: {note}")
        stage = plan.stages["base"]
        assert isinstance(stage, Denoise)
        state, reported = random_state(stage, self.transformer), {}
        with create_progress("quiet").stage("base") as progress:
            context = RunContext(NO_FOLDER, progress, lambda name, tensor: None, reported.__setitem__)
            self._begin()
            started = time.perf_counter()
            written = stage.run(state, {"transformer": self.transformer}, context)
            peak = self._end()
            seconds = time.perf_counter() - started
        latents = {name: written[f"base.{name}"] for name in ("video", "audio")}
        found = Run(form, seconds, peak, latents, reported.get("reuse", {}))
        log(f"{form}: {seconds:.2f} s {dict(found.facts)}")
        return found

    def add(self, form: str, *words: str) -> Run:
        self.runs.append(self.run(form, *words))
        return self.runs[-1]

    def use_float8(self) -> None:
        """From now on, the layers of conf/precision/fp8.yaml."""
        skipped = yaml.safe_load(FLOAT8.read_text(encoding="utf-8"))["skip"]
        use_float8(self.transformer, Float8Layers(tuple(skipped)).among(linear_weights(self.transformer).items()))
        if self.fused:
            from ltxgen.models.transformer.fused import use_fused_kernels

            use_fused_kernels(self.transformer)

    def _begin(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def _end(self) -> float:
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / GIB

    def show(self) -> None:
        first = self.runs[0]
        print("| form | seconds | of none | computed | peak GiB | video L2 | video PSNR | audio L2 | audio PSNR |")
        print("|-|-|-|-|-|-|-|-|-|")
        for run in self.runs:
            cells = [run.form, f"{run.seconds:.2f}", f"{run.seconds / first.seconds:.2f}", run.evaluations]
            cells.append(f"{run.peak_gib:.1f}")
            for name, reference in first.latents.items():
                error = compare_tensors(run.latents[name], reference)
                cells += [f"{error:.2e}", f"{psnr(run.latents[name], reference):.1f}"]
            print(f"| {' | '.join(cells)} |")


def psnr(found: Tensor, reference: Tensor) -> float:
    """In dB, of the reference's range; infinite for equal tensors."""
    spread = reference.double().max() - reference.double().min()
    return (20 * spread.log10() - 10 * (found.double() - reference.double()).square().mean().log10()).item()


def log(message: str) -> None:
    print(message, flush=True)


@torch.inference_mode()
def main(words: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(words, Path(folder))
        bench.run("warm-up", steps=2)
        bench.add("none")
        for order in (0, 1, 2):
            bench.add(f"interval, every 2, order {order}", *reuse("interval", order=order))
        default = bench.add("first_block, 0.08", *reuse("first_block"))
        median = statistics.median(default.facts["changes"])
        bench.add(f"first_block, {median:.2g} (median change)", *reuse("first_block", threshold=median))
        bench.add("first_block, at every chance", *reuse("first_block", threshold=ALWAYS))
        again = bench.add("none again")
        assert all(torch.equal(again.latents[name], x) for name, x in bench.runs[0].latents.items()), (
            "not the same bits"
        )
        bench.use_float8()
        bench.run("warm-up in fp8", steps=2)
        bench.add("fp8")
        bench.add("fp8 and interval, every 2, order 1", *reuse("interval"))
        print(torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU", torch.__version__)
        bench.show()
        bench.source.released(["transformer"])


if __name__ == "__main__":
    main(TINY if "--tiny" in sys.argv[1:] else FULL)

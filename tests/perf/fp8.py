"""Steps with attention in fp8, linear layers in fp8 and both, beside bf16: milliseconds, and how far latents are off.

    python tests/perf/fp8.py [--tiny] [KEY=VALUE ...]

Needs one CUDA device with fp8 units and 60 GB; with --tiny the embedded model, on a CPU without fp8 attention. Random
weights of the full model, loaded once, and for each form the same random latents: refine at 768x512 and 1536x1024
(121 frames, 6144 and 24576 video tokens) and, of the latter, three guided steps of base (6144 tokens, four passes).
Medians of three steps after two more, by CUDA events. Relative L2 and PSNR (of the range of values) are of the
latents at the end, against bf16. The layers are those of conf/precision/fp8.yaml. Prints a table as Markdown last.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from approximations import TINY, Bench, log, psnr

from ltxgen.attention.protocol import backend
from ltxgen.bench.parallel.trial import try_steps
from ltxgen.diffusion.pair import Pair
from ltxgen.media.compare import compare_tensors
from ltxgen.recipe.run import NO_FOLDER
from ltxgen.runtime.displays import create_progress
from ltxgen.stage.denoise import Denoise
from ltxgen.stage.protocol import RunContext

FULL = ("artifacts=synthetic", "request.num_frames=121")
STEPS, WARM_UPS = 3, 2
CASES = (("refine", 768, 512), ("base", 1536, 1024), ("refine", 1536, 1024))
TINY_CASES = (("base", 128, 128), ("refine", 128, 128))


@dataclass(frozen=True)
class Steps:
    """A form of some steps: the median of their milliseconds, and the latents after them."""

    case: str
    form: str
    ms: float
    latents: Pair[torch.Tensor]


class Forms:
    """The transformer of `bench`, whose video self attention and linear layers change form."""

    def __init__(self, bench: Bench, cases: Sequence[tuple[str, int, int]]) -> None:
        self.bench, self.cases = bench, cases
        self.attentions = [m for name, m in bench.transformer.named_modules() if name.endswith(".attn1")]
        self.exact = [each.attend for each in self.attentions]
        self.found: list[Steps] = []

    def measure(self, form: str) -> None:
        for name, width, height in self.cases:
            words = (f"request.width={width}", f"request.height={height}", f"stages.base.steps={STEPS}")
            stage = self.bench.plan(*words).stages[name]
            assert isinstance(stage, Denoise)
            with create_progress("quiet").stage(name) as progress:
                context = RunContext(NO_FOLDER, progress, lambda name, tensor: None, lambda name, fact: None)
                trial, latents = try_steps(stage, self.bench.transformer, context, synchronize, WARM_UPS)
            case = f"{name} {width}x{height}, {stage.video_grid.num_tokens} tokens"
            log(f"{case}, {form}: {trial.ms:.1f} ms of {[round(each, 1) for each in trial.times]}")
            self.found.append(Steps(case, form, trial.ms, latents))

    def attend_in_fp8(self, on: bool) -> None:
        fp8 = backend("triton_fp8")
        for module, exact in zip(self.attentions, self.exact, strict=True):
            module.attend = fp8 if on else exact

    def show(self) -> None:
        print("| step | form | ms | of bf16 | video L2 | video PSNR | audio L2 | audio PSNR |")
        print("|-|-|-|-|-|-|-|-|")
        for each in sorted(self.found, key=lambda each: each.case):
            exact = next(other for other in self.found if other.case == each.case)
            cells = [each.case, each.form, f"{each.ms:.1f}", f"{each.ms / exact.ms:.2f}"]
            for name, reference in vars(exact.latents).items():
                ours = getattr(each.latents, name)
                cells += [f"{compare_tensors(ours, reference):.2e}", f"{psnr(ours, reference):.1f}"]
            print(f"| {' | '.join(cells)} |")


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.inference_mode()
def main(words: Sequence[str], cases: Sequence[tuple[str, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(words, Path(folder))
        forms = Forms(bench, cases)
        on_gpu = bench.device.type == "cuda"
        forms.measure("bf16")
        if on_gpu:
            forms.attend_in_fp8(True)
            forms.measure("fp8 attention")
            forms.attend_in_fp8(False)
        bench.use_float8()
        forms.measure("fp8 linears")
        if on_gpu:
            forms.attend_in_fp8(True)
            forms.measure("fp8 linears and attention")
        print(torch.cuda.get_device_name() if on_gpu else "CPU", torch.__version__)
        forms.show()
        bench.source.released(["transformer"])


if __name__ == "__main__":
    changes = [word for word in sys.argv[1:] if word != "--tiny"]
    if "--tiny" in sys.argv[1:]:
        main([*TINY, *changes], TINY_CASES)
    else:
        main([*FULL, *changes], CASES)

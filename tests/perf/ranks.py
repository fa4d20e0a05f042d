"""One two-stage run of the 22B model in several layouts: seconds, exchanges, memory, and agreement with one GPU.

    python tests/perf/ranks.py FOLDER [word ...]

Needs as many GPUs as the machine has; synthetic weights. Words are overrides for every run, such as
`request.width=768`. Each layout is a run of its own through the command line; results are told as they come.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

LAYOUTS = {
    "one": (),
    "guidance": ("parallel=guidance",),
    "ulysses": ("parallel=ulysses",),
    "ring": ("parallel=ring",),
    "guidance, weights sharded": ("parallel=guidance", "parallel.weights=sharded"),
    "ulysses, weights sharded": ("parallel=ulysses", "parallel.weights=sharded"),
}
WORDS = ("+recipe=ltx23_two_stage", "artifacts=synthetic", "stages.base.steps=4", "output.tensors=true")
COMPARED = ("base.final.video", "refine.final.video", "refine.final.audio", "audio.waveform", "decode_video.frames")


def main(folder: Path, words: list[str]) -> None:
    alone: Path | None = None
    for name, layout in LAYOUTS.items():
        output = folder / name.replace(", ", "_").replace(" ", "_")
        ranks = (f"parallel.num_processes={torch.cuda.device_count()}",) if layout else ()
        command = [sys.executable, "-m", "ltxgen", *WORDS, *words, *layout, *ranks, f"output.dir={output}"]
        started = time.perf_counter()
        ended = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        if ended.returncode:
            print(f"{name}: exit code {ended.returncode} after {seconds:.0f} s\n{ended.stderr[-1500:]}", flush=True)
            continue
        print(f"{name}: whole command {seconds:.0f} s", flush=True)
        report(output, alone)
        alone = alone or output


def report(output: Path, alone: Path | None) -> None:
    stages = json.loads((output / "manifest.json").read_text())["stages"]
    for name, stage in stages.items():
        exchanges = ", ".join(
            f"{kind} {each['bytes'] / 2**30:.2f} GiB {each['seconds']:.2f} s"
            for kind, each in stage.get("communication", {}).items()
        )
        peak = stage["peak_bytes"] / 2**30
        took = f"{stage['seconds']:7.2f} s, loading {stage['load_seconds']:5.1f} s"
        print(f"  {name:13} {took}, {peak:5.1f} GiB  {exchanges}")
    if alone is None:
        return
    mine, theirs = (load_file(each / "tensors.safetensors") for each in (output, alone))
    differences = ", ".join(f"{name} {relative_l2(mine[name], theirs[name]):.1e}" for name in COMPARED)
    noise = all(torch.equal(mine[name], theirs[name]) for name in mine if ".noise." in name)
    print(f"  to one GPU: {differences}; noise {'equal' if noise else 'DIFFERS'}", flush=True)


def relative_l2(one: torch.Tensor, other: torch.Tensor) -> float:
    one, other = one.double(), other.double()
    return ((one - other).norm() / other.norm()).item()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

"""GPUs and what connects them, memory, limits of the system, accelerate's config."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import constants

from ltxgen.doctor.finding import Finding
from ltxgen.memory.host import host_buffer
from ltxgen.runtime.memory import format_bytes, free_device_bytes, free_host_bytes

_DRIVER = Path("/proc/driver/nvidia/version")
_FEWEST_FILES, _ENOUGH_FILES = 256, 1024  # open at once: shards of weights, video, sockets of ranks and their launcher
_TRIED_BYTES = 2**20
# What accelerate's own config may hold that ltxgen's command line for it does not replace.
_UNREPLACED = ("use_cpu", "gpu_ids", "deepspeed_config", "fsdp_config", "megatron_lm_config", "tpu_use_cluster")


def gpus(device: torch.device) -> Iterator[Finding]:
    """Every GPU that torch sees; what there is instead where it sees none."""
    driver = _driver()
    if device.type != "cuda":
        why = "no GPU is visible to torch" if torch.backends.cuda.is_built() else "this torch is built without CUDA"
        seen = f", and there is an NVIDIA driver {driver}" if driver else ""
        fix = "install a torch for CUDA (https://pytorch.org/get-started)" if driver else ""
        yield Finding(
            "GPU", "cpu", "note", f"{why}{seen}: runs are on the CPU, for which the 22B model is too slow", fix
        )
        return
    yield Finding("GPU", "driver", "ok", driver or "unknown")
    for number in range(torch.cuda.device_count()):
        yield _gpu(number)
    if torch.cuda.device_count() > 1:
        yield _links(_output(["nvidia-smi", "topo", "-m"]))
    pinned = host_buffer(_TRIED_BYTES, device).is_pinned()
    locked = f"page-locked memory {'can' if pinned else 'can not'} be had"
    fix = "" if pinned else "ulimit -l unlimited, or --ulimit memlock=-1 for a container: weights load faster with it"
    yield Finding("GPU", "loading", "ok" if pinned else "note", locked, fix)


def host() -> Iterator[Finding]:
    """The machine's memory, and the limits of this process that a run may meet."""
    yield Finding("machine", "memory", "ok", f"{format_bytes(free_host_bytes())} can be had")
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    few: Any = "problem" if files < _FEWEST_FILES else "note" if files < _ENOUGH_FILES else "ok"
    raised = f"ulimit -n {_ENOUGH_FILES if most == resource.RLIM_INFINITY else min(most, _ENOUGH_FILES)}"
    yield Finding("machine", "open files", few, _limit(files), raised if few != "ok" else "")
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    yield Finding("machine", "locked memory", "ok", _limit(locked, in_bytes=True))
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        what = f"limited to {format_bytes(space)}; files of weights are mapped into it"
        yield Finding("machine", "address space", "note", what, "ulimit -v unlimited")


def accelerate_config(path: Path | None = None) -> Iterator[Finding]:
    """What accelerate's own config adds to the command line that ltxgen gives it."""
    path = path or Path(constants.HF_HOME).expanduser() / "accelerate" / "default_config.yaml"
    name = "accelerate config"
    if not path.is_file():
        yield Finding("machine", name, "ok", "none, and none is needed: ltxgen says how many processes there are")
        return
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        what = f"{path} can't be read: {' '.join(str(error).split())}"
        yield Finding("machine", name, "note", what, "mend it, or delete it: ltxgen needs none")
        return
    held = [each for each in _UNREPLACED if isinstance(config, dict) and config.get(each)]
    if held:
        what = f"{path} sets {', '.join(held)}, which ltxgen's own launch leaves to it"
        yield Finding("machine", name, "note", what, "take them out, or delete the file: ltxgen needs none")
    else:
        yield Finding("machine", name, "ok", f"{path}: only `accelerate launch` by hand goes by it")


def _gpu(number: int) -> Finding:
    device = torch.device("cuda", number)
    facts = torch.cuda.get_device_properties(device)
    what = (
        f"{facts.name}, {format_bytes(facts.total_memory)}, {format_bytes(free_device_bytes(device))} free, compute "
        f"capability {facts.major}.{facts.minor}"
    )
    with torch.cuda.device(device):
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if has_bf16:
        return Finding("GPU", f"cuda:{number}", "ok", what)
    return Finding("GPU", f"cuda:{number}", "problem", f"{what}, no bfloat16 arithmetic", "runtime.dtype=float32")


def _links(topology: str) -> Finding:
    """From the matrix that `nvidia-smi topo -m` prints, of all the machine's GPUs."""
    rows = [line.split()[1:] for line in topology.splitlines() if re.match(r"GPU\d+\s+\S", line)]
    cells = [cell for row in rows for cell in row[: len(rows)] if cell != "X"]
    linked = sorted({cell for cell in cells if re.fullmatch(r"NV\d+", cell)})
    if not cells:
        return Finding("GPU", "links", "note", "unknown: nvidia-smi tells nothing of them")
    if linked and all(cell in linked for cell in cells):
        return Finding("GPU", "links", "ok", f"NVLink between all ({', '.join(linked)})")
    others = ", ".join(sorted(set(cells) - set(linked)))
    what = f"{'not all pairs have NVLink' if linked else 'no NVLink'} ({others}): exchanges between ranks are slow"
    return Finding("GPU", "links", "note", what, "parallel=guidance exchanges least; for sweeps, parallel=jobs")


def _driver() -> str:
    """The NVIDIA driver's version; empty where there is none."""
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", _DRIVER.read_text(encoding="utf-8"))
    except OSError:
        found = None
    if found:
        return found[1]
    of_each_gpu = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    return of_each_gpu.partition("\n")[0]


def _output(command: Sequence[str]) -> str:
    """What a command prints; empty where there is none or it fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _limit(value: int, *, in_bytes: bool = False) -> str:
    if value == resource.RLIM_INFINITY:
        return "unlimited"
    return format_bytes(value) if in_bytes else str(value)

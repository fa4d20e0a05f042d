"""The machine a run gets: device, dtype, threads, and the versions that its manifest records."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch

from ltxgen import __version__
from ltxgen.config.errors import Problem, Refusal, did_you_mean
from ltxgen.models.fusing import why_not_fused

COMPILE_CACHE = "TORCHINDUCTOR_CACHE_DIR"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_RECORDED = ("transformers", "accelerate", "safetensors", "tokenizers", "huggingface_hub", "hydra-core", "av", "numpy")


def resolve_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device called `name`: `cpu`, `cuda` (the GPU of `local_rank`), `cuda:N`, or `auto` (a GPU if there is one).

    Raises Refusal (`runtime.device`) for another name and for a GPU that isn't there.
    """
    if not _DEVICE.fullmatch(name):
        known = ("auto", "cpu", "cuda")
        raise _refused("runtime.device", name, f"must be one of {', '.join(known)}{did_you_mean(name, known)}")
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if num_gpus == 0:
        built = torch.backends.cuda.is_built()
        why = "no GPU is visible to torch" if built else f"this torch ({torch.__version__}) is built without CUDA"
        raise _refused("runtime.device", name, f"{why}; use runtime.device=cpu or auto")
    index = int(name.partition(":")[2] or local_rank)
    if index >= num_gpus:
        message = f"GPU {index} was asked for and this machine has {num_gpus}, counted from 0"
        raise _refused("runtime.device", name, message)
    return torch.device("cuda", index)


def resolve_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The dtype called `name`, or for None or `auto` bfloat16 on a GPU and float32 on the CPU.

    Raises Refusal (`runtime.dtype`) for another name and for bfloat16 on a GPU that only emulates it.
    """
    if name in (None, "auto"):
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        known = ("auto", *DTYPES)
        raise _refused("runtime.dtype", name, f"must be one of {', '.join(known)}{did_you_mean(str(name), known)}")
    if name == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        gpu = torch.cuda.get_device_name(device)
        raise _refused("runtime.dtype", name, f"the {gpu} has no bfloat16 arithmetic; use runtime.dtype=float32")
    return DTYPES[name]


def resolve_kernels(kernels: str, compiled: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the transformer's blocks run with fused kernels: `plain`, `fused`, or `auto`, which is where they can.

    `compiled` is `runtime.compile`: blocks that are asked to be compiled have plain kernels. Raises Refusal
    (`runtime.kernels`) for `fused` where that is so, and where they can't run.
    """
    obstacle = why_not_fused(device, dtype)
    if compiled == "blocks":
        obstacle = "aren't for blocks that are compiled, as runtime.compile=blocks says"
    if kernels == "fused" and obstacle:
        raise _refused("runtime.kernels", kernels, f"they {obstacle}; use runtime.kernels=auto or plain")
    return kernels != "plain" and obstacle is None


def resolve_compile(name: str, fused: bool, device: torch.device, note: Callable[[str], None]) -> bool:
    """Whether the transformer's blocks run compiled: `blocks`, `none`, or `auto`, on a GPU without `fused` kernels.

    `note` is told where `auto` would and can't. Raises Refusal (`runtime.compile`) for `blocks` without a compiler.
    """
    if name == "none" or (name == "auto" and (fused or device.type == "cpu")):
        return False
    lacking = lacking_compiler(device)
    if lacking and name == "auto":
        note(f"compile blocks -> none: {lacking}")
    elif lacking:
        raise _refused("runtime.compile", name, f"{lacking}; use runtime.compile=none")
    return not lacking


def lacking_compiler(device: torch.device) -> str | None:
    if device.type == "cuda":
        return None if find_spec("triton") else "Triton, which compiles for GPUs, is not installed (pip install triton)"
    found = any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "cl") if name)
    return None if found else "there is no C++ compiler (g++ or clang++)"


def use_compile_cache(folder: Path) -> None:
    """Keep what is compiled in `folder`, for later processes, unless the user has chosen another (torch's variable)."""
    chosen = Path(os.environ.get(COMPILE_CACHE, ""))
    # torch puts its own default into the environment as soon as its compiler is imported.
    torchs_own = chosen.parent == Path(tempfile.gettempdir()) and chosen.name.startswith("torchinductor_")
    if COMPILE_CACHE not in os.environ or torchs_own:
        os.environ[COMPILE_CACHE] = str(folder)


def set_threads(num_threads: int | None) -> int:
    """Let torch use `num_threads` CPU threads (None leaves its own choice) and return how many it uses.

    Raises Refusal (`runtime.threads`) for a number below 1.
    """
    if num_threads is not None:
        if num_threads < 1:
            raise _refused("runtime.threads", num_threads, "must be at least 1, or null for torch's own choice")
        torch.set_num_threads(num_threads)
    return torch.get_num_threads()


def use_full_float32() -> None:
    """Let float32 mean float32 on a GPU too: torch would otherwise run float32 convolutions in TF32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def versions(device: torch.device) -> dict[str, str]:
    """Everything a manifest needs to say where a run was made: software versions, platform, device."""
    found = {
        "ltxgen": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        **{name: _version(name) for name in _RECORDED},
        "device": str(device),
        "device_name": device_name(device),
    }
    if device.type == "cuda":
        found["cudnn"] = str(torch.backends.cudnn.version())
        found["device_memory_bytes"] = str(torch.cuda.get_device_properties(device).total_memory)
    return found


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _refused(path: str, value: object, message: str) -> Refusal:
    return Refusal([Problem(path, value, message)])

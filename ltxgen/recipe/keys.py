"""The key of each stage's output: a hash of everything that can change it, known before anything loads.

A stage's key covers its config, the keys of what it reads, what it sees of the request, the content of its files, the
code, and the machine as far as it decides last bits. Left out is what is shown not to matter: where weights wait
(`memory`), what is written where (`output`), names of files.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import ltxgen
from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.components import TRANSFORMERS, artifact_of
from ltxgen.artifacts.hashing import sha256_of
from ltxgen.recipe.parts import lora_artifact
from ltxgen.recipe.plan import Plan
from ltxgen.runtime.environment import device_name
from ltxgen.stage.protocol import metadata_artifacts, request_fields

# Packages whose kernels, tokenizers or readers make what is stored. What is not installed counts as well.
PACKAGES = (
    *("torch", "triton", "nvidia-cublas", "nvidia-cublas-cu12", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
    *("flash-attn", "flash-attn-3", "flash-attn-4", "sageattention", "xformers"),
    *("transformers", "tokenizers", "sentencepiece", "safetensors", "numpy", "av", "pillow"),
)
# Variables by which libraries are told to compute otherwise.
VARIABLES = (
    *("NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS"),
    *("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
)
_DATA = ("conf", "recipes")  # of an installed package: what is chosen there stands in the composed config


def stage_keys(plan: Plan, given: Mapping[str, str], machines: Sequence[Any]) -> dict[str, str]:
    """The key of every stage (hex sha256). `given` has the digests of the values that the run's state starts with,
    `machines` the `machine_facts` of all ranks.

    Files are hashed, which is remembered by path, size and time.
    """
    written = dict(given)
    keys = {}
    for name, stage in plan.stages.items():
        inputs = [[read, written[read]] for read in stage.reads]
        keys[name] = _digest({**_material(plan, name), "inputs": inputs, "machines": machines})
        written.update({output: _digest([keys[name], output]) for output in stage.writes})
    return keys


def _material(plan: Plan, name: str) -> dict[str, Any]:
    recipe, stage = plan.recipe, plan.stages[name]
    request = recipe.request
    material = {
        "stage": name,
        "config": canonical(recipe.stages[name]),
        "request": {each: canonical(getattr(request, each)) for each in request_fields(recipe.stages[name])},
        "parts": [
            [part.name, canonical(part.dtype), _identity(plan.artifacts[artifact_of(part.name)])]
            + [[strength, _identity(plan.artifacts[lora_artifact(lora)])] for lora, strength in part.loras]
            for part in stage.parts
        ],
        "metadata": [
            _identity(plan.artifacts[each])
            for each in metadata_artifacts(recipe.stages[name])
            if each in plan.artifacts
        ],
        "numerics": canonical(plan.numerics),
        "dtype": canonical(plan.dtype),
        "device": plan.device.type,
        "ranks": canonical(plan.parallel and (plan.parallel.shape, plan.parallel.sharded_weights)),
    }
    if any(part.name in TRANSFORMERS for part in stage.parts):  # the only component that these concern
        material["transformer"] = {
            "attention": dict(plan.backends),
            "precision": canonical(recipe.precision),
            "kernels": plan.fused,
            "compile": plan.compiles,
            "batch_passes": recipe.runtime.batch_passes,
            "graphs": recipe.runtime.graphs,
        }
        if plan.parallel is not None and plan.parallel.shape.guidance > 1:  # passes are dealt by what is predicted
            material["hardware"] = canonical(recipe.hardware)
    return material


def _identity(artifact: ResolvedArtifact) -> Any:
    """An artifact by content; a synthetic one by what it is made from."""
    return artifact.sha256 or {"synthetic": canonical(artifact.synthetic_config), "seed": artifact.seed}


def canonical(value: Any) -> Any:
    """A config value as JSON. A field called `path` stands for its file's content; one whose metadata say
    `changes_output: False` is left out."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Fraction() | torch.dtype():
            return str(value)
        case tuple() | list():
            return [canonical(item) for item in value]
        case frozenset():
            return sorted(map(canonical, value))
        case Mapping():
            return {str(key): canonical(item) for key, item in value.items()}
    assert dataclasses.is_dataclass(value), f"a {type(value)} in a config"
    fields = [field for field in dataclasses.fields(value) if field.metadata.get("changes_output", True)]
    kind = {"type": f"{type(value).__module__}:{type(value).__qualname__}"}
    return {**kind, **{field.name: _field(field.name, getattr(value, field.name)) for field in fields}}


def _field(name: str, value: Any) -> Any:
    if name == "path" and isinstance(value, str):
        return {"sha256": sha256_of(Path(value).expanduser())}
    return canonical(value)


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What decides last bits on this machine, and the code that runs. For the ranks of a run to tell each other."""
    cuda = device.type == "cuda"
    return {
        "code": code_version(),
        "python": platform.python_version(),
        "packages": _packages(),
        "variables": {name: os.environ.get(name) for name in VARIABLES},
        "cpu": [_processor(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
        "gpu": [device_name(device), torch.version.cuda, torch.backends.cudnn.version()] if cuda else None,
        "precision": [
            torch.get_float32_matmul_precision(),
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
            torch.backends.cudnn.benchmark,
            torch.are_deterministic_algorithms_enabled(),
        ],
    }


def code_version() -> str:
    """SHA-256 over the package's files as they are now. All of them: any may come to matter to any stage."""
    root = os.path.dirname(ltxgen.__file__)
    found = hashlib.sha256()
    for entry in _files(root, ("__pycache__", *_DATA)):
        stat = entry.stat()
        inside = entry.path.removeprefix(root)
        found.update(f"{inside} {_file_digest(entry.path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return found.hexdigest()


def _files(folder: str, without: Sequence[str]) -> Iterator[os.DirEntry[str]]:
    """Every file below, in a fixed order; by `os.scandir`, since it is asked for before every stage."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_file():
            yield entry
        elif entry.is_dir(follow_symlinks=False) and entry.name not in without:
            yield from _files(entry.path, ("__pycache__",))


@functools.cache
def _file_digest(path: str, size: int, changed: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@functools.cache
def _packages() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return {**found, "torch build": torch.version.git_version}


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part")))
    return next(names, platform.processor() or platform.machine())


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

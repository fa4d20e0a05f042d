"""Reading a checkpoint of some 8 GB to the GPU: safetensors' own loader, one tensor after the other, and ltxgen's.

    python tests/perf/loading.py [NUM_LAYERS]

Writes the transformer of the 22B model with fewer layers (0.8 GB each) and random weights into a temporary folder,
reads it in each way, from the disk and from the system's cache, and compares what arrived bit for bit. The cache is
dropped with posix_fadvise, which a file system may ignore: a disk's figure like the cache's says that it did. Less than
a minute on a machine that writes 1 GB/s; 10 GB of disk, 20 GB of host and of GPU memory. Without a GPU it reads to the
CPU, where a layer is enough and safetensors only maps the file. Prints the table last.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ltxgen.artifacts.artifact import ResolvedArtifact  # noqa: E402
from ltxgen.artifacts.components import COMPONENTS, BuildOptions  # noqa: E402
from ltxgen.artifacts.load import component_shapes, load_component  # noqa: E402
from ltxgen.artifacts.safetensors_file import SafetensorsFile, write_safetensors  # noqa: E402
from ltxgen.artifacts.synthetic import architecture  # noqa: E402

NUM_LAYERS = 9
SPEC = COMPONENTS["transformer"]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Tensors = Mapping[str, Tensor]


def main(num_layers: int) -> None:
    ways: dict[str, Callable[[ResolvedArtifact], Tensors]] = {
        "safetensors load_file": with_safetensors,
        "tensor by tensor": one_by_one,
        "ltxgen": with_ltxgen,
    }
    torch.zeros(1, device=DEVICE)
    with tempfile.TemporaryDirectory() as folder:
        artifact = write(Path(folder) / "checkpoint.safetensors", num_layers)
        assert artifact.path is not None
        size = artifact.path.stat().st_size
        rows: list[tuple[str, float, float]] = []
        first: Tensors | None = None
        for name, way in ways.items():
            drop_cache(artifact.path)
            seconds = []
            for _ in range(3):  # from the disk, and twice from the cache
                started = time.perf_counter()
                tensors = way(artifact)
                if DEVICE.type == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - started)
                print(f"{name}: {seconds[-1]:.2f} s", flush=True)
                first = first or tensors
                assert tensors.keys() == first.keys()
                different = [key for key in first if not torch.equal(tensors[key], first[key])]
                assert not different, f"{name}: {different[:3]}"
                del tensors
                gc.collect()
            rows.append((name, size / seconds[0] / 1e9, size / min(seconds[1:]) / 1e9))
    print(f"\n{size / 1e9:.1f} GB to {torch.cuda.get_device_name() if DEVICE.type == 'cuda' else 'the CPU'}, GB/s")
    print(f"{'':24} {'disk':>6} {'cache':>6}")
    for name, disk, cache in rows:
        print(f"{name:24} {disk:6.2f} {cache:6.2f}")


def write(path: Path, num_layers: int) -> ResolvedArtifact:
    config = json.loads(json.dumps(architecture("ltx23_22b")["checkpoint"]))
    config["transformer"]["num_layers"] = num_layers
    made = ResolvedArtifact("checkpoint", None, "", "", synthetic_config=config)
    generator = torch.Generator(DEVICE).manual_seed(0)
    tensors = {}
    for key, shape in component_shapes(SPEC, made, BuildOptions()).items():
        values = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_(generator=generator)
        tensors[SPEC.keys.file_key(key)] = values.cpu()
    write_safetensors(path, tensors, {"config": json.dumps(config)})
    return ResolvedArtifact("checkpoint", path, "", "")


def drop_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def with_safetensors(artifact: ResolvedArtifact) -> Tensors:
    tensors = load_file(str(artifact.path), device=str(DEVICE))
    return {key: tensors[name] for key, name in SPEC.file_keys(tensors).items()}


def one_by_one(artifact: ResolvedArtifact) -> Tensors:
    assert artifact.path is not None
    with SafetensorsFile(artifact.path) as file:
        return {key: file.read(name).to(DEVICE) for key, name in SPEC.file_keys(file.header.tensors).items()}


def with_ltxgen(artifact: ResolvedArtifact) -> Tensors:
    return load_component(SPEC, artifact, DEVICE, torch.bfloat16).state_dict()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2] or [NUM_LAYERS]))

"""Starts the ranks of a test: one process each, which leaves its findings in a file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def run_world(work: Callable[[str], Any], size: int, folder: Path, device: str = "cpu") -> list[Any]:
    """What `work(device)`, a function of a module, returns on each of `size` ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Ranks fork from a process that has imported torch.
    multiprocessing.set_forkserver_preload(["ltxgen.attention.sdpa", "ltxgen.parallel.plan"])
    torch.multiprocessing.start_processes(
        _run_rank, (work, size, port, folder, device), nprocs=size, start_method="forkserver"
    )
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(size)]


def _run_rank(rank: int, work: Callable[[str], Any], size: int, port: int, folder: Path, device: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(size))
    if device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=timedelta(seconds=60))
    try:
        with torch.inference_mode():
            findings = work(device)
        (folder / str(rank)).write_bytes(pickle.dumps(findings))
        dist.barrier()
    finally:
        dist.destroy_process_group()

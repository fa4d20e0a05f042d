"""Python imports this when its folder is on the path: the stage kind `fault`, in which a rank goes wrong."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

from ltxgen.config.errors import Problem
from ltxgen.registry import register


@register("stage", "fault")
@dataclass(frozen=True)
class FaultConfig:
    """`how` is what `rank` does, while the others wait for it in a collective; all ranks do `stuck`."""

    how: str = "nothing"
    rank: int = 1

    def build(self, name: str, setting: Any) -> Fault:
        return Fault(self)


class Fault:
    reads = ()
    writes = ("fault",)
    parts = ()
    size_multiple = 1
    num_passes = 0
    work = None

    def __init__(self, config: FaultConfig) -> None:
        self.config = config

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        return []

    def describe(self) -> dict[str, Any]:
        return {}

    def run(self, state: Any, parts: Any, context: Any) -> dict[str, Any]:
        import torch  # not while Python starts

        if os.environ["RANK"] == "0":
            (context.folder / "half-written").touch()
        if self.config.how == "stuck":  # in C++, where no Python signal handler runs
            torch.distributed.recv(torch.zeros(1), src=1 - int(os.environ["RANK"]))
        if int(os.environ["RANK"]) == self.config.rank:
            self._go_wrong()
        torch.distributed.barrier()
        return {"fault": None}

    def _go_wrong(self) -> None:
        if self.config.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.config.how == "raise":
            raise ValueError("a fault of this rank")
        if self.config.how == "sleep":
            time.sleep(600)

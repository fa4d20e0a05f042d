"""Ranks that write a prompt together write one text, also where their own scores differ."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from worlds import run_world

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.chat import load_chat
from ltxgen.artifacts.load import load_component
from ltxgen.config.recipe import Request
from ltxgen.diffusion.numerics import Numerics
from ltxgen.parallel.axes import Axis
from ltxgen.runtime.clock import StepWatch
from ltxgen.stage.enhance_prompt import EnhancePromptConfig
from ltxgen.stage.protocol import RunContext, Setting


def write(folder: Path, device: str) -> list[str]:
    """The text of this rank, whose weights are its own; and what it would write alone."""
    artifact = ResolvedArtifact("text_encoder", folder, "embedded", "")
    encoder = load_component("text_encoder", artifact, device, torch.float32)
    encoder.model.norm.weight.mul_(1 + 10 * dist.get_rank())
    parts = {"chat": load_chat(artifact), "text_encoder": encoder}
    cpu = torch.device(device)
    setting = Setting(Request("a cat", ""), Numerics.named("current"), cpu, torch.float32)
    config = EnhancePromptConfig("Be brief.", "Look.", max_new_tokens=12)
    texts = []
    for ranks in (Axis.of_all_ranks, lambda device_type: Axis()):
        parallel: Any = SimpleNamespace(all_ranks=ranks)
        stage = config.build("enhance", dataclasses.replace(setting, parallel=parallel))
        progress: Any = SimpleNamespace(begin=lambda *_, **__: None, advance=lambda *_: None, note=lambda _: None)
        context = RunContext(folder, StepWatch(progress), lambda *_: None, lambda *_: None)
        texts.append(stage.run({}, parts, context)["enhance.prompt"])
    return texts


def test_two_ranks_write_one_text(tiny_set, tmp_path):
    (first, alone), (second, otherwise) = run_world(
        functools.partial(write, tiny_set.file("text_encoder")), 2, tmp_path
    )
    assert first == second == alone
    assert otherwise != alone, "the second rank had written something else"

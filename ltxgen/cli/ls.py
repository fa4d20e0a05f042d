"""`ltxgen ls`: recipes and choices."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ltxgen.config.errors import Problem, Refusal, did_you_mean

if TYPE_CHECKING:
    from ltxgen.recipe.plan import Plan

_WIDTH = 24
# What a recipe wants that a prediction can do without; {clip} and {sound} are files that stand in.
_STAND_INS = {
    "request.audio.path": "request.audio.path={sound}",
    "request.source.path": "request.source.path={clip}",
    "request.span": "request.span=[0.5,1.5]",
    "request.references": "request.references=[{{path: {clip}}}]",
}
_CLIP = (97, 512, 768)  # frames, height, width
_SOUND_SECONDS = 60


def command(words: list[str], debug: bool) -> int:
    from ltxgen.config import compose

    groups = compose.groups()
    overrides = [word for word in words if "=" in word]
    names = [word for word in words if word not in overrides]
    if not words:
        for name in groups.pop("recipe"):
            print(f"{'recipe:':<12} {name:<{_WIDTH}} {compose.first_comment('recipe', name)}")
        for group, choices in groups.items():
            print(f"{group + ':':<12} {', '.join(choices)}")
        return 0
    if names in (["recipe", "--memory"], ["recipes", "--memory"]):
        return _with_memory(groups["recipe"], overrides)
    group = " ".join(words).replace("recipes", "recipe")
    if group not in groups:
        message = f"must be one of {', '.join(groups)}{did_you_mean(group, groups)}"
        raise Refusal([Problem("ls", group, message)])
    lacking = _lacking_attention() if group == "attention" else {}
    for name in groups[group]:
        print(f"{name:<{_WIDTH}} {compose.first_comment(group, name)}")
        if lacking.get(name):
            print(f"{'':<{_WIDTH}} unavailable here: {lacking[name]}")
    return 0


def _lacking_attention() -> Mapping[str, str | None]:
    """Why each attention backend can't run on this machine in bfloat16; None for those that can."""
    from ltxgen.attention.choice import availability
    from ltxgen.attention.protocol import DeviceFacts
    from ltxgen.runtime.environment import DTYPES, resolve_device

    return availability(DeviceFacts.of(resolve_device()), DTYPES["bfloat16"])


def _with_memory(names: Sequence[str], overrides: Sequence[str]) -> int:
    """Every recipe with the memory that it would take, as its plan predicts it: half a second each."""
    from ltxgen.config import compose

    with tempfile.TemporaryDirectory(prefix="ltxgen-") as scratch:
        files = _write_stand_ins(Path(scratch))
        for name in names:
            print(f"{name:<{_WIDTH}} {compose.first_comment('recipe', name)}")
            words = compose.open_overrides([f"+recipe={name}", "artifacts=synthetic", *overrides])
            try:
                line = _memory_line(_planned(words, files))
            except Refusal as refusal:
                line = f"memory is not known: {refusal.problems[0]}"
            print(f"{'':<{_WIDTH}} {line}", flush=True)
    return 0


def _planned(words: Sequence[str], files: Mapping[str, Path]) -> Plan:
    """What would run at full size, without files of the model, and with stand-ins for those that the request lacks."""
    from ltxgen.config import compose
    from ltxgen.config.recipe import parse_recipe
    from ltxgen.recipe.plan import make_plan

    plan = make_plan(parse_recipe(compose.compose_config(words)))
    wanted = [_STAND_INS[path].format(**files) for path in {each.path for each in plan.problems} & set(_STAND_INS)]
    if not set(wanted) <= set(words):
        return _planned([*words, *wanted], files)
    if plan.problems:
        raise Refusal(plan.problems)
    return plan


def _memory_line(plan: Plan) -> str:
    from ltxgen.recipe.policy import AUTO

    request, memory = plan.recipe.request, plan.memory
    assert memory is not None, "a plan without problems knows its memory"
    resident, *others = (memory.forecaster.forecast(each, memory.room, num_kept=0) for each in ("resident", *AUTO))
    least = min(others, key=lambda each: each.device)
    auto = "nothing fits here" if plan.here else f"{memory.forecast} as memory=auto would have it"
    has_video = any(name.endswith(".video") for stage in plan.stages.values() for name in stage.writes)
    size = f"{request.width}x{request.height}" if has_video else "sound alone"
    size += f", {request.num_frames} frames"
    return f"GPU memory, predicted for {size}: {resident}; {auto}; at least {least}"


def _write_stand_ins(folder: Path) -> dict[str, Path]:
    """A black clip, and a silent sound that is longer than any video."""
    from fractions import Fraction

    import torch

    from ltxgen.media.mp4 import Mp4Settings, Mp4Writer
    from ltxgen.media.sound import Sound, write_wav

    frames, height, width = _CLIP
    fps, rate = 24, 48000
    with Mp4Writer(folder / "clip.mp4", Fraction(fps), Mp4Settings(preset="ultrafast")) as writer:
        writer.write_frames(torch.zeros(1, height, width, 3, dtype=torch.uint8).expand(frames, -1, -1, -1))
        writer.write_audio(torch.zeros(2, frames * rate // fps), rate)
    write_wav(folder / "sound.wav", Sound(torch.zeros(1, 2, _SOUND_SECONDS * rate), rate))
    return {"clip": folder / "clip.mp4", "sound": folder / "sound.wav"}

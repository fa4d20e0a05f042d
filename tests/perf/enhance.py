"""Writing a prompt with Gemma 3 12B, random weights: tokens a second, and peak memory against the forecast.

    python tests/perf/enhance.py

Without and with a picture, 128 tokens each, in bf16. A minute on a GPU with 40 GB. Prints the table last.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ltxgen.artifacts.artifact import ArtifactSpec  # noqa: E402
from ltxgen.artifacts.chat import load_chat  # noqa: E402
from ltxgen.artifacts.load import load_component  # noqa: E402
from ltxgen.artifacts.synthetic import synthetic_artifact  # noqa: E402
from ltxgen.config import compose  # noqa: E402
from ltxgen.config.recipe import parse_recipe  # noqa: E402
from ltxgen.recipe.plan import Plan, make_plan  # noqa: E402
from ltxgen.runtime.progress import StageProgress  # noqa: E402
from ltxgen.stage.protocol import RunContext  # noqa: E402

TOKENS = 128
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(folder: Path) -> None:
    Image.effect_noise((1536, 1024), 80).convert("RGB").save(folder / "picture.png")
    artifact = synthetic_artifact(ArtifactSpec("text_encoder", source="synthetic"))
    parts: dict[str, Any] = {"chat": load_chat(artifact)}  # type: ignore[arg-type]
    for name in ("text_encoder", "vision_tower"):
        parts[name] = load_component(name, artifact, DEVICE, torch.bfloat16)  # type: ignore[arg-type]
    rows = []
    for name, images in (("words", []), ("picture", [f"request.images=[{{path: '{folder}/picture.png'}}]"])):
        stage = planned(*images).stages["enhance"]
        given = {part.name: parts[part.name] for part in stage.parts}
        for _ in range(2):  # the first one warms up
            rows.append((name, *measured(stage, given, folder)))
    print(f"\n{torch.cuda.get_device_name() if DEVICE.type == 'cuda' else 'CPU'}, {TOKENS} tokens")
    print(f"{'':8} {'tokens/s':>9} {'peak GiB':>9} {'forecast':>9} same")
    for (name, rate, peak, forecast, text), (_, _, _, _, first) in zip(rows[1::2], rows[::2], strict=True):
        print(f"{name:8} {rate:9.1f} {peak / 2**30:9.2f} {forecast / 2**30:9.2f} {text == first}")


def planned(*words: str) -> Plan:
    """A plan whose `enhance` writes so many tokens; random weights hardly ever end by themselves."""
    config = compose.compose_config(
        [
            "+recipe=ltx23_two_stage",
            "artifacts=synthetic",
            "enhance=gemma",
            f"stages.enhance.max_new_tokens={TOKENS}",
            *words,
        ]
    )
    plan = make_plan(parse_recipe(config))
    assert not plan.problems, plan.problems
    return plan


def measured(stage: Any, parts: dict[str, Any], folder: Path) -> tuple[float, int, int, str]:
    """Tokens a second, peak bytes beside the weights, what was forecast, and the text."""
    at_rest = peak = 0
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        at_rest = torch.cuda.memory_allocated()
    told: dict[str, Any] = {}
    progress: Any = StageProgress("enhance", time.perf_counter, lambda _: None)
    context = RunContext(folder, progress, lambda *_: None, told.__setitem__)
    with torch.inference_mode():
        text = stage.run({}, parts, context)["enhance.prompt"]
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - at_rest
    return progress.steps_per_second or 0.0, peak, stage.activation_bytes(0), text


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))

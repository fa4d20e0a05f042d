"""Writing a prompt with Gemma 3 12B, random weights: tokens a second, and peak memory against the forecast.

    python tests/perf/enhance.py [ARCHITECTURE]

Without and with a picture, 128 tokens each, in bf16. A minute on a GPU with 40 GB; `ltx23_tiny` runs
anywhere. Prints the table last.
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
from ltxgen.media.picture import read_picture  # noqa: E402
from ltxgen.models.text_encoder.answer import Sampling, answer  # noqa: E402
from ltxgen.recipe.plan import Plan, make_plan  # noqa: E402
from ltxgen.runtime.progress import StageProgress  # noqa: E402

TOKENS = 128
ARCHITECTURE = sys.argv[1] if len(sys.argv) > 1 else "ltx23_22b"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(folder: Path) -> None:
    Image.effect_noise((1536, 1024), 80).convert("RGB").save(folder / "picture.png")
    artifact = synthetic_artifact(ArtifactSpec("text_encoder", source="synthetic", architecture=ARCHITECTURE))
    parts: dict[str, Any] = {"chat": load_chat(artifact)}  # type: ignore[arg-type]
    for name in ("text_encoder", "vision_tower"):
        parts[name] = load_component(name, artifact, DEVICE, torch.bfloat16)  # type: ignore[arg-type]
    # A row that stands for no token is never drawn: no answer ends before it is as long as it may be.
    parts["chat"].end_ids = [parts["text_encoder"].model.config.vocab_size - 1]
    rows = []
    for name, images in (("words", []), ("picture", [f"request.images=[{{path: '{folder}/picture.png'}}]"])):
        stage = planned(*images).stages["enhance"]
        given = {part.name: parts[part.name] for part in stage.parts}
        for _ in range(2):  # the first one warms up
            rows.append((name, *measured(stage, given)))
    print(f"\n{torch.cuda.get_device_name() if DEVICE.type == 'cuda' else 'CPU'}, {TOKENS} tokens")
    print(f"{'':8} {'tokens/s':>9} {'peak GiB':>9} {'forecast':>9} same")
    for (name, rate, peak, forecast, ids), (_, _, _, _, first) in zip(rows[1::2], rows[::2], strict=True):
        print(f"{name:8} {rate:9.1f} {peak / 2**30:9.2f} {forecast / 2**30:9.2f} {ids == first}")


def planned(*words: str) -> Plan:
    """A plan whose `enhance` writes so many tokens."""
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


def measured(stage: Any, parts: dict[str, Any]) -> tuple[float, int, int, list[int]]:
    """Tokens a second, peak bytes beside the weights, what was forecast, and the answer's tokens.

    Not through the stage's `run`, which refuses an answer without a word: random weights repeat the question's end.
    """
    config, chat = stage.config, parts["chat"]
    picture = read_picture(Path(stage.picture)).pixels if stage.picture else None
    question = chat.ask(config.image_to_video if picture is not None else config.text_to_video, "waves", picture)
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.seed, config.max_new_tokens)
    at_rest = peak = 0
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        at_rest = torch.cuda.memory_allocated()
    progress = StageProgress("enhance", time.perf_counter, lambda _: None)
    progress.begin(config.max_new_tokens, unit="token")
    with torch.inference_mode():
        ids = answer(
            parts["text_encoder"], parts.get("vision_tower"), chat, question, sampling, on_token=progress.advance
        )
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - at_rest
    assert len(ids) == config.max_new_tokens, f"{len(ids)} tokens"
    return progress.steps_per_second or 0.0, peak, stage.activation_bytes(0), ids.tolist()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))

"""Prompts that Gemma writes, on a GPU. Needs a CUDA device."""

import pytest
import torch

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.chat import load_chat
from ltxgen.artifacts.load import load_component
from ltxgen.models.text_encoder.answer import Sampling, answer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LIKELIEST = Sampling(temperature=0.0, top_k=64, top_p=0.95, seed=42, max_new_tokens=24)
DRAWN = Sampling(temperature=0.7, top_k=64, top_p=0.95, seed=42, max_new_tokens=24)


@pytest.mark.parametrize("sees", [False, True], ids=["words", "picture"])
@torch.inference_mode()
def test_the_likeliest_words_are_those_of_the_cpu_and_drawn_ones_come_again(tiny_set, sees):
    artifact = ResolvedArtifact("text_encoder", tiny_set.file("text_encoder"), place="test", reason="test")
    chat = load_chat(artifact)
    picture = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8) if sees else None
    question = chat.ask("Be brief.", "a cat runs", picture)

    def written(device: str, dtype: torch.dtype, sampling: Sampling) -> list[int]:
        names = ("text_encoder", "vision_tower")
        encoder, vision = (load_component(name, artifact, device, dtype) for name in names)
        return answer(encoder, vision if sees else None, chat, question, sampling).tolist()  # type: ignore[arg-type]

    assert written("cuda", torch.float32, LIKELIEST) == written("cpu", torch.float32, LIKELIEST)
    state = torch.cuda.get_rng_state()
    first = written("cuda", torch.bfloat16, DRAWN)
    assert len(set(first)) > 3
    assert written("cuda", torch.bfloat16, DRAWN) == first
    assert torch.equal(torch.cuda.get_rng_state(), state)

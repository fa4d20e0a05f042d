"""Lets the text encoder answer: the same weights under transformers' Gemma 3 and its `generate`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.generation.streamers import BaseStreamer

from ltxgen.models.text_encoder.chat import Chat
from ltxgen.models.text_encoder.gemma import GemmaTextEncoder
from ltxgen.models.text_encoder.vision import GemmaVision


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: at `temperature` (0: the likeliest one) among the `top_k` likeliest (0: all), as
    many of them as together have the probability `top_p`."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    max_new_tokens: int


def answer(
    encoder: GemmaTextEncoder,
    vision: GemmaVision | None,
    chat: Chat,
    question: Mapping[str, Tensor],
    sampling: Sampling,
    agree: Callable[[Tensor], None] = lambda scores: None,
    on_token: Callable[[], None] = lambda: None,
) -> Tensor:
    """The tokens (S,) int64 of the answer to `question`, which `chat` made, on the CPU.

    The same device gives the same answer again, and the state of torch's random numbers stays what it was. `agree`
    makes the scores (1,V) of the next token, in place, those of all ranks; `on_token` is called after each.
    """
    model = _model(encoder, vision, chat)
    device = encoder.model.embed_tokens.weight.device
    inputs = {name: tensor.to(device) for name, tensor in question.items()}
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(sampling.seed)
        ids = model.generate(
            **inputs,
            generation_config=_generation_config(sampling, chat, model.lm_head.out_features),
            logits_processor=LogitsProcessorList([_Agree(agree)]),
            streamer=_Count(on_token),
        )
    return ids[0, question["input_ids"].shape[1] :].cpu()


def _model(encoder: GemmaTextEncoder, vision: GemmaVision | None, chat: Chat) -> Any:
    """Gemma with its LM head, which is the embedding, around the parts that are there; nothing is copied."""
    with torch.inference_mode(False):
        model: Any
        if vision is None:
            with torch.device("meta"):
                model = Gemma3ForCausalLM(encoder.model.config)
            model.model = encoder.model
        else:
            with torch.device("meta"):
                model = Gemma3ForConditionalGeneration(vision.config)
            model.model.language_model = encoder.model
            model.model.vision_tower = vision.vision_tower
            model.model.multi_modal_projector = vision.multi_modal_projector
            model.model.config.image_token_id = chat.image_id
        model.lm_head.weight = encoder.model.embed_tokens.weight
    return model.eval()


def _generation_config(sampling: Sampling, chat: Chat, num_rows: int) -> GenerationConfig:
    draws: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        draws = {"do_sample": True, "temperature": sampling.temperature}
        draws |= {"top_k": sampling.top_k, "top_p": sampling.top_p}
    return GenerationConfig(
        **draws,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=chat.end_ids,
        pad_token_id=chat.tokenizer.pad_token_id,
        suppress_tokens=list(range(len(chat.tokenizer), num_rows)) or None,  # rows that stand for no token
    )


class _Agree(LogitsProcessor):
    def __init__(self, agree: Callable[[Tensor], None]) -> None:
        self._agree = agree

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.contiguous()
        self._agree(scores)
        return scores


class _Count(BaseStreamer):
    """Told the question first, and then each token."""

    def __init__(self, on_token: Callable[[], None]) -> None:
        self._on_token = on_token
        self._asked = False

    def put(self, value: Tensor) -> None:
        if self._asked:
            self._on_token()
        self._asked = True

    def end(self) -> None:
        pass

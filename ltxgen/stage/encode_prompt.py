"""Prompt -> tokens -> Gemma's hidden states -> features -> connectors -> contexts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ltxgen.config.errors import Problem
from ltxgen.diffusion.context import Context, Contexts
from ltxgen.parallel.cost import TEXT_TOKENS
from ltxgen.registry import register
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Stage

# Of all hidden states of a prompt: as Gemma gives them, normed, and scaled for one projection.
STATE_COPIES = 3


@register("stage", "encode_prompt")
@dataclass(frozen=True)
class EncodePromptConfig:
    """`negative: false` leaves the negative prompt out, for recipes without guidance; `video: false` what only video
    reads of a prompt, for recipes of sound alone."""

    request_fields: ClassVar = ("prompt", "negative_prompt", "default_negative_prompt")
    negative: bool = True
    video: bool = True

    def build(self, name: str, setting: Setting) -> EncodePrompt:
        return EncodePrompt(self, name, setting)


class EncodePrompt(Stage):
    """Writes `<name>.context`; reads the prompt that an earlier stage has written in place of the request's."""

    def __init__(self, config: EncodePromptConfig, name: str, setting: Setting) -> None:
        self.enhanced = setting.enhanced
        self.reads = (self.enhanced,) if self.enhanced else ()
        self.prompts = {"positive": setting.request.prompt}
        if config.negative:
            self.prompts["negative"] = negative_prompt(setting)
        self.setting = setting
        self.device = setting.device
        self.writes = (f"{name}.context",)
        self.video = config.video
        self.projection = "text_projection" if config.video else "audio_text_projection"
        connectors = ("video_connector", "audio_connector") if config.video else ("audio_connector",)
        names = ("tokenizer", "text_encoder", self.projection, *connectors)
        self.parts = tuple(PartRequest(part, setting.dtype) for part in names)

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        shapes[self.writes[0]] = frozenset(self.prompts) | ({"video"} if self.video else set())
        return []

    def activation_bytes(self, free_bytes: int) -> int:
        encoder = self.setting.artifacts["text_encoder"].config
        text = encoder.get("text_config", encoder)
        states = TEXT_TOKENS * text["hidden_size"] * (text["num_hidden_layers"] + 1)
        return STATE_COPIES * states * self.setting.dtype.itemsize

    def describe(self) -> dict[str, Any]:
        return {"prompts": self._with(self.enhanced)}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        prompts = self._with(state[self.enhanced] if self.enhanced else None)
        context.report("prompts", prompts)
        context.progress.begin(len(prompts), unit="prompt")
        encoded = {}
        for which, prompt in prompts.items():
            encoded[which] = self._encode(prompt, parts)
            for modality in ("video", "audio") if self.video else ("audio",):
                context.record(f"context.{modality}.{which}", getattr(encoded[which], modality))
            context.progress.advance()
        return {self.writes[0]: Contexts(encoded["positive"], encoded.get("negative"))}

    def _with(self, enhanced: str | None) -> dict[str, str]:
        return self.prompts if enhanced is None else {**self.prompts, "positive": enhanced}

    def _encode(self, prompt: str, parts: Mapping[str, Any]) -> Context:
        ids, mask = (tensor.to(self.device) for tensor in parts["tokenizer"](prompt))
        hidden = parts["text_encoder"](ids, mask)
        video, audio = parts[self.projection](hidden, mask)
        in_video = parts["video_connector"](video, mask) if self.video else None
        return Context(in_video, parts["audio_connector"](audio, mask))


def negative_prompt(setting: Setting) -> str:
    """The request's own negative prompt, or the default one led by the tags that the numerics add."""
    request, tags = setting.request, setting.numerics.negative_prompt_tags
    if request.negative_prompt is not None:
        return request.negative_prompt
    return ", ".join((*tags, request.default_negative_prompt))

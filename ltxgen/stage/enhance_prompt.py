"""The request's prompt, and its first picture -> a fuller prompt, written by the Gemma that then encodes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor

from ltxgen.config.errors import MISSING, Problem, Refusal
from ltxgen.config.schema import Check, NonNegativeFloat, NonNegativeInt, PositiveInt
from ltxgen.media.picture import picture_facts, read_picture
from ltxgen.media.sound import BadMedia
from ltxgen.models.text_encoder.layout import DEFAULT_SIZES, text_section
from ltxgen.registry import register
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Stage

# Of the instructions, a prompt and a picture: what room for is planned. More is no error, it only takes more memory.
QUESTION_TOKENS = 2048
MAX_INSTRUCTIONS = 32_768  # characters

# What a prompt is typed with, in place of what a typesetter would take.
_TYPED = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
        **dict.fromkeys("\u2014\u2015", "-"),
        **dict.fromkeys("\u00a0\u2007\u202f", " "),
        "\u2026": "...",
        "\ufffd": "",  # what was no character
    }
)

Probability = Annotated[float, Check("must be greater than 0, and at most 1", lambda value: 0 < value <= 1)]


@register("stage", "enhance_prompt")
@dataclass(frozen=True)
class EnhancePromptConfig:
    """Gemma answers `text_to_video`, or where `image` shows it the request's first picture `image_to_video`, each
    followed by the prompt; `request.instructions` stand in the place of both.

    The next token is drawn at `temperature` (0: always the likeliest) among the `top_k` likeliest (0: all), as many of
    them as together have the probability `top_p`. The `seed` is its own: one prompt has one text for all seeds of a
    sweep.
    """

    text_to_video: str
    image_to_video: str
    image: bool = True
    temperature: NonNegativeFloat = 0.7
    top_k: NonNegativeInt = 64
    top_p: Probability = 0.95
    max_new_tokens: PositiveInt = 512
    seed: NonNegativeInt = 42

    @property
    def request_fields(self) -> tuple[str, ...]:
        return ("prompt", "instructions", "images") if self.image else ("prompt", "instructions")

    def build(self, name: str, setting: Setting) -> EnhancePrompt:
        return EnhancePrompt(self, name, setting)


class EnhancePrompt(Stage):
    """Writes `<name>.prompt`, which stands for the request's, and `<name>.request`: its fields as they are from then
    on, with which a run does without this stage."""

    reads = ()

    def __init__(self, config: EnhancePromptConfig, name: str, setting: Setting) -> None:
        self.config = config
        self.name = name
        self.setting = setting
        self.picture = setting.request.images[0].path if config.image and setting.request.images else None
        self.writes = (f"{name}.prompt", f"{name}.request")
        names = ("chat", "text_encoder", *(("vision_tower",) if self.picture else ()))
        self.parts = tuple(PartRequest(part, setting.dtype) for part in names)

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        problems: list[Problem] = []
        try:
            self._instructions()
        except Refusal as refusal:
            problems += refusal.problems
        if self.picture:
            try:
                picture_facts(Path(self.picture).expanduser())
            except BadMedia as error:
                problems.append(Problem("request.images[0].path", self.picture, str(error)))
        return problems

    def activation_bytes(self, free_bytes: int) -> int:
        """Keys and values of all tokens, and the scores of one as they are sorted and drawn from."""
        config = self.setting.artifacts["text_encoder"].config
        text = DEFAULT_SIZES | text_section(config)
        values = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"]
        cached = (QUESTION_TOKENS + self.config.max_new_tokens) * values * self.setting.dtype.itemsize
        widest = QUESTION_TOKENS * text["intermediate_size"] * 3 * self.setting.dtype.itemsize
        return cached + widest + 6 * text["vocab_size"] * 4

    def describe(self) -> dict[str, Any]:
        config = self.config
        drawn = f"temperature {config.temperature:g}, seed {config.seed}" if config.temperature else "likeliest words"
        return {
            "prompt": f"from Gemma: {drawn}, at most {config.max_new_tokens} tokens",
            "instructions": self.setting.request.instructions.path or "the stage's own",
            "picture": self.picture or "none",
        }

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        from ltxgen.models.text_encoder.answer import Sampling, answer  # transformers takes seconds to import

        config, chat, prompt = self.config, parts["chat"], self.setting.request.prompt
        picture = read_picture(Path(self.picture).expanduser()).pixels if self.picture else None
        sampling = Sampling(config.temperature, config.top_k, config.top_p, config.seed, config.max_new_tokens)
        context.progress.begin(config.max_new_tokens, unit="token")
        ids = answer(
            parts["text_encoder"],
            parts.get("vision_tower"),
            chat,
            chat.ask(self._instructions(), prompt, picture),
            sampling,
            agree=self._of_first_rank,
            on_token=context.progress.advance,
        )
        text = cleaned(chat.text(ids))
        if not text:
            message = "Gemma wrote no word; try another seed (stages.{0}.seed=1), or leave it out with stages.{0}=null"
            raise Refusal([Problem(f"stages.{self.name}", MISSING, message.format(self.name))])
        context.report("tokens", len(ids))
        context.report("cut off", ids[-1].item() not in chat.end_ids)
        settled = {"prompt": text, "original_prompt": prompt, "instructions": {"path": None}}
        return {f"{self.name}.prompt": text, f"{self.name}.request": settled}

    def _instructions(self) -> str:
        path = self.setting.request.instructions.path
        if path is not None:
            return read_instructions(path)
        return self.config.image_to_video if self.picture else self.config.text_to_video

    def _of_first_rank(self, scores: Tensor) -> None:
        """All ranks draw from the same scores: they write one text, in as many steps."""
        assert self.setting.parallel is not None
        ranks = self.setting.parallel.all_ranks(self.setting.device.type)
        if ranks.size > 1:
            ranks.broadcast(scores, owner=0)


def read_instructions(path: str) -> str:
    """The text of a file. Raises Refusal for one that can't be read as text, or is empty or endless."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8").strip()
        if 0 < len(text) <= MAX_INSTRUCTIONS:
            return text
        fault = f"holds {len(text)} characters"
    except OSError as error:
        fault = f"can't be read ({error.strerror or error})"
    except ValueError:
        fault = "is no text in UTF-8"
    message = f"{fault}; give a text of 1 to {MAX_INSTRUCTIONS} characters that tells Gemma how to write prompts"
    raise Refusal([Problem("request.instructions.path", path, message)])


def cleaned(text: str) -> str:
    """A prompt of what Gemma said: plain quotes, dashes and spaces, from the first letter on, nothing unprintable."""
    text = re.sub(r"[^\S\n]", " ", text.translate(_TYPED))
    text = "".join(each for each in text if each.isprintable() or each == "\n")
    start = next((position for position, each in enumerate(text) if each.isalpha()), len(text))
    return text[start:].strip()

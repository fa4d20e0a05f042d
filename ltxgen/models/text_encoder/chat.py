"""A question to Gemma as its model takes it, and its answer as text."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import transformers
from torch import Tensor
from transformers import Gemma3Processor, PreTrainedTokenizerFast

# From transformers 5 on, the one of this name needs torchvision.
_ImageProcessor = getattr(transformers, "Gemma3ImageProcessorPil", None) or transformers.Gemma3ImageProcessor


class Chat:
    """The tokenizer with the chat template of a Gemma folder, and the processor of pictures for one that sees them.

    `end_ids` are the tokens that end an answer, `image_id` is that of a piece of a picture.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, end_ids: Sequence[int], processor: Gemma3Processor | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.end_ids = list(end_ids)
        self.processor = processor
        self.image_id: int | None = tokenizer.image_token_id if processor else None
        # What the tokenizer reads as one of its own signs (a turn's end, a picture) when it stands in a text.
        added = tokenizer.added_tokens_decoder.values()
        signs = {token.content for token in added if token.special and len(token.content) > 1}
        self._signs = re.compile("|".join(map(re.escape, sorted(signs, key=len, reverse=True))))

    @classmethod
    def build(
        cls,
        tokenizer_file: str,
        template: str,
        special_tokens: Mapping[str, str],
        end_ids: Sequence[int],
        picture_ids: Mapping[str, int],
        config: Mapping[str, Any],
    ) -> Self:
        """From a tokenizer.json, a chat template in Jinja and the names of special tokens by role (`bos_token`, ...).

        `picture_ids` are those of `boi`, `image` and `eoi`, where a picture begins, a piece of it and where it ends;
        `config` is the config.json of the Gemma that will answer.
        """
        backend = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file).backend_tokenizer
        pictures = {f"{name}_token": backend.id_to_token(id_) for name, id_ in picture_ids.items()}
        sees = bool(config.get("vision_config")) and None not in pictures.values()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            chat_template=template,
            extra_special_tokens=pictures if sees else {},
            **special_tokens,
        )
        if not sees:
            return cls(tokenizer, end_ids)
        side = config["vision_config"]["image_size"]
        shrink = _ImageProcessor(size={"height": side, "width": side})
        num_pieces = config.get("mm_tokens_per_image", 256)
        return cls(tokenizer, end_ids, Gemma3Processor(shrink, tokenizer, image_seq_length=num_pieces))

    def ask(self, instructions: str, message: str, picture: Tensor | None = None) -> dict[str, Tensor]:
        """The model's inputs, a batch of one, up to where the answer begins.

        `instructions` come first, then the user's turn: `picture`, (H,W,3) uint8, and `message`. Whatever stands in
        either text is text, also where it looks like the end of a turn.
        """
        shown = [] if picture is None else [{"type": "image"}]
        turns: list[Any] = [
            {"role": "system", "content": [self._words(instructions)]},
            {"role": "user", "content": [*shown, self._words(message)]},
        ]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        options = {"add_special_tokens": False, "return_tensors": "pt"}  # the template has written them all
        if picture is None:
            return dict(self.tokenizer(text, return_token_type_ids=False, **options))
        assert self.processor is not None, "a picture for a Gemma that sees none"
        return dict(self.processor(text=text, images=[picture.numpy()], **options))

    def text(self, ids: Tensor) -> str:
        """The tokens (S,) of an answer as text."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _words(self, text: str) -> dict[str, str]:
        return {"type": "text", "text": self.as_text(text)}

    def as_text(self, text: str) -> str:
        """`text` with a space in each of the tokenizer's own signs, which makes it words."""
        while (apart := self._signs.sub(lambda sign: f"{sign[0][0]} {sign[0][1:]}", text)) != text:
            text = apart
        return text

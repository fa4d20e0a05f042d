"""A question to Gemma as its model takes it, and its answer as text."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import transformers
from torch import Tensor
from transformers import Gemma3Processor, PreTrainedTokenizerFast

from ltxgen.models.text_encoder.chat_files import chat_template, end_ids, picture_ids, read_json
from ltxgen.models.text_encoder.tokenizer import special_token

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
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> Self:
        """Read tokenizer.json and the chat template; `config` is the config.json of the Gemma that will answer.

        Raises ValueError when the folder has no template, or names no token that ends an answer.
        """
        template, ends, pictures = chat_template(folder), end_ids(folder), picture_ids(folder)
        if template is None or not ends:
            raise ValueError("has no chat template" if template is None else "names no eos_token_id")
        backend = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")).backend_tokenizer
        names = read_json(folder / "tokenizer_config.json")
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            chat_template=template,
            extra_special_tokens={f"{name}_token": backend.id_to_token(id_) for name, id_ in (pictures or {}).items()},
            **{f"{role}_token": special_token(names, f"{role}_token", f"<{role}>") for role in ("bos", "eos", "pad")},
        )
        side = config.get("vision_config", {}).get("image_size")
        if pictures is None or side is None:
            return cls(tokenizer, ends)
        shrink = _ImageProcessor(size={"height": side, "width": side})
        return cls(tokenizer, ends, Gemma3Processor(shrink, tokenizer, image_seq_length=config["mm_tokens_per_image"]))

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

"""The Gemma 3 tokenizer as the LTX text encoder uses it: no chat template, BOS in front, padded on the left."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast


class GemmaTokenizer:
    """Turns a prompt into exactly `max_length` token ids.

    `encode` maps a text to its ids without special tokens; BOS is put in front here, and no EOS is added.
    """

    def __init__(self, encode: Callable[[str], list[int]], *, bos_id: int, pad_id: int, max_length: int = 1024) -> None:
        self.encode = encode
        self.bos_id = bos_id
        self.pad_id = pad_id
        self.max_length = max_length

    @classmethod
    def from_folder(cls, folder: str | Path, max_length: int = 1024) -> Self:
        """Load tokenizer.json (tokenizer_config.json beside it may name the special tokens) or else tokenizer.model.

        The latter needs the sentencepiece package. Raises ValueError when the folder holds neither, that package is
        missing, or the vocabulary lacks BOS or a pad token.
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            encode, bos_id, pad_id = _load_json(folder)
        elif (folder / "tokenizer.model").is_file():
            encode, bos_id, pad_id = _load_sentencepiece(folder)
        else:
            raise ValueError(f"tokenizer folder {folder}: must hold tokenizer.json or tokenizer.model")
        return cls(encode, bos_id=bos_id, pad_id=pad_id, max_length=max_length)

    def __call__(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Token ids (1, max_length) int64 and a mask (1, max_length) bool, true on real tokens, which stand at the end.

        A prompt of more than `max_length` tokens loses its end; `count` tells beforehand.
        """
        ids = self._ids(prompt)[: self.max_length]
        num_pads = self.max_length - len(ids)
        padded = torch.tensor([[self.pad_id] * num_pads + ids], dtype=torch.int64)
        mask = torch.arange(self.max_length)[None] >= num_pads
        return padded, mask

    def count(self, prompt: str) -> int:
        """Number of tokens of the whole prompt, BOS included."""
        return len(self._ids(prompt))

    def _ids(self, prompt: str) -> list[int]:
        ids = self.encode(prompt.strip())
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]


def _load_json(folder: Path) -> tuple[Callable[[str], list[int]], int, int]:
    # Straight from tokenizer.json: it is complete, and no model-specific class of transformers rebuilds parts of it.
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    vocabulary = tokenizer.get_vocab()

    bos = special_token(config, "bos_token", "<bos>")
    if bos not in vocabulary:
        raise ValueError(f"tokenizer in {folder}: its vocabulary lacks the BOS token {bos!r}; Gemma 3 has one")
    # A tokenizer without a pad token pads with EOS.
    candidates = [special_token(config, "pad_token", "<pad>"), special_token(config, "eos_token", "<eos>")]
    pad = next((token for token in candidates if token in vocabulary), None)
    if pad is None:
        raise ValueError(f"tokenizer in {folder}: its vocabulary lacks a pad token; none of {candidates} is in it")

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    return encode, vocabulary[bos], vocabulary[pad]


def special_token(config: Mapping[str, Any], role: str, default: str) -> str:
    """A token's string out of tokenizer_config.json, which spells it as that or as an object with `content`."""
    token = config.get(role) or default
    return token["content"] if isinstance(token, Mapping) else token


def _load_sentencepiece(folder: Path) -> tuple[Callable[[str], list[int]], int, int]:
    try:
        # Only this format needs it, and transformers would need protobuf besides to convert the file.
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise ValueError(
            f"tokenizer in {folder}: reading tokenizer.model needs `pip install sentencepiece`; "
            "a folder with tokenizer.json doesn't"
        ) from error
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    bos_id, pad_id = processor.bos_id(), processor.pad_id()  # -1 where the model has none
    if bos_id < 0:
        raise ValueError(f"tokenizer in {folder}: its vocabulary lacks a BOS token; Gemma 3 has one")
    if pad_id < 0:
        pad_id = processor.eos_id()
    if pad_id < 0:
        raise ValueError(f"tokenizer in {folder}: its vocabulary lacks a pad token and an EOS token to pad with")
    return processor.encode, bos_id, pad_id

"""The tokenizer of the embedded model: byte-level BPE trained on the text below, with Gemma's special ids."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCABULARY_SIZE = 512
# Gemma's first ids: pad 0, eos 1, bos 2, unk 3.
SPECIAL_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")

TRAINING_TEXT = """
A wide shot of a harbour at first light, the camera gliding low over still water while gulls call in the distance.
Close on the hands of a potter shaping wet clay on a spinning wheel; the wheel hums and water drips into a bowl.
A train crosses a stone bridge in the mountains, slow and steady, snow falling, the sound of the engine growing louder.
The camera follows a red kite over a green field. Wind moves through the grass, and two children laugh and run.
Rain on a window at night, city lights blurred behind it, soft piano music from the room next door.
An old clock maker looks up from the table and says quietly, "It has been running since before you were born."
Slow motion: a cup of coffee falls from the table, the coffee spreads through the air, warm light from the left.
A drone rises above a forest in autumn colours, orange and gold, with a river running through the middle of it.
The scene is bright and natural, with deep shadows, fine detail, shallow depth of field and a steady camera.
blurry, low quality, still frame, distorted, watermark, noise, shaking camera, muffled sound, out of sync speech
"""


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json. Training on the same text gives the same bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT.strip().splitlines(), trainer)
    # As Gemma's: BOS in front, no EOS.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", SPECIAL_TOKENS.index("<bos>"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": 1024,
        "padding_side": "left",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

"""The tiny random checkpoint set of official.py, in the official on-disk format.

The official classes are built from official_config.json, filled with seeded random values and saved under the
official names: checkpoint.safetensors, spatial_upscaler.safetensors, distilled_lora.safetensors and gemma/.
"""

import argparse
import copy
import json
import math
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = json.loads(Path(__file__).with_name("official_config.json").read_text())  # the tiny architecture
LORA_RANK = 4
IMAGE_TOKENS = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *IMAGE_TOKENS]
CORPUS = [
    "A lighthouse keeper climbs the wet stairs while waves strike the rock below.",
    "Two children run through a field of tall grass, laughing, and a dog barks behind them.",
    "Close view of a watchmaker's hands; a clock ticks and rain falls on the window.",
    "The camera moves slowly across a kitchen table with bread, fruit and a steaming cup.",
    "blurry, noisy, low quality, distorted sound, flickering, wrong hands",
]


def import_official() -> None:
    """Import the official packages, standing in for the libraries that a text-to-video run never calls."""
    import transformers  # noqa: F401 - must see that the stand-ins are not installed

    absent = {name: types.ModuleType(name) for name in ("torchaudio", "scipy") if name not in sys.modules}
    sys.modules.update(absent)
    import ltx_pipelines.ti2vid_two_stages  # noqa: F401

    for name in absent:
        del sys.modules[name]
    from ltx_core.text_encoders.gemma.config import GEMMA3_CONFIG_FOR_LTX

    # The official reader takes the size of the text projection from this constant, not from the Gemma folder.
    for name in ("hidden_size", "num_hidden_layers"):
        setattr(GEMMA3_CONFIG_FOR_LTX.text_config, name, CONFIG["gemma"]["text_config"][name])


def randomize(module: torch.nn.Module, seed: int, gain: float = 1.0) -> torch.nn.Module:
    """Fill every parameter and the latent statistics with seeded values that keep activations of order one."""
    generator = torch.Generator().manual_seed(seed)
    buffers = {id(b) for b in module.buffers()}
    for name, tensor in module.state_dict(keep_vars=True).items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("std-of-means"):
            value = 1 + 0.4 * noise.tanh()
        elif name.endswith("mean-of-means"):
            value = 0.2 * noise
        elif id(tensor) in buffers:
            continue  # filters, which their modules compute
        elif "scale_shift_table" in name:
            value = 0.3 * noise
        elif name.endswith(("act.alpha", "act.beta")):
            value = 0.2 * noise
        elif name.endswith("learnable_registers"):
            value = noise
        elif name.endswith("q_norm.weight") and "language_model" not in name:
            value = 2 + 0.1 * noise  # attention sharp enough for a prompt to matter among 1024 positions
        elif "norm" in name and name.endswith("weight"):
            value = (0.0 if "layernorm" in name or "language_model" in name else 1.0) + 0.1 * noise
        elif tensor.ndim < 2:
            value = 0.1 * noise
        elif "embed_tokens" in name:
            value = noise / math.sqrt(tensor.shape[1])
        else:
            fan_in = tensor[:, 0].numel() / 2 if ".ups." in f".{name}" else tensor[0].numel()
            value = gain * noise / math.sqrt(fan_in)
        tensor.data = value.to(torch.float32)
    return module.eval()


def stft_bases(n_fft: int, n_mels: int) -> dict[str, torch.Tensor]:
    """Fourier bases under a Hann window, and triangular mel bands that overlap."""
    bins = n_fft // 2 + 1
    angle = 2 * math.pi * torch.outer(torch.arange(bins), torch.arange(n_fft)).double() / n_fft
    window = torch.hann_window(n_fft, dtype=torch.float64)
    forward = (torch.cat([angle.cos(), -angle.sin()]) * window).unsqueeze(1)
    edges = 700 * (torch.logspace(0, math.log10(1 + 8000 / 700), n_mels + 2, dtype=torch.float64) - 1)
    hertz = torch.linspace(0, 8000, bins, dtype=torch.float64)
    rise = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    bands = torch.minimum(rise, fall).clamp(min=0) + 0.01
    return {
        "mel_basis": (bands / bands.sum(1, keepdim=True)).float(),
        "stft_fn.forward_basis": forward.float(),
        "stft_fn.inverse_basis": (forward / n_fft).float(),
    }


def prefixed(module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value.detach().float().contiguous() for name, value in module.state_dict().items()}


def make_checkpoint(folder: Path, seed: int) -> torch.nn.Module:
    from ltx_core.model.audio_vae import AudioDecoderConfigurator, AudioEncoderConfigurator, VocoderConfigurator
    from ltx_core.model.transformer import LTXModelConfigurator
    from ltx_core.model.video_vae import VideoDecoderConfigurator, VideoEncoderConfigurator
    from ltx_core.text_encoders.gemma import EmbeddingsProcessorConfigurator

    config = CONFIG["checkpoint"]
    transformer = randomize(LTXModelConfigurator.from_config(config), seed + 1)
    text = randomize(EmbeddingsProcessorConfigurator.from_config(config), seed + 2)
    decoder = randomize(VideoDecoderConfigurator.from_config(config), seed + 3)
    encoder = randomize(VideoEncoderConfigurator.from_config(config), seed + 4)
    audio_decoder = randomize(AudioDecoderConfigurator.from_config(config), seed + 5)
    audio_encoder = randomize(AudioEncoderConfigurator.from_config(config), seed + 6)
    vocoder = randomize(VocoderConfigurator.from_config(config), seed + 7, gain=0.8)
    decoder.conv_out.conv.weight.data *= 0.4  # most pixels inside [-1, 1]
    vocoder.vocoder.conv_post.weight.data *= 0.6  # some samples beyond [-1, 1], which are clamped
    vocoder.bwe_generator.conv_post.weight.data *= 0.6
    bwe = config["vocoder"]["bwe"]
    vocoder.mel_stft.load_state_dict(stft_bases(bwe["n_fft"], bwe["num_mels"]))

    tensors = prefixed(transformer, "model.diffusion_model.")
    tensors |= prefixed(text.video_connector, "model.diffusion_model.video_embeddings_connector.")
    tensors |= prefixed(text.audio_connector, "model.diffusion_model.audio_embeddings_connector.")
    tensors |= prefixed(text.feature_extractor, "text_embedding_projection.")
    tensors |= prefixed(vocoder, "vocoder.")
    for prefix, halves in (("vae.", (encoder, decoder)), ("audio_vae.", (audio_encoder, audio_decoder))):
        for name, half in zip(("encoder.", "decoder."), halves, strict=True):
            tensors |= {k: v for k, v in prefixed(half, prefix + name).items() if "per_channel_statistics" not in k}
        tensors |= prefixed(halves[1].per_channel_statistics, prefix + "per_channel_statistics.")
    metadata = {"config": json.dumps(config), "model_version": "2.3.0"}
    save_file(tensors, folder / "checkpoint.safetensors", metadata)
    return transformer


def make_upscaler(folder: Path, seed: int) -> None:
    from ltx_core.model.upsampler import LatentUpsamplerConfigurator

    config = CONFIG["spatial_upscaler"]
    upscaler = randomize(LatentUpsamplerConfigurator.from_config(config), seed + 8)
    metadata = {"config": json.dumps(config)}
    save_file(prefixed(upscaler, ""), folder / "spatial_upscaler.safetensors", metadata)


def make_lora(folder: Path, transformer: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed + 9)
    tensors = {}
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            outer, inner = module.weight.shape
            rank = min(LORA_RANK, outer, inner)
            down, up = (torch.randn(shape, generator=generator) for shape in ((rank, inner), (outer, rank)))
            tensors[f"diffusion_model.{name}.lora_A.weight"] = down / math.sqrt(inner)
            tensors[f"diffusion_model.{name}.lora_B.weight"] = 0.3 * up / math.sqrt(rank)
    save_file(tensors, folder / "distilled_lora.safetensors", {"model_version": "2.3.0"})


def make_tokenizer(folder: Path) -> int:
    """A byte-pair tokenizer built as Gemma's is: spaces as a visible mark, bytes for the unknown, BOS in front."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    order = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    order += [token for token, _ in sorted(learned["vocab"].items(), key=lambda item: item[1])]
    vocab = {token: index for index, token in enumerate(order)}
    merges = [tuple(pair) for pair in learned["merges"]]

    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocab["<bos>"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")}
    settings |= {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    return len(vocab)


def make_gemma(folder: Path, seed: int) -> None:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(CONFIG["gemma"])
    config["text_config"]["vocab_size"] = -(-make_tokenizer(folder) // 64) * 64
    model = randomize(Gemma3ForConditionalGeneration(Gemma3Config.from_dict(copy.deepcopy(config))), seed + 10)
    model.tie_weights()
    release = {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower.vision_model.",
               "model.multi_modal_projector.": "multi_modal_projector."}  # fmt: skip
    tensors = {}
    for name, value in prefixed(model, "").items():
        for ours, theirs in release.items():
            if name.startswith(ours):
                tensors[theirs + name.removeprefix(ours).removeprefix("vision_model.")] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    preprocessor = {
        "image_processor_type": "Gemma3ImageProcessor", "processor_class": "Gemma3Processor", "do_resize": True,
        "do_rescale": True, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        "image_seq_length": 4, "resample": 2, "rescale_factor": 1 / 255, "size": {"height": 28, "width": 28},
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2))


def make(args: argparse.Namespace) -> None:
    args.set.mkdir(parents=True, exist_ok=True)
    transformer = make_checkpoint(args.set, args.seed)
    make_upscaler(args.set, args.seed)
    make_lora(args.set, transformer, args.seed)
    make_gemma(args.set / "gemma", args.seed)

"""Seeded random tensors that keep a model's activations finite: for the synthetic source and the embedded model.

Every tensor has a generator of its own, seeded from (seed, key), so neither order nor choice of the others matters.
What a file of a trained model holds as fixed tables (filters, spectrogram bases, blur) gets its real values.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch

Fill = Callable[[torch.Size, torch.Generator, torch.device], torch.Tensor]


def seeded_tensor(
    seed: int,
    key: str,
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    component: str = "",
) -> torch.Tensor:
    """The tensor `key` of a model with this seed, made on `device` (streams of devices differ).

    `component` tells apart what keys alone don't: Gemma's norms multiply by 1 + weight.
    """
    device = torch.device(device)
    fixed = _fixed_table(key, shape)
    if fixed is not None:
        return fixed.to(device=device, dtype=dtype)
    generator = torch.Generator(device=device)
    generator.manual_seed(_tensor_seed(seed, key))
    mean, std = _distribution(key, shape, component)
    # Drawn in the target dtype: a 22B model in fp32 first would need twice its memory for each large tensor.
    drawn = torch.empty(shape, device=device, dtype=dtype).normal_(0.0, 1.0, generator=generator)
    return drawn.mul_(std).add_(mean)


def _tensor_seed(seed: int, key: str) -> int:
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _distribution(key: str, shape: tuple[int, ...], component: str) -> tuple[float, float]:
    """Mean and standard deviation by role."""
    name = key.rpartition(".")[2]
    if name == "std-of-means":
        return 1.0, 0.02
    if name == "mean-of-means":
        return 0.0, 0.02
    if name in ("alpha", "beta"):  # SnakeBeta, stored as logs
        return 0.0, 0.05
    if "scale_shift_table" in name:
        return 0.0, 0.1
    if name == "learnable_registers":
        return 0.0, 1.0
    if name == "bias":
        return 0.0, 0.01
    if len(shape) == 1:  # norms
        return (0.0, 0.02) if component == "text_encoder" else (1.0, 0.02)
    if key.endswith("embed_tokens.weight"):
        return 0.0, 1 / math.sqrt(shape[1])
    if key.endswith(".lora_B.weight"):  # a tenth of the weights it is added to
        return 0.0, 0.1 / math.sqrt(shape[1])
    if ".ups." in key:  # transposed convolution: (in, out, kernel), about half of the kernel reaches each output
        return 0.0, 1 / math.sqrt(shape[0] * max(1, shape[2] // 2))
    # The vocoder has no norms: its residual branches must add little, or its output is all clipped.
    gain = 0.2 if ".convs2." in key else 0.1 if "conv_post." in key else 1.0
    return 0.0, gain / math.sqrt(math.prod(shape[1:]))


def _fixed_table(key: str, shape: tuple[int, ...]) -> torch.Tensor | None:
    if key.endswith(("upsample.filter", "downsample.lowpass.filter")):
        return kaiser_filter(shape[-1])
    if key.endswith("blur_down.kernel"):
        row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0])
        return (row[:, None] * row / 256).reshape(shape)
    if key.endswith("forward_basis"):
        return stft_basis(shape[-1])
    if key.endswith("inverse_basis"):
        return torch.zeros(shape)  # never read
    if key.endswith("mel_basis"):
        return mel_basis(num_mels=shape[0], num_bins=shape[1])
    return None


def kaiser_filter(taps: int) -> torch.Tensor:
    """The vocoder's low-pass (1, 1, taps): cutoff 0.25, half width 0.3, Kaiser window, normalised to sum 1."""
    cutoff, half_width = 0.25, 0.3
    attenuation = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95
    beta = 0.1102 * (attenuation - 8.7)
    window = torch.kaiser_window(taps, periodic=False, beta=beta, dtype=torch.float64)
    time = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    filtered = 2 * cutoff * window * torch.sinc(2 * cutoff * time)
    return (filtered / filtered.sum()).float().view(1, 1, taps)


def stft_basis(window_length: int) -> torch.Tensor:
    """Hann-windowed DFT rows (n + 2, 1, n): real parts of bins 0..n/2, then imaginary parts."""
    time = torch.arange(window_length, dtype=torch.float64)
    bins = torch.arange(window_length // 2 + 1, dtype=torch.float64)
    angle = 2 * math.pi * bins[:, None] * time / window_length
    window = torch.hann_window(window_length, periodic=True, dtype=torch.float64)
    return (torch.cat([angle.cos(), -angle.sin()]) * window).float()[:, None]


def mel_basis(num_mels: int, num_bins: int, sampling_rate: int = 16000) -> torch.Tensor:
    """Slaney mel filters with Slaney norm (num_mels, num_bins), 0 Hz to half the sampling rate."""
    low = torch.linspace(0, _hz_to_mel(sampling_rate / 2), num_mels + 2, dtype=torch.float64)
    edges = torch.tensor([_mel_to_hz(float(mel)) for mel in low], dtype=torch.float64)
    frequencies = torch.linspace(0, sampling_rate / 2, num_bins, dtype=torch.float64)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).float()


# Slaney's mel scale: linear below 1 kHz (15 mel), logarithmic above.
_LOG_STEP = math.log(6.4) / 27


def _hz_to_mel(hertz: float) -> float:
    return hertz * 3 / 200 if hertz < 1000 else 15 + math.log(hertz / 1000) / _LOG_STEP


def _mel_to_hz(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * _LOG_STEP)

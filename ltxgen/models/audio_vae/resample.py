"""Sample rate conversion by a windowed sinc, as Julius O. Smith's "Digital Audio Resampling" describes it.

Shapes: B and other leading axes, S samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# The defaults of torchaudio.functional.resample, which the official code calls.
ZERO_CROSSINGS = 6
ROLLOFF = 0.99


def resample(waveform: Tensor, source_rate: int, target_rate: int, *, padding: str = "constant") -> Tensor:
    """(..., S) at `source_rate` -> (..., ceil(S · target_rate / source_rate)) at `target_rate`.

    Equals `torchaudio.functional.resample` with its defaults where `padding` is "constant" (silence beyond both
    ends); "replicate" repeats the outer samples instead. Runs in the dtype of `waveform`, which must be floating.
    """
    if source_rate == target_rate:
        return waveform
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    kernels, reach = _sinc_kernels(source, target)

    samples = waveform.shape[-1]
    padded = F.pad(waveform.reshape(-1, 1, samples), (reach, reach + source), mode=padding)
    # One output channel per phase; interleaving them gives the output in order. The level is restored afterwards, as a
    # filter over zero-stuffed samples does it: in bf16 another order rounds differently from the official skip path.
    phases = target * F.conv1d(padded, kernels.to(waveform)[:, None], stride=source)
    resampled = phases.transpose(1, 2).flatten(1)[:, : math.ceil(samples * target / source)]
    return resampled.reshape(*waveform.shape[:-1], -1)


def _sinc_kernels(source: int, target: int) -> tuple[Tensor, int]:
    """One Hann-windowed sinc per output phase, (target, 2·reach + source) fp64, and its reach in input samples.

    All phases together sum to one.
    """
    bandwidth = ROLLOFF * min(source, target) / source
    reach = math.ceil(ZERO_CROSSINGS / bandwidth)
    offsets = torch.arange(-reach, reach + source, dtype=torch.float64)
    phases = torch.arange(target, dtype=torch.float64) * source / target
    t = ((offsets - phases[:, None]) * bandwidth).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = torch.cos(t * (math.pi / (2 * ZERO_CROSSINGS))).square()
    return bandwidth / target * torch.sinc(t) * window, reach

"""What the `vocoder` part of a checkpoint's metadata says about the vocoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of one generator; `sampling_rate` is that of the sound it makes, in Hz."""

    sampling_rate: int = 24000
    mel_bins: int = 64
    initial_channels: int = 1024
    upsample_rates: tuple[int, ...] = (6, 5, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (16, 15, 8, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    activation: Literal["leaky_relu", "snakebeta"] = "leaky_relu"
    final_activation: Literal["tanh", "clamp", "none"] = "tanh"
    final_bias: bool = True

    @property
    def samples_per_frame(self) -> int:
        """Samples made of one mel frame."""
        return math.prod(self.upsample_rates)

    def widest_values(self, seconds: float) -> float:
        """Values of its largest activation for so much sound: each upsampling halves the channels."""
        length = seconds * self.sampling_rate / self.samples_per_frame
        channels, widest = float(self.initial_channels), 0.0
        for rate in self.upsample_rates:
            length, channels = length * rate, channels / 2
            widest = max(widest, length * channels)
        return widest


@dataclass(frozen=True)
class ExtensionConfig:
    """Bandwidth extension: spectrogram of the first sound (lengths in its samples) and the generator for the rest."""

    generator: GeneratorConfig
    hop_length: int
    n_fft: int


@dataclass(frozen=True)
class VocoderConfig:
    """The generator, and what raises its sound to a higher sampling rate where the model has it."""

    generator: GeneratorConfig
    extension: ExtensionConfig | None = None

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> Self:
        """Read `config["vocoder"]` of a checkpoint, of LTX-2.3 (`vocoder` and `bwe` inside) or LTX-2 (flat).

        Absent keys take the defaults of the official reader. Raises ValueError naming each key that is missing or whose
        value is not supported.
        """
        problems: list[str] = []
        if "bwe" not in config:
            generator = _generator(config, "vocoder", "1", problems)
            extension = None
        else:
            generator = _generator(config.get("vocoder", {}), "vocoder.vocoder", "AMP1", problems)
            generator = replace(generator, sampling_rate=config["bwe"].get("input_sampling_rate", 0))
            extension = _extension(config["bwe"], problems)
        if problems:
            raise ValueError("\n".join(problems))
        return cls(generator, extension)

    def widest_values(self, seconds: float) -> float:
        """Values of the largest activation for so much sound."""
        generators = [self.generator, *([self.extension.generator] if self.extension else [])]
        return max(generator.widest_values(seconds) for generator in generators)

    @property
    def sampling_rate(self) -> int:
        """Of the sound that comes out, in Hz."""
        return (self.extension or self).generator.sampling_rate


def _extension(config: Mapping[str, Any], problems: list[str]) -> ExtensionConfig | None:
    """None where anything is wrong."""
    generator = _generator(config, "vocoder.bwe", "AMP1", problems)
    needed = ("input_sampling_rate", "output_sampling_rate", "hop_length", "n_fft", "num_mels")
    missing = [key for key in needed if key not in config]
    problems.extend(f"vocoder.bwe.{key}: must be given; it is absent" for key in missing)
    if missing:
        return None

    source, target, hop_length, n_fft = (config[key] for key in needed[:4])
    if target % source:
        problems.append(f"vocoder.bwe.output_sampling_rate = {target!r}: must be a multiple of {source}")
    elif generator.samples_per_frame != hop_length * target // source:
        problems.append(
            f"vocoder.bwe.upsample_rates = {list(generator.upsample_rates)!r}: must multiply to "
            f"{hop_length * target // source} (hop_length · output_sampling_rate / input_sampling_rate)"
        )
    if config.get("win_size", n_fft) != n_fft:
        problems.append(f"vocoder.bwe.win_size = {config['win_size']!r}: must equal n_fft ({n_fft})")
    if config.get("apply_final_activation", False):
        problems.append("vocoder.bwe.apply_final_activation = True: must be False")
    generator = replace(generator, sampling_rate=target, mel_bins=config["num_mels"], final_activation="none")
    return ExtensionConfig(generator, hop_length, n_fft)


def _generator(config: Mapping[str, Any], where: str, resblock: str, problems: list[str]) -> GeneratorConfig:
    required: dict[str, Any] = {"resblock": resblock, "stereo": True}
    if resblock == "AMP1":
        required["activation"] = "snakebeta"
    for key, allowed in required.items():
        if config.get(key) != allowed:
            problems.append(f"{where}.{key} = {config.get(key)!r}: must be {allowed!r}")

    default = GeneratorConfig()
    generator = GeneratorConfig(
        sampling_rate=config.get("output_sampling_rate", default.sampling_rate),
        initial_channels=config.get("upsample_initial_channel", default.initial_channels),
        upsample_rates=tuple(config.get("upsample_rates", default.upsample_rates)),
        upsample_kernel_sizes=tuple(config.get("upsample_kernel_sizes", default.upsample_kernel_sizes)),
        resblock_kernel_sizes=tuple(config.get("resblock_kernel_sizes", default.resblock_kernel_sizes)),
        resblock_dilations=tuple(map(tuple, config.get("resblock_dilation_sizes", default.resblock_dilations))),
        activation="snakebeta" if resblock == "AMP1" else "leaky_relu",
        final_activation="tanh" if config.get("use_tanh_at_final", True) else "clamp",
        final_bias=config.get("use_bias_at_final", True),
    )
    _check_lists(generator, where, problems)
    return generator


def _check_lists(generator: GeneratorConfig, where: str, problems: list[str]) -> None:
    kernels, rates = generator.upsample_kernel_sizes, generator.upsample_rates
    if len(kernels) == len(rates):
        problems += [
            f"{where}.upsample_kernel_sizes has {kernel} for rate {rate}: must be {rate} + 2k"
            for kernel, rate in zip(kernels, rates, strict=True)
            if kernel < rate or (kernel - rate) % 2
        ]
    else:
        problems.append(f"{where}.upsample_kernel_sizes = {list(kernels)!r}: must have {len(rates)} entries")
    sizes, dilations = generator.resblock_kernel_sizes, generator.resblock_dilations
    if len(dilations) != len(sizes):
        problems.append(f"{where}.resblock_dilation_sizes: must have {len(sizes)} entries, one per kernel size")

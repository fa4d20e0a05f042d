"""What the `vae` part of a checkpoint's metadata says about the video VAE."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

Stride = tuple[int, int, int]  # time, height, width
PaddingMode = Literal["zeros", "reflect"]

# Block names of the published configs. Encoder blocks average the input into a skip path, always.
_ENCODER_STRIDES: dict[str, Stride] = {
    "compress_space_res": (1, 2, 2),
    "compress_time_res": (2, 1, 1),
    "compress_all_res": (2, 2, 2),
}
_DECODER_STRIDES: dict[str, Stride] = {
    "compress_space": (1, 2, 2),
    "compress_time": (2, 1, 1),
    "compress_all": (2, 2, 2),
}
# Channels that the encoder writes beside the mean; they are never read.
_LOG_VARIANCE_CHANNELS = {
    "none": lambda latents: 0,
    "uniform": lambda latents: 1,
    "per_channel": lambda latents: latents,
}


@dataclass(frozen=True)
class ResStage:
    """`num_layers` residual blocks of one width."""

    num_layers: int


@dataclass(frozen=True)
class Resample:
    """A down- or upsampling by `stride`; the width grows (encoder) or shrinks (decoder) by `multiplier`."""

    stride: Stride
    multiplier: int
    residual: bool


Block = ResStage | Resample


@dataclass(frozen=True)
class VideoVAEConfig:
    """Sizes of both halves. `decoder_blocks` stand in the order they run, which is the metadata's order reversed."""

    encoder_blocks: tuple[Block, ...]
    decoder_blocks: tuple[Block, ...]
    image_channels: int = 3
    latent_channels: int = 128
    log_variance_channels: int = 1
    patch_size: int = 4
    encoder_base_channels: int = 128
    decoder_base_channels: int = 128
    encoder_padding: PaddingMode = "zeros"
    decoder_padding: PaddingMode = "reflect"
    causal_decoder: bool = False

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> Self:
        """Read `config["vae"]` of a checkpoint; absent keys take the defaults of the official reader.

        Raises ValueError naming each key whose value is not supported.
        """
        problems = _unsupported(config)
        encoder_blocks = _blocks(config, "encoder_blocks", _ENCODER_STRIDES, 2, problems)
        decoder_blocks = _blocks(config, "decoder_blocks", _DECODER_STRIDES, 1, problems)
        if problems:
            raise ValueError("\n".join(problems))
        latent_channels = config.get("latent_channels", 128)
        log_variance = _LOG_VARIANCE_CHANNELS[config.get("latent_log_var", "uniform")]
        if _compression(encoder_blocks) != _compression(decoder_blocks):
            raise ValueError(
                "vae.decoder_blocks: must expand time, height and width as vae.encoder_blocks compress them"
            )
        return cls(
            encoder_blocks=encoder_blocks,
            decoder_blocks=decoder_blocks[::-1],
            image_channels=config.get("in_channels", 3),
            latent_channels=latent_channels,
            log_variance_channels=log_variance(latent_channels),
            patch_size=config.get("patch_size", 4),
            encoder_base_channels=config.get("encoder_base_channels", 128),
            decoder_base_channels=config.get("decoder_base_channels", 128),
            encoder_padding=config.get("spatial_padding_mode", "zeros"),
            decoder_padding=config.get("spatial_padding_mode", "reflect"),
            causal_decoder=config.get("causal_decoder", False),
        )

    @property
    def time_compression(self) -> int:
        """Frames per latent frame, after the first one (8 for the published models)."""
        return _compression(self.encoder_blocks)[0]

    @property
    def space_compression(self) -> int:
        """Pixels per latent along height and along width (32 for the published models)."""
        return self.patch_size * _compression(self.encoder_blocks)[1]

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, height and width of a video.

        Raises ValueError naming each side that doesn't come out even; nothing is ever cut off.
        """
        time, space = self.time_compression, self.space_compression
        problems = []
        if (frames - 1) % time:
            nearest = frames - (frames - 1) % time
            problems.append(f"frames = {frames}: must be {time}k + 1; the nearest are {nearest} and {nearest + time}")
        for name, pixels in (("height", height), ("width", width)):
            if pixels % space:
                problems.append(f"{name} = {pixels}: must be a multiple of {space}")
        if problems:
            raise ValueError("\n".join(problems))
        return (frames - 1) // time + 1, height // space, width // space


def _compression(blocks: Sequence[Block]) -> Stride:
    strides = [block.stride for block in blocks if isinstance(block, Resample)]
    time, height, width = (math.prod(stride[axis] for stride in strides) for axis in range(3))
    return time, height, width


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    """One line per key whose value would need code that no published LTX-2 or LTX-2.3 checkpoint needs."""
    read: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "dims": (3, (3,)),
        "norm_layer": ("pixel_norm", ("pixel_norm",)),
        # Absent means true to the official reader.
        "timestep_conditioning": (True, (False,)),
        "use_quant_conv": (False, (False,)),
        "normalize_latent_channels": (False, (False,)),
        "latent_log_var": ("uniform", tuple(_LOG_VARIANCE_CHANNELS)),
        "spatial_padding_mode": ("zeros", get_args(PaddingMode)),
    }
    problems = []
    for key, (default, allowed) in read.items():
        value = config.get(key, default)
        if value not in allowed:
            absent = "" if key in config else " (the default of an absent key)"
            problems.append(f"vae.{key} = {value!r}{absent}: must be {_one_of(allowed)}")
    image_channels = config.get("in_channels", 3), config.get("out_channels", 3)
    if image_channels[0] != image_channels[1]:
        problems.append(f"vae.out_channels = {image_channels[1]!r}: must equal vae.in_channels ({image_channels[0]!r})")
    return problems


def _blocks(
    config: Mapping[str, Any], key: str, strides: Mapping[str, Stride], default_multiplier: int, problems: list[str]
) -> tuple[Block, ...]:
    entries: Sequence[Any] = config.get(key, ())
    if not entries:
        problems.append(f"vae.{key}: must list the blocks; it is absent or empty")
    blocks: list[Block] = []
    for index, (name, given) in enumerate(entries):
        where = f"vae.{key}[{index}]"
        options = dict(given) if isinstance(given, Mapping) else {"num_layers": given}
        if name == "res_x":
            blocks.append(ResStage(num_layers=options.pop("num_layers", 1)))
        elif name in strides:
            multiplier = options.pop("multiplier", default_multiplier)
            residual = strides is _ENCODER_STRIDES or bool(options.pop("residual", False))
            blocks.append(Resample(stride=strides[name], multiplier=multiplier, residual=residual))
        else:
            problems.append(f"{where} = {name!r}: must be {_one_of(('res_x', *strides))}")
            continue
        # `inject_noise: false` stands in LTX-2's decoder list.
        if options.pop("inject_noise", False):
            problems.append(f"{where}.inject_noise = True: must be False")
        problems.extend(f"{where}.{option} = {value!r}: is not known for {name}" for option, value in options.items())
    return tuple(blocks)


def _one_of(allowed: Sequence[Any]) -> str:
    return " or ".join(repr(value) for value in allowed)

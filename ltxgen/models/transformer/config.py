"""Sizes and switches of the transformer, read from a checkpoint's metadata."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

# What this implementation is: files that say otherwise are refused, files that say nothing are taken to agree.
_FIXED: dict[str, Any] = {
    "_class_name": "AVTransformer3DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_type": "default",
    "av_cross_ada_norm": True,
    "caption_proj_input_norm": False,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "cross_attention_norm": True,
    "double_self_attention": False,
    "dropout": 0.0,
    "norm_elementwise_affine": False,
    "num_embeds_ada_norm": 1000,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "positional_embedding_type": "rope",
    "qk_norm": "rms_norm",
    "share_ff": False,
    "standardization_norm": "rms_norm",
    "upcast_attention": False,
    "use_audio_video_cross_attention": True,
    "use_linear_projection": False,
    "use_middle_indices_grid": True,
}


@dataclass(frozen=True)
class StreamConfig:
    """Sizes of the video or the audio stream. `max_pos` is in seconds, then pixels for video's height and width."""

    in_channels: int
    out_channels: int
    num_heads: int
    head_dim: int
    context_dim: int
    max_pos: tuple[float, ...]
    ff_bias: bool

    @property
    def width(self) -> int:
        return self.num_heads * self.head_dim


@dataclass(frozen=True)
class TransformerConfig:
    """The LTX-2 and LTX-2.3 audio-video transformer.

    `caption_channels` is the width of text contexts that the transformer projects itself (LTX-2), or None where they
    arrive at stream width (LTX-2.3).
    """

    video: StreamConfig
    audio: StreamConfig
    num_layers: int
    norm_eps: float
    gated_attention: bool
    cross_attention_adaln: bool
    prompt_adaln: bool
    caption_channels: int | None
    rope_type: Literal["split", "interleaved"]
    rope_theta: float
    rope_double_precision: bool
    timestep_scale: float
    gate_timestep_scale: float

    @classmethod
    def from_metadata(cls, config: Mapping[str, Any]) -> Self:
        """Read the `transformer` section of a checkpoint's metadata `config`.

        Raises ValueError naming every key whose value is not understood, its value and what is allowed.
        """
        if not isinstance(config.get("transformer"), Mapping):
            raise ValueError(f"config holds no `transformer` section, only: {', '.join(sorted(config)) or 'nothing'}")
        read = _Reader(config["transformer"])
        read.fixed(_FIXED)
        video = StreamConfig(
            in_channels=read.size("in_channels", 128),
            out_channels=read.size("out_channels", 128),
            num_heads=read.size("num_attention_heads", 32),
            head_dim=read.even_size("attention_head_dim", 128),
            context_dim=read.size("cross_attention_dim", 4096),
            max_pos=read.positive_numbers("positional_embedding_max_pos", [20, 2048, 2048]),
            ff_bias=read.flag("ff_bias", True),
        )
        audio = StreamConfig(
            in_channels=read.size("audio_in_channels", 128),
            out_channels=read.size("audio_out_channels", 128),
            num_heads=read.size("audio_num_attention_heads", 32),
            head_dim=read.even_size("audio_attention_head_dim", 64),
            context_dim=read.size("audio_cross_attention_dim", 2048),
            max_pos=read.positive_numbers("audio_positional_embedding_max_pos", [20]),
            ff_bias=read.flag("audio_ff_bias", True),
        )
        projects_captions = not read.flag("caption_proj_before_connector", False)
        caption_channels = read.size("caption_channels", 3840)
        cross_attention_adaln = read.flag("cross_attention_adaln", False)
        precision = read.choice("frequencies_precision", "float32", ("float64", "float32"))
        built = cls(
            video=video,
            audio=audio,
            num_layers=read.size("num_layers", 48),
            norm_eps=read.positive("norm_eps", 1e-6),
            gated_attention=read.flag("apply_gated_attention", False),
            cross_attention_adaln=cross_attention_adaln,
            prompt_adaln=read.flag("use_prompt_adaln_single", True) and cross_attention_adaln,
            caption_channels=caption_channels if projects_captions else None,
            rope_type=read.choice("rope_type", "split", ("split", "interleaved")),
            rope_theta=read.positive("positional_embedding_theta", 10000.0),
            rope_double_precision=precision == "float64",
            timestep_scale=read.positive("timestep_scale_multiplier", 1000),
            # The official default is 1, not 1000: a file without the key really has a thousandth of the gate timestep.
            gate_timestep_scale=read.positive("av_ca_timestep_scale_multiplier", 1),
        )
        if not read.problems:  # sizes that are wrong by themselves would only be named twice
            built._check_sizes(read)
        if read.problems:
            raise ValueError("\n".join(read.problems))
        return built

    @property
    def num_modulation_rows(self) -> int:
        """Shift, scale and gate for self attention and feed-forward, and for text attention where that is modulated."""
        return 9 if self.cross_attention_adaln else 6

    @property
    def cross_max_pos(self) -> float:
        """Both sides of audio-video attention measure time against the same length, in seconds."""
        return max(self.video.max_pos[0], self.audio.max_pos[0])

    def _check_sizes(self, read: "_Reader") -> None:
        # Audio-video attention is as wide as the audio stream; its RoPE is laid out over `audio_cross_attention_dim`.
        audio_width = self.audio.width
        read.require(
            self.audio.context_dim == audio_width,
            "audio_cross_attention_dim",
            f"audio_num_attention_heads * audio_attention_head_dim = {audio_width}",
        )
        read.require(len(self.video.max_pos) == 3, "positional_embedding_max_pos", "three numbers: time, height, width")
        read.require(len(self.audio.max_pos) == 1, "audio_positional_embedding_max_pos", "one number: time")
        # A caption projection yields the stream's width, and so do the tables that modulate contexts.
        any_context_dim = self.caption_channels is None and not self.cross_attention_adaln
        read.require(
            any_context_dim or self.video.context_dim == self.video.width,
            "cross_attention_dim",
            f"num_attention_heads * attention_head_dim = {self.video.width}",
        )


class _Reader:
    """Reads typed values of one metadata section and collects what is wrong with them."""

    def __init__(self, section: Mapping[str, Any]):
        self.section = section
        self.problems: list[str] = []

    def fixed(self, expected: Mapping[str, Any]) -> None:
        for key, value in expected.items():
            found = self.section.get(key, value)
            same_kind = isinstance(found, bool) == isinstance(value, bool)  # 1 is not true here
            self.require(found == value and same_kind, key, f"{value!r}")

    def size(self, key: str, default: int) -> int:
        return self._read(key, default, _is_size, "a whole number above 0")

    def even_size(self, key: str, default: int) -> int:
        return self._read(key, default, lambda value: _is_size(value) and value % 2 == 0, "an even number above 0")

    def positive(self, key: str, default: float) -> float:
        return float(self._read(key, default, _is_positive, "a number above 0"))

    def positive_numbers(self, key: str, default: list[float]) -> tuple[float, ...]:
        def is_list(value: Any) -> bool:
            return isinstance(value, list | tuple) and all(_is_positive(entry) for entry in value)

        return tuple(float(entry) for entry in self._read(key, default, is_list, "a list of numbers above 0"))

    def flag(self, key: str, default: bool) -> bool:
        return self._read(key, default, lambda value: isinstance(value, bool), "true or false")

    def choice(self, key: str, default: str, allowed: tuple[str, ...]) -> Any:
        return self._read(key, default, lambda value: value in allowed, f"one of {', '.join(allowed)}")

    def require(self, holds: bool, key: str, allowed: str) -> None:
        if not holds:
            self.problems.append(f"transformer.{key} = {self.section.get(key)!r}: must be {allowed}")

    def _read(self, key: str, default: Any, accepts: Callable[[Any], bool], allowed: str) -> Any:
        value = self.section.get(key, default)
        if accepts(value):
            return value
        self.require(False, key, allowed)
        return default


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0

"""How each component is cut from its file: which artifact, which keys, which part of the config, which module.

Model modules are imported when one of theirs is built: transformers alone takes seconds to import, and most commands
build nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from ltxgen.artifacts.key_rules import GemmaKeys, KeyRules, PartOf, Prefixes

if TYPE_CHECKING:
    from ltxgen.models.transformer.float8 import Float8Layers

Config = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class BuildOptions:
    """Choices that the checkpoint doesn't make.

    cross_timestep, attention, batched_tokens: passed to the transformer; None leaves its own rule. float8: which of its
    linear layers run in fp8; None for none. num_text_states: hidden states that the text projection takes; None reads
    it from the file's weight (49, Gemma 12B's, where there is no file).
    """

    cross_timestep: str = "own"
    attention: Any = None
    num_text_states: int | None = None
    batched_tokens: int | None = None
    float8: Float8Layers | None = None


@dataclass(frozen=True)
class ComponentSpec:
    """One component: its artifact, the builder of its module from the artifact's whole config, its keys.

    section: the part of the config that the builder reads, for messages; empty when it reads all of it. shapes: of the
    module's tensors by name, where they are known without building it.
    """

    name: str
    artifact: str
    build: Callable[[Config, BuildOptions], nn.Module]
    keys: KeyRules
    section: str = ""
    shapes: Callable[[Config], Shapes] | None = None

    def file_keys(self, available: Iterable[str]) -> dict[str, str]:
        """Module key -> file key for all tensors of a file that belong to the component."""
        matched: dict[str, str] = {}
        for file_key in available:
            module_key = self.keys.module_key(file_key)
            if module_key is not None:
                matched.setdefault(module_key, file_key)
        return matched

    def options_for(self, options: BuildOptions, config: Config, shapes: Shapes) -> BuildOptions:
        """`options` with what only the file's own shapes tell."""
        if self.name not in TEXT_PROJECTIONS or options.num_text_states is not None:
            return options
        width = config.get("transformer", {}).get("caption_channels", 3840)
        weights = (shape for key, shape in shapes.items() if self._is_weight(key, shape))
        inputs = next(weights, None)
        if inputs is None or not isinstance(width, int) or width < 1:
            return options
        return dataclasses.replace(options, num_text_states=max(1, inputs[1] // width))

    def _is_weight(self, file_key: str, shape: tuple[int, ...]) -> bool:
        return len(shape) == 2 and self.keys.module_key(file_key) is not None


def section_of(config: Config, name: str) -> Config:
    """One part of a checkpoint's config. Raises ValueError when it isn't there."""
    section = config.get(name)
    if not isinstance(section, Mapping):
        raise ValueError(f"its config holds no `{name}` section, only: {', '.join(sorted(config)) or 'nothing'}")
    return section


def _transformer(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.transformer import Transformer, TransformerConfig

    return Transformer(
        TransformerConfig.from_metadata(config),
        cross_timestep=options.cross_timestep,  # type: ignore[arg-type]
        attention=options.attention,
        batched_tokens=options.batched_tokens,
    )


def _audio_transformer(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.transformer import Transformer, without_video

    transformer = _transformer(config, options)
    assert isinstance(transformer, Transformer)
    return without_video(transformer)


def _is_for_sound(key: str) -> bool:
    from ltxgen.models.transformer import is_for_sound

    return is_for_sound(key)


def _video_connector(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.connectors import Connector, ConnectorConfig

    return Connector(ConnectorConfig.for_video(section_of(config, "transformer")))


def _audio_connector(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.connectors import Connector, ConnectorConfig

    return Connector(ConnectorConfig.for_audio(section_of(config, "transformer")))


def _text_projection(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.text_encoder.features import FeatureExtractorConfig

    num_states = options.num_text_states or 49
    return FeatureExtractorConfig.from_metadata(section_of(config, "transformer"), num_states).build()


def _audio_text_projection(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.text_encoder.features import FeatureExtractorV2

    extractor = _text_projection(config, options)
    # LTX-2 has one projection for both.
    return extractor.without_video() if isinstance(extractor, FeatureExtractorV2) else extractor


def _text_encoder(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.text_encoder.gemma import GemmaTextEncoder

    return GemmaTextEncoder(config)


def _vision_tower(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.text_encoder.vision import GemmaVision

    return GemmaVision(config)


def _text_encoder_shapes(config: Config) -> Shapes:
    from ltxgen.models.text_encoder.layout import parameter_shapes

    return parameter_shapes(config)


def _video_statistics(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.video_vae import PerChannelStatistics, VideoVAEConfig

    return PerChannelStatistics(VideoVAEConfig.from_metadata(section_of(config, "vae")).latent_channels)


def _video_encoder(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.video_vae import VideoEncoder, VideoVAEConfig

    return VideoEncoder(VideoVAEConfig.from_metadata(section_of(config, "vae")))


def _video_decoder(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.video_vae import VideoDecoder, VideoVAEConfig

    return VideoDecoder(VideoVAEConfig.from_metadata(section_of(config, "vae")))


def _audio_encoder(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.audio_vae import AudioEncoder, AudioVAEConfig

    return AudioEncoder(AudioVAEConfig.from_metadata(section_of(config, "audio_vae")))


def _audio_decoder(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.audio_vae import AudioDecoder, AudioVAEConfig

    return AudioDecoder(AudioVAEConfig.from_metadata(section_of(config, "audio_vae")))


def _vocoder(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.vocoder import Vocoder, VocoderConfig

    return Vocoder(VocoderConfig.from_metadata(section_of(config, "vocoder")))


def _upscaler(config: Config, options: BuildOptions) -> nn.Module:
    from ltxgen.models.upsampler import LatentUpsampler, UpsamplerConfig

    return LatentUpsampler(UpsamplerConfig.from_metadata(config))


TRANSFORMERS = ("transformer", "audio_transformer")
"""The components that predict latents: whole, or for sound alone."""
UPSCALERS = ("spatial_upscaler", "spatial_upscaler_x1_5", "temporal_upscaler")
TEXT_PROJECTIONS = ("text_projection", "audio_text_projection")

TRANSFORMER_PREFIX = "model.diffusion_model."
_VIDEO_CONNECTOR_PREFIX = f"{TRANSFORMER_PREFIX}video_embeddings_connector."
_AUDIO_CONNECTOR_PREFIX = f"{TRANSFORMER_PREFIX}audio_embeddings_connector."

_TRANSFORMER_KEYS = Prefixes(((TRANSFORMER_PREFIX, ""),), excluded=(_VIDEO_CONNECTOR_PREFIX, _AUDIO_CONNECTOR_PREFIX))
_VISION_KEYS = Prefixes(
    (
        ("vision_tower.vision_model.", "vision_tower."),
        ("model.vision_tower.vision_model.", "vision_tower."),
        ("vision_tower.", "vision_tower."),
        ("model.vision_tower.", "vision_tower."),
        ("multi_modal_projector.", "multi_modal_projector."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    )
)
_TEXT_PROJECTION_KEYS = Prefixes((("text_embedding_projection.", ""),))


def _statistics(vae: str, in_module: str = "per_channel_statistics.") -> tuple[tuple[str, str], ...]:
    """Only these two of a VAE's statistics are read; older files hold more (`channel`, `mean-of-stds`, ...)."""
    names = ("std-of-means", "mean-of-means")
    return tuple((f"{vae}.per_channel_statistics.{name}", f"{in_module}{name}") for name in names)


COMPONENTS: Mapping[str, ComponentSpec] = {
    spec.name: spec
    for spec in (
        ComponentSpec("text_encoder", "text_encoder", _text_encoder, GemmaKeys(), shapes=_text_encoder_shapes),
        ComponentSpec("vision_tower", "text_encoder", _vision_tower, _VISION_KEYS),
        ComponentSpec(
            "text_projection",
            "checkpoint",
            _text_projection,
            _TEXT_PROJECTION_KEYS,
            "transformer",
        ),
        ComponentSpec(
            "audio_text_projection",
            "checkpoint",
            _audio_text_projection,
            PartOf(_TEXT_PROJECTION_KEYS, lambda key: not key.startswith("video_")),
            "transformer",
        ),
        ComponentSpec(
            "video_connector",
            "checkpoint",
            _video_connector,
            Prefixes(((_VIDEO_CONNECTOR_PREFIX, ""),)),
            "transformer",
        ),
        ComponentSpec(
            "audio_connector",
            "checkpoint",
            _audio_connector,
            Prefixes(((_AUDIO_CONNECTOR_PREFIX, ""),)),
            "transformer",
        ),
        ComponentSpec(
            "transformer",
            "checkpoint",
            _transformer,
            _TRANSFORMER_KEYS,
            "transformer",
        ),
        ComponentSpec(
            "audio_transformer",
            "checkpoint",
            _audio_transformer,
            PartOf(_TRANSFORMER_KEYS, _is_for_sound),
            "transformer",
        ),
        ComponentSpec("video_statistics", "checkpoint", _video_statistics, Prefixes(_statistics("vae", "")), "vae"),
        ComponentSpec(
            "video_encoder",
            "checkpoint",
            _video_encoder,
            Prefixes((("vae.encoder.", ""), *_statistics("vae"))),
            "vae",
        ),
        ComponentSpec(
            "video_decoder",
            "checkpoint",
            _video_decoder,
            Prefixes((("vae.decoder.", ""), *_statistics("vae"))),
            "vae",
        ),
        ComponentSpec(
            "audio_encoder",
            "checkpoint",
            _audio_encoder,
            Prefixes((("audio_vae.encoder.", ""), *_statistics("audio_vae"))),
            "audio_vae",
        ),
        ComponentSpec(
            "audio_decoder",
            "checkpoint",
            _audio_decoder,
            Prefixes((("audio_vae.decoder.", ""), *_statistics("audio_vae"))),
            "audio_vae",
        ),
        # The vocoder's own first stage is called `vocoder` too: only the outer prefix comes off.
        ComponentSpec("vocoder", "checkpoint", _vocoder, Prefixes((("vocoder.", ""),)), "vocoder"),
        *(ComponentSpec(name, name, _upscaler, Prefixes((("", ""),))) for name in UPSCALERS),
    )
}

# These are no modules: tokenizer.load_tokenizer and chat.load_chat read them from the text encoder's folder.
TOKENIZER, CHAT = "tokenizer", "chat"
COMPONENT_NAMES: tuple[str, ...] = (TOKENIZER, CHAT, *COMPONENTS)


def artifact_of(component: str) -> str:
    """Name of the artifact that a component is cut from."""
    return "text_encoder" if component in (TOKENIZER, CHAT) else COMPONENTS[component].artifact

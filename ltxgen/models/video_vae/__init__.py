"""The video VAE of LTX-2.3 and LTX-2: pixels to normalised latents and back, whole or in overlapping tiles."""

from ltxgen.models.video_vae.budget import DecodeCost, EncodeCost, fit_tiling, least_bytes
from ltxgen.models.video_vae.choice import Kernels, decode_cost, decoder_for, encode_cost, encoder_for
from ltxgen.models.video_vae.config import Resample, ResStage, VideoVAEConfig
from ltxgen.models.video_vae.decoder import VideoDecoder
from ltxgen.models.video_vae.encoder import VideoEncoder
from ltxgen.models.video_vae.statistics import PerChannelStatistics
from ltxgen.models.video_vae.tiled import Decoder, Encoder, blend_tiles, decode_tiled, encode_tiled, tile_decoder
from ltxgen.models.video_vae.tiling import FRAMES_PER_LATENT, PIXELS_PER_LATENT, Span, Tile, Tiling, list_tiles

__all__ = [
    "FRAMES_PER_LATENT",
    "PIXELS_PER_LATENT",
    "DecodeCost",
    "Decoder",
    "EncodeCost",
    "Encoder",
    "Kernels",
    "PerChannelStatistics",
    "ResStage",
    "Resample",
    "Span",
    "Tile",
    "Tiling",
    "VideoDecoder",
    "VideoEncoder",
    "VideoVAEConfig",
    "blend_tiles",
    "decode_cost",
    "decode_tiled",
    "decoder_for",
    "encode_cost",
    "encode_tiled",
    "encoder_for",
    "fit_tiling",
    "least_bytes",
    "list_tiles",
    "tile_decoder",
]

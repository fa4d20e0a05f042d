"""The audio VAE against diffusers' implementation, its mel front end against transformers' and against formulas."""

import copy
import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTX2Audio
from transformers.audio_utils import mel_filter_bank as transformers_mel_filter_bank
from transformers.audio_utils import spectrogram

from ltxgen.models.audio_vae import (
    AudioDecoder,
    AudioEncoder,
    AudioVAEConfig,
    log_mel_spectrogram,
    mel_filter_bank,
    resample,
    waveform_to_mel,
)

KEYS = Path(__file__).with_name("ltx23-keys.json.gz")

LTX23 = {
    "model": {
        "params": {
            "ddconfig": {
                "double_z": True,
                "mel_bins": 64,
                "z_channels": 8,
                "resolution": 256,
                "downsample_time": False,
                "in_channels": 2,
                "out_ch": 2,
                "ch": 128,
                "ch_mult": [1, 2, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
                "mid_block_add_attention": False,
                "norm_type": "pixel",
                "causality_axis": "height",
            },
            "sampling_rate": 16000,
        }
    },
    "preprocessing": {
        "stft": {"filter_length": 1024, "hop_length": 160, "win_length": 1024, "causal": True},
        "mel": {"n_mel_channels": 64, "mel_fmin": 0, "mel_fmax": 8000},
    },
}


def changed(section: tuple[str, ...], **values) -> dict:
    config = copy.deepcopy(LTX23)
    inner = config
    for name in section:
        inner = inner[name]
    inner.update(values)
    return config


def tiny(mel_bins: int = 16) -> AudioVAEConfig:
    # diffusers takes the number of statistics from the base width: latent channels times latent bins must equal it.
    network = {"ch": 16, "z_channels": 4, "mel_bins": mel_bins}
    return AudioVAEConfig.from_metadata(changed(("model", "params", "ddconfig"), **network))


def load(kind: type, config: AudioVAEConfig) -> torch.nn.Module:
    """Fresh weights on a module built without storage, as the loader does it."""
    with torch.device("meta"):
        module = kind(config)
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("std-of-means"):
            weights[name] = noise.abs() + 0.5
        else:
            weights[name] = noise / math.sqrt(value[0].numel()) if value.ndim > 1 else noise / 2
    module.load_state_dict(weights, assign=True)
    return module.eval()


def diffusers_model(config: AudioVAEConfig, **halves: torch.nn.Module) -> AutoencoderKLLTX2Audio:
    reference = AutoencoderKLLTX2Audio(
        base_channels=config.base_channels, latent_channels=config.latent_channels, mel_bins=config.mel_bins
    )
    for name, half in halves.items():
        weights = {key: value for key, value in half.state_dict().items() if "per_channel_statistics" not in key}
        getattr(reference, name).load_state_dict(weights)
    return reference.eval()


def statistics(half: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std over (B, T, channel-then-bin), the layout in which diffusers' pipelines normalise."""
    weights = half.state_dict()
    return weights["per_channel_statistics.mean-of-means"], weights["per_channel_statistics.std-of-means"]


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    assert value.shape == reference.shape
    assert value.dtype == reference.dtype
    return float((value - reference).norm() / reference.norm())


@pytest.mark.parametrize(("mel_bins", "frames", "latent_frames"), [(16, 21, 6), (16, 22, 6), (18, 24, 6), (16, 25, 7)])
@torch.inference_mode()
def test_encoder_agrees_with_diffusers(mel_bins, frames, latent_frames):
    config = tiny(mel_bins)
    encoder = load(AudioEncoder, config)
    log_mel = torch.randn(2, 2, frames, mel_bins, generator=torch.Generator().manual_seed(1))

    mean = diffusers_model(config, encoder=encoder).encode(log_mel).latent_dist.mode()
    flat = mean.transpose(1, 2).flatten(2)  # (B, T, C·M)
    means, stds = statistics(encoder)
    expected = ((flat - means) / stds).unflatten(2, (4, 4)).transpose(1, 2)

    latents = encoder(log_mel)
    assert latents.shape == (2, 4, latent_frames, 4)
    assert relative(latents, expected) <= 1e-5


@pytest.mark.parametrize("mel_bins", [16, 18, 19])
@torch.inference_mode()
def test_decoder_agrees_with_diffusers_and_pads_missing_bins(mel_bins):
    config = tiny(mel_bins)
    decoder = load(AudioDecoder, config)
    latents = torch.randn(2, 4, 5, 4, generator=torch.Generator().manual_seed(1))

    means, stds = statistics(decoder)
    flat = latents.transpose(1, 2).flatten(2) * stds + means
    expected = diffusers_model(config, decoder=decoder).decode(flat.unflatten(2, (4, 4)).transpose(1, 2)).sample

    log_mel = decoder(latents)
    assert log_mel.shape == (2, 2, 4 * 5 - 3, mel_bins)
    assert relative(log_mel, expected) <= 1e-5
    assert log_mel[..., :16].ne(0).all()
    assert log_mel[..., 16:].eq(0).all()


@pytest.mark.parametrize("frames", [1, 2, 6])
@torch.inference_mode()
def test_decoder_is_causal_and_four_frames_a_latent(frames):
    decoder = load(AudioDecoder, tiny())
    latents = torch.randn(1, 4, 7, 4, generator=torch.Generator().manual_seed(2))
    whole, start = decoder(latents), decoder(latents[:, :, :frames])
    assert start.shape[2] == decoder.config.mel_frames(frames) == 4 * frames - 3
    torch.testing.assert_close(whole[:, :, : start.shape[2]], start)
    assert not torch.allclose(whole[:, :, start.shape[2]], start[:, :, -1])


@torch.inference_mode()
def test_both_halves_run_in_bf16():
    config = tiny()
    for kind, value in ((AudioEncoder, torch.randn(1, 2, 9, 16)), (AudioDecoder, torch.randn(1, 4, 3, 4))):
        module = load(kind, config)
        expected = module(value)
        rounded = module.to(torch.bfloat16)(value.to(torch.bfloat16))
        assert rounded.dtype == torch.bfloat16
        assert relative(rounded.float(), expected) <= 0.05


def test_keys_and_shapes_are_those_of_the_checkpoint():
    inventory = json.loads(gzip.decompress(KEYS.read_bytes()))["audio_vae"]
    config = AudioVAEConfig.from_metadata(LTX23)
    built = {}
    with torch.device("meta"):
        halves = {"encoder": AudioEncoder(config), "decoder": AudioDecoder(config)}
    for name, half in halves.items():
        for key, value in half.state_dict().items():
            prefix = "audio_vae." if key.startswith("per_channel_statistics.") else f"audio_vae.{name}."
            built[prefix + key] = list(value.shape)
    assert built == {key: shape for key, (shape, _) in inventory.items()}


def test_config_of_the_published_model():
    config = AudioVAEConfig.from_metadata(LTX23)
    assert config == AudioVAEConfig()
    assert (config.sampling_rate, config.hop_length, config.mel_bins) == (16000, 160, 64)
    assert (config.time_compression, config.latents_per_second, config.latent_mel_bins) == (4, 25, 16)
    assert config.mel_frames(126) == 501


def test_absent_keys_take_the_official_defaults():
    minimal = {"model": {"params": {"ddconfig": {"mid_block_add_attention": False}}}}
    assert AudioVAEConfig.from_metadata(minimal) == AudioVAEConfig()


def test_every_unsupported_value_is_named():
    config = changed(("model", "params", "ddconfig"), norm_type="group", causality_axis="width", attn_resolutions=[64])
    del config["model"]["params"]["ddconfig"]["mid_block_add_attention"]
    config["preprocessing"]["mel"]["mel_fmax"] = 7000
    with pytest.raises(ValueError, match=r"norm_type = 'group': must be 'pixel'") as refusal:
        AudioVAEConfig.from_metadata(config)
    lines = str(refusal.value).splitlines()
    named = ["norm_type", "causality_axis", "mid_block_add_attention = True", "mel_fmax = 7000", "attn_resolutions"]
    assert len(lines) == len(named)
    assert all(name in line for name, line in zip(named, lines, strict=True))


# --- mel front end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mel_bins", [64, 80])
def test_mel_filters_agree_with_transformers(mel_bins):
    expected = transformers_mel_filter_bank(513, mel_bins, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    ours = mel_filter_bank(513, mel_bins, 16000)
    np.testing.assert_allclose(ours.numpy(), expected.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("samples", [16000, 16001, 4007])
def test_log_mel_agrees_with_transformers(samples):
    config = AudioVAEConfig()
    sound = 0.3 * torch.randn(1, 2, samples, generator=torch.Generator().manual_seed(3))
    sound[..., : samples // 2] *= 1e-6  # the floor must bind somewhere
    window = np.hanning(1025)[:-1]
    filters = transformers_mel_filter_bank(513, 64, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    expected = [
        spectrogram(channel, window, 1024, 160, power=1.0, mel_filters=filters, mel_floor=1e-5, log_mel="log").T
        for channel in sound[0].double().numpy()
    ]
    ours = log_mel_spectrogram(sound, config)
    assert ours.shape == (1, 2, samples // 160 + 1, 64)
    assert ours.dtype == torch.float32
    assert ours.min() == pytest.approx(math.log(1e-5))
    np.testing.assert_allclose(ours[0].numpy(), np.stack(expected), atol=2e-3)


@pytest.mark.parametrize(("source", "target"), [(44100, 16000), (48000, 16000), (16000, 48000), (8000, 16000)])
@pytest.mark.parametrize("samples", [300, 301])
def test_resampling_is_the_windowed_sinc_sum(source, target, samples):
    sound = torch.randn(2, 3, samples, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    ours = resample(sound, source, target)
    length = math.ceil(samples * target / source)
    assert ours.shape == (2, 3, length)

    # y[n] = Σ_m x[m] h(n/target − m/source): a sinc 1 % below the lower Nyquist frequency, six crossings on each side.
    cutoff = 0.99 * min(source, target)
    t = (np.arange(length)[:, None] / target - np.arange(samples) / source) * cutoff
    h = np.where(np.abs(t) < 6, np.sinc(t) * np.cos(t * math.pi / 12) ** 2, 0) * cutoff / source
    np.testing.assert_allclose(ours.numpy(), sound.numpy() @ h.T, atol=1e-12)


def test_resampling_keeps_tones_that_fit_and_removes_those_that_do_not():
    seconds = torch.arange(44100, dtype=torch.float64) / 44100
    target = torch.arange(16000, dtype=torch.float64) / 16000
    inner = slice(100, -100)  # away from the silence beyond the ends
    low = resample((2 * math.pi * 1000 * seconds).sin(), 44100, 16000)
    torch.testing.assert_close(low[inner], (2 * math.pi * 1000 * target).sin()[inner], atol=2e-3, rtol=0)
    assert resample((2 * math.pi * 12000 * seconds).sin(), 44100, 16000)[inner].abs().max() < 2e-3


def test_resampling_can_hold_the_outer_samples():
    constant = torch.full((1, 50), 0.5)
    held = resample(constant, 1, 3, padding="replicate")
    torch.testing.assert_close(held, torch.full((1, 150), 0.5), atol=3e-3, rtol=0)
    assert resample(constant, 1, 3)[0, -1] < 0.45
    assert resample(constant, 3, 3) is constant


def test_waveforms_of_other_rates_are_resampled_first():
    config = AudioVAEConfig()
    sound = 0.3 * torch.randn(1, 2, 24000, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(
        waveform_to_mel(sound, 48000, config), log_mel_spectrogram(resample(sound, 48000, 16000), config)
    )
    assert waveform_to_mel(sound, 48000, config).shape == (1, 2, 51, 64)


def test_sound_the_model_cannot_take_is_refused():
    config = AudioVAEConfig()
    with pytest.raises(ValueError, match="audio has 1 channels: must have 2"):
        waveform_to_mel(torch.zeros(1, 1, 16000), 16000, config)
    with pytest.raises(ValueError, match="audio has 512 samples: must last at least 32 ms"):
        waveform_to_mel(torch.zeros(1, 2, 512), 16000, config)
    assert waveform_to_mel(torch.zeros(1, 2, 513), 16000, config).shape == (1, 2, 4, 64)

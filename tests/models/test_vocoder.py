"""Both vocoders against diffusers' independent implementation, on fresh weights under the official names."""

import copy
import gzip
import json
import math
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE

from ltxgen.models.vocoder import ExtendedVocoder, Generator, Vocoder, VocoderConfig

KEYS = Path(__file__).with_name("ltx23-keys.json.gz")

AMP = {
    "resblock": "AMP1",
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "stereo": True,
    "use_tanh_at_final": False,
    "activation": "snakebeta",
    "use_bias_at_final": False,
}
LTX23 = {
    "vocoder": {
        **AMP,
        "upsample_initial_channel": 1536,
        "upsample_rates": [5, 2, 2, 2, 2, 2],
        "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4],
    },
    "bwe": {
        **AMP,
        "upsample_initial_channel": 512,
        "upsample_rates": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [12, 11, 4, 4, 4],
        "apply_final_activation": False,
        "input_sampling_rate": 16000,
        "output_sampling_rate": 48000,
        "hop_length": 80,
        "n_fft": 512,
        "win_size": 512,
        "num_mels": 64,
    },
}
LTX2 = {
    "upsample_initial_channel": 1024,
    "resblock": "1",
    "upsample_rates": [6, 5, 2, 2, 2],
    "resblock_kernel_sizes": [3, 7, 11],
    "upsample_kernel_sizes": [16, 15, 8, 4, 4],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
    "stereo": True,
}
# First half of the published low-pass filter, which is symmetric.
PUBLISHED_FILTER = [0.00202896, 0.00938947, -0.02554346, -0.05765738, 0.12857258, 0.44320980]


def tiny_extended(hop: int = 8) -> dict:
    """10 samples a frame, so with a hop of 8 the sound is padded before it is heard again."""
    config = copy.deepcopy(LTX23)
    blocks = {
        "upsample_initial_channel": 8,
        "resblock_kernel_sizes": [3, 7],
        "resblock_dilation_sizes": [[1, 3, 5], [1, 2, 4]],
    }
    config["vocoder"].update(blocks, upsample_rates=[5, 2], upsample_kernel_sizes=[11, 4])
    rates = {8: [6, 4], 10: [6, 5]}[hop]
    config["bwe"].update(blocks, upsample_rates=rates, upsample_kernel_sizes=[12, rates[1] + 6])
    config["bwe"].update(hop_length=hop, n_fft=32, win_size=32)
    return config


def kaiser_filter() -> torch.Tensor:
    """12 taps: cutoff 0.25, transition half width 0.3, sum 1."""
    attenuation = 2.285 * 5 * math.pi * 1.2 + 7.95
    window = torch.kaiser_window(12, periodic=False, beta=0.1102 * (attenuation - 8.7), dtype=torch.float64)
    taps = window * torch.sinc((torch.arange(12, dtype=torch.float64) - 5.5) / 2)
    return (taps / taps.sum()).float().view(1, 1, 12)


def skewed_filter() -> torch.Tensor:
    """Not symmetric: shows a filter that is turned round, or shifted by a sample."""
    return kaiser_filter() * torch.linspace(0.5, 1.5, 12)


def load(metadata: dict, *, gain: float, low_pass: torch.Tensor | None = None) -> Generator | ExtendedVocoder:
    """Fresh weights on a module built without storage, as the loader does it; `gain` sets the loudness."""
    with torch.device("meta"):
        module = Vocoder(VocoderConfig.from_metadata(metadata))
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in module.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith(".filter"):
            weights[name] = (kaiser_filter() if low_pass is None else low_pass).clone()
        elif name.endswith("_basis"):
            weights[name] = noise.abs() if name.endswith("mel_basis") else noise
        elif value.ndim == 1:
            weights[name] = 0.3 * noise
        else:
            level = gain if "conv_post" in name else 1.0
            weights[name] = level * noise / math.sqrt(value[0].numel())
    module.load_state_dict(weights, assign=True)
    return module.eval()


DIFFUSERS_NAMES = {
    "conv_pre": "conv_in",
    "ups": "upsamplers",
    "resblocks": "resnets",
    "act_post": "act_out",
    "conv_post": "conv_out",
}


def diffusers_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        ".".join(DIFFUSERS_NAMES.get(part, part) for part in name.replace("lowpass.", "").split(".")): value
        for name, value in module.state_dict().items()
    }


def diffusers_sizes(generator: dict) -> dict:
    return {
        "hidden_channels": generator["upsample_initial_channel"],
        "upsample_factors": generator["upsample_rates"],
        "upsample_kernel_sizes": generator["upsample_kernel_sizes"],
        "resnet_kernel_sizes": generator["resblock_kernel_sizes"],
        "resnet_dilations": generator["resblock_dilation_sizes"],
    }


def diffusers_extended(metadata: dict, final_act_fn: str | None) -> LTX2VocoderWithBWE:
    bwe = metadata["bwe"]
    return LTX2VocoderWithBWE(
        **diffusers_sizes(metadata["vocoder"]),
        **{f"bwe_{name}": value for name, value in diffusers_sizes(bwe).items()},
        final_act_fn=final_act_fn,
        filter_length=bwe["n_fft"],
        window_length=bwe["n_fft"],
        hop_length=bwe["hop_length"],
    ).eval()


def relative(value: torch.Tensor, reference: torch.Tensor) -> float:
    assert value.shape == reference.shape
    return float((value - reference).norm() / reference.norm())


def mel(frames: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 2, frames, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("hop", "frames"), [(10, 6), (8, 7), (8, 8)])
@pytest.mark.parametrize("low_pass", [kaiser_filter(), skewed_filter()], ids=["kaiser", "skewed"])
@torch.inference_mode()
def test_extended_vocoder_agrees_with_diffusers_where_nothing_is_clamped(hop, frames, low_pass):
    metadata = tiny_extended(hop)
    vocoder = load(metadata, gain=0.1, low_pass=low_pass)
    # As diffusers publishes it: without the clamp between the two generators.
    reference = diffusers_extended(metadata, final_act_fn=None)
    reference.load_state_dict(diffusers_weights(vocoder))
    first = reference.vocoder(mel(frames))
    assert 0.05 < first.abs().max() < 1

    assert relative(vocoder.vocoder(mel(frames)), first) <= 1e-4
    waveform = vocoder(mel(frames))
    assert waveform.shape == (2, 2, 3 * 10 * frames)
    assert relative(waveform, reference(mel(frames))) <= 1e-4


@torch.inference_mode()
def test_sound_between_the_generators_is_clamped():
    metadata = tiny_extended()
    vocoder = load(metadata, gain=2.0)
    clamped, free = (diffusers_extended(metadata, final_act_fn=name) for name in ("clamp", None))
    for reference in (clamped, free):
        reference.load_state_dict(diffusers_weights(vocoder))
    assert free.vocoder(mel(7)).abs().max() > 1.5

    first = vocoder.vocoder(mel(7))
    assert first.abs().max() == 1
    torch.testing.assert_close(first, free.vocoder(mel(7)).clamp(-1, 1), rtol=1e-4, atol=1e-4)
    waveform = vocoder(mel(7))
    assert waveform.abs().max() == 1
    assert relative(waveform, clamped(mel(7))) <= 1e-4
    assert relative(waveform, free(mel(7))) > 1e-2


@torch.inference_mode()
def test_hifigan_agrees_with_diffusers():
    metadata = {**LTX2, "upsample_initial_channel": 16, "upsample_rates": [3, 2], "upsample_kernel_sizes": [9, 4]}
    vocoder = load(metadata, gain=2.0)
    reference = LTX2Vocoder(**diffusers_sizes(metadata)).eval()
    reference.load_state_dict(diffusers_weights(vocoder))
    waveform = vocoder(mel(5))
    assert waveform.shape == (2, 2, 30)
    assert relative(waveform, reference(mel(5))) <= 1e-4
    assert vocoder.sampling_rate == 24000


@torch.inference_mode()
def test_the_tiny_filter_is_the_published_one():
    torch.testing.assert_close(kaiser_filter().flatten()[:6], torch.tensor(PUBLISHED_FILTER), atol=1e-7, rtol=0)
    torch.testing.assert_close(kaiser_filter().flatten().flip(0), kaiser_filter().flatten())


@torch.inference_mode()
def test_extended_vocoder_runs_in_bf16():
    vocoder = load(tiny_extended(), gain=0.1)
    expected = vocoder(mel(6))
    rounded = vocoder.to(torch.bfloat16)(mel(6).to(torch.bfloat16))
    assert rounded.dtype == torch.bfloat16
    assert relative(rounded.float(), expected) <= 0.1


def test_keys_and_shapes_are_those_of_the_checkpoint():
    inventory = json.loads(gzip.decompress(KEYS.read_bytes()))["vocoder"]
    with torch.device("meta"):
        vocoder = Vocoder(VocoderConfig.from_metadata(LTX23))
    built = {f"vocoder.{key}": list(value.shape) for key, value in vocoder.state_dict().items()}
    assert built == {key: shape for key, (shape, _) in inventory.items()}


def test_published_lengths_and_rates():
    extended, plain = VocoderConfig.from_metadata(LTX23), VocoderConfig.from_metadata(LTX2)
    assert extended.extension is not None
    assert (extended.sampling_rate, extended.generator.sampling_rate) == (48000, 16000)
    assert 501 * extended.generator.samples_per_frame == 80160
    assert 80160 // extended.extension.hop_length * extended.extension.generator.samples_per_frame == 240480
    assert (plain.sampling_rate, plain.generator.samples_per_frame, plain.extension) == (24000, 240, None)
    assert VocoderConfig.from_metadata({"resblock": "1", "stereo": True}) == plain


def test_every_unsupported_value_is_named():
    config = copy.deepcopy(LTX23)
    config["vocoder"].update(activation="snake", upsample_kernel_sizes=[11, 4, 4, 4, 4, 5])
    config["bwe"].update(hop_length=90, win_size=400)
    with pytest.raises(ValueError, match=r"vocoder.vocoder.activation = 'snake': must be 'snakebeta'") as refusal:
        VocoderConfig.from_metadata(config)
    lines = str(refusal.value).splitlines()
    named = ["activation", "has 5 for rate 2", "must multiply to 270", "win_size = 400: must equal n_fft (512)"]
    assert len(lines) == len(named)
    assert all(name in line for name, line in zip(named, lines, strict=True))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LTX2, "resblock": "AMP1"}, "vocoder.resblock = 'AMP1': must be '1'"),
        ({**LTX2, "stereo": False}, "vocoder.stereo = False: must be True"),
        ({"vocoder": LTX23["vocoder"], "bwe": AMP}, "vocoder.bwe.n_fft: must be given; it is absent"),
    ],
)
def test_other_vocoders_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        VocoderConfig.from_metadata(config)

"""Published check values, the RoPE layout, and the own-timestep modulation re-computed in plain tensor code."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ltxgen.models.transformer import (
    BlockPerturbation,
    Hidden,
    ModalityInput,
    StreamInputs,
    Transformer,
    TransformerBlock,
    TransformerConfig,
)
from ltxgen.models.transformer.adaln import sinusoid
from ltxgen.models.transformer.elementwise import Residual
from ltxgen.models.transformer.rope import RotaryTable, frequency_grid, rotary_table, rotate

SETTINGS = {
    "num_layers": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "cross_attention_dim": 24,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 16,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "caption_proj_before_connector": True,
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
    "frequencies_precision": "float64",
}


def test_sinusoid_check_values():
    values = sinusoid(torch.tensor(909.375))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values[:3], torch.tensor([-0.115813, -0.408005, -0.494542]), atol=1e-5, rtol=0)
    torch.testing.assert_close(values[128:131], torch.tensor([-0.993271, -0.912980, 0.869154]), atol=1e-5, rtol=0)


def test_frequency_check_values():
    video = frequency_grid(682, 10000.0, double_precision=True)
    audio = frequency_grid(1024, 10000.0, double_precision=True)
    wanted = [1.5707964, 1.5921853, 1.6138654, 15496.947, 15707.963]
    torch.testing.assert_close(video[[0, 1, 2, -2, -1]], torch.tensor(wanted), rtol=1e-7, atol=0)
    torch.testing.assert_close(
        audio[[0, 1, 2, -1]], torch.tensor([1.5707964, 1.5850024, 1.5993371, 15707.963]), rtol=1e-7, atol=0
    )


def test_double_precision_frequencies_are_correctly_rounded():
    grid = frequency_grid(682, 10000.0, double_precision=True)
    exact = torch.tensor([math.pi / 2 * 10000.0 ** (k / 681) for k in range(682)], dtype=torch.float64)
    assert torch.equal(grid, exact.float())
    assert not torch.equal(frequency_grid(682, 10000.0, double_precision=False), grid)


def full_size_table(dtype: torch.dtype = torch.float32) -> RotaryTable:
    """The first two tokens of the first frame of a 34 x 60 grid at 24 fps."""
    token = torch.tensor([[0, 1 / 24], [0, 32], [0, 32]])
    second = torch.tensor([[0, 1 / 24], [0, 32], [32, 64]])
    positions = torch.stack([token, second], dim=1)[None].to(dtype)
    return rotary_table(
        positions,
        (20, 2048, 2048),
        width=4096,
        num_heads=32,
        theta=10000.0,
        double_precision=True,
        dtype=torch.float32,
    )


def test_rotary_check_values():
    table = full_size_table()
    assert table.cos.shape == table.sin.shape == (1, 2, 32, 64)
    wanted = torch.tensor([1, 1, 0.00327248, 0.0245411, 0.0735645, -0.0180708])
    torch.testing.assert_close(table.cos[0, 1, 0, :6], wanted, atol=2e-6, rtol=0)
    assert torch.equal(table.sin[0, :, 0, :2], torch.zeros(2, 2))


def test_positions_in_bf16_are_used_in_bf16():
    # Half a frame is 0.0208 s; bf16 rounds it, and its fraction of 20 s, to 8 bits.
    midpoint = (torch.tensor(1 / 24).bfloat16() / 2) / 20
    coordinate = 2 * midpoint - 1
    assert coordinate.dtype == torch.bfloat16
    frequencies = frequency_grid(682, 10000.0, double_precision=True)
    rough, fine = full_size_table(torch.bfloat16), full_size_table()
    # Entry 2 + 3k of the angles is the time axis at frequency k; head h holds entries 64h .. 64h + 63.
    flat = rough.cos[0, 0].flatten()
    torch.testing.assert_close(flat[2::3], (frequencies * coordinate.float()).cos())
    assert not torch.allclose(flat, fine.cos[0, 0].flatten(), atol=1e-2)


@pytest.mark.parametrize("rope_type", ["split", "interleaved"])
def test_rotation_turns_pairs(rope_type: str):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 3, 8, generator=generator)
    angles = torch.randn(1, 2, 3, 4, generator=generator)
    y = rotate(x, RotaryTable(angles.cos(), angles.sin()), rope_type)
    for i in range(4):
        one, other = (i, i + 4) if rope_type == "split" else (2 * i, 2 * i + 1)
        turned = torch.complex(x[..., one], x[..., other]) * torch.exp(1j * angles[..., i])
        torch.testing.assert_close(y[..., one], turned.real)
        torch.testing.assert_close(y[..., other], turned.imag)


def tiny() -> Transformer:
    model = Transformer(TransformerConfig.from_metadata({"transformer": SETTINGS}))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.requires_grad_(False)


def modalities() -> tuple[ModalityInput, ModalityInput]:
    generator = torch.Generator().manual_seed(1)

    def modality(axes: int, width: int, tokens: int, timesteps: list[float], sigma: float) -> ModalityInput:
        starts = torch.rand(1, axes, tokens, generator=generator)
        return ModalityInput(
            latents=torch.randn(1, tokens, 4, generator=generator),
            timesteps=torch.tensor([timesteps]),
            sigma=torch.tensor([sigma]),
            positions=torch.stack([starts, starts + 1], dim=-1),
            context=torch.randn(1, 5, width, generator=generator),
        )

    return modality(3, 24, 4, [0.0, 0.3, 0.9, 0.9], 0.9), modality(1, 16, 3, [0.0, 0.5, 0.5], 0.5)


def adaln(weights: dict[str, Tensor], name: str, t: Tensor, num_rows: int) -> Tensor:
    """An AdaLN's rows (..., rows, width) at t in [0, 1], written out from its weights."""
    j = torch.arange(128)
    angles = (1000 * t)[..., None] * torch.exp(-math.log(10000) * j / 128)
    hidden = torch.cat([angles.cos(), angles.sin()], dim=-1)
    for layer in ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear"):
        hidden = hidden @ weights[f"{name}.{layer}.weight"].T + weights[f"{name}.{layer}.bias"]
        hidden = hidden if layer == "linear" else hidden * hidden.sigmoid()
    return hidden.unflatten(-1, (num_rows, -1))


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def across(block: TransformerBlock, hidden: Hidden, video: StreamInputs, audio: StreamInputs) -> list[Tensor]:
    """Both streams after audio-video attention."""
    streams = block._attend_across(*map(Residual, hidden), video, audio, True)
    return [block.elementwise.added(stream) for stream in streams]


def test_own_timesteps_modulate_audio_video_attention_and_other_sigmas_gate_it():
    """The whole audio-video part of a block, with the attention itself taken from the model."""
    model = tiny()
    weights = model.state_dict()
    video, audio = modalities()
    hidden, shared = model.embed(video, audio)
    block = model.transformer_blocks[0]

    got_video, got_audio = across(block, hidden, shared.video, shared.audio)

    def rows(side: str, own: ModalityInput, gate_name: str, other: ModalityInput) -> list[Tensor]:
        table = weights[f"transformer_blocks.0.scale_shift_table_a2v_ca_{side}"]
        four = adaln(weights, f"av_ca_{side}_scale_shift_adaln_single", own.timesteps[0], 4) + table[:4]
        gate = adaln(weights, f"av_ca_{gate_name}_gate_adaln_single", other.sigma, 1)[:, 0] + table[4]
        return [*four.unbind(1), gate]

    v = rows("video", video, "a2v", audio)
    a = rows("audio", audio, "v2a", video)
    u_v, u_a = rms(hidden.video), rms(hidden.audio)
    tables = {"rotary": shared.video.cross.rotary, "context_rotary": shared.audio.cross.rotary}
    wanted_video = hidden.video + v[4] * block.audio_to_video_attn(
        u_v * (1 + v[0]) + v[1], u_a * (1 + a[0]) + a[1], **tables
    )
    tables = {"rotary": shared.audio.cross.rotary, "context_rotary": shared.video.cross.rotary}
    wanted_audio = hidden.audio + a[4] * block.video_to_audio_attn(
        u_a * (1 + a[2]) + a[3], u_v * (1 + v[2]) + v[3], **tables
    )
    torch.testing.assert_close(got_video, wanted_video, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got_audio, wanted_audio, rtol=1e-4, atol=1e-5)


def test_tokens_at_timestep_zero_do_not_follow_the_other_sigma_in_own_mode():
    model = tiny()
    video, audio = modalities()
    _, shared = model.embed(video, audio)
    _, hotter = model.embed(video, replace(audio, sigma=torch.tensor([0.95])))
    assert torch.equal(shared.video.cross.modulation.rows, hotter.video.cross.modulation.rows)
    assert not torch.equal(shared.video.cross.gate.rows, hotter.video.cross.gate.rows)


def test_gate_timestep_has_its_own_scale():
    """Without the key the gate sees a thousandth of the timestep, as the official default of 1 says."""
    video, audio = modalities()
    full = tiny()
    settings = {key: value for key, value in SETTINGS.items() if key != "av_ca_timestep_scale_multiplier"}
    thousandth = Transformer(TransformerConfig.from_metadata({"transformer": settings}))
    thousandth.load_state_dict(full.state_dict())
    smaller = replace(audio, sigma=audio.sigma / 1000)
    torch.testing.assert_close(
        thousandth.embed(video, audio)[1].video.cross.gate.rows, full.embed(video, smaller)[1].video.cross.gate.rows
    )


def test_audio_to_video_attention_sees_both_streams_before_either_changed():
    model = tiny()
    hidden, shared = model.embed(*modalities())
    block = model.transformer_blocks[0]
    both = across(block, hidden, shared.video, shared.audio)
    only_audio = across(block, hidden, replace(shared.video, enabled=False), shared.audio)
    assert torch.equal(both[1], only_audio[1])
    assert torch.equal(only_audio[0], hidden.video)
    assert BlockPerturbation() == (True, True, True)

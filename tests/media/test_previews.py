"""Latents as colours: a map that is learned from what was decoded, false colours until then, and the files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ltxgen.media.previews import LatentColors, Previews, false_colors, mean_colors, means_of_latents

CHANNELS = 16
SHAPE = (CHANNELS, 3, 8, 10)  # 240 latents


def painted(seed: int, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and the colours that a linear decoder gives them."""
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    return latents, (torch.einsum("cfhw,ck->fhwk", latents, slope) + 0.5).clamp(0, 1)


@pytest.fixture
def slope() -> torch.Tensor:
    return 0.05 * torch.randn(CHANNELS, 3, generator=torch.Generator().manual_seed(1))


def test_a_linear_decoder_is_found(slope):
    known = LatentColors(CHANNELS)
    assert not known.is_known
    for seed in (2, 3, 4, 5):
        known.add(*painted(seed, slope))
    assert (known.is_known, known.num_latents) == (True, 4 * 240)
    latents, colors = painted(9, slope)
    error = (known.colors_of(latents).float() - colors).abs()
    assert error.max() < 0.02
    assert colors.std() > 0.1


def test_few_latents_give_no_wild_colours(slope):
    known = LatentColors(CHANNELS)
    latents, colors = painted(2, slope)
    known.add(latents[:, :1, :1, :9], colors[:1, :1, :9])  # 9 equations for 17 unknowns
    assert not known.is_known
    unseen, expected = painted(3, slope)
    assert (known.colors_of(unseen).float() - expected).abs().mean() < colors.std()


def test_what_is_known_can_be_kept(slope, tmp_path: Path):
    known = LatentColors(CHANNELS)
    known.add(*painted(2, slope))
    known.save(tmp_path / "made" / "known.safetensors")
    again = LatentColors.load(tmp_path / "made" / "known.safetensors", CHANNELS)
    assert torch.equal(again.products, known.products)
    assert torch.equal(again.targets, known.targets)
    assert LatentColors.load(tmp_path / "made" / "known.safetensors", CHANNELS + 1).num_latents == 0
    (tmp_path / "broken").write_bytes(b"broken")
    assert LatentColors.load(tmp_path / "broken", CHANNELS).num_latents == 0


def test_mean_colours_line_up_with_latents():
    frames = torch.zeros(17, 64, 96, 3, dtype=torch.uint8)
    frames[0] = 30
    frames[1:9, :32, :32, 0] = 60
    frames[9:, 32:, 64:, 2] = torch.arange(8, dtype=torch.uint8)[:, None, None] * 10
    by_latent = means_of_latents(torch.cat([mean_colors(frames[:4]), mean_colors(frames[4:])]))
    assert by_latent.shape == (3, 2, 3, 3)
    expected = torch.zeros(3, 2, 3, 3)
    expected[0] = 30 / 255
    expected[1, 0, 0, 0] = 60 / 255
    expected[2, 1, 2, 2] = 35 / 255
    torch.testing.assert_close(by_latent, expected)


def test_false_colours_are_the_principal_components():
    latents, _ = painted(4, torch.zeros(CHANNELS, 3))
    latents[3] *= 10  # by far the widest
    latents[7] *= 5
    colors = false_colors(latents)
    assert torch.equal(colors, false_colors(latents.clone()))
    for channel, part in ((3, 1), (7, 0)):  # green, then red
        pair = torch.stack([latents[channel].flatten().double(), colors[..., part].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.95
    assert false_colors(torch.zeros(SHAPE)).unique().tolist() == [0.5]


def test_previews_are_written_when_due(slope, tmp_path: Path):
    notes: list[str] = []
    kept = tmp_path / "kept.safetensors"
    previews = Previews(tmp_path / "previews", 2, Fraction(24), lambda: kept, notes.append)
    latents, _ = painted(4, slope)
    for step in range(5):
        previews.show("base", step, latents[None])
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == ["base_002.png", "base_004.png"]
    assert len(notes) == 1
    assert "false colours" in notes[0]
    with Image.open(tmp_path / "previews" / "base_002.png") as image:
        assert (image.size, image.n_frames, image.format) == ((80, 64), 3, "PNG")
        assert image.info["duration"] == pytest.approx(8 * 1000 / 24, abs=1)
    Previews(tmp_path / "none", 0, Fraction(24), lambda: kept, notes.append).show("base", 1, latents[None])
    assert not (tmp_path / "none").exists()


def test_a_decoded_video_teaches_the_next_run(tmp_path: Path):
    """Frames that the map must have come from: each latent's block in one colour."""
    slope = 0.05 * torch.randn(CHANNELS, 3, generator=torch.Generator().manual_seed(1))
    latents, colors = painted(4, slope)
    blocks = colors.repeat_interleave(32, dim=1).repeat_interleave(32, dim=2)
    frames = torch.cat([blocks[:1], blocks[1:].repeat_interleave(8, dim=0)]).mul(255).round().to(torch.uint8)
    notes: list[str] = []
    kept = tmp_path / "kept.safetensors"
    first = Previews(tmp_path / "first", 1, Fraction(24), lambda: kept, notes.append)
    chunks = [frames[:5], frames[5:]]
    assert [chunk.data_ptr() for chunk in first.learn(latents[None], iter(chunks))] == [c.data_ptr() for c in chunks]
    second = Previews(tmp_path / "second", 1, Fraction(24), lambda: kept, notes.append)
    second.show("base", 0, latents[None])
    assert "false" not in notes[-1]
    with Image.open(tmp_path / "second" / "base_001.png") as image:
        pixels = np.asarray(image.convert("RGB").resize((10, 8), Image.Resampling.BOX), dtype=float)
    assert np.abs(pixels - 255 * colors[0].numpy()).mean() < 12
    assert np.corrcoef(pixels.ravel(), colors[0].numpy().ravel())[0, 1] > 0.95


def test_without_a_place_nothing_is_kept(tmp_path: Path):
    previews = Previews(tmp_path, 1, Fraction(24), lambda: None, lambda text: None)
    frames = [torch.zeros(1, 32, 32, 3, dtype=torch.uint8)]
    assert list(previews.learn(torch.zeros(1, CHANNELS, 1, 1, 1), iter(frames))) == frames
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_does_not_end_the_run(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    notes: list[str] = []
    known = tmp_path / "file" / "kept.safetensors"
    previews = Previews(tmp_path, 1, Fraction(24), lambda: known, notes.append)
    frames = [torch.zeros(1, 32, 32, 3, dtype=torch.uint8)]
    assert list(previews.learn(torch.zeros(1, CHANNELS, 1, 1, 1), iter(frames))) == frames
    assert "could not be kept" in notes[0]

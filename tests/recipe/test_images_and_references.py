"""Runs from pictures and references on the embedded model, and what is refused of them before anything loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ltxgen.media.mp4 import Mp4Settings, Mp4Writer

SIZE = ("model=ltx23_tiny", "request.height=64", "request.width=64", "request.num_frames=17")
TWO_STAGE = ("+recipe=ltx23_two_stage", *SIZE, "stages.base.sigmas=[1.0,0.0]", "stages.base.steps=null")
IC_LORA = ("+recipe=ltx23_ic_lora", *SIZE, "stages.base.sigmas=[1.0,0.0]")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.radial_gradient("L").save(tmp_path / "a.png")
    Image.linear_gradient("L").resize((64, 96)).save(tmp_path / "b.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "tiny.png")
    for name, num_frames in (("clip", 12), ("short", 4)):
        with Mp4Writer(tmp_path / f"{name}.mp4", 24, Mp4Settings()) as writer:
            ramp = torch.arange(num_frames, dtype=torch.uint8)[:, None, None, None] * 20
            writer.write_frames(ramp.expand(num_frames, 32, 48, 3).contiguous())
    return tmp_path


@pytest.fixture
def run(run_ltxgen, folder: Path) -> Callable[..., dict[str, torch.Tensor]]:
    def ran(*words: str) -> dict[str, torch.Tensor]:
        result = run_ltxgen(*words, "output.tensors=true", "output.dir=out", cwd=folder)
        assert result.code == 0, result.err
        return load_file(folder / "out" / "tensors.safetensors")

    return ran


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_from_pictures_and_its_replay(run):
    tensors = run(*TWO_STAGE, "request.images=[{path: a.png}, {path: b.jpg, frame: -1, strength: 0.5}]")
    for stage, num_tokens in (("base", 1), ("refine", 4)):
        assert tensors[f"{stage}.noise.video"].shape[1] == 4 * num_tokens  # three latent frames and a keyframe
        first = tensors[f"{stage}_images.0"]
        torch.testing.assert_close(tensors[f"{stage}.noised.video"][:, :num_tokens], first.flatten(2).mT)
        torch.testing.assert_close(tensors[f"{stage}.final.video"][:, :, :1], first, atol=1e-5, rtol=1e-5)
        time = tensors[f"{stage}.positions.video"][0, 0, -num_tokens:]
        torch.testing.assert_close(time, torch.tensor([[16 / 24, 17 / 24]] * num_tokens))
    assert same(tensors, run("+recipe=out/recipe.yaml"))


def test_keyframes_append_the_first_picture_too(run):
    images = "request.images=[{path: a.png}, {path: b.jpg, frame: 16}]"
    tensors = run("+recipe=ltx23_keyframes", *TWO_STAGE[1:], images)
    assert tensors["base.noise.video"].shape[1] == 5
    torch.testing.assert_close(tensors["base.noised.video"][:, 3], tensors["base_images.0"].flatten(2).mT[:, 0])


def test_without_pictures_no_encoder_is_loaded(run_ltxgen, folder: Path):
    for images, there in ((), False), (("request.images=[{path: a.png}]",), True):
        plan = run_ltxgen("plan", *TWO_STAGE, *images, cwd=folder)
        assert plan.code == 0, plan.err
        assert ("video_encoder" in plan.out) == there


def test_what_is_in_a_plan_of_pictures(run_ltxgen, folder: Path):
    glass = Image.new("RGBA", (40, 50), (1, 2, 3, 100))
    glass.save(folder / "glass.png")
    words = "request.images=[{path: glass.png, strength: 0.5}, {path: b.jpg, frame: -2, crf: 0}]"
    plan = run_ltxgen("plan", *TWO_STAGE, words, cwd=folder)
    out = " ".join(plan.out.replace("│", " ").split())
    assert "glass.png (40x50, alpha dropped) as first frame 0, strength 0.5, crf 33" in out
    assert "b.jpg (64x96) as keyframe 15, strength 1, crf 0" in out
    assert "tokens video 4, audio 18" in out  # of the base stage, with the keyframe's


def test_a_run_from_references(run):
    reference = (*IC_LORA, "request.references=[{path: clip.mp4}]")
    plain = run(*reference)
    assert plain["base.noise.video"].shape[1] == 3 + 2  # the first 9 of 12 frames are used
    torch.testing.assert_close(plain["base.noised.video"][:, 3:], plain["references.0"].flatten(2).mT)
    assert plain["refine.noise.video"].shape[1] == 12, "the second stage has no references"
    half = run(*reference, "stages.base.reference_attention=0.5")
    assert not torch.equal(half["base.final.video"], plain["base.final.video"])


def test_a_black_mask_masks_all(run, folder: Path):
    Image.new("L", (40, 40)).save(folder / "black.png")
    reference = (*IC_LORA, "request.references=[{path: clip.mp4}]")
    ignored = run(*reference, "stages.base.reference_attention=0")
    black = run(*reference, "request.reference_mask.path=black.png")
    torch.testing.assert_close(black["base.final.video"], ignored["base.final.video"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["request.images=[{path: none.png}]"], "request.images[0].path = none.png: can't be read as a picture (No"),
        (["request.images=[{path: clip.mp4}]"], "images[0].path = clip.mp4: can't be read as a picture (cannot"),
        (["request.images=[{path: tiny.png}]"], "is 8x8 pixels, must have 32 a side at least; give a larger picture"),
        (["request.images=[{path: a.png, frame: 17}]"], "images[0].frame = 17: must be from 0 to 16, or from the end"),
        (["request.images=[{path: a.png, frame: -18}]"], "images[0].frame = -18: must be from 0 to 16, or from the"),
        (
            ["request.images=[{path: a.png, frame: 16}, {path: b.jpg, frame: -1}]"],
            "images[1].frame = -1: is the frame of request.images[0] as well; give each frame one picture",
        ),
        (["request.images=[{path: a.png, crf: 52}]"], "request.images[0].crf = 52: must be between 0"),
        (["request.images=[{path: a.png, strength: 1.1}]"], "request.images[0].strength = 1.1: must be between 0 and"),
        (["request.references=[{path: clip.mp4}]"], "request.references = ['clip.mp4']: no stage of this recipe takes"),
        (["request.reference_mask.path=a.png"], "request.reference_mask.path = a.png: no stage of this recipe takes"),
    ],
)
def test_what_is_refused_of_pictures(run_ltxgen, folder: Path, words: list[str], message: str):
    result = run_ltxgen(*TWO_STAGE, *words, cwd=folder)
    assert result.code == 2
    assert message in result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "request.references: is missing: stage base has an IC-LoRA, which works from references; give"),
        (
            ["request.references=[{path: clip.mp4}]", "stages.base.loras={ic_lora: 0}"],
            "stages.base.loras.ic_lora = 0.0: the references that this stage reads mean nothing without an IC-LoRA",
        ),
        (["request.references=[{path: none.mp4}]"], "request.references[0].path = none.mp4: can't be read (No such"),
        (["request.reference_mask.path=a.png"], "request.reference_mask.path = a.png: masks references, and there are"),
        (
            ["request.references=[{path: clip.mp4}]", "request.reference_mask.path=short.mp4"],
            "request.reference_mask.path = short.mp4: has 4 frames, must have 9 as what is used of the references",
        ),
        (
            ["request.references=[{path: clip.mp4}]", "artifacts.ic_lora.path=half.safetensors"],
            "request.height = 64: must be a multiple of 128 with this IC-LoRA, whose references are 2 times smaller",
        ),
        (
            ["request.references=[{path: clip.mp4}]", "artifacts.ic_lora.path=wrong.safetensors"],
            "wrong.safetensors: has reference_downscale_factor = 'x' in its metadata, which must be a whole number",
        ),
        (
            ["request.references=[{path: clip.mp4}]", "artifacts.source=files"],
            "artifacts.ic_lora.path: must be set",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_of_references(run_ltxgen, tiny_set, folder: Path, words: list[str], message: str):
    for name, factor in (("half", "2"), ("wrong", "x")):
        tensors = load_file(tiny_set.file("ic_lora"))
        save_file(tensors, folder / f"{name}.safetensors", {"reference_downscale_factor": factor})
    result = run_ltxgen(*IC_LORA, *words, cwd=folder)
    assert result.code == 2
    assert message in result.err


def test_a_smaller_reference(run, tiny_set, folder: Path):
    """At a factor of 2 a reference has a quarter of the tokens, which lie over the whole video."""
    save_file(load_file(tiny_set.file("ic_lora")), folder / "half.safetensors", {"reference_downscale_factor": "2"})
    words = ("request.height=128", "request.width=128", "artifacts.ic_lora.path=half.safetensors")
    tensors = run(*IC_LORA, *words, "request.references=[{path: b.jpg}]")
    assert tensors["references.0"].shape == (1, 128, 1, 1, 1)
    assert tensors["base.positions.video"][0, 1:, -1].tolist() == [[0, 64], [0, 64]]

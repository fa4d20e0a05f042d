"""Recipes on the embedded model: they run, say what they did, run again alike, refuse what they are not made for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ltxgen.config import compose
from ltxgen.media.images import save_png

TINY = ("model=ltx23_tiny", "request.height=64", "request.width=64", "request.num_frames=9")
FAST = "stages.base.steps=2"


@pytest.fixture
def run_recipe(run_ltxgen, tmp_path):
    """`run_recipe("ltx23_one_stage", ...)`: tensors and manifest of a run with these words."""

    def run(recipe: str | Path, *words: str) -> tuple[dict[str, torch.Tensor], dict]:
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        options = () if isinstance(recipe, Path) else TINY
        folder = ("output.tensors=true", f"output.dir={out}")
        result = run_ltxgen(f"+recipe={recipe}", *options, *folder, *words, cwd=tmp_path)
        assert result.code == 0, result.err
        assert (out / "video.mp4").stat().st_size > 0
        return load_file(out / "tensors.safetensors"), json.loads((out / "manifest.json").read_text())

    return run


def calls(tensors: dict[str, torch.Tensor], stage: str) -> int:
    return sum(name.startswith(f"{stage}.call") and name.endswith(".x0.video") for name in tensors)


def test_hq(run_recipe, tmp_path):
    tensors, manifest = run_recipe("ltx23_two_stage_hq", FAST)
    stages = manifest["stages"]
    # Two evaluations a step and a last one, three passes each in base.
    assert stages["base"]["passes"] == [3] * 5
    assert stages["refine"]["passes"] == [1] * 7
    assert (calls(tensors, "base"), calls(tensors, "refine")) == (5, 7)
    assert (stages["base"]["loras"], stages["refine"]["loras"]) == ({"distilled": 0.25}, {"distilled": 0.5})
    assert stages["decode_audio"]["source"] == "base"
    # The schedule is shifted for the 2 tokens of this size, so much less than for 4096.
    assert tensors["base.sigmas"][1] < 0.6
    assert tensors["frames"].shape == (9, 64, 64, 3)
    again, _ = run_recipe(tmp_path / "out0" / "recipe.yaml", "output.tensors=true")
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_steps_that_guidance_skips_cost_nothing(run_recipe):
    skip = [f"stages.base.guidance.{modality}.skip_step=1" for modality in ("video", "audio")]
    words = ("~stages.refine", "~stages.upsample", *skip)
    tensors, manifest = run_recipe("ltx23_two_stage_hq", FAST, *words)
    # Step 1 skips; middles count as step 0 and don't. The last evaluation is step 2.
    assert manifest["stages"]["base"]["passes"] == [3, 3, 0, 3, 3]
    assert torch.equal(tensors["base.call002.x0.video"], tensors["base.call001.x0.video"])
    assert not torch.equal(tensors["base.call003.x0.video"], tensors["base.call001.x0.video"])


def test_distilled(run_recipe):
    tensors, manifest = run_recipe("ltx23_distilled")
    stages = manifest["stages"]
    assert manifest["artifacts"]["checkpoint"]["file"] == "ltx-2.3-tiny-distilled.safetensors"
    assert set(manifest["artifacts"]) == {"checkpoint", "spatial_upscaler", "text_encoder"}
    assert (stages["base"]["passes"], stages["refine"]["passes"]) == ([1] * 8, [1] * 3)
    assert stages["refine"]["sigmas"] == pytest.approx([0.909375, 0.725, 0.421875, 0.0])
    assert list(stages["prompt"]["prompts"]) == ["positive"]
    assert "context.video.negative" not in tensors
    assert stages["decode_audio"]["source"] == "refine"
    assert manifest["notes"] == []


def test_a_stage_that_is_null_is_left_out(run_recipe):
    """Without `refine` the upscaler has no reader, and what `base` made is decoded."""
    tensors, manifest = run_recipe("ltx23_distilled", "stages.refine=null")
    assert list(manifest["stages"]) == ["prompt", "base_images", "base", "decode_video", "decode_audio", "write"]
    assert "spatial_upscaler" not in manifest["artifacts"]
    assert manifest["stages"]["decode_audio"]["source"] == "base"
    assert tensors["frames"].shape == (9, 32, 32, 3)


def test_a_null_stage_leaves_an_upscaler_that_is_read(run_recipe):
    words = ("stages.refine=null", "stages.decode_video.video=upsample.video")
    tensors, manifest = run_recipe("ltx23_distilled", *words)
    assert "upsample" in manifest["stages"]
    assert tensors["frames"].shape == (9, 64, 64, 3)


def test_one_stage(run_recipe):
    small = ("request.height=32", "request.width=96")  # multiples of 32 will do
    tensors, manifest = run_recipe("ltx23_one_stage", FAST, "runtime.numerics=launch", *small)
    assert manifest["stages"]["base"]["passes"] == [4, 4]
    assert set(manifest["artifacts"]) == {"checkpoint", "text_encoder"}
    assert manifest["stages"]["decode_audio"]["source"] == "base"
    assert tensors["frames"].shape == (9, 32, 96, 3)


def test_guidance_by_noise_level(run_recipe):
    ranges = "stages.base.guidance.ranges"
    choices = ("guidance@stages.base.guidance=by_sigma", f"guidance@{ranges}.high.guidance=ltx23_hq")
    words = (*choices, f"{ranges}.low.up_to=0.5")
    tensors, manifest = run_recipe("ltx23_one_stage", "stages.base.steps=4", *words)
    sigmas = tensors["base.sigmas"][:-1].tolist()
    assert manifest["stages"]["base"]["passes"] == [3 if sigma > 0.5 else 1 for sigma in sigmas]
    assert set(manifest["stages"]["base"]["passes"]) == {1, 3}


@pytest.mark.parametrize("sampler", ["euler_ancestral", "gradient_estimation"])
def test_other_samplers(run_recipe, sampler):
    words = ("stages.refine=null", "stages.base.sigmas=[1.0,0.6,0.3,0.0]", f"sampler@stages.base.sampler={sampler}")
    tensors, _ = run_recipe("ltx23_distilled", *words)
    assert calls(tensors, "base") == 3
    assert tensors["base.final.video"].isfinite().all()


@pytest.fixture
def refuse_distilled(run_ltxgen, tmp_path):
    """The plan of the distilled recipe with these words must be refused; what was told."""

    def told(*words: str) -> str:
        result = run_ltxgen("plan", "+recipe=ltx23_distilled", *TINY, *words, cwd=tmp_path)
        assert result.code == 2, result.out
        return result.err

    return told


def test_steps_for_a_schedule_that_has_its_own(refuse_distilled):
    told = refuse_distilled("stages.base.steps=8")
    assert "stages.base.steps = 8: the schedule `distilled` has its own steps; set it to null, or take" in told
    assert "schedule@stages.base.schedule=ltx2" in told


def test_guidance_without_a_negative_prompt(refuse_distilled):
    told = refuse_distilled("guidance@stages.base.guidance=ltx23")
    assert "stages.base.guidance: needs the negative prompt, which the prompt stage leaves out" in told
    assert "ltx-2.3-tiny-distilled.safetensors is distilled and runs without guidance" in told


def test_a_sampler_that_ends_above_the_last_level(refuse_distilled):
    told = refuse_distilled("sampler@stages.refine.sampler=res_2s", "stages.refine.sigmas=[0.5,0.001,0]")
    assert "stages.refine.sampler = res_2s: steps down to 0.0011 itself" in told


def test_a_dev_checkpoint_among_the_candidates_of_the_distilled_recipe(refuse_distilled):
    dev = "artifacts.checkpoint.candidates=[Lightricks/LTX-2.3/ltx-2.3-22b-dev.safetensors]"
    told = refuse_distilled(dev)
    assert "artifacts.checkpoint = ltx-2.3-tiny-dev.safetensors: is no distilled checkpoint by its name" in told
    assert "and base and refine take the steps of one; name distilled files in" in told


def test_a_dev_checkpoint_by_path_runs_as_asked(run_ltxgen, tiny_set, tmp_path):
    path = f"artifacts.checkpoint.path={tiny_set.file('checkpoint')}"
    result = run_ltxgen("plan", "+recipe=ltx23_distilled", *TINY, path, cwd=tmp_path)
    assert result.code == 0
    told = " ".join(result.out.split())
    assert "is no distilled checkpoint by its name, and base and refine take the steps of one; it runs as asked" in told
    # The distilled LoRA makes one of it.
    loras = [f"stages.{stage}.loras.distilled=1.0" for stage in ("base", "refine")]
    result = run_ltxgen("plan", "+recipe=ltx23_distilled", *TINY, path, *loras, cwd=tmp_path)
    assert "runs as asked" not in " ".join(result.out.split())


def test_a_left_out_stage_that_others_need(refuse_distilled):
    told = refuse_distilled("stages.base=null")
    assert "stages.refine = base.audio: no earlier stage writes what it reads; written so far: " in told
    assert "have it read one of these, or leave it out with stages.refine=null" in told


@pytest.fixture
def picture(tmp_path) -> Path:
    shades = torch.arange(64).expand(48, 64)[..., None] * torch.tensor([1, 2, 3])
    return save_png(shades.to(torch.uint8), tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("recipe", "stages"),
    [
        ("ltx23_distilled", ("base", "refine")),
        ("ltx23_two_stage_hq", ("base", "refine")),
        ("ltx23_one_stage", ("base",)),
        ("ltx23_temporal_upscale", ("base", "refine")),
    ],
)
def test_pictures_condition_every_denoise_stage(run_recipe, picture, recipe, stages):
    """One at frame 0 is given, others are tokens of their own; without any, nothing is there and nothing is loaded."""
    steps = () if recipe == "ltx23_distilled" else (FAST,)
    images = f"request.images=[{{path: {picture}}}, {{path: {picture}, frame: 16, crf: 0}}]"
    plain, before = run_recipe(recipe, *steps, "request.num_frames=17")
    tensors, _ = run_recipe(recipe, *steps, "request.num_frames=17", images)
    for name in stages:
        per_picture = tensors[f"{name}_images.0" if f"{name}_images.0" in tensors else "images.0"]
        num_tokens = per_picture[0, 0].numel()
        assert tensors[f"{name}.noise.video"].shape[1] == plain[f"{name}.noise.video"].shape[1] + num_tokens
        # The first latent frame stays the picture's latent.
        assert torch.equal(tensors[f"{name}.final.video"][:, :, :1], per_picture)
    assert before["stages"]["base_images" if len(stages) == 2 else "images"]["images"] == "none"


def test_three_stages(run_recipe):
    words = (FAST, "request.height=192", "request.width=384")
    tensors, manifest = run_recipe("ltx23_three_stage", *words)
    shapes = [tuple(tensors[f"{name}.final.video"].shape[2:]) for name in ("base", "middle", "refine")]
    assert shapes == [(2, 2, 4), (2, 3, 6), (2, 6, 12)]
    assert [manifest["stages"][name]["passes"] for name in ("base", "middle", "refine")] == [[4] * 2, [1] * 3, [1] * 3]
    assert tensors["frames"].shape == (9, 192, 384, 3)


def test_twice_the_frame_rate(run_recipe):
    words = (FAST, "request.num_frames=17", "request.fps=50")
    tensors, _ = run_recipe("ltx23_temporal_upscale", *words)
    assert tensors["base.final.video"].shape[2:] == (2, 1, 1)
    assert tensors["upsample.video"].shape[2:] == (2, 2, 2)
    assert tensors["interpolate.video"].shape[2:] == (3, 2, 2)
    assert tensors["frames"].shape == (17, 64, 64, 3)
    # Latents of base cover twice the time: frames 1 to 8 of 25 a second, where those of refine are of 50.
    assert tensors["base.positions.video"][0, 0, 1].tolist() == pytest.approx([1 / 25, 9 / 25])
    assert tensors["refine.positions.video"][0, 0, 4].tolist() == pytest.approx([1 / 50, 9 / 50])


def test_pictures_of_frames_that_a_stage_leaves_out(run_recipe, picture):
    images = f"request.images=[{{path: {picture}, frame: 3}}]"
    tensors, _ = run_recipe("ltx23_temporal_upscale", FAST, "request.num_frames=17", images)
    for name in ("base", "refine"):
        assert tensors[f"{name}.positions.video"][0, 0, -1, 0].item() == pytest.approx(3 / 48)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("+recipe=ltx23_temporal_upscale", "request.num_frames=25"),
            "request.num_frames = 25: must be 16k + 1, since stage base makes 1/2 of the frames; the nearest are 17",
        ),
        (
            ("+recipe=ltx23_temporal_upscale", "request.num_frames=17", "stages.refine=null"),
            "stages.write.frames = decode_video.frames: holds 9 frames and the request asks for 17",
        ),
        (
            ("+recipe=ltx23_temporal_upscale", "request.num_frames=17", "stages.interpolate.upscaler=spatial_upscaler"),
            "holds 2x4x4 latents (frames x height x width), and at scale 1 this stage works on 3x2x2; match its scale",
        ),
        (("+recipe=ltx23_three_stage",), "request.height = 64: must be a multiple of 192 in this recipe"),
        (
            ("+recipe=ltx23_three_stage", "request.height=192", "request.width=192", "stages.base.scale=1/6"),
            "stages.enlarge.upscaler = spatial_upscaler_x1_5: latent height = 1: must be a multiple of 2",
        ),
    ],
)
def test_sizes_that_upscalers_do_not_give(run_ltxgen, tmp_path, words, told):
    result = run_ltxgen("plan", *TINY, *words, cwd=tmp_path)
    assert result.code == 2
    assert told in result.err


def test_generations_do_not_mix(run_ltxgen, tiny_set, tmp_path):
    words = ("model=ltx2_tiny", *TINY[1:], f"artifacts.spatial_upscaler.path={tiny_set.file('spatial_upscaler')}")
    result = run_ltxgen("plan", "+recipe=ltx2_two_stage", *words, cwd=tmp_path)
    assert "artifacts.spatial_upscaler.path" in result.err
    assert "is made for LTX-2.3, and this run needs LTX-2" in result.err


def test_ltx2_has_its_own_defaults():
    config = compose.compose_config(["+recipe=ltx2_two_stage"])
    base = config["stages"]["base"]
    assert base["steps"] == 40
    assert [base["guidance"][modality]["stg_blocks"] for modality in ("video", "audio")] == [[29], [29]]
    assert config["stages"]["base_images"]["crf"] == 33
    files = [
        config["artifacts"][name]["candidates"][0] for name in ("checkpoint", "distilled_lora", "spatial_upscaler")
    ]
    assert all(file.startswith("Lightricks/LTX-2/ltx-2-") for file in files)

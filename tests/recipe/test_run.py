"""Whole runs on the embedded model: what they leave, that they repeat, and that they leave nothing when they fail."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ltxgen.artifacts import fusion, load
from ltxgen.artifacts.source import FileSource
from ltxgen.diffusion.numerics import Numerics
from ltxgen.recipe import parts as parts_module
from ltxgen.recipe import plan
from ltxgen.recipe.lock import write_recipe
from ltxgen.recipe.run import whole_folder
from ltxgen.stage.decode_audio import DecodeAudioConfig
from ltxgen.stage.upsample import Upsample

LATENTS_ONLY = ("~stages.decode_video", "~stages.decode_audio", "~stages.write")

# Sizes of the smallest request: 9 frames of 64x64 at 24 a second are 2 x 2 x 2 latents, and 9 of sound.
VIDEO_TOKENS = {"base": 2, "refine": 8}
AUDIO_TOKENS = 9


@pytest.fixture(scope="session")
def plain(stored_run) -> dict[str, torch.Tensor]:
    """Tensors of the run without further words."""
    return load_file(stored_run() / "tensors.safetensors")


def latents(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "tensors.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], *names: str) -> bool:
    return all(torch.equal(a[name], b[name]) for name in names)


def test_a_run_leaves_these_files(stored_run):
    folder = stored_run()
    assert sorted(path.name for path in folder.iterdir()) == [
        "contact_sheet.png",
        "manifest.json",
        "recipe.yaml",
        "tensors.safetensors",
        "video.mp4",
    ]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    umask = os.umask(0)
    os.umask(umask)
    assert set(modes.values()) == {0o666 & ~umask}, modes


def test_the_video_plays(stored_run):
    with av.open(str(stored_run() / "video.mp4")) as video:
        picture, sound = video.streams.video[0], video.streams.audio[0]
        assert (picture.width, picture.height, picture.average_rate) == (64, 64, 24)
        assert sound.codec_context.layout.nb_channels == 2
        assert sum(1 for _ in video.decode(picture)) == 9


def test_tensor_names_and_shapes(plain):
    wanted = {f"context.{modality}.{which}" for modality in ("video", "audio") for which in ("positive", "negative")}
    for stage, (num_steps, num_passes) in {"base": (2, 4), "refine": (3, 1)}.items():
        wanted.add(f"{stage}.sigmas")
        for modality in ("video", "audio"):
            wanted |= {f"{stage}.{what}.{modality}" for what in ("noise", "noised", "positions", "final")}
            wanted |= {f"{stage}.call000.forward{number}.{modality}" for number in range(num_passes)}
            wanted |= {f"{stage}.call{call:03d}.x0.{modality}" for call in range(num_steps)}
    wanted |= {"upsample.video", "decode_video.frames", "frames", "audio.waveform", "audio.mel"}
    assert set(plain) == wanted

    shapes = {name: tuple(tensor.shape) for name, tensor in plain.items()}
    for stage, num_tokens in VIDEO_TOKENS.items():
        side = {"base": 1, "refine": 2}[stage]
        channels = shapes[f"{stage}.final.video"][1]
        assert shapes[f"{stage}.final.video"] == (1, channels, 2, side, side)
        assert shapes[f"{stage}.final.audio"] == (1, 8, AUDIO_TOKENS, 16)
        for what in ("noise", "noised", "call000.forward0", "call001.x0"):
            assert shapes[f"{stage}.{what}.video"] == (1, num_tokens, channels)
            assert shapes[f"{stage}.{what}.audio"] == (1, AUDIO_TOKENS, 128)
        assert shapes[f"{stage}.positions.video"][1:] == (3, num_tokens, 2)
        assert shapes[f"{stage}.positions.audio"][1:] == (1, AUDIO_TOKENS, 2)
    assert shapes["upsample.video"] == shapes["refine.final.video"]
    assert shapes["frames"] == (9, 64, 64, 3)
    assert plain["frames"].dtype == torch.uint8
    exact = plain["decode_video.frames"]
    assert (exact.shape, exact.dtype, exact.abs().max() <= 1) == ((9, 64, 64, 3), torch.float32, True)
    assert torch.equal(((exact + 1) / 2 * 255).to(torch.uint8), plain["frames"])
    assert shapes["audio.waveform"][:2] == (1, 2)
    assert plain["refine.sigmas"].tolist() == pytest.approx([0.909375, 0.725, 0.421875, 0.0])
    assert plain["base.sigmas"].shape == (3,)
    assert all(torch.isfinite(tensor).all() for tensor in plain.values() if tensor.is_floating_point())


def test_the_four_passes_differ_and_make_the_guided_prediction(plain):
    passes = [plain[f"base.call000.forward{number}.video"] for number in range(4)]
    for number, one in enumerate(passes):
        for other in passes[:number]:
            assert not torch.equal(one, other)
    text, negative, stg, isolated = passes
    guided = text + 2 * (text - negative) + 1 * (text - stg) + 2 * (text - isolated)
    guided = guided * (0.7 * text.std() / guided.std() + 0.3)
    torch.testing.assert_close(plain["base.call000.x0.video"], guided, rtol=1e-5, atol=1e-5)


def test_noise_is_drawn_in_the_official_order_and_layout(plain):
    generator = torch.Generator().manual_seed(10)
    for stage in ("base", "refine"):
        for modality in ("video", "audio"):
            noise = plain[f"{stage}.noise.{modality}"]
            assert torch.equal(noise, torch.randn(noise.shape, generator=generator))
    assert torch.allclose(plain["base.noised.video"], plain["base.noise.video"], atol=1e-5)


def test_the_recipe_of_a_run_gives_it_again_bit_for_bit(stored_run, run_ltxgen, tmp_path: Path, plain):
    recipe = stored_run() / "recipe.yaml"
    text = recipe.read_text()
    assert text.startswith("# @package _global_\n# ltxgen +recipe=")
    result = run_ltxgen(f"+recipe={recipe}", "output.tensors=true", cwd=tmp_path)
    assert result.code == 0, result.err
    (folder,) = (tmp_path / "outputs" / "ltx23_two_stage").iterdir()  # a folder of its own, not the first run's
    again = latents(folder)
    assert set(again) == set(plain)
    assert same(plain, again, *plain)
    written = [yaml.safe_load(path.read_text()) for path in (recipe, folder / "recipe.yaml")]
    assert written[0] == written[1]


def test_a_recipe_keeps_text_that_looks_like_an_interpolation(tmp_path: Path):
    from ltxgen.config import compose

    config = compose.compose_config(["+recipe=ltx23_two_stage", r"request.prompt='costs \${5} or \\\${six}'"])
    assert config["request"]["prompt"] == "costs ${5} or \\${six}"
    write_recipe(config, {}, tmp_path / "recipe.yaml")
    words = compose.name_recipe_paths([f"+recipe={tmp_path / 'recipe.yaml'}"])
    assert compose.compose_config(words)["request"]["prompt"] == config["request"]["prompt"]


def test_seeds(stored_run, plain):
    other = latents(stored_run("request.seed=11"))
    finals = ("base.final.video", "base.final.audio", "refine.final.video", "refine.final.audio")
    for name in finals:
        assert not torch.equal(plain[name], other[name]), name
    assert same(plain, other, "context.video.positive", "base.positions.video")


def test_noise_drawn_on_the_device_is_the_same_on_a_cpu(stored_run, plain):
    drawn = latents(stored_run("runtime.noise=device", *LATENTS_ONLY))
    assert same(plain, drawn, "base.noise.video", "refine.noise.audio", "refine.final.video")


def test_the_manifest(stored_run, tiny_set):
    manifest = json.loads((stored_run() / "manifest.json").read_text())
    assert manifest["recipe"] == "ltx23_two_stage"
    assert {"ltxgen", "python", "torch", "transformers", "av", "device"} <= set(manifest["versions"])
    assert manifest["runtime"] == {
        "device": "cpu",
        "dtype": "float32",
        "numerics": "current",
        "noise": "cpu",
        "precision": "none",
        "kernels": "plain",
        "compile": "none",
        "memory": "last_use",
    }
    request = manifest["request"]
    assert (request["seed"], request["height"], request["width"], request["num_frames"]) == (10, 64, 64, 9)
    assert request["fps"] == "24"
    assert set(manifest["artifacts"]) == {"checkpoint", "distilled_lora", "spatial_upscaler", "text_encoder"}
    for name, artifact in manifest["artifacts"].items():
        assert re.fullmatch(r"[0-9a-f]{64}", artifact["sha256"]), name
        assert artifact["file"] == tiny_set.file(name).name
        assert "random" in artifact["why"]
    stages = manifest["stages"]
    images = ["base_images", "refine_images"]
    assert list(stages) == ["prompt", *images, "base", "upsample", "refine", "decode_video", "decode_audio", "write"]
    for name, stage in stages.items():
        assert stage["seconds"] >= 0, name
        assert stage["load_seconds"] >= 0, name
        assert stage["loaded_ahead_seconds"] >= 0, name
        assert stage["peak_bytes"] > 1e6, name
    assert (stages["base"]["passes"], stages["refine"]["passes"]) == ([4, 4], [1, 1, 1])
    assert stages["base"]["tokens"] == {"video": VIDEO_TOKENS["base"], "audio": AUDIO_TOKENS}
    assert stages["refine"]["loras"] == {"distilled": 1.0}
    assert stages["refine"]["sigmas"] == pytest.approx([0.909375, 0.725, 0.421875, 0.0])
    assert stages["prompt"]["prompts"]["negative"].startswith("has_subtitles, ")
    assert stages["decode_audio"]["source"] == "base"
    assert stages["base"]["loaded_ahead_seconds"] > 0  # beside the prompt
    parts = manifest["seconds_of"]
    assert list(parts) == ["starting", "planning", "loading", "stages", "other"]
    assert all(seconds >= 0 for seconds in parts.values())
    assert sum(parts.values()) == pytest.approx(manifest["seconds"], abs=0.01)
    assert sum(stage["seconds"] for stage in stages.values()) == pytest.approx(parts["stages"], abs=0.01)
    assert sum(stage["load_seconds"] for stage in stages.values()) == pytest.approx(parts["loading"], abs=0.01)
    assert 0 < manifest["first_step_seconds"] < manifest["seconds"]


def test_launch_numerics_decode_the_sound_of_refine(stored_run, plain):
    folder = stored_run("runtime.numerics=launch", "~stages.write", "~stages.decode_video")
    stages = json.loads((folder / "manifest.json").read_text())["stages"]
    assert stages["decode_audio"]["source"] == "refine"
    assert "has_subtitles" not in stages["prompt"]["prompts"]["negative"]
    launch = latents(folder)
    assert not torch.equal(launch["audio.mel"], plain["audio.mel"])


@pytest.mark.parametrize(
    ("numerics", "stages", "source", "read"),
    [
        ("current", ("base", "refine"), None, "base"),
        ("launch", ("base", "refine"), None, "refine"),
        ("current", ("base", "refine"), "refine", "refine"),
        ("launch", ("base", "refine"), "base", "base"),
        ("current", ("base", "refine"), "last", "refine"),
        ("launch", ("base",), None, "base"),
        ("current", ("only",), None, "only"),
    ],
)
def test_whose_sound_is_decoded(numerics, stages, source, read):
    numbers = Numerics.named(numerics)
    setting = SimpleNamespace(numerics=numbers, dtype=torch.float32, denoised=stages, last_denoised=stages[-1])
    assert DecodeAudioConfig(source).build("sound", setting).reads == (f"{read}.audio",)


class Loads:
    """What was read of the checkpoint, and which components were built."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.built: list[str] = []
        self.opened: list[str] = []
        start, init = parts_module.Loading, FileSource.__init__

        def loading(name: str, *arguments, **options):
            self.built.append(name)
            return start(name, *arguments, **options)

        def opened(source: FileSource, path: Path) -> None:
            self.opened.append(path.name)
            init(source, path)

        monkeypatch.setattr(parts_module, "Loading", loading)
        monkeypatch.setattr(FileSource, "__init__", opened)


def run_latents(run_ltxgen, tiny_words, folder: Path, *words: str) -> dict[str, torch.Tensor]:
    words = (*LATENTS_ONLY, *words, f"output.dir={folder}", "output.tensors=true")
    result = run_ltxgen(*tiny_words, *words, cwd=folder.parent)
    assert result.code == 0, result.err
    return latents(folder)


def test_refine_takes_the_transformer_of_base(run_ltxgen, tiny_words, tiny_set, tmp_path, monkeypatch, plain):
    loads = Loads(monkeypatch)
    stages: list[str] = []
    apply = fusion.FusedLoras.apply
    monkeypatch.setattr(
        fusion.FusedLoras, "apply", lambda self, loras: stages.append(f"fuse {len(loras)}") or apply(self, loras)
    )
    reader = load.tensor_reader
    monkeypatch.setattr(parts_module, "tensor_reader", lambda *a: stages.append("read again") or reader(*a))
    plan._check.cache_clear()  # other runs of this process had the same files
    made = run_latents(run_ltxgen, tiny_words, tmp_path / "out")
    assert same(made, plain, "refine.final.video")
    assert loads.built.count("transformer") == 1
    assert "fuse 1" in stages
    assert "read again" not in stages
    # Once for what it stores in fp8; once for each of its components in the check and once when that is built. Never
    # for the LoRA.
    checkpoint = tiny_set.file("checkpoint").name
    from_checkpoint = [name for name in loads.built if name not in ("text_encoder", "spatial_upscaler")]
    assert loads.opened.count(checkpoint) == 1 + 2 * len(from_checkpoint)


def test_a_lora_of_strength_0_is_no_lora(stored_run, plain):
    zero = latents(stored_run("stages.refine.loras.distilled=0", *LATENTS_ONLY))
    without = latents(stored_run("~stages.refine.loras.distilled", *LATENTS_ONLY))
    assert same(zero, without, "refine.final.video", "refine.final.audio")
    assert not torch.equal(zero["refine.final.video"], plain["refine.final.video"])
    assert same(zero, plain, "base.final.video")


def test_a_mix_of_loras(stored_run, tiny_set, plain, tmp_path_factory):
    """Half of the distilled LoRA and half of it again, as a user's own file, are the whole of it."""
    mine = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(load_file(tiny_set.file("distilled_lora")), mine)
    words = ("stages.refine.loras.distilled=0.5", "stages.refine.loras.style=0.5", f"artifacts.loras.style.path={mine}")
    folder = stored_run(*words, *LATENTS_ONLY)
    mixed = latents(folder)
    assert same(mixed, plain, "base.final.video", "refine.noised.video", "refine.final.video", "refine.final.audio")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["stages"]["refine"]["loras"] == {"distilled": 0.5, "style": 0.5}
    assert manifest["artifacts"]["loras.style"]["file"] == "style.safetensors"


def test_weights_after_a_lora_is_taken_out_are_the_files(run_ltxgen, tiny_words, tmp_path, plain):
    """A stage without LoRAs behind one with: the transformer is what the checkpoint says."""
    swapped = run_latents(
        run_ltxgen,
        tiny_words,
        tmp_path / "a",
        "stages.base.loras.distilled=1.0",
        "~stages.refine.loras.distilled",
        "stages.refine.video=null",
        "stages.refine.audio=null",
        "~stages.upsample",
    )
    clean = run_latents(
        run_ltxgen,
        tiny_words,
        tmp_path / "b",
        "~stages.refine.loras.distilled",
        "stages.refine.video=null",
        "stages.refine.audio=null",
        "~stages.upsample",
    )
    assert not torch.equal(swapped["base.final.video"], clean["base.final.video"])
    assert same(swapped, clean, "refine.noise.video", "refine.final.video", "refine.final.audio")


FAILURES: dict[str, BaseException] = {
    "error": RuntimeError("the kernel is gone"),
    "interrupt": KeyboardInterrupt(),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failing_run_leaves_nothing(run_ltxgen, tiny_words, tmp_path, monkeypatch, kind):
    def fail(self, *arguments):
        (folder,) = tmp_path.glob("new/deep/.partial-*")
        (folder / "half.txt").write_text("half")
        raise FAILURES[kind]

    monkeypatch.setattr(Upsample, "run", fail)
    result = run_ltxgen(*tiny_words, "output.dir=new/deep", cwd=tmp_path)
    assert result.code == (130 if kind == "interrupt" else 1)
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["video.mp4", "tensors.safetensors"])
def test_a_disk_that_fills_up_leaves_nothing(run_ltxgen, tiny_words, tmp_path, monkeypatch, where):
    full = OSError(errno.ENOSPC, "No space left on device")

    def fails(*arguments, **options):
        raise full

    from ltxgen.recipe import run

    monkeypatch.setattr(
        *{
            "video.mp4": ("ltxgen.media.mp4.whole_file", fails),
            "tensors.safetensors": (run, "save_file", fails),
        }[where]
    )
    less = LATENTS_ONLY if where == "tensors.safetensors" else ()
    result = run_ltxgen(*tiny_words, *less, "output.dir=out", "output.tensors=true", cwd=tmp_path)
    assert result.code == 1
    assert "No space left on device" in result.err
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_is_not_finite_is_not_encoded(run_ltxgen, tiny_words, tmp_path, monkeypatch):
    from ltxgen.models.video_vae import VideoDecoder

    monkeypatch.setattr(VideoDecoder, "forward", lambda self, latents, *rest: torch.full((1, 3, 9, 64, 64), torch.nan))
    result = run_ltxgen(*tiny_words, "stages.decode_video.tiling=null", "output.dir=out", cwd=tmp_path)
    assert result.code == 1
    assert "NaN or infinite" in result.err
    assert list(tmp_path.iterdir()) == []


def test_whole_folder(tmp_path: Path):
    output = tmp_path / "a" / "b"
    with whole_folder(output) as folder:
        (folder / "x.txt").write_text("x")
        assert [path.name for path in output.iterdir()] == [folder.name]
        assert folder.name.startswith(".")
    assert [path.name for path in output.iterdir()] == ["x.txt"]

    def fail_midway():
        with whole_folder(output) as folder:
            (folder / "x.txt").write_text("other")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert (output / "x.txt").read_text() == "x"
    assert [path.name for path in output.iterdir()] == ["x.txt"]


def test_a_folder_holds_one_run(tmp_path: Path):
    """Tensors of an earlier run would be compared as if they were this one's; other files are the user's."""
    for name in ("tensors.safetensors", "video.mp4", "notes.txt"):
        (tmp_path / name).write_text("old")
    with whole_folder(tmp_path) as folder:
        (folder / "video.mp4").write_text("new")
        assert (tmp_path / "tensors.safetensors").exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"video.mp4": "new", "notes.txt": "old"}


def test_a_folder_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(**options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(OSError, match="No space left"), whole_folder(tmp_path / "a" / "b"):
        pass
    assert list(tmp_path.iterdir()) == []

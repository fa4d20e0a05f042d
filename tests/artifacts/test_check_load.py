"""Checks and strict loading of the embedded model's files, whole and broken in every way a user meets."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltxgen.artifacts import load
from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.check import check_artifacts, is_whole
from ltxgen.artifacts.components import COMPONENT_NAMES, COMPONENTS, BuildOptions, artifact_of
from ltxgen.artifacts.load import load_component, tensor_reader
from ltxgen.artifacts.safetensors_file import SafetensorsFile
from ltxgen.artifacts.source import FileSource
from ltxgen.artifacts.tiny import FILES, write_embedded_model
from ltxgen.artifacts.tokenizer import load_tokenizer
from ltxgen.config.errors import Refusal

ALL = list(COMPONENT_NAMES)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_embedded_model(folder)
    return folder


@pytest.fixture
def artifacts(tiny: Path) -> dict[str, ResolvedArtifact]:
    return {name: artifact(name, tiny / file) for name, file in FILES.items()}


def artifact(name: str, path: Path) -> ResolvedArtifact:
    return ResolvedArtifact(name, path, place="test", reason="test", config_path=f"artifacts.{name}.path")


def rewritten(
    source: Path,
    target: Path,
    change: Callable[[dict[str, torch.Tensor], dict[str, str]], None],
) -> Path:
    """A copy of a safetensors file with other tensors or metadata."""
    tensors = load_file(source)
    with SafetensorsFile(source) as file:
        metadata = dict(file.header.metadata)
    change(tensors, metadata)
    save_file(tensors, target, metadata)
    return target


def messages(artifacts: dict[str, ResolvedArtifact], components=ALL) -> list[str]:
    return [str(problem) for problem in check_artifacts(artifacts, components).problems]


def test_the_embedded_model_passes(artifacts):
    result = check_artifacts(artifacts, ALL)
    assert result.problems == ()
    assert result.notes == ()


def test_a_broken_file_of_a_component_that_is_not_needed_does_not_matter(artifacts, tmp_path: Path):
    broken = artifacts | {"spatial_upscaler": artifact("spatial_upscaler", tmp_path / "none")}
    assert messages(broken, ["video_decoder"]) == []
    assert len(messages(broken)) == 1


def test_missing_unexpected_and_misshapen_tensors_are_named(artifacts, tmp_path: Path):
    def change(tensors, metadata):
        del tensors["vae.decoder.conv_in.conv.bias"]
        tensors["vae.decoder.extra.weight"] = torch.zeros(1)
        tensors["vae.decoder.conv_out.conv.bias"] = torch.zeros(3)
        tensors["unknown_part.weight"] = torch.zeros(1)
        tensors["vae.per_channel_statistics.mean-of-stds"] = torch.zeros(128)

    path = rewritten(artifacts["checkpoint"].path, tmp_path / "c.safetensors", change)
    changed = artifacts | {"checkpoint": artifact("checkpoint", path)}
    text = messages(changed)
    assert len(text) == 3
    assert all(line.startswith(f"artifacts.checkpoint.path = {path}: ") for line in text)
    assert "lacks 1 of" in text[0]
    assert "vae.decoder.conv_in.conv.bias" in text[0]
    assert "vae.decoder.extra.weight" in text[1]
    assert "vae.decoder.conv_out.conv.bias is [3], must be [48]" in text[2]
    # The same reasons stop the loader, and other components of the file load.
    with pytest.raises(Refusal, match=r"lacks 1 of .*vae\.decoder\.extra\.weight.*is \[3\], must be \[48\]"):
        load_component("video_decoder", changed["checkpoint"], "cpu", torch.float32)
    load_component("video_encoder", changed["checkpoint"], "cpu", torch.float32)


def test_a_file_of_another_kind(artifacts):
    swapped = artifacts | {"checkpoint": replace(artifacts["checkpoint"], path=artifacts["spatial_upscaler"].path)}
    (line,) = messages(swapped, ["vocoder"])
    assert "holds no `vocoder` section" in line
    (line,) = messages(
        artifacts | {"checkpoint": artifact("checkpoint", artifacts["distilled_lora"].path)}, ["vocoder"]
    )
    assert "has no `config` in its safetensors metadata" in line


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ("{}", "holds no `vae` section"),
        ('{"vae": {"encoder_blocks": [["what", {}]]}}', "what"),
        ('{"vae": {"encoder_blocks": 3}}', "can't be built"),
    ],
)
def test_broken_configs(artifacts, tmp_path: Path, config: str, part: str):
    def change(tensors, metadata):
        metadata["config"] = config

    path = rewritten(artifacts["checkpoint"].path, tmp_path / "c.safetensors", change)
    lines = messages({"checkpoint": artifact("checkpoint", path)}, ["video_decoder"])
    assert any(part in line for line in lines), lines


def test_truncated_and_lfs_files(artifacts, tmp_path: Path):
    short = tmp_path / "short.safetensors"
    short.write_bytes(artifacts["checkpoint"].path.read_bytes()[:-100])
    pointer = tmp_path / "pointer.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    broken = artifacts | {
        "checkpoint": artifact("checkpoint", short),
        "distilled_lora": artifact("distilled_lora", pointer),
        "spatial_upscaler": artifact("spatial_upscaler", tmp_path),
    }
    text = messages(broken)
    assert len(text) == 3
    assert "truncated" in text[0]
    assert "Git LFS pointer" in text[1]
    assert "is a folder" in text[2]
    assert not is_whole(broken["checkpoint"])
    with pytest.raises(Refusal, match="truncated"):
        load_component("vocoder", broken["checkpoint"], "cpu", torch.float32)


def test_upscalers_of_the_other_kind_and_of_other_latents(artifacts, tmp_path: Path):
    def change(tensors, metadata):
        metadata["config"] = json.dumps(json.loads(metadata["config"]) | {"in_channels": 64, "temporal_upsample": True})

    path = rewritten(artifacts["spatial_upscaler"].path, tmp_path / "u.safetensors", change)
    changed = artifacts | {"spatial_upscaler": artifact("spatial_upscaler", path)}
    text = "\n".join(messages(changed, ["spatial_upscaler", "video_decoder"]))
    assert "is a temporal upscaler, but a spatial one is wanted" in text
    assert "latents of 64 channels, but the checkpoint's have 128" in text


@pytest.fixture
def gemma(artifacts, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifacts["text_encoder"].path, tmp_path / "gemma"))


def edit_config(folder: Path, **text_config) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].update(text_config)
    (folder / "config.json").write_text(json.dumps(config))


def test_another_gemma(artifacts, gemma: Path):
    edit_config(gemma, hidden_size=32)
    text = "\n".join(messages(artifacts | {"text_encoder": artifact("text_encoder", gemma)}))
    assert "another Gemma than the checkpoint was trained with: hidden_size 32 × (6 layers + 1) = 224 features" in text
    assert "takes 448" in text
    assert "in other shapes" in text


@pytest.mark.parametrize(
    ("break_it", "part"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "lacks its tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_bytes(b""), "tokenizer.json is empty"),
        (lambda folder: (folder / "config.json").unlink(), "lacks config.json"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "gemma2"}'),
            "is a gemma2, must be Gemma 3",
        ),
        (
            lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(),
            "lacks 1 of 2 weight files: model-00002",
        ),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "holds neither"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "index.json is broken"),
        (
            lambda folder: (folder / "model-00001-of-00002.safetensors").write_text(
                "version https://git-lfs.github.com/spec/v1\n"
            ),
            "model-00001-of-00002.safetensors is a Git LFS pointer",
        ),
        (lambda folder: edit_config(folder, num_hidden_layers=7), "lacks"),
    ],
)
def test_broken_text_encoder_folders(artifacts, gemma: Path, break_it, part: str):
    break_it(gemma)
    lines = messages(artifacts | {"text_encoder": artifact("text_encoder", gemma)})
    assert lines
    assert all(line.startswith(f"artifacts.text_encoder.path = {gemma}: ") for line in lines)
    assert any(part in line for line in lines), lines


def test_a_gemma_in_one_file_under_another_prefix_with_a_vision_tower(artifacts, gemma: Path):
    with FileSource(gemma) as source:
        keys = list(source.shapes)
        tensors = {key: source.read(key, torch.device("cpu"), torch.bfloat16) for key in keys}
    for part in gemma.glob("model*"):
        part.unlink()
    renamed = {f"model.{key.replace('language_model.model.', 'language_model.')}": t for key, t in tensors.items()}
    assert any(key.startswith("model.vision_tower.") for key in renamed)
    save_file(renamed, gemma / "model.safetensors")
    one_file = artifact("text_encoder", gemma)
    assert messages(artifacts | {"text_encoder": one_file}) == []
    ours = load_component("text_encoder", one_file, "cpu", torch.float32).state_dict()
    expected = load_component("text_encoder", artifacts["text_encoder"], "cpu", torch.float32).state_dict()
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", [name for name in ALL if name in COMPONENTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_components_hold_the_file_s_values(artifacts, name: str, dtype: torch.dtype):
    spec, source = COMPONENTS[name], artifacts[artifact_of(name)]
    with torch.inference_mode():
        module = load_component(name, source, "cpu", dtype)
    assert not module.training
    with FileSource(source.path) as file:
        file_keys = spec.file_keys(file.shapes)
        for key, tensor in module.state_dict().items():
            assert tensor.dtype == dtype
            assert not tensor.requires_grad
            assert not tensor.is_inference()
            assert torch.equal(tensor, file.read(file_keys[key], torch.device("cpu"), dtype))


def test_text_encoder_and_tokenizer_work_after_loading(artifacts):
    ids, mask = load_tokenizer(artifacts["text_encoder"])("A red kite over a green field.")
    encoder = load_component("text_encoder", artifacts["text_encoder"], "cpu", torch.float32)
    projection = load_component("text_projection", artifacts["checkpoint"], "cpu", torch.float32)
    with torch.inference_mode():
        states = encoder(ids[:, -64:], mask[:, -64:])
        video, audio = projection(states, mask[:, -64:])
    assert states.shape == (1, 64, 64, 7)
    assert states.isfinite().all()
    assert (video.shape, audio.shape) == ((1, 64, 128), (1, 64, 64))


def test_build_options_reach_the_transformer(artifacts):
    options = BuildOptions(cross_timestep="other")
    assert (
        load_component("transformer", artifacts["checkpoint"], "cpu", torch.float32, options).cross_timestep == "other"
    )


def test_one_stored_tensor_is_held_beyond_the_component(artifacts, monkeypatch: pytest.MonkeyPatch):
    """When a tensor is read, every tensor read before it is gone or is part of the component."""
    import weakref

    stored: list[weakref.ref] = []
    alive_at_read: list[int] = []
    read = SafetensorsFile.read

    def counting(self, key, *rows):
        alive_at_read.append(sum(ref() is not None for ref in stored))
        tensor = read(self, key, *rows)
        stored.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(SafetensorsFile, "read", counting)
    # The file is bf16 (tables fp32): in fp64 every tensor is cast, so no stored tensor is part of the component.
    module = load_component("video_connector", artifacts["checkpoint"], "cpu", torch.float64)
    assert len(alive_at_read) == len(module.state_dict())
    assert max(alive_at_read) == 0


def test_peak_of_host_memory(tmp_path: Path):
    """Resident memory while 64 MB in bf16 become 128 MB in fp32: the component, one tensor, and 10 %."""
    import subprocess
    import sys

    folder = tmp_path / "big"
    folder.mkdir()
    config = {"in_channels": 128, "mid_channels": 640, "num_blocks_per_stage": 1}
    with torch.device("meta"):
        module = COMPONENTS["spatial_upscaler"].build(config, BuildOptions())
    tensors = {key: torch.ones(t.shape, dtype=torch.bfloat16) for key, t in module.state_dict().items()}
    save_file(tensors, folder / "u.safetensors", {"config": json.dumps(config)})
    script = """
import resource, sys, torch
from pathlib import Path
from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.load import load_component, build_on_meta
from ltxgen.artifacts.components import COMPONENTS, BuildOptions
torch.set_num_threads(1)
artifact = ResolvedArtifact("spatial_upscaler", Path(sys.argv[1]), "", "")
build_on_meta(COMPONENTS["spatial_upscaler"], artifact, BuildOptions(), {})
torch.ones(1000).bfloat16().float()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
module = load_component("spatial_upscaler", artifact, "cpu", torch.float32)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
sizes = [t.numel() * 4 for t in module.state_dict().values()]
print(after - before, sum(sizes), max(sizes))
"""
    output = subprocess.run(
        [sys.executable, "-c", script, str(folder / "u.safetensors")], check=True, capture_output=True, text=True
    ).stdout
    grown, component, largest = map(int, output.split())
    assert grown < 1.1 * component + largest


def test_single_tensors_can_be_read_again(artifacts):
    module = load_component("transformer", artifacts["checkpoint"], "cpu", torch.float32)
    with tensor_reader("transformer", artifacts["checkpoint"], torch.float32) as read:
        assert torch.equal(read("proj_out.weight", torch.device("cpu")), module.get_parameter("proj_out.weight"))


def test_progress_names_every_tensor(artifacts):
    seen: list[tuple[str, int]] = []
    module = load_component(
        "video_statistics", artifacts["checkpoint"], "cpu", torch.float32, on_tensor=lambda *tensor: seen.append(tensor)
    )
    assert sorted(seen) == sorted((key, 128 * 4) for key in module.state_dict())


def test_names_are_shortened():
    assert load.first_names([str(n) for n in range(7)]) == "0, 1, 2, 3, 4, and 2 more"
    assert load.first_names(["a"]) == "a"

"""The synthetic source and the embedded model: seeded, finite, complete, safe to make concurrently."""

import filecmp
import json
import math
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch

from ltxgen.artifacts import seeded, tiny
from ltxgen.artifacts.artifact import ArtifactSpec
from ltxgen.artifacts.components import COMPONENTS, BuildOptions
from ltxgen.artifacts.fusion import FusedLoras
from ltxgen.artifacts.load import load_component
from ltxgen.artifacts.safetensors_file import read_header
from ltxgen.artifacts.seeded import seeded_tensor
from ltxgen.artifacts.source import weight_files
from ltxgen.artifacts.synthetic import SyntheticSource, architecture, synthetic_artifact
from ltxgen.artifacts.tiny import FILES, EmbeddedModel, embedded_artifact, embedded_folder, write_embedded_model
from ltxgen.artifacts.tokenizer import load_tokenizer
from ltxgen.config.errors import Problem


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    write_embedded_model(folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Path) -> Path:
    """An empty cache folder in which building copies what was built once."""
    monkeypatch.setenv("LTXGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        tiny, "write_embedded_model", lambda folder, model: shutil.copytree(built, folder, dirs_exist_ok=True)
    )
    return tmp_path / "cache"


def synthetic(name: str, seed: int = 0):
    return synthetic_artifact(ArtifactSpec(name, source="synthetic", architecture="ltx23_tiny", seed=seed))


# --- seeded tensors ---


def test_a_tensor_depends_on_seed_and_key_only():
    one = seeded_tensor(1, "a.weight", (4, 8))
    seeded_tensor(1, "b.weight", (4, 8))
    assert torch.equal(one, seeded_tensor(1, "a.weight", (4, 8)))
    assert not torch.equal(one, seeded_tensor(1, "b.weight", (4, 8)))
    assert not torch.equal(one, seeded_tensor(2, "a.weight", (4, 8)))


def test_rows_are_those_of_the_whole_tensor():
    source = SyntheticSource({"block.weight": (6, 4)}, seed=1)
    whole = source.read("block.weight", torch.device("cpu"), torch.float32)
    rows = source.read("block.weight", torch.device("cpu"), torch.float32, slice(2, 5))
    assert torch.equal(rows, whole[2:5])
    assert rows.untyped_storage().nbytes() == rows.nbytes


def test_scale_by_role():
    weight = seeded_tensor(0, "x.to_q.weight", (512, 256))
    assert weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert (seeded_tensor(0, "vae.per_channel_statistics.std-of-means", (128,)) > 0.5).all()
    assert seeded_tensor(0, "x.q_norm.weight", (512,)).mean().item() == pytest.approx(1, abs=0.01)
    # Gemma's norms multiply by 1 + weight.
    norm = seeded_tensor(0, "model.norm.weight", (512,), component="text_encoder")
    assert norm.mean().item() == pytest.approx(0, abs=0.01)


def test_vocoder_filter_has_its_real_values():
    expected = [0.00202896, 0.00938947, -0.02554346, -0.05765738, 0.12857258, 0.44320980]
    filtered = seeded_tensor(0, "vocoder.x.upsample.filter", (1, 1, 12)).flatten()
    torch.testing.assert_close(filtered[:6], torch.tensor(expected), rtol=0, atol=1e-7)
    assert torch.equal(filtered, filtered.flip(0))


def test_spectrogram_bases_equal_torch_s():
    waveform = torch.randn(1, 2048, generator=torch.Generator().manual_seed(0))
    basis = seeded.stft_basis(512)
    ours = torch.nn.functional.conv1d(waveform[:, None], basis, stride=80)
    theirs = torch.stft(
        waveform, 512, 80, window=torch.hann_window(512), center=False, return_complex=True, onesided=True
    )
    torch.testing.assert_close(ours[:, :257], theirs.real, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[:, 257:], theirs.imag, rtol=1e-4, atol=1e-4)


def test_mel_filters_are_slaney_s():
    basis = seeded.mel_basis(64, 257)
    edges = torch.linspace(0, 8000, 257)
    peaks = edges[basis.argmax(1)]
    assert (peaks.diff() >= 0).all()
    assert (basis >= 0).all()
    # Slaney's norm: every triangle has area 1, sampled here at 31.25 Hz.
    assert basis[32:].sum(1).mul(8000 / 256).sub(1).abs().max() < 0.05


def test_blur_kernel_is_binomial():
    kernel = seeded_tensor(0, "upsampler.blur_down.kernel", (1, 1, 5, 5))
    assert kernel.sum().item() == pytest.approx(1)
    assert kernel[0, 0, 2, 2].item() == 36 / 256


# --- the synthetic source ---


def test_synthetic_components_are_seeded_and_finite():
    one = load_component("video_decoder", synthetic("checkpoint"), "cpu", torch.float32)
    two = load_component("video_decoder", synthetic("checkpoint"), "cpu", torch.float32)
    other = load_component("video_decoder", synthetic("checkpoint", seed=1), "cpu", torch.float32)
    key = "conv_in.conv.weight"
    assert torch.equal(one.get_parameter(key), two.get_parameter(key))
    assert not torch.equal(one.get_parameter(key), other.get_parameter(key))
    with torch.inference_mode():
        frames = one(torch.randn(1, 128, 2, 2, 3, generator=torch.Generator().manual_seed(0)))
    assert frames.shape == (1, 3, 9, 64, 96)
    assert frames.isfinite().all()
    assert 0.1 < frames.std() < 3


def test_synthetic_sound_is_finite_and_not_clipped():
    decoder = load_component("audio_decoder", synthetic("checkpoint"), "cpu", torch.float32)
    vocoder = load_component("vocoder", synthetic("checkpoint"), "cpu", torch.float32)
    with torch.inference_mode():
        sound = vocoder(decoder(torch.randn(1, 8, 6, 16, generator=torch.Generator().manual_seed(0))))
    assert sound.shape == (1, 2, 480 * 21)
    assert sound.isfinite().all()
    assert 0.001 < sound.std() < 0.7


def test_synthetic_lora_fuses_into_every_linear_layer():
    options = BuildOptions(num_text_states=7)
    transformer = load_component("transformer", synthetic("checkpoint"), "cpu", torch.bfloat16, options)
    fusion = FusedLoras(transformer).apply([(synthetic("distilled_lora"), 1.0)])
    assert len(fusion.modules) == sum(isinstance(module, torch.nn.Linear) for module in transformer.modules())
    assert all(parameter.isfinite().all() for parameter in transformer.parameters())


def test_synthetic_needs_no_file_for_the_tokenizer(cache: Path):
    artifact = synthetic("text_encoder")
    assert artifact.is_synthetic
    assert artifact.size == 0
    assert artifact.sha256 is None
    ids, mask = load_tokenizer(artifact)("A harbour.")
    assert ids.shape == mask.shape == (1, 1024)


def test_architecture_of_the_22b_model():
    configs = architecture("ltx23_22b")
    assert configs["checkpoint"]["transformer"]["num_layers"] == 48
    assert configs["distilled_lora"] == {"rank": 384}
    text = configs["text_encoder"]["text_config"]
    assert text["hidden_size"] * (text["num_hidden_layers"] + 1) == 188160
    with pytest.raises(ValueError, match=r"ltx23_22b, ltx23_tiny, ltx2_19b, ltx2_tiny; did you mean 'ltx23_tiny'\?"):
        architecture("ltx23_tny")


# --- the embedded model ---


def test_two_builds_are_equal_byte_for_byte(built: Path, tmp_path: Path):
    write_embedded_model(tmp_path)
    names = sorted(file.relative_to(built).as_posix() for file in built.rglob("*") if file.is_file())
    assert names == sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file())
    _, mismatch, errors = filecmp.cmpfiles(built, tmp_path, names, shallow=False)
    assert (mismatch, errors) == ([], [])


def test_official_on_disk_format(built: Path):
    header = read_header(built / FILES["checkpoint"])
    assert header.metadata["model_version"] == "2.3.0-tiny"
    config = json.loads(header.metadata["config"])
    assert set(config) == {"transformer", "vae", "audio_vae", "vocoder", "scheduler"}
    real = architecture("ltx23_22b")["checkpoint"]
    for section in config:  # every key of the published config is there, none more
        assert config[section].keys() == real[section].keys()
    stored = {(("scale_shift_table" in key), info.dtype) for key, info in header.tensors.items()}
    assert stored == {(True, "F32"), (False, "BF16")}
    assert config["vae"]["latent_channels"] == 128
    gemma = built / FILES["text_encoder"]
    assert len(weight_files(gemma)) == 2
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"} <= {
        file.name for file in gemma.iterdir()
    }
    assert "RANDOM" in (built / "README.md").read_text()
    total = sum(file.stat().st_size for file in built.rglob("*") if file.is_file())
    assert total < 50_000_000


def test_vae_compression_and_latent_sizes_are_the_published_ones():
    from ltxgen.models.video_vae import VideoVAEConfig

    vae = VideoVAEConfig.from_metadata(architecture("ltx23_tiny")["checkpoint"]["vae"])
    assert (vae.time_compression, vae.space_compression, vae.latent_channels) == (8, 32, 128)


def test_tokenizer_has_gemma_s_special_ids_and_reads_any_text(built: Path):
    from transformers import AutoTokenizer

    folder = built / FILES["text_encoder"]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert [tokenizer.convert_tokens_to_ids(token) for token in ("<pad>", "<eos>", "<bos>", "<unk>")] == [0, 1, 2, 3]
    text = "A red kite, ünïcode 猫 🪁"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == 2
    assert 3 not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def made_in(cache: Path) -> list[str]:
    """What is there but the lock, which stays."""
    return [entry.name for entry in cache.iterdir() if entry.name != ".ltx23_tiny.lock"]


def test_made_once_then_found(cache: Path, monkeypatch: pytest.MonkeyPatch):
    folder = embedded_folder()
    assert folder.parent == cache
    monkeypatch.setattr(tiny, "write_embedded_model", lambda *_: pytest.fail("built again"))
    assert embedded_folder() == folder
    artifact = embedded_artifact(ArtifactSpec("checkpoint", source="embedded"))
    assert artifact.path == folder / FILES["checkpoint"]
    assert "random" in artifact.reason
    assert made_in(cache) == [folder.name]


def test_a_damaged_folder_is_made_again(cache: Path):
    folder = embedded_folder()
    file = folder / FILES["checkpoint"]
    size = file.stat().st_size
    os.truncate(file, 1000)
    assert embedded_folder() == folder
    assert file.stat().st_size == size
    assert made_in(cache) == [folder.name]


def test_a_build_that_fails_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def full(folder: Path, model: EmbeddedModel) -> None:
        (folder / "half").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiny, "write_embedded_model", full)
    problem = embedded_artifact(ArtifactSpec("checkpoint", source="embedded"))
    assert isinstance(problem, Problem)
    assert "No space left on device" in problem.message
    assert "LTXGEN_CACHE" in problem.message
    assert made_in(cache) == []


def test_what_a_killed_build_left_goes(cache: Path):
    left = cache / ".ltx23_tiny.partial"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    assert made_in(cache) == [left.name]
    folder = embedded_folder()
    assert not (folder / "half").exists()
    assert made_in(cache) == [folder.name]


def _make(cache: str, source: str, barrier, results) -> None:
    os.environ["LTXGEN_CACHE"] = cache
    builds = []

    def slow(folder: Path, model: EmbeddedModel) -> None:
        builds.append(folder)
        shutil.copytree(source, folder, dirs_exist_ok=True)

    tiny.write_embedded_model = slow
    barrier.wait(30)  # all begin at once
    results.put((str(embedded_folder()), len(builds)))


def test_concurrent_processes_agree(tmp_path: Path, built: Path):
    """One builds, the others wait for it."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    cache = tmp_path / "cache"
    workers = [context.Process(target=_make, args=(str(cache), str(built), barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    (folder,) = {Path(path) for path, _ in found}
    assert sum(builds for _, builds in found) == 1
    assert made_in(cache) == [folder.name]
    assert tiny._is_complete(folder)


def test_what_the_embedded_model_lacks(cache: Path):
    problem = embedded_artifact(ArtifactSpec("diffusion_decoder", source="embedded"))
    assert isinstance(problem, Problem)
    assert "has no diffusion_decoder" in problem.message


def test_cache_folder_by_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from ltxgen.artifacts.cache_folder import cache_folder

    monkeypatch.delenv("LTXGEN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "ltxgen"
    monkeypatch.setenv("LTXGEN_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_every_checkpoint_component_is_in_the_file(built: Path):
    keys = read_header(built / FILES["checkpoint"]).tensors
    claimed = set()
    for spec in COMPONENTS.values():
        if spec.artifact == "checkpoint":
            claimed |= set(spec.file_keys(keys).values())
    assert claimed == set(keys)
    assert math.prod(keys["vae.per_channel_statistics.std-of-means"].shape) == 128

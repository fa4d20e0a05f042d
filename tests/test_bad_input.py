"""Bad input is refused with its own message and exit code 2, before any weight is loaded and with nothing written."""

from __future__ import annotations

import copy
import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltxgen.artifacts.safetensors_file import SafetensorsFile
from ltxgen.config import compose
from ltxgen.config.errors import Refusal
from ltxgen.config.recipe import parse_recipe
from ltxgen.recipe.plan import make_plan

FIXED = "+recipe=ltx23_two_stage"


@pytest.fixture
def refuse(run_ltxgen, tiny_words, tmp_path_factory, monkeypatch):
    """`refuse(*words)`: what is told; the command must not read a tensor and must leave its folder empty."""

    def no_weights(*arguments, **options):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(SafetensorsFile, "read", no_weights)
    monkeypatch.setattr("ltxgen.recipe.parts.Loading", no_weights)

    def refused(*words: str) -> str:
        folder = tmp_path_factory.mktemp("refused")
        result = run_ltxgen(*tiny_words, "output.dir=out/deep", *words, cwd=folder)
        assert result.code == 2, (result.code, result.err)
        assert result.out == ""
        assert "Traceback" not in result.err
        assert result.err.startswith("ltxgen: ")
        assert list(folder.iterdir()) == []
        return result.err

    return refused


@pytest.fixture(scope="session")
def plain_config(tiny_set, tiny_words) -> dict[str, Any]:
    return compose.compose_config([*tiny_words, "output.dir=out"])


@pytest.fixture
def refuse_files(plain_config, offline, monkeypatch, tmp_path_factory):
    """`refuse_files("artifacts.checkpoint.path=FILE")`: what the plan tells of files, without the command line around
    it (as slow as the check itself)."""

    def no_weights(*arguments, **options):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(SafetensorsFile, "read", no_weights)
    monkeypatch.chdir(tmp_path_factory.mktemp("refused"))

    def refused(*words: str) -> str:
        config = copy.deepcopy(plain_config)
        for word in words:
            path, _, value = word.partition("=")
            *parents, key = path.split(".")
            node = config
            for name in parents:
                node = node.setdefault(name, {})
            node[key] = yaml.safe_load(value)
        with pytest.raises(Refusal) as caught:
            make_plan(parse_recipe(config)).require()
        assert list(Path.cwd().iterdir()) == []
        return str(caught.value)

    return refused


# Each row: one wrong word and what is told about it. The words of a batch are given together: all are told at once,
# each with its own message, and nothing else.
VALUES = [
    {
        "request.height=0": "request.height = 0: must be a whole number of at least 1",
        "request.width=-64": "request.width = -64: must be a whole number of at least 1",
        "request.num_frames=0": "request.num_frames = 0: must be a whole number of at least 1",
        "request.fps=0": "request.fps = 0: must be greater than 0",
        "request.seed=-1": "request.seed = -1: must be between 0 and 2^63 - 1",
        "runtime.threads=0": "runtime.threads = 0: must be a whole number of at least 1",
        "runtime.device=cud": "runtime.device = cud: must be one of auto, cpu, cuda; did you mean 'cuda'?",
        "runtime.dtype=float16": "must be one of float32, bfloat16; did you mean 'bfloat16'?",
        "runtime.numerics=now": "runtime.numerics = now: must be one of current, launch",
        "runtime.noise=gpu": "runtime.noise = gpu: must be one of cpu, device; did you mean 'cpu'?",
        "memory.policy=all": "memory.policy = all: must be one of auto, resident, last_use, swap, stream",
        "stages.base.steps=0": "stages.base.steps = 0: must be at least 2",
        "stages.base.scale=0": "stages.base.scale = 0: must be greater than 0",
        "stages.base.guidance.video.skip_step=-1": "video.skip_step = -1: must be a whole number of at least 0",
        "stages.base.guidance.video.cfg_scale=nan": "video.cfg_scale = nan: must be a finite number",
        "stages.base.guidance.audio.rescale_scale=inf": "audio.rescale_scale = inf: must be a finite number",
        "stages.base.guidance.audio.stg_blocks=[-1]": "audio.stg_blocks[0] = -1: must be a whole number of at least 0",
        "stages.refine.loras.distilled=nan": "stages.refine.loras.distilled = nan: must be a finite number",
        "stages.refine.sigmas=[0.9,nan,0]": "stages.refine.sigmas[1] = nan: must be a finite number",
        "stages.write.crf=-1": "stages.write.crf = -1: must be between 0 (lossless) and 51",
        "stages.write.preset=quick": "stages.write.preset = quick: must be one of",
        "+request.prompts=x": "request.prompts: is not a known key",
    },
    {
        "request.num_frames=100": "request.num_frames = 100: must be 8k + 1; the nearest are 97 and 105",
        "request.height=nan": "request.height = nan: must be a whole number",
        "request.width=64.5": "request.width = 64.5: must be a whole number",
        "request.fps=-24": "request.fps = -24: must be greater than 0",
        "request.seed=1.5": "request.seed = 1.5: must be a whole number",
        "stages.base.steps=1": "stages.base.steps = 1: must be at least 2",
        "stages.base.sampler.kind=eular": "stages.base.sampler.kind = eular: must be one of",
        "+stages.extra.kind=denoize": "stages.extra.kind = denoize: must be one of",
    },
    {
        "request.num_frames=-7": "request.num_frames = -7: must be a whole number of at least 1",
        "request.fps=nan": "request.fps = nan: must be a number or a fraction",
        "stages.base.steps=-3": "stages.base.steps = -3: must be at least 2",
    },
    {"request.fps=24/0": "request.fps = 24/0: must be a number or a fraction"},
    {"request.fps=inf": "request.fps = inf: must be a number or a fraction"},
    {
        "request.heigth=64": "request.heigth = 64: is not a known key; did you mean 'request.height'?",
        "attention=sdpaa": "attention = sdpaa: no such choice; there are",
    },
]
PLANS = [
    {
        "request.height=96": "height = 96: must be a multiple of 64 in this recipe; the nearest are 64 and 128",
        "request.width=32": "width = 32: must be a multiple of 64 in this recipe; the smallest is 64",
        "stages.refine.sigmas=[0.5]": "stages.refine.sigmas = [0.5]: must hold at least two levels",
        "stages.write.frames=nothing": "stages.write = nothing: no earlier stage writes what it reads",
        "stages.decode_audio.source=nowhere": "stages.decode_audio = nowhere.audio: no earlier stage writes",
        "stages.refine.loras.distiled=1": "stages.refine.loras.distiled = 1.0: no such LoRA; name its file with "
        "artifacts.loras.distiled.path=FILE; did you mean 'distilled'?",
        "request.images=[{path: a.png}]": "request.images[0].path = a.png: can't be read as a picture (No such",
        "artifacts.checkpoint.path=none.safetensors": "checkpoint.path = none.safetensors: does not exist",
        "artifacts.text_encoder.path=nowhere": "artifacts.text_encoder.path = nowhere: does not exist",
        "stages.decode_video.tiling.spatial_tile_px=100": "spatial_tile_px = 100: must be a multiple of 32",
        "stages.decode_video.tiling.temporal_tile_frames=33": "temporal_tile_frames = 33: must be",
        "stages.decode_video.kernels=fused": "kernels = fused: need an NVIDIA GPU, and this is cpu; take auto or plain",
    },
    {
        "stages.base.sigmas=[1,0]": "stages.base.steps = 2: set either it or stages.base.sigmas, the other to null",
        "stages.refine.sigmas=[0.5,0.7,0]": "must fall strictly, but 0.7 follows 0.5",
    },
    {
        "stages.base.steps=null": "stages.base.steps = None: set either it or stages.base.sigmas",
        "stages.refine.sigmas=[0.5,0.1]": "must end in 0, not in 0.1",
    },
    {
        "stages.base.schedule.tokens=200000": "stages.base.schedule = ltx2: 200000 tokens: too many for this schedule",
        "stages.base.guidance.video.stg_blocks=[4]": "video.stg_blocks = [4]: must be between 0 and 3, this",
        "stages.base.guidance.audio.stg_blocks=[]": "audio.stg_blocks: must name a block when stg_scale is not 0",
        "stages.refine.sigmas=[1.5,0]": "must hold levels between 0 and 1 only",
        "stages.prompt.negative=false": "needs the negative prompt, which the prompt stage leaves out",
    },
    {"request.fps=1e9": "request.fps = 1000000000: too high"},
    {"stages.refine.video=base.video": "stages.refine.video = base.video: holds 2x1x1 latents"},
    {"stages.base.scale=1": "stages.refine.video = upsample.video: holds 2x4x4 latents"},
]


@pytest.mark.parametrize("batch", [*VALUES, *PLANS], ids=lambda batch: next(iter(batch)).split("=")[0].lstrip("+"))
def test_a_bad_request(refuse, batch: dict[str, str]):
    told = refuse(*batch)
    for word, message in batch.items():
        assert message in told, word
    count = f"{len(batch)} things to change:\n" if len(batch) > 1 else ""
    assert told.startswith(f"ltxgen: {count}"), told
    assert told.count("\n") == len(batch) + bool(count)


def test_a_stage_too_few(refuse):
    told = refuse("~stages.base")
    for reader, value in (("upsample", "base.video"), ("refine", "base.audio")):
        assert f"stages.{reader} = {value}: no earlier stage writes what it reads; written so far: " in told


def test_everything_at_once(refuse):
    told = refuse("request.height=100", "request.num_frames=11", "artifacts.checkpoint.path=none", "~stages.upsample")
    # Values first: what is wrong with them decides what else can be known.
    assert "request.num_frames = 11" in told
    told = refuse("request.height=100", "artifacts.checkpoint.path=none", "~stages.upsample", "stages.refine.loras.x=1")
    assert told.startswith("ltxgen: 4 things to change:")
    for part in ("request.height = 100", "artifacts.checkpoint.path = none", "upsample.video", "no such LoRA"):
        assert part in told


# Files


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as stored:
        return stored.metadata()


@pytest.fixture
def copied(tiny_set, tmp_path: Path):
    """A copy of one artifact of the embedded model, under another name if need be."""

    def copy(artifact: str, name: str | None = None) -> Path:
        source = tiny_set.file(artifact)
        target = tmp_path / (name or source.name)
        return Path(shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target))

    return copy


ARTIFACTS = ("checkpoint", "distilled_lora", "spatial_upscaler")


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0.5, "is truncated: "),
        (100, "is truncated: 100 bytes, but its header alone needs"),
        (5, "is 5 bytes long, too short"),
        (0, "is empty (0 bytes)"),
    ],
)
def test_truncated_files(refuse, copied, keep, message):
    paths = {artifact: copied(artifact) for artifact in ARTIFACTS}
    for path in paths.values():
        whole = path.read_bytes()
        path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    told = refuse(*(f"artifacts.{artifact}.path={path}" for artifact, path in paths.items()))
    assert told.startswith("ltxgen: 3 things to change:"), told
    assert told.count("download it again") == 3
    for artifact, path in paths.items():
        assert f"artifacts.{artifact}.path = {path}: {message}" in told


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 46149344974\n"


def test_git_lfs_pointers(refuse, copied):
    paths = {artifact: copied(artifact) for artifact in (*ARTIFACTS, "text_encoder")}
    for artifact in ARTIFACTS:
        paths[artifact].write_text(POINTER)
    inside = ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors")
    for name in inside:
        (paths["text_encoder"] / name).write_text(POINTER)
    told = refuse(*(f"artifacts.{artifact}.path={path}" for artifact, path in paths.items()))
    for artifact in ARTIFACTS:
        assert f"artifacts.{artifact}.path = {paths[artifact]}: is a Git LFS pointer, not the file itself" in told
    for name in inside:
        assert f"artifacts.text_encoder.path = {paths['text_encoder']}: {name} is a Git LFS pointer" in told
    assert told.startswith("ltxgen: 6 things to change:"), told
    assert "git lfs pull" in told


def test_a_file_that_is_no_safetensors_file(refuse_files, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"PK\x03\x04" + bytes(range(200)))
    assert "is not a safetensors file" in refuse_files(f"artifacts.checkpoint.path={path}")


def test_a_folder_for_a_file_and_a_file_for_a_folder(refuse_files, tiny_set, tmp_path):
    assert "is a folder; a file is wanted" in refuse_files(f"artifacts.checkpoint.path={tmp_path}")
    told = refuse_files(f"artifacts.text_encoder.path={tiny_set.file('checkpoint')}")
    assert "is a file; the text encoder is a folder" in told


def test_a_lora_of_another_model(refuse, refuse_files, tiny_set, tmp_path):
    """As the 19B model's LoRA on the 22B model: the names match, the shapes don't."""
    tensors = load_file(tiny_set.file("distilled_lora"))
    wider = {
        key: torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 8) if ".lora_A." in key else tensor
        for key, tensor in tensors.items()
    }
    path = tmp_path / "style.safetensors"
    save_file(wider, path)
    told = refuse(f"artifacts.distilled_lora.path={path}")
    assert "was made for another model or generation than the checkpoint" in told
    told = refuse_files(f"artifacts.loras.style.path={path}", "stages.base.loras.style=0.5")
    assert f"artifacts.loras.style.path = {path}: was made for another model" in told


def test_a_lora_of_another_generation_by_its_name(refuse_files, copied):
    path = copied("distilled_lora", "ltx-2-19b-distilled-lora-384.safetensors")
    path.write_bytes(path.read_bytes())
    save_file(load_file(path), path)  # without the version in its metadata
    assert "is made for LTX-2, and this run needs LTX-2.3" in refuse_files(f"artifacts.distilled_lora.path={path}")


def test_a_lora_that_matches_nothing(refuse_files, tmp_path):
    path = tmp_path / "style.safetensors"
    save_file({"unet.up.lora_A.weight": torch.zeros(2, 4), "unet.up.lora_B.weight": torch.zeros(4, 2)}, path)
    assert "matches no module of the transformer" in refuse_files(f"artifacts.distilled_lora.path={path}")


def test_a_lora_of_strength_0_must_fit_as_well(refuse_files, tmp_path):
    path = tmp_path / "style.safetensors"
    save_file({"a.lora_A.weight": torch.zeros(2, 4), "a.lora_B.weight": torch.zeros(4, 2)}, path)
    told = refuse_files(f"artifacts.loras.style.path={path}", "stages.base.loras.style=0")
    assert "matches no module of the transformer" in told


def test_a_distilled_checkpoint_with_guidance(refuse, run_ltxgen, tiny_words, copied, tmp_path_factory):
    path = copied("checkpoint", "ltx-2.3-22b-distilled-1.1.safetensors")
    told = refuse(f"artifacts.checkpoint.path={path}")
    assert "stages.base.guidance = multimodal: ltx-2.3-22b-distilled-1.1.safetensors is distilled" in told
    # Without guidance it is taken.
    words = ("plan", *tiny_words, f"artifacts.checkpoint.path={path}", "guidance@stages.base.guidance=none")
    assert run_ltxgen(*words, cwd=tmp_path_factory.mktemp("plan")).code == 0


def test_a_checkpoint_of_another_generation(refuse_files, copied):
    path = copied("checkpoint", "mine.safetensors")
    metadata = {**metadata_of(path), "model_version": "2.5.0"}
    save_file(load_file(path), path, metadata)
    assert "is made for LTX-2.5, and this run needs LTX-2.3" in refuse_files(f"artifacts.checkpoint.path={path}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "lacks 1 of "),
        ("unexpected", "holds 1 tensors that transformer doesn't have"),
        ("shape", "has 1 tensors of transformer in other shapes"),
        ("no config", "has no `config` in its safetensors metadata"),
        ("broken config", "is no JSON"),
        ("no vocoder", "holds no vocoder"),
    ],
)
def test_a_checkpoint_that_is_not_what_the_architecture_needs(refuse_files, copied, change, message):
    path = copied("checkpoint", "mine.safetensors")
    tensors, metadata = load_file(path), metadata_of(path)
    key = next(key for key in tensors if key.endswith("transformer_blocks.0.attn1.to_q.weight"))
    if change == "missing":
        del tensors[key]
    elif change == "unexpected":
        tensors[key.replace("to_q", "to_x")] = tensors[key].clone()
    elif change == "shape":
        tensors[key] = torch.zeros(3, 5)
    elif change == "no config":
        del metadata["config"]
    elif change == "broken config":
        metadata["config"] = "{"
    else:
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith("vocoder.")}
    save_file(tensors, path, metadata)
    told = refuse_files(f"artifacts.checkpoint.path={path}")
    assert message in told
    assert f"artifacts.checkpoint.path = {path}" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("width", "is another Gemma than the checkpoint was trained with: hidden_size"),
        ("tokenizer", "lacks its tokenizer: tokenizer.json or tokenizer.model must be there"),
        ("config", "lacks config.json"),
        ("shard", "lacks 1 of 2 weight files: model-00002-of-00002.safetensors"),
        ("another model", "is a llama, must be Gemma 3"),
    ],
)
def test_the_wrong_text_encoder(refuse_files, copied, change, message):
    folder = copied("text_encoder", "gemma")
    config = json.loads((folder / "config.json").read_text())
    if change == "width":
        config["text_config"]["num_hidden_layers"] += 1
    elif change == "another model":
        config["model_type"] = "llama"
    (folder / "config.json").write_text(json.dumps(config))
    if change == "tokenizer":
        for path in folder.glob("tokenizer.*"):
            path.unlink()
    elif change == "config":
        (folder / "config.json").unlink()
    elif change == "shard":
        (folder / "model-00002-of-00002.safetensors").unlink()
    assert message in refuse_files(f"artifacts.text_encoder.path={folder}")


def test_missing_weights_say_how_to_get_them(run_ltxgen, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    result = run_ltxgen(FIXED, cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    for part in (
        "ltx-2.3-22b-dev.safetensors (46.1 GB) is missing",
        "ltx-2.3-22b-distilled-lora-384-1.1.safetensors (7.6 GB) is missing",
        "ltx-2.3-spatial-upscaler-x2-1.1.safetensors (995.7 MB) is missing",
        "google/gemma-3-12b-it-qat-q4_0-unquantized (24.4 GB) is missing",
        f"looked in {tmp_path / 'models'}, Hugging Face cache",
        "`ltxgen fetch` with the same recipe downloads them, 79.2 GB in all",
        "accept the licence at https://huggingface.co/google/gemma-3-12b-it-qat-q4_0-unquantized",
        "hf auth login",
        "HF_TOKEN",
        "artifacts.text_encoder.path=",
        "model=ltx23_tiny",
    ):
        assert part in result.err, part
    assert list(tmp_path.iterdir()) == []


# The machine


def test_a_folder_that_cannot_be_written(refuse, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    told = refuse(f"output.dir={tmp_path / 'file' / 'below'}")
    assert f"output.dir = {tmp_path / 'file' / 'below'}: '{tmp_path / 'file'}' is a file" in told

    def forbidden(*arguments, **options):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("ltxgen.media.files.tempfile.TemporaryFile", forbidden)  # root may write everywhere
    assert "can't be written (Permission denied); choose another folder" in refuse()


def test_a_disk_that_is_known_to_be_full(refuse, monkeypatch):
    usage = namedtuple("usage", "total used free")(2**40, 2**40 - 1000, 1000)
    monkeypatch.setattr("ltxgen.media.files.shutil.disk_usage", lambda place: usage)
    told = refuse()
    assert "output.dir = out/deep: the disk of" in told
    assert "has 0 MiB free and about 1 MiB are needed" in told


def test_a_full_disk_that_cannot_take_a_byte(refuse_files, monkeypatch):
    class Full:
        def __init__(self, *arguments, **options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ltxgen.media.files.tempfile.TemporaryFile", Full)
    assert "can't be written (No space left on device)" in refuse_files()


@pytest.mark.parametrize("encoder", ["libx264", "aac"])
def test_no_encoder(refuse_files, monkeypatch, encoder):
    from ltxgen.media import mp4

    has = mp4._has_encoder
    monkeypatch.setattr(mp4, "_has_encoder", lambda name: name != encoder and has(name))
    assert f"stages.write: this PyAV has no encoder for {encoder}; reinstall it from PyPI" in refuse_files()


def test_no_gpu(refuse_files, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "runtime.device = cuda: " in refuse_files("runtime.device=cuda")
    assert "runtime.graphs = always: CUDA graphs need a GPU" in refuse_files("runtime.graphs=always")


def test_a_cache_that_cannot_be_written(refuse_files, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTXGEN_CACHE", str(tmp_path / "file"))
    told = refuse_files()
    assert "the embedded model can't be written to" in told
    assert "set LTXGEN_CACHE to a folder" in told

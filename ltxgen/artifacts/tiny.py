"""The embedded models `ltx23_tiny` and `ltx2_tiny`: small, seeded checkpoint sets that this project writes itself on
first use.

They have the official on-disk format in every part, so they go through the same resolver, checks and loader as
published files. Their weights are random: what they generate shows that everything works, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltxgen.artifacts.artifact import ArtifactSpec, ResolvedArtifact
from ltxgen.artifacts.cache_folder import cache_folder, one_at_a_time
from ltxgen.artifacts.components import COMPONENTS, UPSCALERS, BuildOptions
from ltxgen.artifacts.lora import linear_weights, synthetic_lora_shapes
from ltxgen.artifacts.safetensors_file import write_safetensors
from ltxgen.artifacts.seeded import seeded_tensor
from ltxgen.artifacts.source import INDEX_FILE
from ltxgen.artifacts.synthetic import architecture
from ltxgen.artifacts.tiny_tokenizer import write_tokenizer
from ltxgen.config.errors import MISSING, Problem

SEED = 23
VERSION = 3  # raise it when anything here or in seeded.py changes what is written
_LIST = "files.json"  # every file and its size, written last


@dataclass(frozen=True)
class EmbeddedModel:
    """One set: the name of its architecture and folder, what its metadata say, and its files by artifact.

    `distilled` is the checkpoint for those whose candidates are distilled.
    """

    name: str
    generation: str
    model_version: str
    files: Mapping[str, str]
    distilled: str


LTX23_TINY = EmbeddedModel(
    name="ltx23_tiny",
    generation="LTX-2.3",
    model_version="2.3.0-tiny",
    files={
        "checkpoint": "ltx-2.3-tiny-dev.safetensors",
        "distilled_lora": "ltx-2.3-tiny-distilled-lora-8.safetensors",
        "ic_lora": "ltx-2.3-tiny-ic-lora-8.safetensors",
        "spatial_upscaler": "ltx-2.3-tiny-spatial-upscaler-x2.safetensors",
        "spatial_upscaler_x1_5": "ltx-2.3-tiny-spatial-upscaler-x1.5.safetensors",
        "temporal_upscaler": "ltx-2.3-tiny-temporal-upscaler-x2.safetensors",
        "text_encoder": "gemma-3-tiny",
    },
    distilled="ltx-2.3-tiny-distilled.safetensors",
)
LTX2_TINY = EmbeddedModel(  # with the other one's text encoder, as published
    name="ltx2_tiny",
    generation="LTX-2",
    model_version="2.0.0-tiny",
    files={
        "checkpoint": "ltx-2-tiny-dev.safetensors",
        "distilled_lora": "ltx-2-tiny-distilled-lora-8.safetensors",
        "spatial_upscaler": "ltx-2-tiny-spatial-upscaler-x2.safetensors",
        "temporal_upscaler": "ltx-2-tiny-temporal-upscaler-x2.safetensors",
    },
    distilled="ltx-2-tiny-distilled.safetensors",
)
FILES = LTX23_TINY.files

_README = """{name}: a checkpoint set of ltxgen with RANDOM weights
{line}

These files were made on this computer by ltxgen (seed {seed}). They have the on-disk format of {generation} and
Gemma 3, at a tiny size, and they were never trained: pictures and sounds made with them are meaningless. They exist so
that the whole program can be tried and tested without any download.

ltxgen writes them again when this folder is deleted.
"""


class EmbeddedModelError(Exception):
    """The embedded model can't be written; the text says why and what to do."""


def embedded_artifact(spec: ArtifactSpec) -> ResolvedArtifact | Problem:
    """The embedded model's file for `spec`, written first if need be."""
    model = LTX2_TINY if spec.generation == LTX2_TINY.generation else LTX23_TINY
    if spec.name not in model.files:
        message = f"the embedded model has no {spec.name}, only {', '.join(model.files)}; set a file"
        return Problem(spec.config_path, MISSING, message)
    try:
        path = embedded_folder(model) / (model.distilled if spec.wants_distilled else model.files[spec.name])
    except EmbeddedModelError as error:
        return Problem(f"artifacts.{spec.name}", MISSING, str(error))
    return ResolvedArtifact(
        name=spec.name,
        path=path,
        place="embedded",
        reason="embedded tiny model, made by ltxgen; its weights are random",
        file=path.name,
        generation=model.generation,
        config_path=spec.config_path,
    )


def embedded_file(name: str) -> Path:
    """Path of one artifact of `ltx23_tiny`. Raises EmbeddedModelError."""
    return embedded_folder() / FILES[name]


def embedded_folder(model: EmbeddedModel = LTX23_TINY) -> Path:
    """The embedded model's folder, complete; made on first use and again when a file of it is gone or cut short.

    Built aside and renamed, by one process at a time; the others wait. Raises EmbeddedModelError when the cache folder
    can't be written.
    """
    final = cache_folder() / f"{model.name}-{_fingerprint(model)}"
    if _is_complete(final):
        return final
    try:
        with one_at_a_time(model.name) as parent:
            if not _is_complete(final):
                _build(parent / f".{model.name}.partial", final, model)
    except OSError as error:
        reason = error.strerror or str(error)
        raise EmbeddedModelError(
            f"the embedded model can't be written to {final.parent} ({reason}): "
            "set LTXGEN_CACHE to a folder with 50 MB free"
        ) from error
    return final


def _build(building: Path, final: Path, model: EmbeddedModel) -> None:
    """By way of a folder of one name: what a killed process left there goes."""
    for left in (building, final):
        if left.exists():
            shutil.rmtree(left)
    building.mkdir()
    try:
        write_embedded_model(building, model)
        building.rename(final)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_embedded_model(folder: Path, model: EmbeddedModel = LTX23_TINY) -> None:
    """Write the whole set into an empty folder. Equal bytes every time on one machine and torch version."""
    configs, said = architecture(model.name), {"model_version": model.model_version}
    checkpoint = _checkpoint_tensors(configs["checkpoint"], configs["text_encoder"])
    loras = {
        "distilled_lora": _lora_tensors(configs["checkpoint"], configs["distilled_lora"]["rank"], SEED),
        "ic_lora": _lora_tensors(configs["checkpoint"], configs["ic_lora"]["rank"], SEED + 1),
    }
    distilled = _with_lora(checkpoint, loras["distilled_lora"])
    for name, tensors in ((model.files["checkpoint"], checkpoint), (model.distilled, distilled)):
        _save(folder / name, tensors, {"config": json.dumps(configs["checkpoint"]), **said})
    for name in model.files.keys() & loras.keys():
        facts = {key: str(value) for key, value in configs[name].items() if key != "rank"}
        _save(folder / model.files[name], loras[name], {**said, **facts})
    for name in model.files.keys() & set(UPSCALERS):
        _write_upscaler(folder / model.files[name], name, configs[name])
    if "text_encoder" in model.files:
        _write_text_encoder(folder / model.files["text_encoder"], configs["text_encoder"])
    readme = _README.format(name=model.name, line="=" * 53, seed=SEED, generation=model.generation)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    (folder / _LIST).write_text(json.dumps(_sizes(folder), indent=1) + "\n", encoding="utf-8")


def _checkpoint_tensors(config: Mapping[str, Any], text_encoder: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    num_states = text_encoder["text_config"]["num_hidden_layers"] + 1
    tensors: dict[str, torch.Tensor] = {}
    for spec in COMPONENTS.values():
        if spec.artifact == "checkpoint":
            tensors |= _component_tensors(spec.name, config, BuildOptions(num_text_states=num_states))
    return {key: _stored(key, _structured(key, tensor, config)) for key, tensor in tensors.items()}


def _with_lora(checkpoint: Mapping[str, torch.Tensor], lora: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A distilled checkpoint is close to a dev one with the distilled LoRA: here it is just that."""
    fused = dict(checkpoint)
    for down in (key for key in lora if key.endswith(".lora_A.weight")):
        module = down.removesuffix(".lora_A.weight")
        key = f"model.{module}.weight"
        delta = lora[f"{module}.lora_B.weight"].float() @ lora[down].float()
        fused[key] = (checkpoint[key].float() + delta).to(checkpoint[key].dtype)
    return fused


def _write_upscaler(path: Path, name: str, config: Mapping[str, Any]) -> None:
    tensors = _component_tensors(name, config, BuildOptions())
    _save(path, {key: _stored(key, tensor) for key, tensor in tensors.items()}, {"config": json.dumps(config)})


def _lora_tensors(config: Mapping[str, Any], rank: int, seed: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        transformer = COMPONENTS["transformer"].build(config, BuildOptions())
    shapes = synthetic_lora_shapes(linear_weights(transformer), rank)
    return {key: _stored(key, seeded_tensor(seed, key, shape)) for key, shape in shapes.items()}


def _write_text_encoder(folder: Path, config: Mapping[str, Any]) -> None:
    folder.mkdir()
    names = ("text_encoder", "vision_tower")
    tensors = {key: each for name in names for key, each in _component_tensors(name, config, BuildOptions()).items()}
    stored = {key: _stored(key, tensor) for key, tensor in tensors.items()}
    keys = sorted(stored)
    shards = (keys[: len(keys) // 2], keys[len(keys) // 2 :])
    weight_map: dict[str, str] = {}
    for number, part in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(folder / name, {key: stored[key] for key in part}, {})
        weight_map |= dict.fromkeys(part, name)
    total = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    _write_json(folder / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / "config.json", config)
    _write_json(folder / "preprocessor_config.json", _PREPROCESSOR)
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE, encoding="utf-8")
    write_tokenizer(folder)


# Turns as Gemma has them; of its signs, this tokenizer knows that of a picture alone.
_CHAT_TEMPLATE = """{{ bos_token }}{% for turn in messages -%}
<start_of_turn>{{ turn['role'] }}
{% for part in turn['content'] -%}
{{ '<start_of_image>' if part['type'] == 'image' else part['text'] | trim }}
{%- endfor %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

_PREPROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Gemma3ImageProcessor",
    "image_seq_length": 4,
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Gemma3Processor",
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 64, "width": 64},
}


def _component_tensors(name: str, config: Mapping[str, Any], options: BuildOptions) -> dict[str, torch.Tensor]:
    """Seeded fp32 tensors of one component under their keys in the file."""
    spec = COMPONENTS[name]
    with torch.device("meta"):
        module = spec.build(config, options)
    return {
        (key := spec.keys.file_key(module_key)): seeded_tensor(SEED, key, tuple(tensor.shape), component=name)
        for module_key, tensor in module.state_dict().items()
    }


def _structured(key: str, tensor: torch.Tensor, config: Mapping[str, Any]) -> torch.Tensor:
    """Change a few of the random tensors so that pictures show soft shapes, and the prompt shows in them."""
    if re.search(r"transformer_blocks.*attn2\.q_norm\.weight$", key):
        return 4 * tensor  # sharp text attention: 1024 nearly equal weights would average any prompt away
    if "scale_shift_table" in key:
        return 3 * tensor  # wider gates
    up = re.fullmatch(r"vae\.decoder\.up_blocks\.(\d+)\.conv\.conv\.(weight|bias)", key)
    if up:
        name = config["vae"]["decoder_blocks"][::-1][int(up[1])][0]
        group = {"compress_space": 4, "compress_time": 2, "compress_all": 8}[name]
    elif key.startswith("vae.decoder.conv_out."):
        group = config["vae"]["patch_size"] ** 2
    else:
        return tensor
    # Convolutions whose channels become pixels start with equal weights for the pixels of a group, which keeps out
    # the checkerboard (Aitken et al., https://arxiv.org/abs/1707.02937).
    return tensor[::group].repeat_interleave(group, dim=0) + 0.1 * tensor


def _stored(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """In the dtype that published files use: tables of the adaptive norms fp32, everything else bf16."""
    return tensor if "scale_shift_table" in key else tensor.bfloat16()


def _save(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    write_safetensors(path, tensors, {"format": "pt", **metadata})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != _LIST)
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}


def _is_complete(folder: Path) -> bool:
    try:
        listed = json.loads((folder / _LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return _sizes(folder) == listed


def _fingerprint(model: EmbeddedModel) -> str:
    text = json.dumps([VERSION, SEED, architecture(model.name)], sort_keys=True)
    return f"v{VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

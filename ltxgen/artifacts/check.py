"""Checks files before any weight is read: whole, of the right kind, and tensor for tensor what the architecture needs.

Every failed check is a Problem at `artifacts.<name>.path`; nothing here raises for a bad file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.chat import chat_problems
from ltxgen.artifacts.components import (
    CHAT,
    COMPONENTS,
    TEXT_PROJECTIONS,
    UPSCALERS,
    BuildOptions,
    ComponentSpec,
    artifact_of,
)
from ltxgen.artifacts.float8 import FLOAT8_FORMATS
from ltxgen.artifacts.load import component_shapes, first_names, key_problems, open_source
from ltxgen.artifacts.lora import linear_shapes, match_lora
from ltxgen.artifacts.safetensors_file import BadFile, check_is_real_file, read_header
from ltxgen.artifacts.source import FileSource, TensorSource, weight_files
from ltxgen.config.errors import Problem, Refusal

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class CheckResult:
    """Problems refuse the run; notes are shown with the plan."""

    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def check_artifacts(
    artifacts: Mapping[str, ResolvedArtifact], components: Iterable[str], options: BuildOptions | None = None
) -> CheckResult:
    """Check all files that `components` are cut from; every further artifact in `artifacts` is taken to be a LoRA.

    Only tensors of the named components are looked at. Artifacts that were not found have been reported by the
    resolver and are skipped.
    """
    options = options or BuildOptions()
    components = tuple(components)
    problems: list[Problem] = []
    notes: list[str] = []
    broken: set[str] = set()
    of_components = {artifact_of(name) for name in COMPONENTS} | {"text_encoder"}
    needed = {artifact_of(name) for name in components}
    for name, artifact in artifacts.items():
        found = whole_problems(artifact) if name in needed or name not in of_components else []
        problems += _at(artifact, found)
        broken |= {name} if found else set()
    for name in components:
        source = artifacts.get(artifact_of(name))
        if source is None or source.name in broken:
            continue
        if name in COMPONENTS:
            problems += _at(source, component_problems(COMPONENTS[name], source, options))
        elif name == CHAT and source.path is not None:
            problems += _at(source, chat_problems(source.path))
    usable = {name: artifact for name, artifact in artifacts.items() if name not in broken}
    problems += _text_width_problems(usable, components)
    problems += _upscaler_problems(usable, components)
    loras = [artifact for name, artifact in usable.items() if name not in of_components]
    if loras and "checkpoint" in usable:
        found_problems, notes = check_loras(usable["checkpoint"], loras, options)
        problems += found_problems
    return CheckResult(tuple(dict.fromkeys(problems)), tuple(notes))


def check_loras(
    checkpoint: ResolvedArtifact, loras: Sequence[ResolvedArtifact], options: BuildOptions | None = None
) -> tuple[list[Problem], list[str]]:
    """Match LoRAs to the checkpoint's transformer: problems, and notes about keys that will have no effect."""
    try:
        weights = linear_shapes(component_shapes(COMPONENTS["transformer"], checkpoint, options or BuildOptions()))
    except (BadFile, ValueError):
        return [], []  # the checkpoint's own problem, reported where it is checked
    problems: list[Problem] = []
    notes: list[str] = []
    for artifact in loras:
        try:
            lora = match_lora(artifact, weights)
        except Refusal as refusal:
            problems += refusal.problems
        else:
            notes += [lora.note] if lora.note else []
    return problems, notes


def is_whole(artifact: ResolvedArtifact) -> bool:
    """Whether every file is there and complete, whatever its architecture."""
    return not whole_problems(artifact)


def whole_problems(artifact: ResolvedArtifact) -> list[str]:
    """What is wrong with the files themselves: not there, empty, LFS pointers, truncated, a folder that lacks files."""
    if artifact.path is None:
        return []
    if artifact.name == "text_encoder":
        return _folder_problems(artifact.path)
    try:
        read_header(artifact.path)
    except BadFile as error:
        return [str(error)]
    return []


def component_problems(spec: ComponentSpec, artifact: ResolvedArtifact, options: BuildOptions) -> list[str]:
    """Whether the file holds exactly the component's tensors, by name and shape."""
    try:
        with open_source(artifact, spec, options) as source:
            wanted = component_shapes(spec, artifact, options, source.shapes)
            file_keys = spec.file_keys(source.shapes)
            if problem := _fp8_problem(spec, source, file_keys.values()):
                return [problem]
            return key_problems(spec, wanted, file_keys, source.shapes)
    except BadFile as error:
        return [str(error)]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        # Readers of configs raise ValueError; the others come from a value of another type than the format has.
        if not isinstance(error, ValueError):
            return [f"has a config that {spec.name} can't be built from ({type(error).__name__}: {error})"]
        return str(error).splitlines()


def _fp8_problem(spec: ComponentSpec, source: TensorSource, file_keys: Iterable[str]) -> str | None:
    if not isinstance(source, FileSource):  # the transformer's source, which reads fp8, is another
        return None
    fp8 = [key for key in file_keys if source.stored_format(key) in FLOAT8_FORMATS]
    if not fp8:
        return None
    return (
        f"stores {len(fp8)} tensors of {spec.name} as fp8 ({first_names(fp8)}), which can't be run: use the bf16 file"
    )


def _folder_problems(folder: Path) -> list[str]:
    """A Gemma folder: config, tokenizer, and weights, all of them real files."""
    if not folder.is_dir():
        return ["is a file; the text encoder is a folder (config.json, tokenizer files, *.safetensors)"]
    problems = []
    if not (folder / "config.json").exists():
        problems.append("lacks config.json")
    else:
        problems += _config_problems(folder)
    tokenizers = [name for name in TOKENIZER_FILES if (folder / name).exists()]
    if not tokenizers:
        problems.append(f"lacks its tokenizer: {' or '.join(TOKENIZER_FILES)} must be there")
    for name in [*tokenizers, *(["tokenizer_config.json"] if (folder / "tokenizer_config.json").exists() else [])]:
        try:
            check_is_real_file(folder / name)
        except BadFile as error:
            problems.append(f"{name} {error}")
    try:
        files = weight_files(folder)
    except BadFile as error:
        return [*problems, str(error)]
    for file in files:
        try:
            read_header(file)
        except BadFile as error:
            problems.append(f"{file.name} {error}")
    return problems


def _config_problems(folder: Path) -> list[str]:
    try:
        check_is_real_file(folder / "config.json")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except BadFile as error:
        return [f"config.json {error}"]
    except ValueError:
        return ["config.json is no JSON"]
    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in ("gemma3", "gemma3_text"):
        return [f"is a {model_type or 'model of unknown type'}, must be Gemma 3 (model_type gemma3)"]
    return []


def _text_width_problems(artifacts: Mapping[str, ResolvedArtifact], components: Sequence[str]) -> list[Problem]:
    """Whether this Gemma is the one the checkpoint's text projection was made for."""
    encoder, checkpoint = artifacts.get("text_encoder"), artifacts.get("checkpoint")
    if encoder is None or checkpoint is None or set(TEXT_PROJECTIONS).isdisjoint(components):
        return []
    try:
        text = encoder.config.get("text_config", encoder.config)
        width, layers = text.get("hidden_size"), text.get("num_hidden_layers")
        inputs = _projection_inputs(checkpoint)
    except BadFile:
        return []
    if inputs is None or not isinstance(width, int) or not isinstance(layers, int) or width * (layers + 1) == inputs:
        return []
    message = (
        f"is another Gemma than the checkpoint was trained with: hidden_size {width} × ({layers} layers + 1) = "
        f"{width * (layers + 1)} features, but its text projection takes {inputs}"
    )
    if inputs == 3840 * 49:
        message += "; use Gemma 3 12B (3840 × 49)"
    return [Problem(encoder.config_path, str(encoder.path), message)]


def _projection_inputs(checkpoint: ResolvedArtifact) -> int | None:
    if checkpoint.path is None:
        return None
    spec = COMPONENTS["text_projection"]
    shapes = {key: info.shape for key, info in read_header(checkpoint.path).tensors.items()}
    widths = [shapes[key][1] for key in spec.file_keys(shapes).values() if len(shapes[key]) == 2]
    return widths[0] if widths else None


def _upscaler_problems(artifacts: Mapping[str, ResolvedArtifact], components: Sequence[str]) -> list[Problem]:
    checkpoint = artifacts.get("checkpoint")
    problems = []
    for name in UPSCALERS:
        upscaler = artifacts.get(name)
        if upscaler is None or checkpoint is None or name not in components:
            continue
        try:
            channels = upscaler.config.get("in_channels", 128)
            latents = checkpoint.config.get("vae", {}).get("latent_channels", 128)
            is_temporal = bool(upscaler.config.get("temporal_upsample", False))
        except BadFile:
            continue  # reported by the component's own check
        if channels != latents:
            message = f"upscales latents of {channels} channels, but the checkpoint's have {latents}"
            problems.append(Problem(upscaler.config_path, str(upscaler.path), message))
        if is_temporal != (name == "temporal_upscaler"):
            kind, wanted = ("temporal", "spatial") if is_temporal else ("spatial", "temporal")
            message = f"is a {kind} upscaler, but a {wanted} one is wanted"
            problems.append(Problem(upscaler.config_path, str(upscaler.path), message))
    return problems


def _at(artifact: ResolvedArtifact, messages: Iterable[str]) -> list[Problem]:
    return [Problem(artifact.config_path, str(artifact.path or artifact.place), message) for message in messages]

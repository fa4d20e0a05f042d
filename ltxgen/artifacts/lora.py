"""LoRAs: their files, matched against a transformer from headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.load import first_names
from ltxgen.artifacts.safetensors_file import BadFile
from ltxgen.artifacts.source import FileSource, TensorSource
from ltxgen.artifacts.synthetic import SyntheticSource
from ltxgen.config.errors import Problem, Refusal

Shapes = Mapping[str, tuple[int, ...]]

IC_LORA = "ic_lora"  # the LoRA, and its artifact, that makes a transformer work from references

A_SUFFIX, B_SUFFIX, ALPHA_SUFFIX = ".lora_A.weight", ".lora_B.weight", ".alpha"
PREFIXES = ("model.diffusion_model.", "diffusion_model.")


@dataclass(frozen=True)
class LoraPair:
    """Keys of one module's A (rank, in) and B (out, rank) in the file, and of its alpha where there is one."""

    module: str
    a: str
    b: str
    alpha: str | None
    rank: int


@dataclass(frozen=True)
class Lora:
    """A LoRA matched to a transformer. `unmatched` are file keys that fit no module and will have no effect."""

    artifact: ResolvedArtifact
    pairs: Mapping[str, LoraPair]
    unmatched: tuple[str, ...] = ()

    @property
    def note(self) -> str | None:
        """What a user should know although it is no error: keys that have no effect."""
        if not self.unmatched:
            return None
        return (
            f"{self.artifact.path or self.artifact.name}: {len(self.unmatched)} keys match no module of the "
            f"transformer and have no effect, {len(self.pairs)} modules match: {first_names(list(self.unmatched))}"
        )


def linear_weights(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Module name -> (out, in) of every 2-D `weight`: what a LoRA can change. Works on the meta device."""
    return linear_shapes({name: tuple(parameter.shape) for name, parameter in module.named_parameters()})


def linear_shapes(shapes: Shapes) -> dict[str, tuple[int, int]]:
    """As `linear_weights`, of a module's parameters by name."""
    return {
        name.removesuffix(".weight"): (shape[0], shape[1])
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2
    }


def match_lora(artifact: ResolvedArtifact, weights: Mapping[str, tuple[int, int]]) -> Lora:
    """Match a LoRA to the Linear layers `weights` of a transformer, from its header.

    Raises Refusal when the file is broken, nothing matches, or shapes differ (a LoRA of another model or generation).
    """
    try:
        with open_lora(artifact, weights) as source:
            shapes = source.shapes
    except BadFile as error:
        raise _refusal(artifact, str(error)) from error
    pairs, unmatched, problems = _pair_up(shapes, weights)
    if problems:
        raise Refusal([_problem(artifact, problem) for problem in problems])
    if not pairs:
        raise _refusal(
            artifact,
            "matches no module of the transformer, so it would do nothing; its keys must look like "
            f"diffusion_model.{next(iter(weights), 'MODULE')}{A_SUFFIX} and ...{B_SUFFIX}; it holds "
            f"{first_names(unmatched) or 'no tensors'}",
        )
    if problem := _shape_problem(pairs, shapes, weights):
        raise _refusal(artifact, problem)
    return Lora(artifact, pairs, tuple(unmatched))


def reference_downscale_factor(artifact: ResolvedArtifact) -> int:
    """How many times smaller than the video the references of an IC-LoRA are, as in its training. Raises BadFile."""
    key = "reference_downscale_factor"
    text = artifact.metadata.get(key, "1") if artifact.synthetic_config is None else str(artifact.config[key])
    if not text.isdecimal() or int(text) < 1:
        raise BadFile(f"has {key} = {text!r} in its metadata, which must be a whole number of at least 1")
    return int(text)


def open_lora(artifact: ResolvedArtifact, weights: Mapping[str, tuple[int, int]]) -> TensorSource:
    """Tensors of a LoRA; the synthetic source has one for every Linear layer. Raises BadFile."""
    if artifact.path is not None:
        return FileSource(artifact.path)
    rank = int(artifact.config["rank"])
    return SyntheticSource(synthetic_lora_shapes(weights, rank), artifact.seed, component="lora")


def synthetic_lora_shapes(weights: Mapping[str, tuple[int, int]], rank: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a LoRA over all Linear layers, in the official names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns) in weights.items():
        fitting = min(rank, rows, columns)
        shapes[f"diffusion_model.{name}{A_SUFFIX}"] = (fitting, columns)
        shapes[f"diffusion_model.{name}{B_SUFFIX}"] = (rows, fitting)
    return shapes


def touched_modules(loras: Sequence[Lora], weights: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Modules that any of the LoRAs changes, in the order of the transformer."""
    changed = {name for lora in loras for name in lora.pairs}
    return tuple(name for name in weights if name in changed)


def _module_of(file_key: str, suffix: str) -> str:
    name = file_key.removesuffix(suffix)
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _pair_up(
    shapes: Shapes, weights: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, LoraPair], list[str], list[str]]:
    """Pairs by module, keys that match nothing, and what is wrong with the file itself."""
    parts: dict[str, dict[str, str]] = {}
    unmatched: list[str] = []
    for key in shapes:
        suffix = next((suffix for suffix in (A_SUFFIX, B_SUFFIX, ALPHA_SUFFIX) if key.endswith(suffix)), None)
        module = _module_of(key, suffix) if suffix else None
        if module is None or module not in weights:
            unmatched.append(key)
        else:
            parts.setdefault(module, {})[suffix or ""] = key
    pairs: dict[str, LoraPair] = {}
    problems: list[str] = []
    for module, keys in parts.items():
        if A_SUFFIX not in keys or B_SUFFIX not in keys:
            problems.append(f"is incomplete: {module} has only {', '.join(keys.values())}; download it again")
            continue
        a, b = shapes[keys[A_SUFFIX]], shapes[keys[B_SUFFIX]]
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            problems.append(f"is broken: at {module}, lora_A is {list(a)} and lora_B is {list(b)}; ranks must agree")
            continue
        pairs[module] = LoraPair(module, keys[A_SUFFIX], keys[B_SUFFIX], keys.get(ALPHA_SUFFIX), rank=a[0])
    return pairs, unmatched, problems


def _shape_problem(pairs: Mapping[str, LoraPair], shapes: Shapes, weights: Mapping[str, tuple[int, int]]) -> str | None:
    wrong = []
    for module, pair in pairs.items():
        given = (shapes[pair.b][0], shapes[pair.a][1])
        if given != weights[module]:
            wrong.append(f"{module} is {list(weights[module])} in the checkpoint, {list(given)} in the LoRA")
    if not wrong:
        return None
    return (
        f"was made for another model or generation than the checkpoint: {len(wrong)} of {len(pairs)} modules differ in "
        f"shape: {first_names(wrong)}"
    )


def _problem(artifact: ResolvedArtifact, message: str) -> Problem:
    return Problem(artifact.config_path, str(artifact.path or artifact.name), message)


def _refusal(artifact: ResolvedArtifact, message: str) -> Refusal:
    return Refusal([_problem(artifact, message)])

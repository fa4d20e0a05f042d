"""A plan, and a run that was made, as text: stages, files and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ltxgen.artifacts.artifact import ArtifactSpec, Attempt, ResolvedArtifact
from ltxgen.artifacts.hub import shown_size
from ltxgen.media.provenance import Provenance
from ltxgen.recipe.plan import Plan
from ltxgen.runtime.memory import format_bytes


def show_plan(plan: Plan, console: Console) -> None:
    """Print what would run, where each file comes from and what was passed over, and the notes."""
    request = plan.recipe.request
    has_video = any(name.endswith(".video") for stage in plan.stages.values() for name in stage.writes)
    size = f"{request.width}x{request.height}" if has_video else "sound alone"
    seconds = float(request.num_frames / request.fps)
    console.print(
        f"[bold]{plan.recipe.name}[/]: {size}, {request.num_frames} frames at {request.fps} per second "
        f"({seconds:.2f} s), seed {request.seed}\n"
        f"{plan.device}, {str(plan.dtype).removeprefix('torch.')}, numerics {plan.numerics.name}, attention "
        f"{plan.recipe.attention.kind}, precision {plan.recipe.precision.kind}, parallel {plan.recipe.parallel.kind}, "
        f"kernels {'fused' if plan.fused else 'plain'}, compile {'blocks' if plan.compiles else 'none'}"
    )
    console.print(_stages(plan))
    console.print(artifact_table(plan.specs, plan.artifacts, plan.tried))
    for line in plan.attention:
        console.print(f"attention of {line}")
    for line in [] if plan.parallel is None else plan.parallel.lines():
        console.print(f"parallel: {line}")
    for line in [] if plan.memory is None else plan.memory.lines:
        console.print(f"memory: {line}")
    for line in plan.weights:
        console.print(line)
    for note in [*plan.notes, *(f"not on this machine: {problem}" for problem in plan.here)]:
        console.print(f"note: {note}")


def show_made(made: Provenance, console: Console) -> None:
    """Print what a video or a run's folder tells of its making. It may be a stranger's: texts are shown as they are,
    without control characters."""
    recipe, manifest = yaml.safe_load(made.recipe), made.manifest
    request = {**_part(recipe, "request"), **_part(manifest, "request")}
    versions, runtime = _part(manifest, "versions"), _part(manifest, "runtime")
    console.print(_plain(manifest.get("recipe")), style="bold")
    console.print(_plain(f"prompt: {request.get('prompt')}"))
    if request.get("original_prompt"):
        console.print(_plain(f"made from: {request['original_prompt']}"))
    size = f"{request.get('width')}x{request.get('height')}, {request.get('num_frames')} frames"
    console.print(_plain(f"{size} at {request.get('fps')} per second, seed {request.get('seed')}"))
    console.print(_plain(", ".join(f"{name} {value}" for name, value in runtime.items())))
    console.print(_plain(", ".join(f"{name} {value}" for name, value in versions.items())))
    stages = Table("stage", "seconds", "loading", "from", "peak")
    for name, stage in _part(manifest, "stages").items():
        peak = stage.get("peak_bytes") if isinstance(stage, Mapping) else None
        cells = [stage.get(key, "") for key in ("seconds", "load_seconds")] if isinstance(stage, Mapping) else ["", ""]
        source = stage.get("from", "run") if isinstance(stage, Mapping) else ""
        stages.add_row(*map(_plain, [name, *cells, source, format_bytes(peak) if isinstance(peak, int) else ""]))
    if stages.row_count:  # a video, which has to be the same each time, holds none
        console.print(stages)
    files = Table("artifact", "file", "from", "sha256")
    for name, artifact in _part(manifest, "artifacts").items():
        if isinstance(artifact, Mapping):
            origin = "@".join(str(artifact[key]) for key in ("repo", "revision") if artifact.get(key))
            files.add_row(*map(_plain, [name, artifact.get("file"), origin, artifact.get("sha256")]))
    console.print(files)


def _part(mapping: Any, name: str) -> Mapping[str, Any]:
    part = mapping.get(name) if isinstance(mapping, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _plain(value: Any) -> Text:
    """As text, never markup; a terminal obeys no character of it."""
    text = "" if value is None else str(value)
    return Text("".join(each if each.isprintable() or each == "\n" else "�" for each in text))


def _stages(plan: Plan) -> Table:
    table = Table("stage", "reads", "writes", "components", "what")
    broken = {problem.path.split(".")[1] for problem in plan.problems if problem.path.startswith("stages.")}
    sizes_known = not any(problem.path.startswith("request.") for problem in plan.problems)
    for name, stage in plan.stages.items():
        described = stage.describe() if sizes_known and name not in broken else {}
        parts = [request.name for request in stage.parts]
        what = "; ".join(text for key, value in described.items() if (text := _described(key, value)))
        table.add_row(name, "\n".join(stage.reads), "\n".join(stage.writes), "\n".join(parts), what)
    return table


def _described(key: str, value: Any) -> str:
    if key == "sigmas":
        return f"{len(value) - 1} steps from {value[0]:.4g}"
    if key == "passes":
        each = f"{value[0]} passes a step" if len(set(value)) == 1 else f"{value} passes a step"
        return f"{each}, {sum(value)} in all"
    if key == "tiles":
        return _tiles(value)
    if key.startswith("received bytes"):
        sizes = ", ".join(f"{kind} {format_bytes(size)}" for kind, size in value.items())
        return f"{sizes} {key.replace(' bytes', '')}"
    if key == "prompts":
        return f"{len(value)} prompts"
    if isinstance(value, dict):
        return f"{key} " + ", ".join(f"{name} {item}" for name, item in value.items()) if value else ""
    if isinstance(value, list):
        return f"{key} {', '.join(map(str, value))}"
    return f"{key} {value}"


def _tiles(counts: Sequence[int]) -> str:
    """`12 tiles, 3 a rank`, of the counts of all ranks."""
    total, least, most = sum(counts), min(counts), max(counts)
    tiles = "1 tile" if total == 1 else f"{total} tiles"
    if len(counts) == 1:
        return tiles
    if counts[0] == total:
        return f"{tiles} on rank 0"
    return f"{tiles}, {least} a rank" if least == most else f"{tiles}, {least} to {most} a rank"


def artifact_table(
    specs: Sequence[ArtifactSpec], found: Mapping[str, ResolvedArtifact], tried: Mapping[str, Sequence[Attempt]]
) -> Table:
    """Every candidate of every artifact, with why it was taken or not."""
    table = Table("artifact", "candidate", "where", "taken?")
    for spec in specs:
        for attempt in tried.get(spec.name, ()):
            label = attempt.candidate.label if attempt.candidate else "path"
            table.add_row(spec.name, label, attempt.place, f"no: {attempt.why_not}")
        taken = found.get(spec.name)
        if taken is not None:
            name = f"{taken.path} ({shown_size(taken.size)})" if taken.path else spec.architecture
            table.add_row(spec.name, name, taken.place, f"[bold]yes[/]: {taken.reason}")
        rest = spec.candidates[_position(spec, taken) + 1 :] if taken is not None and taken.repo else ()
        for candidate in rest:
            table.add_row(spec.name, candidate.label, "", "no: an earlier candidate was found")
        if taken is None and not tried.get(spec.name):
            table.add_row(spec.name, spec.path or "none", "", "no: see the problems")
    return table


def _position(spec: ArtifactSpec, taken: ResolvedArtifact) -> int:
    names = [(candidate.repo, candidate.file) for candidate in spec.candidates]
    return names.index((taken.repo or "", taken.file or ""))

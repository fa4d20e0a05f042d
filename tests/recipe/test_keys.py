"""Keys of stages: whatever can change an output changes its key, and the keys of what is made from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.config import compose
from ltxgen.config.recipe import ImageCondition, Request, parse_recipe
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.parallel.shape import MeshShape
from ltxgen.recipe import keys as keys_module
from ltxgen.recipe.keys import canonical, machine_facts, stage_keys
from ltxgen.recipe.plan import Plan, make_plan
from ltxgen.recipe.state import pack
from ltxgen.stage.protocol import SeenRequest, request_fields

ALL = {"prompt", "base", "upsample", "refine", "decode_video", "decode_audio", "write"}
AFTER_BASE = ALL - {"prompt"}
AFTER_REFINE = {"refine", "decode_video", "write"}


def keys_of(plan: Plan, machines: Any = None) -> dict[str, str]:
    recipe = plan.recipe
    noise = NoiseSource(recipe.request.seed, dtype=plan.dtype, draw_on=recipe.runtime.noise)
    keys = stage_keys(plan, {"noise": pack(noise).digest()}, machines or [machine_facts(plan.device)])
    return {name: key for name, key in keys.items() if name in ALL}  # not those of pictures, of which there are none


@pytest.fixture(scope="module")
def planned(tiny_set, offline, tiny_words) -> Callable[..., Plan]:
    return lambda *words: make_plan(parse_recipe(compose.compose_config([*tiny_words, *words])))


@pytest.fixture(scope="module")
def plan(planned) -> Plan:
    return planned()


@pytest.fixture(scope="module")
def keys(plan) -> dict[str, str]:
    return keys_of(plan)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_the_same_again_has_the_same_keys(planned, keys):
    assert keys_of(planned()) == keys
    assert set(keys) == ALL
    assert len(set(keys.values())) == len(ALL)


@pytest.mark.parametrize(
    ("word", "stages"),
    [
        ("request.seed=11", AFTER_BASE),
        ("request.prompt='another'", ALL),
        ("request.negative_prompt='another'", ALL),
        ("request.num_frames=17", AFTER_BASE),
        ("request.fps=25", AFTER_BASE),
        ("request.width=128", AFTER_BASE),
        ("stages.base.steps=3", AFTER_BASE),
        ("stages.base.guidance.video.cfg_scale=2.5", AFTER_BASE),
        ("reuse@stages.base.reuse=interval", AFTER_BASE),
        ("reuse@stages.refine.reuse=first_block", AFTER_REFINE),
        ("stages.refine.loras.distilled=0.5", AFTER_REFINE),
        ("stages.refine.sigmas=[0.9,0.0]", AFTER_REFINE),
        ("stages.decode_video.kernels=plain", {"decode_video", "write"}),
        ("stages.decode_audio.source=refine", {"decode_audio", "write"}),
        ("stages.write.crf=20", {"write"}),
        ("runtime.dtype=bfloat16", ALL),
        ("runtime.numerics=launch", ALL),
        ("runtime.noise=device", AFTER_BASE),
        ("runtime.batch_passes=always", AFTER_BASE),
        ("runtime.compile=blocks", AFTER_BASE),
        ("attention=reference", AFTER_BASE),
        ("artifacts.source=synthetic", ALL),
        # What can't change a value:
        ("stages.base.checkpoint_every=1", set()),
        ("memory=resident", set()),
        ("output.dir=elsewhere", set()),
        ("output.tensors=true", set()),
        ("cache=read", set()),
        ("hardware=h100", set()),
    ],
)
def test_one_word_changes_what_depends_on_it(planned, keys, word, stages):
    words = (word, "artifacts.architecture=ltx23_tiny") if "synthetic" in word else (word,)
    assert changed(keys, keys_of(planned(*words))) == stages


def others(value: Any) -> Iterator[Any]:
    """Values that differ from `value` in one thing each, of the same kind as far as that is known."""
    match value:
        case bool():
            yield not value
        case int() | float():
            yield value + 1
        case Fraction():
            yield value / 3
        case str():
            yield value + "x"
        case None:
            yield from (3, "x")
        case torch.dtype():
            yield torch.float16
        case tuple():
            yield (*value, 0.5)
        case frozenset():
            yield value | {99}
        case dict():
            yield {**value, "more": 1.0}
            yield from ({**value, key: other} for key, item in value.items() for other in others(item))
        case _ if dataclasses.is_dataclass(value) and not dataclasses.fields(value):
            yield "another kind"
        case _ if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                if field.metadata.get("changes_output", True):
                    for other in others(getattr(value, field.name)):
                        yield _replaced(value, field.name, other)


def _replaced(value: Any, name: str, other: Any) -> Any:
    copy = object.__new__(type(value))
    copy.__dict__.update({**vars(value), name: other})
    return copy


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_field_of_a_stage_counts(plan, keys, name):
    configs = list(others(plan.recipe.stages[name]))
    assert len(configs) >= len(dataclasses.fields(plan.recipe.stages[name])) - 1
    facts = [machine_facts(plan.device)]
    for config in configs:
        recipe = dataclasses.replace(plan.recipe, stages={**plan.recipe.stages, name: config})
        differing = changed(keys, keys_of(dataclasses.replace(plan, recipe=recipe), facts))
        assert name in differing, config
        assert "prompt" not in differing or name == "prompt"


def test_every_field_of_the_request_counts_that_a_stage_can_see(plan, keys):
    """A recipe whose stages don't see a field refuses it."""
    seen = {field for stage in plan.recipe.stages.values() for field in request_fields(stage)}
    for field in dataclasses.fields(Request):
        for other in others(getattr(plan.recipe.request, field.name)):
            if field.name == "images":
                continue  # below
            recipe = dataclasses.replace(plan.recipe, request=_replaced(plan.recipe.request, field.name, other))
            differing = changed(keys, keys_of(dataclasses.replace(plan, recipe=recipe)))
            after = set() if field.name not in seen else ALL if "prompt" in field.name else AFTER_BASE
            assert differing == (after if field.name != "seed" else AFTER_BASE), field.name


def test_every_number_of_the_numerics_counts(plan, keys):
    for other in others(plan.numerics):
        assert changed(keys, keys_of(dataclasses.replace(plan, numerics=other))) == ALL


def test_every_fact_of_the_machine_counts(plan, keys, monkeypatch):
    facts = machine_facts(plan.device)
    assert facts["code"] == keys_module.code_version()
    for name, fact in facts.items():
        assert changed(keys, keys_of(plan, [{**facts, name: [fact]}])) == ALL
    assert changed(keys, keys_of(plan, [facts, facts])) == ALL
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert changed(keys, keys_of(plan)) == ALL
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert changed(keys, keys_of(plan)) == ALL
    monkeypatch.undo()
    assert keys_of(plan) == keys


def test_every_byte_of_the_code_counts(tmp_path: Path, monkeypatch):
    package = tmp_path / "ltxgen"
    (package / "models").mkdir(parents=True)
    (package / "conf").mkdir()
    for name in ("__init__.py", "models/a.py", "models/b.json", "conf/c.yaml"):
        (package / name).write_text(name)
    monkeypatch.setattr(keys_module.ltxgen, "__file__", str(package / "__init__.py"))
    first = keys_module.code_version()
    seen = {first}
    for name in ("__init__.py", "models/a.py", "models/b.json"):
        (package / name).write_text(f"{name} ")
        seen.add(keys_module.code_version())
    (package / "models" / "new.py").write_text("")
    seen.add(keys_module.code_version())
    assert len(seen) == 5
    (package / "conf" / "c.yaml").write_text("other")  # is in the composed config
    assert keys_module.code_version() in seen


def artifacts_of(plan: Plan, name: str, **changes: Any) -> Plan:
    changed_artifact = dataclasses.replace(plan.artifacts[name], **changes)
    return dataclasses.replace(plan, artifacts={**plan.artifacts, name: changed_artifact})


@pytest.mark.parametrize(
    ("artifact", "stages"),
    [
        ("text_encoder", ALL),
        ("checkpoint", ALL),
        ("spatial_upscaler", AFTER_BASE - {"base", "decode_audio"}),
        ("distilled_lora", AFTER_REFINE),
    ],
)
def test_a_file_counts_by_content_and_not_by_name(plan, keys, tiny_set, tmp_path, artifact, stages):
    source, copy = tiny_set.file(artifact), tmp_path / "other name"
    if source.is_dir():
        copy.mkdir()
        for file in source.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        file = copy / "config.json"
    else:
        copy.write_bytes(source.read_bytes())
        file = copy
    assert keys_of(artifacts_of(plan, artifact, path=copy, file="x", reason="y")) == keys
    file.write_bytes(file.read_bytes() + b" ")
    assert changed(keys, keys_of(artifacts_of(plan, artifact, path=copy))) == stages


def test_a_synthetic_file_counts_by_what_it_is_made_from():
    made = ResolvedArtifact("checkpoint", None, "", "", synthetic_config={"width": 1})
    same = dataclasses.replace(made, reason="other words")
    identity = keys_module._identity
    assert identity(made) == identity(same)
    assert identity(made) != identity(dataclasses.replace(made, seed=1))
    assert identity(made) != identity(dataclasses.replace(made, synthetic_config={"width": 2}))


def test_a_path_in_a_request_stands_for_its_content(tmp_path: Path, tiny_set):
    for name in "ab":
        (tmp_path / name).write_bytes(b"picture")
    (tmp_path / "c").write_bytes(b"Picture")
    a, b, c = (canonical(ImageCondition(str(tmp_path / name))) for name in "abc")
    assert a == b
    assert a != c
    assert str(tmp_path) not in str(a)


def test_a_stage_sees_only_what_its_key_covers(plan):
    prompt, base = (plan.stages[name].setting.request for name in ("prompt", "base"))
    assert prompt.prompt == plan.recipe.request.prompt
    with pytest.raises(AttributeError, match=r"can't see request.height: name it in its config's request_fields"):
        _ = prompt.height
    assert base.height == 64
    with pytest.raises(AttributeError, match=r"request\.seed"):
        _ = base.seed
    assert isinstance(base, SeenRequest)
    assert set(request_fields(plan.recipe.stages["base"])) == {"height", "width", "num_frames", "fps"}


@dataclass(frozen=True)
class Parallel:
    shape: MeshShape
    sharded_weights: bool = False


def test_an_eighth_rank_or_a_mesh_counts(plan, keys):
    two = MeshShape(ulysses=2)
    both = [keys_of(dataclasses.replace(plan, parallel=Parallel(two, sharded))) for sharded in (False, True)]
    assert changed(keys, both[0]) == ALL
    assert changed(both[0], both[1]) == ALL


def test_what_passes_are_dealt_by_counts(planned):
    def on(hardware: str, shape: MeshShape) -> Any:
        return keys_of(dataclasses.replace(planned(f"hardware={hardware}"), parallel=Parallel(shape)))

    dealt, shared = MeshShape(guidance=2), MeshShape(ulysses=2)
    assert changed(on("h200", dealt), on("h100", dealt)) == AFTER_BASE
    assert changed(on("h200", shared), on("h100", shared)) == set()

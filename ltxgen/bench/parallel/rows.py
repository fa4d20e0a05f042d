"""What is to be measured, in which order: each stage on one GPU and on every distinct layout that serves it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ltxgen.bench.whole import size_of
from ltxgen.config.recipe import parse_recipe
from ltxgen.parallel.auto import meshes
from ltxgen.parallel.cost import StepCost, common_heads
from ltxgen.parallel.shape import MeshShape
from ltxgen.recipe.plan import Plan, make_plan
from ltxgen.stage.decode_video import DecodeVideo
from ltxgen.stage.denoise import Denoise

ONE_GPU = "one GPU"
OTHER_BATCHING, OTHER_KERNEL = "other batching", "other kernel"
Kind = Literal["one", "order", "layout", "sharded"]


@dataclass(frozen=True)
class Row:
    """A stage of a plan, and who runs it: one rank (`one`), one that sums in another order, or all in a layout.

    `meshes` names the meshes of a whole run that this row is a part of, `auto` the one that `parallel=auto` takes.
    `num_steps` is how many evaluations the recipe has, of which fewer may be timed.
    """

    kind: Kind
    size: str
    stage: Denoise | DecodeVideo
    plan: Plan
    layout: str
    num_steps: int = 1
    meshes: tuple[str, ...] = ()
    auto: str = ""

    @property
    def name(self) -> str:
        return f"{self.stage.name} {self.layout} {self.size}"

    @property
    def entry_name(self) -> str:
        """The name of its figures."""
        return f"parallel {self.name}"

    @property
    def reference(self) -> str:
        """The row that its result is compared with; of that row itself none."""
        return "" if self.kind == "one" else f"{self.stage.name} {ONE_GPU} {self.size}"

    @property
    def graphs(self) -> bool:
        """Whether steps are recorded as CUDA graphs."""
        return isinstance(self.stage, Denoise) and self.stage.is_small and self.kind != "sharded"

    @property
    def num_timed(self) -> int:
        """Evaluations that are timed."""
        return len(self.stage.evaluations) if isinstance(self.stage, Denoise) else 1

    @property
    def alone(self) -> bool:
        return self.kind in ("one", "order")

    @property
    def predicted(self) -> StepCost | None:
        """Of a step; of a stage without steps nothing is predicted."""
        parallel, work = self.plan.parallel, self.stage.work
        assert parallel is not None, "a plan that can run knows its ranks"
        if work is None:
            return None
        return parallel.cost.step(work, parallel.cost.stage_shape(work, parallel.shape), parallel.sharded_weights)


@dataclass(frozen=True)
class SizePlans:
    """The plans of one size: on one GPU, on every mesh of all ranks, and on one of them with sharded weights.

    Meshes are ordered by the time that is predicted for a whole run. `num_steps` are the recipe's, by stage.
    """

    size: str
    one: Plan
    by_mesh: Mapping[MeshShape, Plan]
    sharded: Plan
    auto: MeshShape
    num_steps: Mapping[str, int] = field(default_factory=dict)


def plan_size(config: Mapping[str, Any], num_ranks: int, steps: int, local_rank: int) -> SizePlans:
    """Every plan of one size. `steps`: as many of a stage's steps are run at most; the choice of `auto` is that for all
    of them."""

    def planned(composed: Mapping[str, Any], **parallel: Any) -> Plan:
        recipe = parse_recipe({**composed, "parallel": parallel})
        return make_plan(recipe, local_rank=local_rank).require()

    whole = planned(config, kind="auto", num_processes=num_ranks)
    assert whole.parallel is not None, "a plan that can run knows its ranks"
    cost = whole.parallel.cost
    num_passes = max(stage.num_passes for stage in whole.stages.values())
    shapes = sorted(meshes(num_ranks, num_passes, common_heads(cost.config)), key=cost.run_seconds)
    auto, short = whole.parallel.shape, shortened(config, steps)

    def on_mesh(shape: MeshShape, weights: str) -> Plan:
        return planned(short, kind="mesh", num_processes=num_ranks, **vars(shape), weights=weights)

    return SizePlans(
        size_of(whole),
        planned(short, kind="single", num_processes=1),
        {shape: on_mesh(shape, "replicated") for shape in shapes},
        on_mesh(auto, "sharded"),
        auto,
        {stage.name: len(stage.evaluations) for stage in denoising(whole)},
    )


def shortened(config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """`config` with at most `steps` steps in every stage that has a number of them."""

    def stage(of: Any) -> Any:
        given = of.get("steps") if isinstance(of, Mapping) else None
        return {**of, "steps": min(given, steps)} if isinstance(given, int) else of

    return {**config, "stages": {name: stage(each) for name, each in config["stages"].items()}}


def denoising(plan: Plan) -> Iterator[Denoise]:
    """Its stages that denoise a video; sound alone is another transformer's."""
    for stage in plan.stages.values():
        if isinstance(stage, Denoise) and stage.has_video:
            yield stage


def rows_of(plans: SizePlans) -> list[Row]:
    """The denoising of one size, most telling first: one GPU, then layouts by predicted time, then other orders."""
    alone = [
        Row("one", plans.size, stage, plans.one, ONE_GPU, plans.num_steps[stage.name], auto=str(plans.auto))
        for stage in denoising(plans.one)
    ]
    layouts = [row for base in alone for row in _layouts(base, plans)]
    orders = [replace(base, kind="order", layout=order) for base in alone for order in _orders(base.stage)]
    return [*alone, *layouts, *orders]


def _orders(stage: Denoise | DecodeVideo) -> tuple[str, ...]:
    """How else one GPU can compute the same sums: a stage of one pass has nothing to batch."""
    return (OTHER_BATCHING, OTHER_KERNEL) if stage.num_passes > 1 else (OTHER_KERNEL,)


def _layouts(base: Row, plans: SizePlans) -> list[Row]:
    """A row for each way in which the ranks of some mesh lie in this stage."""
    rows: dict[MeshShape, Row] = {}
    for mesh, plan in plans.by_mesh.items():
        assert plan.parallel is not None, "a plan that can run knows its ranks"
        shape = plan.parallel.stage_shape(base.stage.num_passes)
        stage = next(each for each in denoising(plan) if each.name == base.stage.name)
        row = rows.get(shape, replace(base, kind="layout", stage=stage, plan=plan, layout=str(shape)))
        rows[shape] = replace(row, meshes=(*row.meshes, str(mesh)))
    return list(rows.values())


def sharded_rows(plans: SizePlans) -> list[Row]:
    """The denoising stages with the weights spread over all ranks."""
    parallel = plans.sharded.parallel
    assert parallel is not None, "a plan that can run knows its ranks"
    return [
        Row(
            "sharded",
            plans.size,
            stage,
            plans.sharded,
            f"{parallel.stage_shape(stage.num_passes)}, sharded",
            plans.num_steps[stage.name],
            auto=str(plans.auto),
        )
        for stage in denoising(plans.sharded)
    ]


def tile_rows(plans: SizePlans) -> list[Row]:
    """Decoding of the picture by one rank and by all."""
    many = plans.by_mesh[plans.auto]
    return [
        *(Row("one", plans.size, stage, plans.one, ONE_GPU) for stage in decoding(plans.one)),
        *(Row("layout", plans.size, stage, many, f"{plans.auto.num_ranks} ranks") for stage in decoding(many)),
    ]


def decoding(plan: Plan) -> Iterator[DecodeVideo]:
    """Its stages that decode the picture."""
    for stage in plan.stages.values():
        if isinstance(stage, DecodeVideo):
            yield stage

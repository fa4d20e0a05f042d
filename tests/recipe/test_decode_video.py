"""The decoding stage's choices before a run: tiling and kernels."""

from dataclasses import replace

import pytest
import torch

from ltxgen.config.recipe import Request
from ltxgen.diffusion.numerics import Numerics
from ltxgen.models.transformer import TransformerConfig
from ltxgen.parallel.cost import CostModel, Hardware
from ltxgen.parallel.plan import ParallelPlan
from ltxgen.parallel.shape import Choice, MeshShape
from ltxgen.stage.decode_video import DecodeVideoConfig, TilingConfig
from ltxgen.stage.protocol import Setting

SETTING = Setting(
    Request("", default_negative_prompt=""), Numerics.named("current"), torch.device("cpu"), torch.bfloat16
)
MODEL = TransformerConfig.from_metadata({"transformer": {"num_layers": 1, "caption_proj_before_connector": True}})
CUDA = replace(SETTING, device=torch.device("cuda", 0))


def on_ranks(setting, count):
    cost = CostModel(MODEL, {}, Hardware("none", 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    return replace(setting, parallel=ParallelPlan(Choice(MeshShape(ulysses=count)), cost))


def build(setting, **options):
    stage = DecodeVideoConfig("base.video", **options).build("decode_video", setting)
    return stage, stage.infer({"base.video": (16, 32, 48)})


@pytest.mark.parametrize(
    ("kernels", "text"),
    [("auto", "plain (fused ones need an NVIDIA GPU, and this is cpu)"), ("plain", "plain")],
)
def test_a_plan_says_which_kernels_and_why(kernels, text):
    stage, problems = build(SETTING, kernels=kernels)
    assert not problems
    assert stage.describe()["kernels"] == text


def test_weights_of_32_bits_are_decoded_plainly():
    _, problems = build(replace(CUDA, dtype=torch.float32), kernels="fused")
    assert [str(problem) for problem in problems] == [
        "stages.decode_video.kernels = fused: are for 16-bit weights, and these are float32; take auto or plain"
    ]


def test_tiles_are_fitted_on_one_gpu():
    stage, problems = build(on_ranks(CUDA, 1), tiling="auto")
    assert not problems
    assert stage.describe()["tiling"] == "auto"  # sizes and tiles are known in the run
    _, problems = build(on_ranks(CUDA, 2), tiling="auto")
    assert [problem.path for problem in problems] == ["stages.decode_video.tiling"]


def test_without_a_gpu_auto_is_the_official_tiling():
    stage, problems = build(on_ranks(SETTING, 2), tiling="auto")
    assert not problems
    given, _ = build(on_ranks(SETTING, 2), tiling=TilingConfig(768, 64, 80, 24))
    assert stage.tiling == given.tiling
    assert stage.describe()["tiles"] == given.describe()["tiles"]

"""Predicted peaks against measured ones, and the policy that follows from them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ltxgen.config import compose
from ltxgen.config.recipe import Memory, parse_recipe
from ltxgen.recipe.forecast import USABLE, ComponentSize, Forecaster, Peak, Room, StageNeed
from ltxgen.recipe.plan import Plan, make_plan
from ltxgen.recipe.policy import choose_policy

GIB = 2**30
AMPLE = Room(1000 * GIB, 1000 * GIB)

# GiB on one H200, 22B in bf16: README, "At full size".
MEASURED = {
    "prompt": 29.05,
    "base": 36.08,
    "upsample": 36.64,
    "refine": 37.98,
    "decode_video": 5.54,
    "decode_audio": 1.51,
    "write": 5.54,
}


def plan_of(*words: str) -> Plan:
    words = ("+recipe=ltx23_two_stage", "artifacts=synthetic", "runtime.device=cpu", "memory.load_ahead=false", *words)
    plan = make_plan(parse_recipe(compose.compose_config(words)))
    assert not plan.problems
    return plan


@pytest.fixture(scope="module")
def full_size(offline) -> Plan:
    return plan_of()


def test_peaks_are_within_a_tenth_of_the_measured_ones(full_size: Plan):
    assert full_size.dtype == torch.bfloat16
    assert full_size.memory is not None
    stages = full_size.memory.forecast.stages
    assert stages.keys() - MEASURED.keys() == {"base_images", "refine_images"}  # which have nothing to do here
    predicted = {name: stages[name].device / GIB for name in MEASURED}
    assert predicted == pytest.approx(MEASURED, rel=0.1)
    assert all(peak.host == 0 for peak in stages.values())


@pytest.mark.parametrize(
    ("tokens", "num_passes", "measured"), [(1536, 1, 35.61), (6144, 1, 36.19), (24576, 1, 38.00), (6144, 4, 36.64)]
)
def test_steps_of_the_transformer(full_size: Plan, tokens: int, num_passes: int, measured: float):
    """`ltxgen bench` on one H200."""
    from ltxgen.diffusion.pair import Pair
    from ltxgen.parallel.cost import Work
    from ltxgen.parallel.shape import MeshShape
    from ltxgen.recipe.forecast import FIXED_BYTES

    assert full_size.parallel is not None
    guided = full_size.stages["base"].work.steps[0]
    work = Work([guided[:num_passes]], Pair(tokens, 126))
    activations = (full_size.parallel.cost.activation_bytes(work, MeshShape()) + FIXED_BYTES) / GIB
    weights = 35.369
    assert weights + activations == pytest.approx(measured, rel=0.01)
    # Streamed, activations are most of the peak.
    assert activations == pytest.approx(measured - weights, abs=0.2)


def test_a_plan_shows_every_stages_memory(run_ltxgen, tiny_words, tmp_path: Path):
    result = run_ltxgen("plan", *tiny_words, cwd=tmp_path)
    assert result.code == 0, result.err
    out = " ".join(result.out.split())
    assert re.search(r"memory: last_use [\d.]+ MiB \(auto\), at most in \w+, of 140 GiB that can be had", out)
    (peaks,) = re.findall("memory: peak of each stage: (.*?) memory:", out)
    assert "memory: loaded ahead: transformer during prompt, spatial_upscaler and video_statistics during base" in out
    assert [each.split()[0] for each in peaks.split(", ") if "images" not in each] == list(MEASURED)
    assert re.search(r"memory: others at least: resident [\d.]+ MiB, swap [\d.]+ MiB \(host [\d.]+ MiB\), stream", out)


def stages_of(*, middle: int = 1) -> Forecaster:
    """A net of 10 blocks used twice, with another between; 1 GiB of activations each time."""
    sizes = {"net": ComponentSize(2 * GIB, (GIB,) * 10), "text": ComponentSize(6 * GIB), "up": ComponentSize(GIB)}

    def stage(*components: str) -> StageNeed:
        return StageNeed((), (), components, lambda free: GIB)

    needs = {"prompt": stage("text"), "base": stage("net"), "upsample": stage("up"), "refine": stage("net")}
    return Forecaster(needs, {**sizes, "up": ComponentSize(middle * GIB)})


def taken(device: float, host: float, memory: Memory | None = None, *, middle: int = 1, limited: bool = True):
    """The policy for so many usable GiB."""
    room = Room(int(device * GIB / USABLE) + 1, int(host * GIB / USABLE) + 1)
    plan, problems = choose_policy(memory or Memory(), stages_of(middle=middle), room, limited=limited)
    return plan.forecast, problems


FIXED = 0.125


@pytest.mark.parametrize(
    ("device", "host", "middle", "policy", "kept"),
    [
        (14 + FIXED, 0, 1, "last_use", None),  # the net, the upscaler and activations
        (13.5 + FIXED, 100, 1, "swap", None),
        (100, 100, 1, "last_use", None),
        (13.5 + FIXED, 5, 1, "stream", 9),  # the host has no room for the net, but for a block
        (12.9 + FIXED, 100, 1, "stream", 7),  # 2 + 7 + two buffers, and activations
        (7 + FIXED, 100, 1, "stream", 2),
        (7 + FIXED, 7, 1, "stream from disk", 2),
    ],
)
def test_auto_takes_the_fastest_that_fits(device, host, middle, policy, kept):
    forecast, problems = taken(device, host, middle=middle)
    assert not problems
    assert forecast.policy == policy
    assert forecast.num_kept.get("net") == kept
    assert forecast.device <= device * GIB + 1
    assert forecast.host <= host * GIB + 1


def test_a_run_without_a_gpu_is_as_it_always_was():
    forecast, problems = taken(1, 1, limited=False)
    assert (forecast.policy, problems) == ("last_use", [])
    forecast, _ = taken(1, 1, Memory("stream"), limited=False)
    assert (forecast.policy, forecast.num_kept["net"]) == ("stream", 0)


@pytest.mark.parametrize("limited", [True, False])
def test_a_given_number_of_blocks_stays(limited):
    forecast, problems = taken(100, 100, Memory("stream", blocks_on_device=3), limited=limited)
    assert (forecast.num_kept["net"], problems) == (3, [])
    assert forecast.host == 7 * GIB
    forecast, problems = taken(100, 100, Memory("stream", blocks_on_device=30), limited=limited)
    assert (forecast.num_kept["net"], forecast.host) == (10, 0)


def test_peaks_of_each_policy():
    forecaster = stages_of()
    peaks = {
        policy: [
            (peak.device / GIB - FIXED, peak.host / GIB)
            for peak in forecaster.forecast(policy, AMPLE, num_kept=0).stages.values()
        ]
        for policy in ("resident", "last_use", "swap", "stream", "stream from disk")
    }
    assert peaks["resident"] == [(7, 0), (19, 0), (20, 0), (20, 0)]
    assert peaks["last_use"] == [(7, 0), (13, 0), (14, 0), (13, 0)]
    assert peaks["swap"] == [(7, 0), (13, 0), (2, 12), (13, 0)]
    assert peaks["stream"] == [(7, 0), (5, 10), (4, 10), (5, 10)]
    assert peaks["stream from disk"] == [(7, 0), (5, 0), (4, 0), (5, 0)]


@pytest.mark.parametrize(
    ("device", "ahead", "peaks"),
    [
        (100, {"prompt": ["net"], "base": ["up"]}, [19, 14, 14, 13]),
        (18.9 + FIXED, {"base": ["up"]}, [7, 14, 14, 13]),  # nothing for prompt and the net together
        (19 + FIXED, {"prompt": ["net"], "base": ["up"]}, [19, 14, 14, 13]),
    ],
)
def test_the_next_stages_components_are_loaded_where_both_fit(device, ahead, peaks):
    forecast, problems = taken(device, 100)
    assert (forecast.policy, problems) == ("last_use", [])
    assert forecast.ahead == ahead
    assert [peak.device / GIB - FIXED for peak in forecast.stages.values()] == peaks
    forecast, _ = taken(device, 100, Memory(load_ahead=False))
    assert forecast.ahead == {}
    assert [peak.device / GIB - FIXED for peak in forecast.stages.values()] == [7, 13, 14, 13]


def test_stages_without_components_are_too_short_to_load_beside():
    stages = {
        "prompt": StageNeed((), ("text",), ("encoder",), lambda free: 0),
        "images": StageNeed((), ("images",), (), lambda free: 0),
        "base": StageNeed(("text", "images"), (), ("net",), lambda free: 0),
    }
    forecaster = Forecaster(stages, {"encoder": ComponentSize(7 * GIB), "net": ComponentSize(12 * GIB)})
    for policy in ("last_use", "swap"):
        forecast = forecaster.with_ahead(forecaster.forecast(policy, AMPLE), AMPLE)
        assert forecast.ahead == {"prompt": ["net"]}
        found = [(peak.device / GIB - FIXED, peak.host) for peak in forecast.stages.values()]
        assert found == [(19, 0), (12, 0), (12, 0)], policy


def test_what_is_loaded_ahead_counts_under_every_policy():
    forecaster = stages_of(middle=3)
    found = {
        policy: forecaster.with_ahead(forecaster.forecast(policy, AMPLE, num_kept=0), AMPLE)
        for policy in ("resident", "swap", "stream", "stream from disk")
    }
    assert all(each.ahead == {"prompt": ["net"], "base": ["up"]} for each in found.values())
    peaks = {
        policy: [(peak.device / GIB - FIXED, peak.host / GIB) for peak in each.stages.values()]
        for policy, each in found.items()
    }
    assert peaks["resident"] == [(19, 0), (22, 0), (22, 0), (22, 0)]
    assert peaks["swap"] == [(19, 0), (16, 0), (4, 12), (13, 0)]
    assert peaks["stream"] == [(9, 10), (8, 10), (6, 10), (5, 10)]
    assert peaks["stream from disk"] == [(9, 0), (8, 0), (6, 0), (5, 0)]


def test_without_a_gpu_components_loaded_ahead_must_fit_the_host():
    assert taken(100, 19 + FIXED, limited=False)[0].ahead == {"prompt": ["net"], "base": ["up"]}
    assert taken(100, 18 + FIXED, limited=False)[0].ahead == {"base": ["up"]}


def test_a_stream_takes_its_memory_where_it_is_read():
    stages = {
        "decode": StageNeed(("latents",), ("frames",), ("vae",), lambda free: 4 * GIB, makes_stream=True),
        "sound": StageNeed(("audio",), ("waveform",), ("vocoder",), lambda free: GIB),
        "write": StageNeed(("frames", "waveform"), (), (), lambda free: 0),
    }
    sizes = {"vae": ComponentSize(2 * GIB), "vocoder": ComponentSize(GIB)}
    peaks = Forecaster(stages, sizes).forecast("last_use", AMPLE).stages
    assert {name: peak.device / GIB - FIXED for name, peak in peaks.items()} == {"decode": 6, "sound": 4, "write": 6}


def test_what_cannot_fit_is_refused_with_what_would():
    _, (problem,) = taken(6, 100)
    assert (problem.path, problem.value) == ("memory.policy", "auto")
    assert "prompt takes 7.1 GiB of the GPU, 1.1 GiB more than the 6.0 GiB that can be used" in problem.message
    assert "a smaller or shorter video, or shard the weights over more GPUs" in problem.message
    _, (problem,) = taken(13.5, 100, Memory("resident"))
    assert "refine takes 20.1 GiB" in problem.message or "upsample takes 20.1 GiB" in problem.message
    assert "swap 13.1 GiB (host 12.0 GiB) fits: memory=swap" in problem.message
    _, (problem,) = taken(8, 3, Memory("stream", "host"))
    assert "8.0 GiB of the host's memory, 5.0 GiB more than the 3.0 GiB that can be used" in problem.message
    assert problem.message.endswith("fits: memory=stream memory.stream_from=disk")


def test_sharded_weights_neither_move_nor_stream():
    plan, problems = choose_policy(Memory(), stages_of(), AMPLE, sharded=True, limited=True)
    assert (plan.forecast.policy, problems) == ("last_use", [])
    for policy in ("swap", "stream"):
        _, (problem,) = choose_policy(Memory(policy), stages_of(), AMPLE, sharded=True, limited=True)
        assert "take auto or last_use" in problem.message
    _, (problem,) = choose_policy(Memory(), stages_of(), Room(5 * GIB, 100 * GIB), sharded=True, limited=True)
    assert "no policy fits" in problem.message


def run_beside(policy: str, room: Room, resting: dict[str, Peak]) -> bool:
    """Whether a run of two stages, of 10 and 20 GiB of weights with 1 GiB of activations, leaves room for `resting`."""
    stages = {
        "a": StageNeed((), ("x",), ("first",), lambda free: GIB),
        "b": StageNeed(("x",), (), ("second",), lambda free: GIB),
    }
    forecaster = Forecaster(stages, {"first": ComponentSize(10 * GIB), "second": ComponentSize(20 * GIB)})
    return forecaster.leaves_room(forecaster.forecast(policy, room), room, resting)


@pytest.mark.parametrize(
    ("policy", "free", "resting", "fits"),
    [
        ("last_use", 100, {}, True),
        ("last_use", 60, {"first": Peak(10 * GIB, 0)}, True),
        ("last_use", 31, {"first": Peak(10 * GIB, 0)}, False),  # with USABLE of it, not beside the second one
        ("last_use", 60, {"other": Peak(40 * GIB, 0)}, False),
        ("last_use", 60, {"other": Peak(0, 40 * GIB)}, True),  # on the host
        ("last_use", 60, {"other": Peak(0, 400 * GIB)}, False),
        ("resident", 60, {"first": Peak(10 * GIB, 0)}, True),  # counted once, where the run has it anyway
        ("resident", 36, {"first": Peak(10 * GIB, 0)}, True),
    ],
)
def test_what_may_rest_beside_a_run(policy: str, free: int, resting: dict[str, Peak], fits: bool):
    assert run_beside(policy, Room(free * GIB, 100 * GIB), resting) is fits


def test_nothing_rests_where_a_stage_would_make_do_with_less():
    """A decoder that takes smaller tiles gives other pixels."""
    stages = {"decode": StageNeed((), (), ("decoder",), lambda free: min(free, 30 * GIB))}
    forecaster = Forecaster(stages, {"decoder": ComponentSize(GIB)})
    room = Room(50 * GIB, 0)
    forecast = forecaster.forecast("last_use", room)
    assert forecaster.leaves_room(forecast, room, {"transformer": Peak(10 * GIB, 0)})
    assert not forecaster.leaves_room(forecast, room, {"transformer": Peak(20 * GIB, 0)})


def test_what_a_component_takes_at_rest(full_size: Plan):
    memory = full_size.memory
    assert memory is not None
    transformer = memory.at_rest("transformer")
    assert transformer.device / GIB == pytest.approx(35.4, rel=0.01)
    assert transformer.host == 0
    streaming = plan_of("memory=stream", "memory.blocks_on_device=0").memory
    assert streaming is not None
    assert streaming.at_rest("transformer").device < GIB
    assert streaming.at_rest("transformer").host / GIB == pytest.approx(35, rel=0.05)
    assert memory.at_rest("tokenizer") == Peak(0, 0)

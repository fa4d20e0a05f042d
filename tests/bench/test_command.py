"""`ltxgen bench` on the CPU and the embedded model: the stages' own code, timed."""

import json
import weakref

import pytest
import torch

from ltxgen.artifacts.synthetic import architecture
from ltxgen.bench import peers
from ltxgen.bench.options import CASES
from ltxgen.models.transformer import ModalityInput, Transformer, TransformerConfig
from ltxgen.models.video_vae import VideoDecoder, VideoVAEConfig
from ltxgen.recipe.parts import ArtifactParts

TINY = ("model=ltx23_tiny", "--sizes", "64x64x9")


@pytest.fixture(scope="module")
def measured(run_ltxgen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    result = run_ltxgen("bench", *TINY, "stages.base.steps=2", "--json", "now.json", cwd=folder)
    assert result.code == 0, result.err
    return folder, result, json.loads((folder / "now.json").read_text())


def entry(data, name):
    (found,) = [each for each in data["entries"] if f"{each['case']} {each['size']}" == name]
    return found


def test_every_case_is_measured_at_its_own_size(measured):
    _, _, data = measured
    names = [f"{each['case']} {each['size']}" for each in data["entries"]]
    small, full = ["forward 32x32x9", "guided 32x32x9"], ["forward 64x64x9", "refine 64x64x9"]
    assert names == [*small, *full, "decode 64x64x9", "vocoder 64x64x9", "run 64x64x9"]
    assert {each["case"] for each in data["entries"]} == set(CASES)


def test_floors_and_peers_stand_beside_ours(measured):
    _, result, data = measured
    for name, forwards in (("forward 32x32x9", 1), ("guided 32x32x9", 4), ("refine 64x64x9", 1)):
        found = entry(data, name)
        theirs = found["peers"]["diffusers"]
        assert found["floor_ms"] > 0
        assert len(found["times"]) == len(theirs["times"]) == 5
        assert (found["details"]["passes"], theirs["calls"]) == (forwards, forwards)
        assert theirs["ms"] == pytest.approx(forwards * sorted(theirs["times"])[2])
    assert entry(data, "forward 32x32x9")["peers"]["diffusers"]["relative_l2"] < 1e-5
    assert entry(data, "decode 64x64x9")["floor_ms"] > 0
    assert entry(data, "decode 64x64x9")["peers"]["diffusers"]["relative_l2"] < 1e-5
    assert entry(data, "vocoder 64x64x9")["floor_ms"] > 0
    assert "relative L2" in result.out
    assert "attention (sdpa)" in result.out
    guided, forward = (entry(data, name)["details"] for name in ("guided 32x32x9", "forward 32x32x9"))
    assert (guided["passes"], forward["passes"]) == (4, 1)


def test_a_whole_run_says_where_its_time_went(measured):
    folder, result, data = measured
    run = entry(data, "run 64x64x9")["details"]
    stages = [name for name in run["stages"] if "images" not in name]
    assert stages == ["prompt", "base", "upsample", "refine", "decode_video", "decode_audio", "write"]
    assert all(run["stages"][name]["seconds"] > 0 for name in stages)
    parts = run["computing_seconds"] + run["loading_seconds"] + run["rest_seconds"]
    assert parts == pytest.approx(entry(data, "run 64x64x9")["ms"] / 1000)
    assert "beside them" in result.out
    assert [path.name for path in folder.iterdir()] == ["now.json"]


def test_regressions_against_a_baseline(measured, run_ltxgen, tmp_path):
    _, _, data = measured
    (tmp_path / "same.json").write_text(json.dumps(altered(data, tolerance=1e6)))
    (tmp_path / "fast.json").write_text(json.dumps(altered(data, tolerance=0.05, ms=1e-3)))
    words = ("bench", "decode", *TINY, "--against")
    same = run_ltxgen(*words, "same.json", cwd=tmp_path)
    assert (same.code, "0 of 1 figures compared are worse" in same.out) == (0, True), same.err
    worse = run_ltxgen(*words, "fast.json", cwd=tmp_path)
    assert (worse.code, "1 of 1 figures compared are worse" in worse.out) == (1, True), worse.err


def test_without_diffusers(run_ltxgen, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    alone = run_ltxgen("bench", *TINY, "forward", cwd=tmp_path)
    assert (alone.code, "no peer: diffusers is not installed" in alone.err) == (0, True), alone.err
    assert "diffusers" not in alone.out
    asked = run_ltxgen("bench", *TINY, "forward", "--peer", "diffusers", cwd=tmp_path)
    assert (asked.code, asked.out) == (2, "")
    assert "--peer = diffusers: diffusers is not installed" in asked.err


def test_nothing_keeps_the_weights_for_the_whole_run(run_ltxgen, tmp_path, monkeypatch):
    modules, alive = [], []
    start, finish, make_peer = ArtifactParts.start, ArtifactParts.finish, peers.diffusers_transformer

    def starting(self, request):
        if request.name == "transformer":
            alive.append([each() is not None for each in modules])
        return start(self, request)

    def finished(self, request, loaded):
        if request.name == "transformer":
            modules.append(weakref.ref(loaded))
        return finish(self, request, loaded)

    def watched_peer(*arguments, **options):
        model = make_peer(*arguments, **options)
        modules.append(weakref.ref(model))
        return model

    monkeypatch.setattr(ArtifactParts, "start", starting)
    monkeypatch.setattr(ArtifactParts, "finish", finished)
    monkeypatch.setattr(peers, "diffusers_transformer", watched_peer)
    result = run_ltxgen("bench", *TINY, "forward", "run", "stages.base.steps=2", cwd=tmp_path)
    assert result.code == 0, result.err
    # Loaded for the forward, beside a peer, and again for the run.
    first, second = alive
    assert first == []
    assert second
    assert not any(second)


def altered(data, **changes):
    return {**data, "entries": [{**each, **changes} for each in data["entries"]]}


def test_any_config_can_be_timed(run_ltxgen, tmp_path):
    words = ("guided", "stages.base.guidance.video.stg_scale=0", "stages.base.guidance.audio.stg_scale=0")
    result = run_ltxgen("bench", *TINY, *words, "--peer", "none", "--json", "now.json", cwd=tmp_path)
    assert result.code == 0, result.err
    data = json.loads((tmp_path / "now.json").read_text())
    (found,) = data["entries"]
    assert (found["case"], found["details"]["passes"], found["peers"]) == ("guided", 3, {})
    assert data["overrides"] == ["model=ltx23_tiny", *words[1:]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("decode", "~stages.decode_video", "~stages.write"), "bench = decode: the recipe has no stage for it"),
        (("--sizes", "60x64x9"), "request.width = 60: must be a multiple of 64"),
        (("parallel=ulysses", "parallel.num_processes=2"), "bench measures one process"),
        (("attention=sdpa_cudn",), "did you mean 'sdpa_cudnn'"),
        (("runtime.device=cpu",), "without a GPU the full model takes hours"),
        (("--against", "nowhere.json"), "--against = nowhere.json: can't be read"),
    ],
)
def test_refusals(run_ltxgen, tmp_path, words, message):
    model = () if words == ("runtime.device=cpu",) else TINY[:1]
    sizes = () if "--sizes" in words else TINY[1:]
    result = run_ltxgen("bench", *model, *sizes, *words, cwd=tmp_path)
    assert result.code == 2
    assert message in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_peer_holds_our_tensors_and_another_weight_shows():
    config = TransformerConfig.from_metadata(architecture("ltx23_tiny")["checkpoint"])
    torch.manual_seed(0)
    ours = Transformer(config).eval().requires_grad_(False)
    for value in ours.state_dict().values():
        value.normal_(std=0.1)
    weights = ours.state_dict()
    (forward,) = peers.diffusers_forwards(config, weights, torch.device("cpu")).values()

    def modality(stream, axes):
        level, positions = torch.tensor([0.7]), torch.rand(1, axes, 5, 1) + torch.tensor([0.0, 1.0])
        text = torch.randn(1, 3, stream.context_dim)
        return ModalityInput(torch.randn(1, 5, stream.in_channels), level[:, None], level, positions, text)

    inputs = modality(config.video, 3), modality(config.audio, 1)
    assert peers.relative_l2(ours(*inputs), forward(*inputs)) < 1e-5
    other = Transformer(config).eval().requires_grad_(False)
    other.load_state_dict(weights)
    other.transformer_blocks[0].ff.net[2].weight[0] += 1
    assert peers.relative_l2(other(*inputs), forward(*inputs)) > 1e-4
    before = forward(*inputs)[0]
    ours.transformer_blocks[0].ff.net[2].weight[0] += 1
    assert not torch.equal(forward(*inputs)[0], before)


def test_the_peers_decoder_does_not_get_the_layout_of_our_kernels(monkeypatch):
    torch.manual_seed(0)
    config = VideoVAEConfig.from_metadata(architecture("ltx23_tiny")["checkpoint"]["vae"])
    ours = VideoDecoder(config).eval().requires_grad_(False).to(memory_format=torch.channels_last_3d)
    decode = peers.diffusers_decode(ours)
    convolve, contiguous = torch.nn.functional.conv3d, []

    def watched(x, weight, *arguments, **options):
        contiguous.append(weight.is_contiguous())
        return convolve(x, weight, *arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "conv3d", watched)
    decode(torch.randn(1, config.latent_channels, 2, 2, 2))
    assert contiguous
    assert all(contiguous)

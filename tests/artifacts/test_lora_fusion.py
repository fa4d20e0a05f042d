"""LoRA fusion against float64 arithmetic, exact restoring, and LoRAs that don't fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.fusion import FusedLoras, fuse, restore
from ltxgen.artifacts.lora import linear_weights, match_lora
from ltxgen.config.errors import Refusal


class Net(nn.Module):
    """Two Linear layers, a norm and a table, named as a transformer's."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.block = nn.ModuleDict({"to_q": nn.Linear(48, 32), "norm": nn.LayerNorm(32)})
        self.proj_out = nn.Linear(32, 16)
        self.scale_shift_table = nn.Parameter(torch.zeros(2, 32))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.to(dtype).requires_grad_(False)


def write_lora(
    path: Path,
    dtype: torch.dtype = torch.bfloat16,
    *,
    seed: int = 0,
    prefix: str = "diffusion_model.",
    modules: dict[str, tuple[int, int]] | None = None,
    alpha: float | None = None,
    extra: tuple[str, ...] = (),
    rank: int = 8,
) -> ResolvedArtifact:
    generator = torch.Generator().manual_seed(seed)
    tensors = {key: torch.zeros(2, 2) for key in extra}
    for name, (rows, columns) in (modules or {"block.to_q": (32, 48), "proj_out": (16, 32)}).items():
        tensors[f"{prefix}{name}.lora_A.weight"] = torch.randn(rank, columns, generator=generator).to(dtype)
        tensors[f"{prefix}{name}.lora_B.weight"] = torch.randn(rows, rank, generator=generator).to(dtype)
        if alpha is not None:
            tensors[f"{prefix}{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return ResolvedArtifact(path.stem, path, place="", reason="", config_path=f"artifacts.{path.stem}.path")


def product64(artifact: ResolvedArtifact, name: str, prefix: str = "diffusion_model.") -> torch.Tensor:
    from safetensors.torch import load_file

    tensors = load_file(artifact.path)
    a, b = tensors[f"{prefix}{name}.lora_A.weight"], tensors[f"{prefix}{name}.lora_B.weight"]
    return b.double() @ a.double()


def bits(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[key].view(torch.uint8), right[key].view(torch.uint8)) for key in left)


def test_fp32_fusion_equals_float64(tmp_path: Path):
    net = Net(torch.float32)
    before = bits(net)
    one, two = (write_lora(tmp_path / f"{seed}.safetensors", torch.float32, seed=seed) for seed in (1, 2))
    weights = linear_weights(net)
    fuse(net, [(match_lora(one, weights), 0.5), (match_lora(two, weights), -1.25)])
    for name in weights:
        expected = before[f"{name}.weight"].double() + 0.5 * product64(one, name) - 1.25 * product64(two, name)
        torch.testing.assert_close(net.get_parameter(f"{name}.weight").double(), expected, rtol=1e-6, atol=1e-5)
    untouched = {key: tensor for key, tensor in before.items() if key.removesuffix(".weight") not in weights}
    assert same(untouched, {key: net.state_dict()[key] for key in untouched})


def test_bf16_rounds_each_product_then_the_sum(tmp_path: Path):
    net = Net(torch.bfloat16)
    before = bits(net)
    one, two = (write_lora(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))
    weights = linear_weights(net)
    fuse(net, [(match_lora(one, weights), 1.0), (match_lora(two, weights), 0.5)])
    for name in weights:
        # Strengths of 1 and 0.5 are exact in bf16, so only the three roundings of the rule remain.
        products = [product64(one, name).bfloat16(), (0.5 * product64(two, name)).bfloat16()]
        expected = before[f"{name}.weight"] + (products[0] + products[1])
        got = net.get_parameter(f"{name}.weight")
        # The matrix product itself accumulates in fp32: a few products land on the other side of a tie.
        assert (got != expected).float().mean() < 0.02
        torch.testing.assert_close(got.float(), expected.float(), rtol=2**-6, atol=2**-6)


def test_bf16_product_is_rounded_before_it_meets_fp32_weights(tmp_path: Path):
    net = Net(torch.float32)
    net.proj_out.weight.data.zero_()
    lora = write_lora(tmp_path / "l.safetensors", torch.bfloat16)
    fuse(net, [(match_lora(lora, linear_weights(net)), 1.0)])
    assert torch.equal(net.proj_out.weight, net.proj_out.weight.bfloat16().float())


def test_alpha_scales_by_alpha_over_rank(tmp_path: Path):
    net = Net(torch.float32)
    before = bits(net)
    lora = write_lora(tmp_path / "l.safetensors", torch.float32, alpha=2.0, rank=8)
    fuse(net, [(match_lora(lora, linear_weights(net)), 1.0)])
    expected = before["proj_out.weight"].double() + 0.25 * product64(lora, "proj_out")
    torch.testing.assert_close(net.proj_out.weight.double(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model.", ""])
def test_prefixes(tmp_path: Path, prefix: str):
    lora = match_lora(write_lora(tmp_path / "l.safetensors", prefix=prefix), linear_weights(Net(torch.float32)))
    assert set(lora.pairs) == {"block.to_q", "proj_out"}
    assert lora.note is None


@pytest.mark.parametrize("keep", ["device", "cpu"])
def test_restore_gives_the_exact_bits_back(tmp_path: Path, keep):
    net = Net(torch.bfloat16)
    net.proj_out.weight.data[0, 0] = -0.0
    before = bits(net)
    lora = write_lora(tmp_path / "l.safetensors")
    originals = fuse(net, [(match_lora(lora, linear_weights(net)), 1.0)], keep_original=keep)
    assert set(originals) == {"block.to_q.weight", "proj_out.weight"}
    assert not same(before, bits(net))
    restore(net, originals)
    assert same(before, bits(net))


def reader_of(net: nn.Module, asked: list[str]):
    """Stands for the component's own file."""
    from contextlib import contextmanager

    file = bits(net)

    @contextmanager
    def reload():
        def read(key, device, rows):
            asked.append(key)
            return file[key][rows].to(device)

        yield read

    return reload


@pytest.mark.parametrize("keep", ["device", "cpu", None])
def test_stack_fuses_from_clean_weights_and_restores(tmp_path: Path, keep):
    net = Net(torch.bfloat16)
    before, asked = bits(net), []
    stack = FusedLoras(net, keep_original=keep, reload=reader_of(net, asked))
    one, two = (write_lora(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))

    fusion = stack.apply([(one, 0.25)])
    assert fusion.loras == (("1", 0.25),)
    assert fusion.modules == ("block.to_q", "proj_out")
    fresh = Net(torch.bfloat16)
    fuse(fresh, [(match_lora(one, linear_weights(fresh)), 0.25)])
    assert same(bits(fresh), bits(net))

    # Another strength and another mix start from the clean weights.
    stack.apply([(one, 0.5), (two, 1.0)])
    fresh = Net(torch.bfloat16)
    weights = linear_weights(fresh)
    fuse(fresh, [(match_lora(one, weights), 0.5), (match_lora(two, weights), 1.0)])
    assert same(bits(fresh), bits(net))

    stack.restore()
    assert same(before, bits(net))
    assert stack.fusion.modules == ()
    assert bool(asked) == (keep is None)
    stack.restore()  # nothing to take out
    stack.apply([])
    assert same(before, bits(net))


def test_the_same_set_is_not_fused_again_and_strength_zero_is_no_lora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ltxgen.artifacts import fusion as module_under_test

    net = Net(torch.float32)
    before = bits(net)
    stack = FusedLoras(net)
    calls = []
    real = module_under_test.fuse
    monkeypatch.setattr(module_under_test, "fuse", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    one, two = (write_lora(tmp_path / f"{seed}.safetensors", seed=seed) for seed in (1, 2))
    stack.apply([(one, 1.0)])
    stack.apply([(one, 1.0), (two, 0)])
    assert len(calls) == 1
    assert stack.apply([(two, 0.0)]).loras == ()
    assert same(before, bits(net))


def test_only_the_header_decides_a_refusal_and_the_weights_stay(tmp_path: Path):
    net = Net(torch.float32)
    before = bits(net)
    stack = FusedLoras(net)
    good = write_lora(tmp_path / "good.safetensors")
    bad = write_lora(tmp_path / "bad.safetensors", modules={"proj_out": (16, 99)})
    with pytest.raises(Refusal):
        stack.apply([(good, 1.0), (bad, 1.0)])
    assert same(before, bits(net))
    # What was applied before stays applied.
    stack.apply([(good, 1.0)])
    fused = bits(net)
    with pytest.raises(Refusal):
        stack.apply([(bad, 1.0)])
    assert same(fused, bits(net))


@pytest.mark.parametrize("keep", ["device", None])
def test_a_failure_in_the_middle_leaves_clean_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep):
    from ltxgen.artifacts import fusion as module_under_test

    net = Net(torch.float32)
    before = bits(net)
    stack = FusedLoras(net, keep_original=keep, reload=reader_of(net, []))
    real = module_under_test._delta

    def failing(name, *args):
        if name == "proj_out":
            raise MemoryError("no memory")
        return real(name, *args)

    monkeypatch.setattr(module_under_test, "_delta", failing)
    with pytest.raises(MemoryError):
        stack.apply([(write_lora(tmp_path / "l.safetensors"), 1.0)])
    assert same(before, bits(net))
    assert stack.fusion.loras == ()


def test_keeping_nothing_needs_a_way_to_read_again():
    with pytest.raises(ValueError, match="reload"):
        FusedLoras(Net(torch.float32), keep_original=None)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (
            {"prefix": "transformer."},
            ["matches no module", "would do nothing", "transformer.block.to_q.lora_A.weight"],
        ),
        (
            {"modules": {"block.to_q": (32, 48), "proj_out": (12, 32)}},
            ["another model or generation", "1 of 2 modules", "proj_out is [16, 32] in the checkpoint, [12, 32]"],
        ),
        ({"modules": {"block.norm": (32, 32)}}, ["matches no module"]),
    ],
)
def test_loras_that_do_not_fit(tmp_path: Path, options: dict, parts: list[str]):
    artifact = write_lora(tmp_path / "mine.safetensors", **options)
    with pytest.raises(Refusal) as refusal:
        match_lora(artifact, linear_weights(Net(torch.float32)))
    (problem,) = refusal.value.problems
    assert problem.path == "artifacts.mine.path"
    for part in parts:
        assert part in problem.message


def test_incomplete_pairs_and_disagreeing_ranks(tmp_path: Path):
    weights = linear_weights(Net(torch.float32))
    path = tmp_path / "half.safetensors"
    save_file({"diffusion_model.proj_out.lora_A.weight": torch.zeros(4, 32)}, path)
    artifact = ResolvedArtifact("half", path, place="", reason="")
    with pytest.raises(Refusal, match="incomplete: proj_out"):
        match_lora(artifact, weights)
    save_file(
        {
            "diffusion_model.proj_out.lora_A.weight": torch.zeros(4, 32),
            "diffusion_model.proj_out.lora_B.weight": torch.zeros(16, 5),
        },
        path,
    )
    with pytest.raises(Refusal, match="ranks must agree"):
        match_lora(artifact, weights)


def test_keys_without_effect_beside_matched_ones_are_noted(tmp_path: Path):
    extra = (*(f"diffusion_model.gone.{n}.lora_A.weight" for n in range(6)), "diffusion_model.proj_out.diff")
    artifact = write_lora(tmp_path / "l.safetensors", extra=extra)
    net = Net(torch.float32)
    note = match_lora(artifact, linear_weights(net)).note
    assert note is not None
    assert "7 keys match no module" in note
    assert "2 modules match" in note
    assert "and 2 more" in note
    assert FusedLoras(net).apply([(artifact, 1.0)]).notes == (note,)

"""The transformer's kernels against float64, beside plain torch: what the test on a GPU and the interpreter's share.

B samples, T tokens, H heads, D head dim, C width
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ltxgen.models.transformer.adaln import Modulation
from ltxgen.models.transformer.elementwise import TORCH, Elementwise, Heads, Residual, Wanted
from ltxgen.models.transformer.float8 import Activation, Forms, Rows, plain_rows, scaled_rows
from ltxgen.models.transformer.fused import TritonElementwise
from ltxgen.models.transformer.rope import RopeType, RotaryTable

EPS = 1e-6
PLAIN, SCALED, BOTH = Forms(True, False), Forms(False, True), Forms(True, True)
FUSED = TritonElementwise()


@dataclass(frozen=True)
class Size:
    samples: int
    tokens: int
    heads: int
    dim: int

    @property
    def width(self) -> int:
        return self.heads * self.dim


class Draw:
    """The same random inputs in each `dtype`: numbers that bf16 and fp16 hold, but for tables, which stay in fp32."""

    def __init__(self, size: Size, dtype: torch.dtype, device: str) -> None:
        self.size, self.dtype, self.device = size, dtype, device
        self._generator = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int, spread: float = 1.0, mean: float = 0.0) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator, device=self.device) * spread + mean
        return drawn.bfloat16().half().to(self.dtype)

    def stream(self) -> Tensor:
        return self(self.size.samples, self.size.tokens, self.size.width)

    def table(self, num_rows: int) -> Tensor:
        drawn = torch.randn(num_rows, self.size.width, generator=self._generator, device=self.device) / 3
        return drawn.to(torch.float64 if self.dtype is torch.float64 else torch.float32)

    def modulation(self, kind: str, num_rows: int) -> Modulation:
        """Timesteps that are shared by all samples, by a sample's tokens, by some tokens, or each token's own."""
        B, T, C = self.size.samples, self.size.tokens, self.size.width
        levels = {"all": (1, 1), "samples": (B, 1), "levels": (B, 3), "own": (B, T)}[kind]
        of_token = torch.arange(T, device=self.device).remainder(3).expand(B, -1) if kind == "levels" else None
        return Modulation(self(*levels, num_rows + 1, C, spread=0.3)[:, :, 1:], of_token)

    def rotary(self) -> RotaryTable:
        B, T, H, D = self.size.samples, self.size.tokens, self.size.heads, self.size.dim
        angles = torch.randn(B, T, H, D // 2, generator=self._generator, device=self.device) * 3
        return RotaryTable(*(table.bfloat16().half().to(self.dtype) for table in (angles.cos(), angles.sin())))


Step = Callable[[Elementwise, Draw], Sequence[Activation]]


def cases() -> Iterator[tuple[str, Forms, Step]]:
    """Every use of `Elementwise`, by name, with the form in which activations are wanted."""
    for forms in (PLAIN, SCALED, BOTH):
        for kind in ("all", "samples", "levels", "own"):
            yield f"entry, {kind}, {forms}", forms, entry(kind, forms)
            yield f"residual, {kind}, {forms}", forms, residual(kind, forms)
            yield f"two modulations, {kind}, {forms}", forms, two_modulations(kind, forms)
        yield f"unmodulated, {forms}", forms, unmodulated(forms)
        yield f"text, {forms}", forms, text(forms)
        yield f"heads' gates, {forms}", forms, gated(forms)
    yield "gelu", SCALED, gelu
    yield "a block's last residual", PLAIN, last_residual
    for rope_type in ("split", "interleaved"):
        yield f"queries and keys, {rope_type}", PLAIN, heads(2, rope_type, rotates=True)
        yield f"queries, {rope_type}", PLAIN, heads(1, rope_type, rotates=True)
    yield "queries that don't rotate", PLAIN, heads(1, "split", rotates=False)


def entry(kind: str, forms: Forms) -> Step:
    def step(do: Elementwise, draw: Draw) -> Sequence[Activation]:
        shift, scale, _ = do.rows(draw.table(3), draw.modulation(kind, 3))
        x = draw.stream()
        same, modulated = do.normed(Residual(x), EPS, Wanted(shift, scale, forms))
        assert same is x
        return modulated

    return step


def residual(kind: str, forms: Forms) -> Step:
    def step(do: Elementwise, draw: Draw) -> Sequence[Activation]:
        _, _, gate = do.rows(draw.table(3), draw.modulation(kind, 3))
        shift, scale, _ = do.rows(draw.table(3), draw.modulation("samples", 3))
        total, modulated = do.normed(Residual(draw.stream(), draw.stream(), gate), EPS, Wanted(shift, scale, forms))
        return [total, *modulated]

    return step


def two_modulations(kind: str, forms: Forms) -> Step:
    def step(do: Elementwise, draw: Draw) -> Sequence[Activation]:
        _, _, gate = do.rows(draw.table(3), draw.modulation("all", 3))
        scale, shift, other_scale, other_shift = do.rows(draw.table(4), draw.modulation(kind, 4))
        wanted = Wanted(shift, scale, forms), Wanted(other_shift, other_scale, forms)
        total, modulated = do.normed(Residual(draw.stream(), draw.stream(), gate), EPS, *wanted)
        return [total, *modulated]

    return step


def unmodulated(forms: Forms) -> Step:
    def step(do: Elementwise, draw: Draw) -> Sequence[Activation]:
        total, normed = do.normed(Residual(draw.stream(), draw.stream()), EPS, Wanted(None, None, forms))
        return [total, *normed]

    return step


def text(forms: Forms) -> Step:
    def step(do: Elementwise, draw: Draw) -> Sequence[Activation]:
        shift, scale = do.rows(draw.table(2), draw.modulation("samples", 2))
        return [do.modulated(draw.stream(), Wanted(shift, scale, forms))]

    return step


def gated(forms: Forms) -> Step:
    def step(do: Elementwise, draw: Draw) -> Sequence[Activation]:
        B, T, H, D = draw.size.samples, draw.size.tokens, draw.size.heads, draw.size.dim
        logits = draw(B, T, H)
        by_token, by_head = draw(B, T, H, D), draw(B, H, T, D).transpose(1, 2)
        return [do.gated(out, logits, forms) for out in (by_token, by_head)]

    return step


def gelu(do: Elementwise, draw: Draw) -> Sequence[Activation]:
    return [do.gelu_linear(nn.Identity(), draw(draw.size.samples, draw.size.tokens, 4 * draw.size.width), SCALED)]


def last_residual(do: Elementwise, draw: Draw) -> Sequence[Activation]:
    (gate,) = do.rows(draw.table(1), draw.modulation("levels", 1))
    keep = torch.arange(draw.size.samples, device=draw.device).remainder(2).bool()[:, None, None]
    kept, every = (Residual(draw.stream(), draw.stream(), gate, each) for each in (keep, True))
    return [do.added(kept), do.added(every)]


def heads(number: int, rope_type: RopeType, *, rotates: bool) -> Step:
    def step(do: Elementwise, draw: Draw) -> Sequence[Activation]:
        norms = [nn.RMSNorm(draw.size.width, eps=EPS, dtype=draw.dtype, device=draw.device) for _ in range(number)]
        for norm in norms:
            norm.weight = nn.Parameter(draw(draw.size.width, spread=0.3, mean=1.0), requires_grad=False)
        projected = [Heads(draw.stream(), norm) for norm in norms]
        return do.heads(projected, draw.size.heads, draw.rotary() if rotates else None, rope_type)

    return step


def errors(
    step: Step,
    forms: Forms,
    size: Size,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    same_float8: float = 0.998,
) -> tuple[float, float]:
    """The relative L2 to float64 of the kernels and of plain torch in `dtype`, of the result that is worst in each.

    So many of the fp8 values are those that the exact numbers round to: others lie at a tie.
    """
    found, plain = (step(do, Draw(size, dtype, device)) for do in (FUSED, TORCH))
    exact = step(TORCH, Draw(size, torch.float64, device))
    assert len(found) == len(plain) == len(exact)
    ours, theirs = 0.0, 0.0
    for one, other, right in zip(found, plain, exact, strict=True):
        assert isinstance(right, Tensor)
        for x, y in zip(_spelled(one, forms), _spelled(other, forms), strict=True):
            assert x.shape == y.shape == right.shape
            ours, theirs = max(ours, _relative_l2(x, right)), max(theirs, _relative_l2(y, right))
        if isinstance(one, Rows):
            wanted = scaled_rows(right.float())
            assert ((one.scaled.scales - wanted.scales).abs() <= 1e-5 * wanted.scales).all()
            same = (one.scaled.values.float() == wanted.values.float()).double().mean().item()
            assert same >= same_float8, f"{1 - same:.1%} of the fp8 values are others"
    return ours, theirs


def _spelled(x: Activation, forms: Forms) -> list[Tensor]:
    """Every form of an activation as plain numbers. Of what plain torch leaves as it is, the layer makes the fp8."""
    if isinstance(x, Rows):
        plain = [] if x.plain is None else [x.plain]
        assert bool(plain) == forms.plain
        return [*plain, plain_rows(x.scaled, torch.float64)]
    scaled = forms.scaled and x.dim() == 3
    return [x] if not scaled else [x] * forms.plain + [plain_rows(scaled_rows(x), torch.float64)]


def _relative_l2(x: Tensor, right: Tensor) -> float:
    return ((x.double() - right).norm() / right.norm()).item()

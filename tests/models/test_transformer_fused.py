"""The seam that the fused kernels stand behind, in plain torch; and the kernels in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_transformer_float8 import linear as layer
from torch import nn

from ltxgen.models.transformer.adaln import Modulation
from ltxgen.models.transformer.attention import Attention
from ltxgen.models.transformer.block import FeedForward
from ltxgen.models.transformer.elementwise import TORCH, Residual, Wanted
from ltxgen.models.transformer.float8 import Float8Linear, Forms, Rows, forms_for, linear, scaled_rows

PLAIN = Forms(plain=True, scaled=False)


def test_a_residual_is_added_where_it_is_kept():
    torch.manual_seed(0)
    x, update, gate = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(1, 1, 4)
    assert TORCH.added(Residual(x)) is x
    assert torch.equal(TORCH.added(Residual(x, update)), x + update)
    kept = TORCH.added(Residual(x, update, gate, torch.tensor([False, True])[:, None, None]))
    assert torch.equal(kept[0], x[0])
    assert torch.equal(kept[1], (x + gate * update)[1])


def test_what_is_normed_has_the_residual_in_it():
    torch.manual_seed(0)
    x, update = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    table, modulation = torch.randn(3, 4), Modulation(torch.randn(2, 1, 3, 4))
    shift, scale, gate = TORCH.rows(table, modulation)
    total, (modulated, normed) = TORCH.normed(
        Residual(x, update, gate), 1e-6, Wanted(shift, scale, PLAIN), Wanted(None, None, PLAIN)
    )
    rows = [(table[row] + modulation.rows[:, :, row]).double() for row in range(3)]
    wanted = x + rows[2] * update
    torch.testing.assert_close(total.double(), wanted)
    wanted = wanted / (wanted.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(normed.double(), wanted)
    torch.testing.assert_close(modulated.double(), wanted * (1 + rows[1]) + rows[0])


def test_layers_get_the_form_that_they_take():
    plain, scaled = layer(32, 16), Float8Linear.of(layer(32, 16, seed=1))
    assert forms_for(plain, None) == (True, False)
    assert forms_for(scaled) == (False, True)
    assert forms_for(scaled, plain) == (True, True)
    x, other = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    rows = Rows(x, scaled_rows(other), x.dtype)
    assert torch.equal(linear(plain, rows), plain(x))
    assert torch.equal(linear(scaled, rows), scaled(other))
    assert torch.equal(linear(scaled, x), scaled(x))  # as it is: the layer scales it
    assert linear(scaled, Rows(None, scaled_rows(x.bfloat16()), torch.bfloat16)).dtype is torch.bfloat16


def test_modules_say_what_their_layers_read():
    attention = Attention(32, 48, num_heads=2, head_dim=16, gated=True, norm_eps=1e-6, rope_type="split", attend=None)
    assert attention.query_forms == attention.context_forms == attention.self_forms == (True, False)
    attention.to_k = Float8Linear.of(attention.to_k)
    assert attention.context_forms == attention.self_forms == (True, True)
    attention.to_v, attention.to_q = Float8Linear.of(attention.to_v), Float8Linear.of(attention.to_q)
    assert attention.context_forms == (False, True)
    assert attention.query_forms == attention.self_forms == (True, True)  # the gates' logits
    attention.to_gate_logits = None
    assert attention.self_forms == (False, True)

    feed_forward = FeedForward(32, bias=True)
    assert feed_forward.forms == (True, False)
    assert {name for name, _ in feed_forward.named_parameters()} == {
        f"net.{name}" for name in ("0.proj.weight", "0.proj.bias", "2.weight", "2.bias")
    }
    feed_forward.net[0].proj = Float8Linear.of(feed_forward.net[0].proj)
    assert feed_forward.forms == (False, True)
    assert isinstance(feed_forward.net[2], nn.Linear)


INTERPRETED = """
import torch
from elementwise_cases import Size, cases, errors
from test_transformer import LTX2, LTX23, build
from test_transformer_float8 import in_float8
from test_transformer_passes import ALONE, TOGETHER, modalities, passes, relative_l2
from ltxgen.models.transformer.fused import use_fused_kernels

torch.set_grad_enabled(False)
# No width is a power of two. The interpreter cuts bf16 off instead of rounding it, so this is in fp16; rounding to fp8
# it loses what is carried to the exponent.
for name, forms, step in cases():
    fused, plain = errors(step, forms, Size(2, 5, 3, 24), "cpu", torch.float16, same_float8=0.9)
    print(name, fused, plain)
    assert forms.scaled or fused <= 1.01 * plain

for kind, step, batched_tokens in [("levels", "guided", TOGETHER), ("ltx2", "one", ALONE)]:
    plain, fused = (build(LTX2 if kind == "ltx2" else LTX23, batched_tokens=batched_tokens) for _ in range(2))
    use_fused_kernels(fused)
    together = passes(*modalities(kind, 1), step)
    for in_fp8, limit in [(False, 1e-6), (True, 0.1)]:
        if in_fp8:
            in_float8(plain), in_float8(fused)
        for found, wanted in zip(fused.forward_passes(together), plain.forward_passes(together)):
            worst = max(relative_l2(x, y) for x, y in zip(found, wanted) if y is not None)
            print(kind, in_fp8, worst)
            assert worst <= limit
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton comes with torch's CUDA builds")
def test_the_kernels_in_tritons_interpreter():
    # A process of its own: Triton reads the switch when its kernels are defined.
    folder = Path(__file__).parent
    paths = os.pathsep.join([str(folder), str(folder.parent / "gpu"), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

"""Every backend that runs on the CPU against the formula in float64, and those of other packages through stand-ins.

B batch, H heads, Tq query tokens, Tk key tokens, D head dim
"""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ltxgen import registry
from ltxgen.attention import DeviceFacts, LseBackend, RoleAttention, RoleSpec
from ltxgen.attention.protocol import AttentionBackend, Package, backend
from ltxgen.attention.sdpa import aligned_bias
from ltxgen.parallel.ring import merge

CPU = DeviceFacts("cpu")
HOPPER = DeviceFacts("cuda", (9, 0))
KINDS = [kind for kind in registry.kinds("attention") if kind != "auto"]
ON_CPU = ["flex", "reference", "sdpa"]
B, H, TQ, TK, D = 2, 3, 5, 7, 16


def inputs(dtype=torch.float64, tq=TQ, tk=TK):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(B, H, t, D, generator=generator, dtype=torch.float64).to(dtype) for t in (tq, tk, tk)]


def mask(shape, dtype=torch.float64, hide=-math.inf):
    """Random strengths with some keys hidden, never all of a query's."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    drawn[..., 1] = hide if hide == -math.inf else torch.finfo(dtype).min
    return drawn.to(dtype)


def formula(q, k, v, bias):
    """Independent of the package: one query at a time, in float64."""
    out, lse = torch.empty(q.shape, dtype=torch.float64), torch.empty(q.shape[:3], dtype=torch.float64)
    bias = torch.zeros(()) if bias is None else bias.double()
    bias = bias.expand(*q.shape[:3], k.shape[2])
    for b, h, i in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
        weights = [
            math.exp(
                float(q[b, h, i].double() @ k[b, h, j].double()) / math.sqrt(q.shape[-1]) + float(bias[b, h, i, j])
            )
            for j in range(k.shape[2])
        ]
        lse[b, h, i] = math.log(sum(weights))
        out[b, h, i] = sum(w * v[b, h, j].double() for j, w in enumerate(weights)) / sum(weights)
    return out, lse


MASKS = [None, (B, 1, 1, TK), (B, 1, TQ, TK), (B, H, TQ, TK), (1, 1, TQ, TK), (TQ, TK)]


def test_every_kind_is_tested_here_or_through_a_stand_in():
    needs_gpu = {"sdpa_cudnn", "sdpa_flash", "sdpa_efficient", "triton_fp8"}
    assert set(KINDS) == {*ON_CPU, *STAND_INS, *needs_gpu}
    assert {kind for kind in KINDS if backend(kind).available(CPU, torch.float32) is None} == set(ON_CPU)


@pytest.mark.parametrize("shape", MASKS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=["f64", "f32"])
@pytest.mark.parametrize("kind", ON_CPU)
def test_the_formula(kind, dtype, tolerance, shape):
    q, k, v = inputs(dtype)
    bias = None if shape is None else mask(shape, dtype)
    wanted, wanted_lse = formula(q, k, v, bias)
    out, lse = backend(kind).with_lse(q, k, v, bias)
    assert out.dtype == lse.dtype == dtype
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=tolerance)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=0, atol=tolerance)
    torch.testing.assert_close(backend(kind)(q, k, v, bias).double(), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ON_CPU)
def test_bfloat16_is_float64_rounded(kind):
    q, k, v = inputs(torch.bfloat16)
    out, lse = backend(kind).with_lse(q, k, v, None)
    wanted, wanted_lse = formula(q, k, v, None)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    # Weights and result are rounded to 8 bits of mantissa: half a unit in the last place each, of values below 2.
    torch.testing.assert_close(out.double(), wanted, rtol=0, atol=2 * 2**-8 * v.abs().max().item())
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ON_CPU)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("split", [1, 3])
def test_two_parts_of_the_keys_merge_into_the_whole(kind, masked, split):
    q, k, v = inputs(torch.float32)
    bias = mask((B, 1, TQ, TK), torch.float32) if masked else None
    attention = backend(kind)

    def part(keys):
        return attention.with_lse(q, k[:, :, keys], v[:, :, keys], None if bias is None else bias[..., keys])

    first, second = part(slice(None, split)), part(slice(split, None))
    whole, whole_lse = attention.with_lse(q, k, v, bias)
    for one, other in ((first, second), (second, first)):
        out, lse = merge(*one, *other)
        torch.testing.assert_close(out, whole, rtol=0, atol=1e-6)
        torch.testing.assert_close(lse, whole_lse, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ON_CPU)
@pytest.mark.parametrize("hidden", [-math.inf, torch.finfo(torch.float32).min])
def test_a_query_that_sees_no_key_of_a_part_takes_all_from_the_other(kind, hidden):
    q, k, v = inputs(torch.float32)
    bias = torch.zeros(B, 1, TQ, TK)
    bias[:, :, 2, :3] = hidden
    attention = backend(kind)
    first = attention.with_lse(q, k[:, :, :3], v[:, :, :3], bias[..., :3])
    assert (first[1][:, :, 2] == -math.inf).all()
    assert (first[0][:, :, 2] == 0).all()
    second = attention.with_lse(q, k[:, :, 3:], v[:, :, 3:], bias[..., 3:])
    torch.testing.assert_close(merge(*first, *second)[0], backend("reference")(q, k, v, bias), rtol=0, atol=1e-6)
    # Nothing seen anywhere stays nothing, without NaN.
    nothing, lse = merge(*first, *first)
    assert (nothing[:, :, 2] == 0).all()
    assert (lse[:, :, 2] == -math.inf).all()


@pytest.mark.parametrize("shape", MASKS[1:], ids=str)
def test_a_bias_is_laid_out_for_cutlass(shape):
    q, k, _ = inputs(torch.float32)
    bias = mask(shape, torch.float32)
    laid_out = aligned_bias(bias, q, k)
    assert torch.equal(laid_out, bias.expand(B, H, TQ, TK))
    assert laid_out.stride(-1) == 1
    assert all(stride % 16 == 0 for stride in laid_out.stride()[:-1])


# A stand-in has the signature of the real package's function (flash-attn 2.8, flash-attention's hopper folder with and
# without return_attn_probs, flash-attn-4 4.0.0b36, SageAttention 2.2, xFormers 0.0.35) and computes in plain torch.
PLAIN = """
import torch
def plain(q, k, v, bias=None):  # (B, H, T, D)
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).float()
    scores = scores if bias is None else scores + bias
    return (scores.softmax(-1).to(v.dtype) @ v), scores.logsumexp(-1)
def swapped(q, k, v, bias=None):  # (B, T, H, D)
    out, lse = plain(*(x.transpose(1, 2) for x in (q, k, v)), bias)
    return out.transpose(1, 2), lse
"""
FLASH2 = """
def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                    alibi_slopes=None, deterministic=False, return_attn_probs=False):
    out, lse = swapped(q, k, v)
    return (out, lse, torch.empty(0)) if return_attn_probs else out
"""
FLASH3 = """
def flash_attn_func(q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
                    window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None,
                    deterministic=False, sm_margin=0, return_attn_probs=False):
    out, lse = swapped(q, k, v)
    return (out, lse) if return_attn_probs else out
"""
OLDER_FLASH3 = """
def flash_attn_func(q, k, v, softmax_scale=None, causal=False, window_size=(-1, -1), deterministic=False):
    return swapped(q, k, v)
"""
FLASH4 = """
def flash_attn_func(q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False,
                    window_size=(None, None), learnable_sink=None, softcap=0.0, num_splits=1, pack_gqa=None,
                    deterministic=False, return_lse=False):
    out, lse = swapped(q, k, v)
    return out, (lse if return_lse else None)
"""
SAGE = """
def sageattn(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, return_lse=False, **kwargs):
    assert tensor_layout == "HND"
    return plain(q, k, v)[0]
"""
XFORMERS = """
def memory_efficient_attention(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None):
    assert attn_bias is None or attn_bias.shape == (*query.transpose(1, 2).shape[:3], key.shape[1])
    return swapped(query, key, value, attn_bias)[0]
"""
STAND_INS = {
    "flash2": ("flash_attn/flash_attn_interface.py", FLASH2),
    "flash3": ("flash_attn_interface.py", FLASH3),
    "flash4": ("flash_attn/cute/__init__.py", FLASH4),
    "sage": ("sageattention/__init__.py", SAGE),
    "xformers": ("xformers/ops/__init__.py", XFORMERS),
}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Installs modules from source texts: `packages("a/b.py", text)`."""

    def forget():
        importlib.invalidate_caches()
        for name in list(sys.modules):
            if name.partition(".")[0] in {"flash_attn", "flash_attn_interface", "sageattention", "xformers"}:
                del sys.modules[name]

    def install(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PLAIN + text)
        forget()

    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield install
    forget()


@pytest.mark.parametrize("kind", STAND_INS)
def test_a_package_is_called_as_it_wants(kind, packages):
    packages(*STAND_INS[kind])
    attention = backend(kind)
    assert attention.available(HOPPER, torch.bfloat16) is None
    q, k, v = inputs(torch.float32)
    wanted, wanted_lse = backend("reference").with_lse(q, k, v, None)
    torch.testing.assert_close(attention(q, k, v, None), wanted)
    if isinstance(attention, LseBackend):
        out, lse = attention.with_lse(q, k, v, None)
        torch.testing.assert_close(out, wanted)
        torch.testing.assert_close(lse, wanted_lse)
    if attention.takes_masks:
        bias = mask((B, 1, 1, TK), torch.float32)
        torch.testing.assert_close(attention(q, k, v, bias), backend("reference")(q, k, v, bias))


def test_older_builds_of_flash3_return_a_pair(packages):
    packages("flash_attn_interface.py", OLDER_FLASH3)
    q, k, v = inputs(torch.float32)
    wanted, wanted_lse = backend("reference").with_lse(q, k, v, None)
    torch.testing.assert_close(backend("flash3")(q, k, v, None), wanted)
    torch.testing.assert_close(backend("flash3").with_lse(q, k, v, None)[1], wanted_lse)


@pytest.mark.parametrize("kind", STAND_INS)
def test_a_missing_package_is_named_with_where_it_comes_from(kind, packages):
    module = backend(kind).needs.package.module
    assert f"{module} is not installed (" in backend(kind).available(HOPPER, torch.bfloat16)


def test_flash4_alone_is_not_flash2(packages):
    packages(*STAND_INS["flash4"])
    assert "flash_attn.flash_attn_interface is not installed" in backend("flash2").available(HOPPER, torch.bfloat16)
    assert backend("flash4").available(HOPPER, torch.bfloat16) is None


def test_a_package_that_does_not_import_is_unavailable_and_says_why(packages):
    packages("flash_attn_interface.py", "raise ImportError('undefined symbol: _ZN3c10')")
    why = backend("flash3").available(HOPPER, torch.bfloat16)
    assert why == "flash_attn_interface is installed and does not import: ImportError: undefined symbol: _ZN3c10"


def test_a_package_is_not_imported_where_it_could_not_run(packages):
    packages("flash_attn_interface.py", "raise SystemExit('imported')")
    assert backend("flash3").available(CPU, torch.bfloat16) == "it runs on CUDA GPUs only"
    assert backend("flash3").available(HOPPER, torch.bfloat16, importing=False) is None


def test_packages_are_not_imported_with_the_backends(run_python):
    names = "flash_attn flash_attn_interface sageattention xformers triton"
    code = f"""
import sys
from ltxgen import registry
for kind in registry.kinds("attention"):
    registry.config_of("attention", kind)().build()
print([name for name in sys.modules if name.partition(".")[0] in {names.split()!r}])
"""
    assert run_python(code) == "[]"


@pytest.fixture
def run_python(tmp_path):
    """Runs code in a fresh interpreter that has a stand-in of every package."""
    for name, text in STAND_INS.values():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(PLAIN + text)

    def run(code: str) -> str:
        root = Path(registry.__file__).parents[1]
        path = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]\n"
        return subprocess.run(
            [sys.executable, "-c", path + code], capture_output=True, text=True, check=True
        ).stdout.strip()

    return run


@pytest.mark.parametrize(
    ("kind", "device", "dtype", "why"),
    [
        ("sdpa_cudnn", CPU, torch.bfloat16, "it runs on CUDA GPUs only"),
        ("sdpa_cudnn", HOPPER, torch.float32, "it computes in bfloat16 or float16, not in float32"),
        ("sdpa_flash", DeviceFacts("cuda", (7, 5)), torch.float16, "it needs compute capability 8.0 to 12.1, and "),
        ("flash2", DeviceFacts("cuda", (7, 5)), torch.float16, "it needs compute capability 8.0 or higher, "),
        ("flash3", DeviceFacts("cuda", (10, 0)), torch.bfloat16, "it needs compute capability 9.0, and this GPU's "),
        ("triton_fp8", CPU, torch.bfloat16, "it runs on CUDA GPUs only"),
        ("triton_fp8", DeviceFacts("cuda", (8, 6)), torch.bfloat16, "it needs compute capability 8.9 or higher, and "),
        ("triton_fp8", HOPPER, torch.float32, "it computes in bfloat16 or float16, not in float32"),
        ("sdpa_efficient", HOPPER, torch.float64, "it computes in bfloat16 or float16 or float32, not in float64"),
    ],
)  # fmt: skip
def test_what_a_device_lacks(kind, device, dtype, why):
    assert backend(kind).available(device, dtype).startswith(why)


def test_sage_wants_version_2_and_a_gpu_it_has_kernels_for(packages, monkeypatch):
    packages(*STAND_INS["sage"])
    assert "no kernel for compute capability 10.0" in backend("sage").available(
        DeviceFacts("cuda", (10, 0)), torch.float16
    )
    monkeypatch.setattr("ltxgen.attention.sage.version", lambda name: "1.0.6")
    assert "sageattention 1.0.6 overwrites the keys" in backend("sage").available(HOPPER, torch.float16)


def test_triton_fp8_wants_triton_and_an_nvidia_gpu(monkeypatch):
    fp8 = backend("triton_fp8")
    monkeypatch.setattr(Package, "missing", lambda self: f"{self.module} is not installed ({self.source})")
    assert fp8.available(HOPPER, torch.bfloat16) == "triton is not installed (it comes with torch's CUDA builds)"
    monkeypatch.setattr(Package, "missing", lambda self: None)
    monkeypatch.setattr(Package, "broken", lambda self: None)
    assert fp8.available(HOPPER, torch.bfloat16) is None
    monkeypatch.setattr(torch.version, "hip", "7.1")
    assert fp8.available(DeviceFacts("cuda", (9, 4)), torch.bfloat16) == "it runs on NVIDIA GPUs only"
    assert fp8.supports(RoleSpec("video_self", needs_lse=True, head_dim=128)) is None
    assert "heads of multiples of 16 from 16 to 128, and these have 24" in fp8.supports(
        RoleSpec("video_self", head_dim=24)
    )


def test_what_a_role_needs():
    assert backend("flash3").supports(RoleSpec("video_self", has_mask=True)) == "it takes no masks"
    assert backend("flash3").supports(RoleSpec("video_self", head_dim=128)) is None
    assert "heads of multiples of 8 from 8 to 128, and these have 12" in backend("sdpa_cudnn").supports(
        RoleSpec("audio_self", head_dim=12)
    )
    assert "no log-sum-exp" in backend("xformers").supports(RoleSpec("video_self", needs_lse=True))
    assert backend("sdpa").supports(RoleSpec("video_self", True, 12, needs_lse=True)) is None


class Spy(AttentionBackend):
    def __init__(self, takes_masks):
        object.__setattr__(self, "takes_masks", takes_masks)
        object.__setattr__(self, "given", [])

    def __call__(self, q, k, v, mask):
        self.given.append(mask)
        return q


def test_a_mask_goes_to_the_backend_that_takes_masks():
    maskless, masked = Spy(False), Spy(True)
    attention = RoleAttention(maskless, masked)
    q, k, v = inputs(torch.float32)
    bias = mask((B, 1, 1, TK), torch.float32)
    attention(q, k, v, None)
    attention(q, k, v, bias)
    assert maskless.given == [None]
    assert masked.given == [bias]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not backend(kind).takes_masks])
def test_a_maskless_backend_fails_rather_than_drop_a_mask(kind):
    q, k, v = inputs(torch.float32)
    bias = mask((B, 1, 1, TK), torch.float32)
    with pytest.raises(AssertionError, match=f"{kind} was given a mask"):
        backend(kind)(q, k, v, bias)
    if isinstance(backend(kind), LseBackend):
        with pytest.raises(AssertionError, match=f"{kind} was given a mask"):
            backend(kind).with_lse(q, k, v, bias)


def test_a_role_without_lse_takes_it_from_the_fallback():
    q, k, v = inputs(torch.float32)
    asked, expected = RoleAttention(backend("xformers"), backend("sdpa")), backend("sdpa")
    assert isinstance(expected, LseBackend)
    for ours, theirs in zip(asked.with_lse(q, k, v, None), expected.with_lse(q, k, v, None), strict=True):
        assert torch.equal(ours, theirs)

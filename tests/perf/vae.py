"""Checks and times the 22B video VAE on one GPU: plain, fused, and diffusers', decoding and encoding.

    python tests/perf/vae.py

Needs torch with CUDA and Triton; diffusers is timed too where it is installed. Random weights, bf16, 1536x1024x121.
Medians after a warm-up, CUDA events. Prints one line as each figure is known, checks first, and a table last.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gpu")]

from epilogue_cases import CASES, worst_error  # noqa: E402

from ltxgen.models.video_vae import (  # noqa: E402
    Tiling,
    VideoDecoder,
    VideoEncoder,
    VideoVAEConfig,
    decode_tiled,
    decoder_for,
    encode_tiled,
    encoder_for,
    fit_tiling,
)
from ltxgen.models.video_vae.fused import FusedDecoder  # noqa: E402
from ltxgen.models.video_vae.tiled import Decoder  # noqa: E402

M = TypeVar("M", bound=torch.nn.Module)
SIZE = (16, 32, 48)  # latents of 1536x1024x121
TILING = Tiling(768, 64, 80, 24)  # the recipe's
BUDGET_BYTES = 8 * 10**9
METADATA = {
    "encoder_blocks": [["res_x", {"num_layers": 4}], ["compress_space_res", {"multiplier": 2}],
                       ["res_x", {"num_layers": 6}], ["compress_time_res", {"multiplier": 2}],
                       ["res_x", {"num_layers": 4}], ["compress_all_res", {"multiplier": 2}],
                       ["res_x", {"num_layers": 2}], ["compress_all_res", {"multiplier": 1}],
                       ["res_x", {"num_layers": 2}]],
    "decoder_blocks": [["res_x", {"num_layers": 4}], ["compress_space", {"multiplier": 2}],
                       ["res_x", {"num_layers": 6}], ["compress_time", {"multiplier": 2}],
                       ["res_x", {"num_layers": 4}], ["compress_all", {"multiplier": 1}],
                       ["res_x", {"num_layers": 2}], ["compress_all", {"multiplier": 2}],
                       ["res_x", {"num_layers": 2}]],
    "timestep_conditioning": False, "spatial_padding_mode": "zeros",
}  # fmt: skip

table: list[tuple[str, str]] = []
start = time.perf_counter()


def report(name: str, text: str) -> None:
    table.append((name, text))
    print(f"[{time.perf_counter() - start:5.1f} s] {name:<44} {text}", flush=True)


def attempt(name: str, measure: Callable[[], str]) -> None:
    """One variant that fails must not take the others' figures with it."""
    try:
        report(name, measure())
    except Exception as error:  # printed whole: this is a measuring script
        traceback.print_exc()
        report(name, f"FAILED: {type(error).__name__}: {str(error)[:200]}")
    torch.cuda.empty_cache()


def timed(call: Callable[[], object], runs: int = 3) -> str:
    """The median time, and the peak above what was allocated before."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    peak, reserved = torch.cuda.max_memory_allocated() - before, torch.cuda.max_memory_reserved()
    return (
        f"{statistics.median(times):8.1f} ms   peak {peak / 1e9:6.2f} GB above {before / 1e9:.2f}   "
        f"reserved {reserved / 1e9:.2f}"
    )


def random_half(half: type[M]) -> M:
    with torch.device("meta"):
        module = half(VideoVAEConfig.from_metadata(METADATA))
    return fill(module.to_empty(device="cuda").bfloat16().eval())


def fill(module: M) -> M:
    """Random weights that keep activations at about their size: zeros would be faster."""
    generator = torch.Generator("cuda").manual_seed(3)
    for name, tensor in module.state_dict().items():
        tensor.normal_(generator=generator)
        if name.endswith("std-of-means"):
            tensor.abs_().add_(0.5)
        elif tensor.ndim > 1:
            tensor.mul_(tensor[0].numel() ** -0.5)
    return module


def relative_l2(actual: Tensor, wanted: Tensor) -> float:
    return ((actual.double() - wanted.double()).norm() / wanted.double().norm()).item()


def check(decoder: VideoDecoder) -> str:
    """bf16 against fp32 at a small size; what the plain layers' error is, bf16 costs."""
    latents = torch.randn(1, 128, 3, 6, 10, device="cuda", generator=torch.Generator("cuda").manual_seed(5)).bfloat16()
    with torch.device("cuda"):
        high = VideoDecoder(decoder.config)
    high.load_state_dict(decoder.state_dict())
    wanted = high(latents.float())
    plain = decoder(latents)
    in_torch = FusedDecoder(decoder)(latents)  # without Triton: what is wrong here too is not the kernel's fault
    fused, _ = decoder_for(decoder, latents, "fused")
    errors = {"plain": plain, "fused without Triton": in_torch, "fused": fused(latents)}
    return "relative L2 to fp32: " + ", ".join(f"{name} {relative_l2(x, wanted):.2e}" for name, x in errors.items())


def profile(name: str, call: Callable[[], object]) -> str:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)
    print(f"-- {name}: kernels by time")
    for row in rows[:12]:
        print(f"   {row.self_device_time_total / 1e3:8.2f} ms  {row.count:5d} x  {row.key[:110]}")
    return f"{sum(row.self_device_time_total for row in rows) / 1e3:8.1f} ms in kernels"


def check_encoder(encoder: VideoEncoder) -> str:
    video = torch.randn(1, 3, 17, 192, 320, device="cuda", generator=torch.Generator("cuda").manual_seed(5)).bfloat16()
    with torch.device("cuda"):
        high = VideoEncoder(encoder.config)
    high.load_state_dict(encoder.state_dict())
    wanted = high(video.float())
    errors = {"plain": encoder(video), "fused": encoder_for(encoder, "fused")[0](video)}
    return "relative L2 to fp32: " + ", ".join(f"{name} {relative_l2(x, wanted):.2e}" for name, x in errors.items())


def time_encoding(plain: VideoEncoder, video: Tensor) -> None:
    for kernels in ("plain", "fused"):  # in this order, as above
        encoder, cost = encoder_for(plain, kernels)
        for what, tiling in (("one piece", None), ("tiled for 8 GB", fit_tiling(cost, SIZE, BUDGET_BYTES))):
            attempt(
                f"{kernels} encoder, {what}",
                lambda encoder=encoder, cost=cost, tiling=tiling: (
                    f"{timed(lambda: encode_tiled(encoder, video, tiling), 2)}   "
                    f"predicted {cost.peak_bytes(SIZE, tiling) / 1e9:.2f} GB"
                ),
            )
    attempt("fused encoder, kernels", lambda: profile("fused encoder", lambda: encode_tiled(encoder, video, None)))


def take_all(decoder: Decoder, latents: Tensor, tiling: Tiling | None) -> None:
    for _ in decode_tiled(decoder, latents, tiling):
        pass


def time_ours(plain: VideoDecoder, latents: Tensor) -> None:
    for kernels in ("plain", "fused"):  # in this order: the fused decoder reorders the weights that they share
        decoder, cost = decoder_for(plain, latents, kernels)
        fitted = fit_tiling(cost, SIZE, BUDGET_BYTES)
        for what, tiling in (("one piece", None), ("tiled as the recipe", TILING), ("tiled for 8 GB", fitted)):
            attempt(
                f"{kernels}, {what}",
                lambda decoder=decoder, cost=cost, tiling=tiling: (
                    f"{timed(lambda: take_all(decoder, latents, tiling), 3 if tiling is None else 2)}   "
                    f"predicted {cost.peak_bytes(SIZE, tiling) / 1e9:.2f} GB"
                ),
            )
        print(f"   for 8 GB: {fitted}")
    attempt("fused, kernels", lambda: profile("fused, one piece", lambda: decoder(latents)))
    attempt("plain, one piece, weights channels-last", lambda: timed(lambda: plain(latents), 1))


def time_diffusers(latents: Tensor, video: Tensor) -> None:
    try:
        from diffusers import AutoencoderKLLTX2Video
    except ImportError as error:
        report("diffusers", f"not installed ({error})")
        return
    with torch.device("meta"):
        theirs = AutoencoderKLLTX2Video(
            encoder_causal=True, decoder_causal=False, timestep_conditioning=False,
            block_out_channels=(256, 512, 1024, 1024), layers_per_block=(4, 6, 4, 2, 2),
            decoder_block_out_channels=(256, 512, 512, 1024), decoder_layers_per_block=(4, 6, 4, 2, 2),
            decoder_spatio_temporal_scaling=(True,) * 4, decoder_inject_noise=(False,) * 5,
            upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
            upsample_residual=(False,) * 4, upsample_factor=(2, 2, 1, 2), decoder_spatial_padding_mode="zeros",
        )  # fmt: skip
    theirs = fill(theirs.to_empty(device="cuda").bfloat16().eval())
    theirs.disable_tiling()
    attempt("diffusers, one piece", lambda: timed(lambda: theirs.decode(latents).sample))
    theirs.enable_tiling()
    attempt("diffusers, tiled", lambda: timed(lambda: theirs.decode(latents).sample, 2))
    attempt("diffusers encoder, tiled", lambda: timed(lambda: theirs.encode(video).latent_dist.mean, 2))
    theirs.disable_tiling()
    attempt("diffusers encoder, one piece", lambda: timed(lambda: theirs.encode(video).latent_dist.mean, 2))


@torch.inference_mode()
def main() -> None:
    print(torch.cuda.get_device_name(), torch.__version__, "cuDNN", torch.backends.cudnn.version())
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for name, case in CASES.items():
        attempt(f"kernel, {name}", lambda case=case: worst_error(case))
    latents = torch.randn(1, 128, *SIZE, device="cuda", dtype=torch.bfloat16)
    video = torch.rand(1, 3, 121, 1024, 1536, device="cuda", dtype=torch.bfloat16) * 2 - 1
    attempt("check", lambda: check(random_half(VideoDecoder)))
    attempt("check of the encoder", lambda: check_encoder(random_half(VideoEncoder)))
    time_encoding(random_half(VideoEncoder), video)
    time_ours(random_half(VideoDecoder), latents)
    time_diffusers(latents, video)
    print("\n".join(f"{name:<46} {text}" for name, text in table))
    print(json.dumps(dict(table)))


if __name__ == "__main__":
    main()

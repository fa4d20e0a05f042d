"""Times the 22B video decoder on one Hopper GPU: as it is, its variants, its convolutions alone, and diffusers'.

    python tests/perf/vae.py

Needs torch with CUDA and Triton; diffusers is timed too where it is installed. Random weights, bf16, 1536x1024x121.
Medians of 5 runs after 2 warm-ups, CUDA events. Prints one line as each figure is known, and a table last.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from ltxgen.models.video_vae import Tiling, VideoDecoder, VideoVAEConfig, decode_tiled, kernels  # noqa: E402
from ltxgen.models.video_vae.fused import BlockChoice, FusedDecoder, choose_blocks  # noqa: E402
from ltxgen.models.video_vae.kernels import Blocks  # noqa: E402

SIZE = (16, 32, 48)  # latents of 1536x1024x121
TILING = Tiling(768, 64, 80, 24)  # the recipe's
METADATA = {
    "encoder_blocks": [["compress_all_res", {}], ["compress_all_res", {}], ["compress_time_res", {}],
                       ["compress_space_res", {}]],
    "decoder_blocks": [["res_x", {"num_layers": 4}], ["compress_space", {"multiplier": 2}],
                       ["res_x", {"num_layers": 6}], ["compress_time", {"multiplier": 2}],
                       ["res_x", {"num_layers": 4}], ["compress_all", {"multiplier": 1}],
                       ["res_x", {"num_layers": 2}], ["compress_all", {"multiplier": 2}],
                       ["res_x", {"num_layers": 2}]],
    "timestep_conditioning": False, "spatial_padding_mode": "zeros",
}  # fmt: skip
# Frames, height, width, channels in and out, and how many of them a decode runs.
SHAPES = {
    "512>512": (61, 128, 192, 512, 512, 9),
    "256>256": (121, 128, 192, 256, 256, 12),
    "128>128": (121, 256, 384, 128, 128, 8),
}
BLOCKS = {
    "8x16 n128 w4 s3": Blocks(8, 16, 128, 64, 4, 3),
    "8x16 n128 w8 s4": Blocks(8, 16, 128, 64, 8, 4),
    "8x16 n256 w8 s3": Blocks(8, 16, 256, 64, 8, 3),
    "8x16 n256 w8 s4": Blocks(8, 16, 256, 64, 8, 4),
    "16x16 n128 w8 s3": Blocks(16, 16, 128, 64, 8, 3),
    "16x16 n128 w8 s4": Blocks(16, 16, 128, 64, 8, 4),
}

TENSORS = ("skip", "out", "normed")


def wide(inputs: int, outputs: int, *, normed: bool) -> Blocks:
    blocks = choose_blocks(inputs, outputs, normed=normed)
    return replace(blocks, outputs=256, num_warps=8) if outputs >= 256 else blocks


def tall(inputs: int, outputs: int, *, normed: bool) -> Blocks:
    blocks = wide(inputs, outputs, normed=normed)
    return replace(blocks, rows=16, num_warps=8) if outputs == 128 else blocks


CHOICES: dict[str, BlockChoice] = {"default": choose_blocks, "n256": wide, "n256, tall": tall}

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


def milliseconds(call: Callable[[], object], runs: int = 5, warmups: int = 2) -> float:
    for _ in range(warmups):
        call()
    times = []
    for _ in range(runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def timed(call: Callable[[], object], runs: int = 5) -> str:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ms = milliseconds(call, runs)
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return (
        f"{ms:8.1f} ms   peak {(peak - before) / 1e9:6.2f} GB above {before / 1e9:.2f}   reserved {reserved / 1e9:.2f}"
    )


def random_decoder() -> VideoDecoder:
    with torch.device("meta"):
        decoder = VideoDecoder(VideoVAEConfig.from_metadata(METADATA))
    decoder = decoder.to_empty(device="cuda").bfloat16()
    generator = torch.Generator("cuda").manual_seed(3)
    for name, tensor in decoder.state_dict().items():
        tensor.normal_(generator=generator)
        if name.endswith("std-of-means"):
            tensor.abs_().add_(0.5)
        elif tensor.ndim > 1:
            tensor.mul_(tensor[0].numel() ** -0.5)
    return decoder.eval()


def relative_l2(actual: Tensor, wanted: Tensor) -> float:
    return ((actual.double() - wanted.double()).norm() / wanted.double().norm()).item()


def conv_3d(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv3d(x, weight, padding=(0, 1, 1))


def conv_2d_taps(x: Tensor, taps: list[Tensor]) -> Tensor:
    """x (F + 2, C, H, W) channels last; the sum over time of three 2-D convolutions."""
    frames = x.shape[0] - 2
    out = F.conv2d(x[:frames], taps[0], padding=1)
    for index in (1, 2):
        out += F.conv2d(x[index : index + frames], taps[index], padding=1)
    return out


def isolated(name: str) -> None:
    frames, height, width, c_in, c_out, count = SHAPES[name]
    work = 54 * frames * height * width * c_in * c_out

    def rate(call: Callable[[], object]) -> str:
        ms = milliseconds(call, 3, 1)
        return f"{ms:7.2f} ms   {work / ms / 1e9:5.0f} TFLOP/s   x {count} = {count * ms:6.1f} ms"

    x = torch.randn(frames, height, width, c_in, device="cuda", dtype=torch.bfloat16)
    weight = torch.randn(c_out, c_in, 3, 3, 3, device="cuda", dtype=torch.bfloat16) * (27 * c_in) ** -0.5
    bias = torch.randn(c_out, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(frames, height, width, c_out, device="cuda", dtype=torch.bfloat16)
    packed = kernels.pack_weight(weight)
    for label, blocks in BLOCKS.items():
        if blocks.outputs <= c_out:
            attempt(
                f"conv {name} ours {label}",
                lambda blocks=blocks: rate(lambda: kernels.conv(x, packed, bias, out=out, blocks=blocks)),
            )
    padded = torch.cat((x[:1], x, x[-1:])).permute(3, 0, 1, 2)[None]  # strides of channels_last_3d
    contiguous = padded.contiguous()
    attempt(f"conv {name} conv3d contiguous", lambda: rate(lambda: conv_3d(contiguous, weight)))
    torch.backends.cudnn.benchmark = True
    attempt(f"conv {name} conv3d contiguous, benchmark", lambda: rate(lambda: conv_3d(contiguous, weight)))
    torch.backends.cudnn.benchmark = False
    last = weight.to(memory_format=torch.channels_last_3d)
    attempt(f"conv {name} conv3d channels_last_3d", lambda: rate(lambda: conv_3d(padded, last)))
    torch.backends.cudnn.benchmark = True
    attempt(f"conv {name} conv3d channels_last_3d, benchmark", lambda: rate(lambda: conv_3d(padded, last)))
    frames_2d = padded[0].transpose(0, 1)
    taps = [weight[:, :, tap].contiguous(memory_format=torch.channels_last) for tap in range(3)]
    attempt(f"conv {name} 3 x conv2d channels_last, benchmark", lambda: rate(lambda: conv_2d_taps(frames_2d, taps)))
    torch.backends.cudnn.benchmark = False


def warm_kernels(decoder: VideoDecoder) -> str:
    """Compile in parallel what is timed later: a decode in each choice of blocks and the convolutions alone."""
    launches: dict[str, Callable[[], None]] = {}
    compiled = kernels.conv

    def note(x: Tensor, weight: Tensor, bias: Tensor, **options: Any) -> None:
        key = str((x.shape[-1], weight.shape, {k: v is not None if k in TENSORS else v for k, v in options.items()}))
        launches.setdefault(key, lambda: compiled(x, weight, bias, **options))

    latents = torch.randn(1, 128, 2, 2, 2, device="cuda", dtype=torch.bfloat16)
    kernels.conv = note
    for choose in CHOICES.values():
        FusedDecoder(decoder, choose)(latents)
    kernels.conv = compiled
    for _, height, width, c_in, c_out, _ in SHAPES.values():
        x = latents.new_zeros(2, height // 8, width // 8, c_in)
        out, weight, bias = x.new_zeros(*x.shape[:3], c_out), x.new_zeros(27, c_out, c_in), x.new_zeros(c_out)
        for blocks in BLOCKS.values():
            if blocks.outputs <= c_out:
                note(x, weight, bias, out=out, blocks=blocks)
    with ThreadPoolExecutor(16) as pool:
        failures = [future.exception() for future in [pool.submit(launch) for launch in launches.values()]]
    failed = [str(failure) for failure in failures if failure]
    return f"{len(launches)} kernels, {len(failed)} failed {failed[:1]}"


def check(decoder: VideoDecoder) -> str:
    """bf16 variants against fp32 at a small size; the plain path's error is what bf16 costs."""
    latents = torch.randn(1, 128, 3, 6, 10, device="cuda", generator=torch.Generator("cuda").manual_seed(5)).bfloat16()
    high = VideoDecoder(decoder.config).cuda()
    high.load_state_dict(decoder.state_dict())
    wanted = high(latents.float())
    plain, ours = decoder(latents), FusedDecoder(decoder)(latents)
    return f"relative L2 to fp32: plain {relative_l2(plain, wanted):.2e}, fused {relative_l2(ours, wanted):.2e}"


def profile(name: str, call: Callable[[], object]) -> str:
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as found:
        call()
        torch.cuda.synchronize()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)[:15]
    print(f"-- {name}: kernels by time")
    for row in rows:
        print(f"   {row.self_device_time_total / 1e3:8.2f} ms  {row.count:5d} x  {row.key[:110]}")
    return f"{sum(row.self_device_time_total for row in found.key_averages()) / 1e3:8.1f} ms in kernels"


def whole(decoder: VideoDecoder, latents: Tensor) -> None:
    def tiled(decode: VideoDecoder | FusedDecoder) -> None:
        for _ in decode_tiled(decode, latents, TILING):
            pass

    attempt("plain, one piece", lambda: timed(lambda: decoder(latents)))
    attempt("plain, tiled", lambda: timed(lambda: tiled(decoder), 3))
    attempt("plain, kernels", lambda: profile("plain, one piece", lambda: decoder(latents)))

    for name, choose in CHOICES.items():
        attempt(f"fused ({name}), one piece", lambda choose=choose: timed_fused(decoder, latents, choose))
    fused = FusedDecoder(decoder)
    attempt("fused, tiled", lambda: timed(lambda: tiled(fused), 3))
    attempt("fused, kernels", lambda: profile("fused, one piece", lambda: fused(latents)))


def timed_fused(decoder: VideoDecoder, latents: Tensor, choose: BlockChoice) -> str:
    fused = FusedDecoder(decoder, choose)
    return timed(lambda: fused(latents))


def diffusers_decoder(latents: Tensor) -> None:
    try:
        from diffusers import AutoencoderKLLTX2Video
    except ImportError as error:
        report("diffusers", f"not installed ({error})")
        return
    with torch.device("cuda"):
        theirs = AutoencoderKLLTX2Video(
            encoder_causal=True, decoder_causal=False, timestep_conditioning=False,
            decoder_block_out_channels=(256, 512, 512, 1024), decoder_layers_per_block=(4, 6, 4, 2, 2),
            decoder_spatio_temporal_scaling=(True,) * 4, decoder_inject_noise=(False,) * 5,
            upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
            upsample_residual=(False,) * 4, upsample_factor=(2, 2, 1, 2), decoder_spatial_padding_mode="zeros",
        ).bfloat16().eval()  # fmt: skip
    theirs.encoder = torch.nn.Identity()
    theirs.disable_tiling()
    attempt("diffusers, one piece", lambda: timed(lambda: theirs.decode(latents).sample))
    theirs.enable_tiling()
    attempt("diffusers, tiled", lambda: timed(lambda: theirs.decode(latents).sample, 3))


@torch.inference_mode()
def main() -> None:
    print(torch.cuda.get_device_name(), torch.__version__, "cuDNN", torch.backends.cudnn.version())
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    decoder = random_decoder()
    latents = torch.randn(1, 128, *SIZE, device="cuda", dtype=torch.bfloat16)
    attempt("compiling", lambda: warm_kernels(decoder))
    attempt("check", lambda: check(decoder))
    whole(decoder, latents)
    diffusers_decoder(latents)
    for name in SHAPES:
        isolated(name)
    print("\n".join(f"{name:<46} {text}" for name, text in table))
    print(json.dumps(dict(table)))


if __name__ == "__main__":
    main()

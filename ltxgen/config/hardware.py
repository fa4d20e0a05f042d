"""The GPU and links that predictions are for."""

from __future__ import annotations

from dataclasses import dataclass

from ltxgen.config.schema import PositiveFloat


@dataclass(frozen=True)
class Hardware:
    """One kind of GPU and its links, for predictions: rates that were measured, not those of a data sheet.

    Links are counted in GB/s that one rank receives: `link_gbps` from GPUs of its machine, `network_gbps` from others.
    `fp8_tflops` is the rate of matrix products in fp8, null for a GPU without.
    """

    name: str
    memory_gib: PositiveFloat
    gemm_tflops: PositiveFloat
    attention_tflops: PositiveFloat
    memory_gbps: PositiveFloat
    link_gbps: PositiveFloat
    network_gbps: PositiveFloat
    fp8_tflops: PositiveFloat | None = None

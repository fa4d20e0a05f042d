"""The video decoder as few GPU kernels: same weights, same maths, each activation written once.

Shapes: F frames, H height, W width, C channels; activations lie as (F, H, W, C). A `Pair` is what a layer hands on:
its result, SiLU(PixelNorm(result)), or both, whichever its reader takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ltxgen.models.video_vae import kernels
from ltxgen.models.video_vae.convolution import VideoConv
from ltxgen.models.video_vae.decoder import VideoDecoder
from ltxgen.models.video_vae.kernels import Blocks
from ltxgen.models.video_vae.resnet import ResnetBlock, ResnetStage
from ltxgen.models.video_vae.sampling import Upsample

Stride = tuple[int, int, int]


@dataclass(frozen=True)
class Pair:
    """A result (F, H, W, C) and the same after norm and SiLU; None where nobody reads it."""

    plain: Tensor | None
    normed: Tensor | None


class BlockChoice(Protocol):
    """Says how a convolution of so many input and output channels (of one phase) is cut; normed: its norm is wanted."""

    def __call__(self, inputs: int, outputs: int, *, normed: bool) -> Blocks: ...


def choose_blocks(inputs: int, outputs: int, *, normed: bool) -> Blocks:
    """The blocks that were fastest on an H200."""
    if outputs == 256 and normed:
        return Blocks(outputs=256, num_warps=8)
    return Blocks(outputs=128 if outputs >= 128 else max(16, 1 << (outputs - 1).bit_length()))


class FusedDecoder:
    """Calls like the `VideoDecoder` that it is made of, whose weights it holds once more, in the kernels' order."""

    def __init__(self, decoder: VideoDecoder, choose: BlockChoice = choose_blocks) -> None:
        self.config = decoder.config
        self._statistics = decoder.per_channel_statistics
        self._layers: list[_Layer] = [_Conv(decoder.conv_in, choose)]
        for block in decoder.up_blocks:
            if isinstance(block, Upsample):
                self._layers.append(_Conv(block.conv, choose, block.stride))
                continue
            assert isinstance(block, ResnetStage)
            for res in block.res_blocks:
                assert isinstance(res, ResnetBlock)
                self._layers.append(_Resnet(_Conv(res.conv1, choose), _Conv(res.conv2, choose)))
        self._last = _Conv(decoder.conv_out, choose)

    def __call__(self, latents: Tensor) -> Tensor:
        """(B, 128, F', H', W') -> (B, 3, 8(F' − 1) + 1, 32·H', 32·W')."""
        return torch.stack([self._decode(video) for video in latents])

    def _decode(self, latents: Tensor) -> Tensor:
        latents = self._statistics.denormalize(latents[None])[0]
        pair = Pair(latents.permute(1, 2, 3, 0).contiguous(), None)
        for layer, reader in zip(self._layers, [*self._layers[1:], None], strict=True):
            # A residual block reads both, an upsampling the plain result, the last convolution the normed one.
            both = isinstance(reader, _Resnet)
            pair = layer(pair, plain=reader is not None, normed=both or reader is None)
        assert pair.normed is not None
        x = self._last.run(pair.normed, plain=True, normed=False).plain
        assert x is not None
        size = self.config.patch_size
        F, H, W, _ = x.shape
        # The channel of a patch is (colour, sub-column, sub-row), as in `unpatchify`.
        return x.view(F, H, W, -1, size, size).permute(3, 0, 1, 5, 2, 4).reshape(-1, F, H * size, W * size)


class _Layer(Protocol):
    def __call__(self, pair: Pair, *, plain: bool, normed: bool) -> Pair: ...


class _Conv:
    """A convolution of the plain result, with its upsampling."""

    def __init__(self, conv: VideoConv, choose: BlockChoice, stride: Stride = (1, 1, 1)) -> None:
        assert conv.conv.bias is not None
        self.weight = kernels.pack_weight(conv.conv.weight, stride)
        self.bias = kernels.pack_bias(conv.conv.bias, stride)
        self.causal = conv.causal
        self.stride = stride
        self.channels = conv.conv.out_channels // math.prod(stride)
        self._choose = choose

    def __call__(self, pair: Pair, *, plain: bool, normed: bool) -> Pair:
        assert pair.plain is not None
        return self.run(pair.plain, plain=plain, normed=normed)

    def run(self, x: Tensor, *, plain: bool, normed: bool, skip: Tensor | None = None) -> Pair:
        """The convolution of `x`, plus `skip`, which is overwritten by the plain result."""
        F, H, W, C = x.shape
        a, b, c = self.stride
        blocks = self._choose(C, self.channels, normed=normed)
        inside = blocks.outputs == self.channels  # the kernel sees all channels of a pixel and can norm them
        shape = (F * a - (a - 1), H * b, W * c, self.channels)
        out = skip if skip is not None else x.new_empty(shape) if plain or not inside else None
        result = x.new_empty(shape) if normed and inside else None
        kernels.conv(
            x,
            self.weight,
            self.bias,
            causal=self.causal,
            stride=self.stride,
            skip=skip,
            out=out if plain or not inside else None,
            normed=result,
            blocks=blocks,
        )
        if normed and not inside:
            assert out is not None
            result = kernels.norm_silu(out, out=None if plain else out)
        return Pair(out if plain else None, result)


@dataclass(frozen=True)
class _Resnet:
    conv1: _Conv
    conv2: _Conv

    def __call__(self, pair: Pair, *, plain: bool, normed: bool) -> Pair:
        assert pair.normed is not None
        inner = self.conv1.run(pair.normed, plain=False, normed=True).normed
        assert inner is not None
        return self.conv2.run(inner, plain=plain, normed=normed, skip=pair.plain)

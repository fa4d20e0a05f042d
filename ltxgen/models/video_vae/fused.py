"""The video decoder with its channels last: cuDNN convolves, and one kernel does all that stands between two of them.

The same weights and maths as `VideoDecoder`; each activation is written once, in the padded form in which the next
convolution reads it. Shapes: F frames, H height, W width, C channels; activations lie as (F, H, W, C).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ltxgen.models.video_vae.decoder import VideoDecoder
from ltxgen.models.video_vae.epilogue import Epilogue, Stride, torch_epilogue
from ltxgen.models.video_vae.resnet import ResnetBlock, ResnetStage
from ltxgen.models.video_vae.sampling import Upsample


@dataclass(frozen=True)
class _Step:
    """A convolution, what it reads and what becomes of its result.

    The trunk is what residual blocks add to. A result takes its place, with or without the trunk added, or is `inner`.
    """

    conv: nn.Conv3d
    stride: Stride = (1, 1, 1)
    reads_normed: bool = False
    inner: bool = False
    adds_trunk: bool = False


def _steps(decoder: VideoDecoder) -> Iterator[_Step]:
    yield _Step(decoder.conv_in.conv)
    for block in decoder.up_blocks:
        if isinstance(block, Upsample):
            yield _Step(block.conv.conv, block.stride, adds_trunk=block.residual)
            continue
        assert isinstance(block, ResnetStage)
        for res in block.res_blocks:
            assert isinstance(res, ResnetBlock)
            yield _Step(res.conv1.conv, reads_normed=True, inner=True)
            yield _Step(res.conv2.conv, reads_normed=True, adds_trunk=True)
    yield _Step(decoder.conv_out.conv, reads_normed=True)


class FusedDecoder:
    """Calls like the `VideoDecoder` that it is made of; the weights are shared, and put into channels-last order."""

    def __init__(self, decoder: VideoDecoder, epilogue: Epilogue = torch_epilogue) -> None:
        decoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in torch's stubs
        self.config = decoder.config
        self._statistics = decoder.per_channel_statistics
        self._steps = tuple(_steps(decoder))
        self._epilogue = epilogue
        self._frames_before = 2 if decoder.config.causal_decoder else 1
        self._edge = 1 if decoder.config.decoder_padding == "reflect" else 0  # cuDNN pads by zeros itself

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """(B, 128, F', H', W') -> (B, 3, 8(F' − 1) + 1, 32·H', 32·W').

        Raises ValueError for a side of one latent where pixels are padded by reflection, which takes two.
        """
        if self._edge and min(latents.shape[3:]) < 2:
            raise ValueError(
                f"latents of {tuple(latents.shape[2:])}: the decoder reflects pixels, which takes 2 a side"
            )
        videos = [self._decode(video)[None] for video in self._statistics.denormalize(latents)]
        return videos[0] if len(videos) == 1 else torch.cat(videos)

    def _decode(self, latents: Tensor) -> Tensor:
        source, inside = self._padded(latents, latents.shape[1:], latents.shape[0])
        inside.copy_(latents.permute(1, 2, 3, 0))
        self._fill_padding(source)
        trunk: Tensor | None = None
        # Names go as soon as their tensors are done with: three activations are alive at most.
        del inside
        for step, reader in itertools.pairwise(self._steps):
            y = self._convolve(step.conv, source)
            del source
            if not (step.inner or step.adds_trunk):
                trunk = None
            source, trunk = self._finish(step, reader, y, trunk)
            del y
        last = self._steps[-1].conv
        return self._to_pixels(self._convolve(last, source), last)

    def _convolve(self, conv: nn.Conv3d, source: Tensor) -> Tensor:
        """The padded (F + 2, H, W, C) -> (F, H, W, C'), without the bias."""
        x = source[None].permute(0, 4, 1, 2, 3)
        y = functional.conv3d(x, conv.weight, padding=(0, 1 - self._edge, 1 - self._edge))
        return y[0].permute(1, 2, 3, 0)

    def _finish(self, step: _Step, reader: _Step, y: Tensor, trunk: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What `reader` convolves, made of the sums `y` of `step`; and the trunk, None where nobody adds to it."""
        F, H, W, C = y.shape
        a, b, c = step.stride
        size, channels = (F * a - (a - 1), H * b, W * c), C // math.prod(step.stride)
        source, inside = self._padded(y, size, channels)
        plain: Tensor | None
        if not reader.reads_normed:
            plain = inside
        elif step.inner or reader is self._steps[-1]:
            plain = None
        else:
            plain = trunk if step.adds_trunk and math.prod(step.stride) == 1 else y.new_empty((*size, channels))
        assert step.conv.bias is not None
        self._epilogue(
            y,
            step.conv.bias,
            step.stride,
            skip=trunk if step.adds_trunk else None,
            plain=plain,
            normed=inside if reader.reads_normed else None,
        )
        self._fill_padding(source)
        return source, trunk if step.inner else plain

    def _padded(self, like: Tensor, size: torch.Size | tuple[int, int, int], channels: int) -> tuple[Tensor, Tensor]:
        """An empty tensor for frames of `size` with their padding, and its inside."""
        F, H, W = size
        edge, before = self._edge, self._frames_before
        whole = like.new_empty((F + 2, H + 2 * edge, W + 2 * edge, channels))
        return whole, whole[before : before + F, edge : edge + H, edge : edge + W]

    def _fill_padding(self, x: Tensor) -> None:
        """Copy the outer frames, and reflect pixels where the model does, from the inside to the padding."""
        if self._edge:
            x[:, 0], x[:, -1] = x[:, 2], x[:, -3]
            x[:, :, 0], x[:, :, -1] = x[:, :, 2], x[:, :, -3]
        before = self._frames_before
        x[:before] = x[before]
        if before == 1:
            x[-1] = x[-2]

    def _to_pixels(self, y: Tensor, conv: nn.Conv3d) -> Tensor:
        """(F, H, W, 3·size²) and the bias -> (3, F, H·size, W·size)."""
        F, H, W, C = y.shape
        size = self.config.patch_size
        colours = C // size**2
        # The channel of a patch is (colour, sub-column, sub-row), as in `unpatchify`.
        patches = y.reshape(F, H, W, colours, size, size).permute(3, 0, 1, 5, 2, 4)
        assert conv.bias is not None
        bias = conv.bias.view(colours, 1, 1, size, 1, size).transpose(3, 5)
        video = y.new_empty(colours, F, H * size, W * size)
        torch.add(patches, bias, out=video.view(colours, F, H, size, W, size))
        return video

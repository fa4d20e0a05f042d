"""The video VAE with its channels last: cuDNN convolves, and one kernel does all that stands between two of them.

The same weights and maths as `VideoDecoder` and `VideoEncoder`; each activation is written once, in the padded form in
which the next convolution reads it. Shapes: F frames, H height, W width, C channels; activations lie as (F, H, W, C);
(a, b, c) strides, P = a·b·c.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ltxgen.models.video_vae.config import PaddingMode
from ltxgen.models.video_vae.decoder import VideoDecoder
from ltxgen.models.video_vae.encoder import VideoEncoder
from ltxgen.models.video_vae.epilogue import Epilogue, Stride, torch_epilogue
from ltxgen.models.video_vae.resnet import ResnetBlock, ResnetStage
from ltxgen.models.video_vae.sampling import Downsample, Upsample, patchify


@dataclass(frozen=True)
class _Step:
    """A convolution, what it reads and what becomes of its result.

    The trunk is what residual blocks add to. A result takes its place, with or without the trunk added, or is `inner`.
    `stride` is that of an upsampling, `shrinks` of a downsampling.
    """

    conv: nn.Conv3d
    stride: Stride = (1, 1, 1)
    reads_normed: bool = False
    inner: bool = False
    adds_trunk: bool = False
    shrinks: Stride | None = None


def _steps(decoder: VideoDecoder) -> Iterator[_Step]:
    yield _Step(decoder.conv_in.conv)
    for block in decoder.up_blocks:
        if isinstance(block, Upsample):
            yield _Step(block.conv.conv, block.stride, adds_trunk=block.residual)
        else:
            yield from _residual_steps(block)
    yield _Step(decoder.conv_out.conv, reads_normed=True)


def _encoder_steps(encoder: VideoEncoder) -> Iterator[_Step]:
    yield _Step(encoder.conv_in.conv)
    for block in encoder.down_blocks:
        if isinstance(block, Downsample):
            yield _Step(block.conv.conv, shrinks=block.stride)
        else:
            yield from _residual_steps(block)
    yield _Step(encoder.conv_out.conv, reads_normed=True)


def _residual_steps(block: nn.Module) -> Iterator[_Step]:
    assert isinstance(block, ResnetStage)
    for res in block.res_blocks:
        assert isinstance(res, ResnetBlock)
        yield _Step(res.conv1.conv, reads_normed=True, inner=True)
        yield _Step(res.conv2.conv, reads_normed=True, adds_trunk=True)


@dataclass(frozen=True)
class _Padding:
    """What a convolution reads beside its frames: copies of the first one and of the last one, and mirrored pixels.

    Pixels padded by zeros, where `edge` is 0, cuDNN adds itself.
    """

    before: int
    after: int
    edge: int

    def room(self, like: Tensor, size: torch.Size | tuple[int, ...], channels: int) -> tuple[Tensor, Tensor]:
        """An empty tensor for frames of `size` (F, H, W) with their padding, and its inside."""
        F, H, W = size
        before, edge = self.before, self.edge
        whole = like.new_empty((before + F + self.after, H + 2 * edge, W + 2 * edge, channels))
        return whole, whole[before : before + F, edge : edge + H, edge : edge + W]

    def fill(self, x: Tensor) -> None:
        """Copy the outer frames, and reflect pixels where the model does, from the inside to the padding."""
        if self.edge:
            x[:, 0], x[:, -1] = x[:, 2], x[:, -3]
            x[:, :, 0], x[:, :, -1] = x[:, :, 2], x[:, :, -3]
        x[: self.before] = x[self.before]
        if self.after:
            x[-self.after :] = x[-self.after - 1]


def _edge(mode: PaddingMode) -> int:
    return 1 if mode == "reflect" else 0


def _convolve(conv: nn.Conv3d, source: Tensor, edge: int) -> Tensor:
    """The padded (F + 2, H, W, C) -> (F, H, W, C'), without the bias."""
    x = source[None].permute(0, 4, 1, 2, 3)
    y = functional.conv3d(x, conv.weight, padding=(0, 1 - edge, 1 - edge))
    return y[0].permute(1, 2, 3, 0)


class FusedDecoder:
    """Calls like the `VideoDecoder` that it is made of; the weights are shared, and put into channels-last order."""

    def __init__(self, decoder: VideoDecoder, epilogue: Epilogue = torch_epilogue) -> None:
        decoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in torch's stubs
        self.config = decoder.config
        self._statistics = decoder.per_channel_statistics
        self._steps = tuple(_steps(decoder))
        self._epilogue = epilogue
        before = 2 if decoder.config.causal_decoder else 1
        self._padding = _Padding(before, 2 - before, _edge(decoder.config.decoder_padding))

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """(B, 128, F', H', W') -> (B, 3, 8(F' − 1) + 1, 32·H', 32·W').

        Raises ValueError for a side of one latent where pixels are padded by reflection, which takes two.
        """
        if self._padding.edge and min(latents.shape[3:]) < 2:
            raise ValueError(
                f"latents of {tuple(latents.shape[2:])}: the decoder reflects pixels, which takes 2 a side"
            )
        videos = [self._decode(video)[None] for video in self._statistics.denormalize(latents)]
        return videos[0] if len(videos) == 1 else torch.cat(videos)

    def _decode(self, latents: Tensor) -> Tensor:
        source, inside = self._padding.room(latents, latents.shape[1:], latents.shape[0])
        inside.copy_(latents.permute(1, 2, 3, 0))
        self._padding.fill(source)
        trunk: Tensor | None = None
        # Names go as soon as their tensors are done with: three activations are alive at most.
        del inside
        for step, reader in itertools.pairwise(self._steps):
            y = _convolve(step.conv, source, self._padding.edge)
            del source
            if not (step.inner or step.adds_trunk):
                trunk = None
            source, trunk = self._finish(step, reader, y, trunk)
            del y
        last = self._steps[-1].conv
        return self._to_pixels(_convolve(last, source, self._padding.edge), last)

    def _finish(self, step: _Step, reader: _Step, y: Tensor, trunk: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What `reader` convolves, made of the sums `y` of `step`; and the trunk, None where nobody adds to it."""
        F, H, W, C = y.shape
        a, b, c = step.stride
        size, channels = (F * a - (a - 1), H * b, W * c), C // math.prod(step.stride)
        source, inside = self._padding.room(y, size, channels)
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
        self._padding.fill(source)
        return source, trunk if step.inner else plain

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


class FusedEncoder:
    """Calls like the `VideoEncoder` that it is made of; the weights are shared, and put into channels-last order."""

    def __init__(self, encoder: VideoEncoder, epilogue: Epilogue = torch_epilogue) -> None:
        encoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # missing in torch's stubs
        self.config = encoder.config
        self.parameters = encoder.parameters
        self._statistics = encoder.per_channel_statistics
        self._steps = tuple(_encoder_steps(encoder))
        self._epilogue = epilogue
        self._edge = _edge(encoder.config.encoder_padding)

    @torch.no_grad()
    def __call__(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) -> (B, 128, F', H', W') with F = 8(F' − 1) + 1, H = 32·H', W = 32·W'.

        Raises ValueError where frames or pixels don't come out even.
        """
        self.config.latent_size(*video.shape[2:])  # refuses
        return self._statistics.normalize(torch.stack([self._encode(each) for each in video]))

    def _encode(self, video: Tensor) -> Tensor:
        patches = patchify(video[None], self.config.patch_size)[0]
        padding = self._padding_of(self._steps[0])
        source, inside = padding.room(patches, patches.shape[1:], patches.shape[0])
        inside.copy_(patches.permute(1, 2, 3, 0))
        padding.fill(source)
        trunk: Tensor | None = None
        # Names go as soon as their tensors are done with.
        del patches, inside
        for step, reader in itertools.pairwise(self._steps):
            y = _convolve(step.conv, source, self._edge)
            if step.shrinks is not None:
                y, trunk = self._shrunk(step.shrinks, y, source)
            del source
            source, trunk = self._finish(step, reader, y, trunk)
            del y
        last = self._steps[-1].conv
        assert last.bias is not None
        mean = slice(0, self.config.latent_channels)  # the log-variance behind it is not used
        latents = _convolve(last, source, self._edge)[..., mean] + last.bias[mean]
        return latents.permute(3, 0, 1, 2)

    def _finish(self, step: _Step, reader: _Step, y: Tensor, trunk: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What `reader` convolves, made of the sums `y` of `step`; and the trunk, None where it is in that."""
        padding = self._padding_of(reader)
        source, inside = padding.room(y, y.shape[:3], y.shape[3])
        adds = step.adds_trunk or step.shrinks is not None
        plain: Tensor | None
        if not reader.reads_normed:
            plain = inside
        elif step.inner or reader is self._steps[-1]:
            plain = None
        else:
            plain = trunk if adds else y.new_empty(y.shape)
        assert step.conv.bias is not None
        bias = step.conv.bias if step.shrinks is None else step.conv.bias.repeat_interleave(math.prod(step.shrinks))
        normed = inside if reader.reads_normed else None
        self._epilogue(y, bias, (1, 1, 1), skip=trunk if adds else None, plain=plain, normed=normed)
        padding.fill(source)
        return source, trunk if step.inner else plain

    def _shrunk(self, stride: Stride, y: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of a downsampling in its coarser grid, and the averages of what it read, to be added to them."""
        _, H, W, _ = y.shape
        edge = self._edge
        # Where time halves, frames and the copy of the first one that pairs with it.
        read = source[2:, edge : edge + H, edge : edge + W]
        coarse = _space_to_depth(y, stride)
        return coarse, _space_to_depth(read, stride).unflatten(-1, (coarse.shape[-1], -1)).mean(dim=-1)

    def _padding_of(self, reader: _Step) -> _Padding:
        """In front of a downsampling that halves time stands one more copy, with which the first frame pairs."""
        halves_time = reader.shrinks is not None and reader.shrinks[0] == 2
        return _Padding(3 if halves_time else 2, 0, self._edge)


def _space_to_depth(x: Tensor, stride: Stride) -> Tensor:
    """(F·a, H·b, W·c, C) -> (F, H, W, C·P); of the new channels c runs fastest."""
    F, H, W, C = x.shape
    a, b, c = stride
    cells = x.reshape(F // a, a, H // b, b, W // c, c, C)
    return cells.permute(0, 2, 4, 6, 1, 3, 5).reshape(F // a, H // b, W // c, C * a * b * c)

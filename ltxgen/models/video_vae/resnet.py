"""Residual stages of the video VAE."""

from __future__ import annotations

from torch import Tensor, nn

from ltxgen.models.video_vae.convolution import Padding, VideoConv


class ResnetBlock(nn.Module):
    """x + conv2(SiLU(PN(conv1(SiLU(PN(x)))))) at one width; PN is PixelNorm and has no weights."""

    def __init__(self, channels: int, padding: Padding) -> None:
        super().__init__()
        self.conv1 = VideoConv(channels, channels, padding)
        self.conv2 = VideoConv(channels, channels, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2.after_norm(self.conv1.after_norm(x)).add_(x)


class ResnetStage(nn.Module):
    """A run of residual blocks (`res_x` in the metadata)."""

    def __init__(self, channels: int, num_layers: int, padding: Padding) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(ResnetBlock(channels, padding) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.res_blocks:
            x = block(x)
        return x

"""Pictures of the request -> what is known of a video at one size: a given first frame, keyframes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor

from ltxgen.config.errors import Problem
from ltxgen.config.recipe import Crf, ImageCondition
from ltxgen.config.schema import PositiveFraction
from ltxgen.diffusion.conditions import Appended, AppendedTokens, Condition, GivenTokens
from ltxgen.diffusion.grids import VideoGrid
from ltxgen.diffusion.pair import Pair
from ltxgen.diffusion.positions import keyframe_positions
from ltxgen.media.fit import Fit, to_encoder
from ltxgen.media.picture import picture_facts, read_picture, through_h264
from ltxgen.media.sound import BadMedia
from ltxgen.models.video_vae import VideoVAEConfig, encode_cost, encoder_for
from ltxgen.registry import register
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Stage


@register("stage", "condition_images")
@dataclass(frozen=True)
class ConditionImagesConfig:
    """`request.images` at `scale` of the request's height and width, made to fit by `fit`, for a stage that makes
    `rate` of the frames.

    A picture at frame 0 replaces the first latent frame and others are keyframes; with `keyframes: all` so is that one.
    `crf` is that of pictures that don't say theirs.
    """

    request_fields: ClassVar = ("images", "height", "width", "num_frames", "fps")

    crf: Crf
    scale: PositiveFraction = Fraction(1)
    rate: PositiveFraction = Fraction(1)
    keyframes: Literal["later", "all"] = "later"
    fit: Fit = "cover"

    def build(self, name: str, setting: Setting) -> ConditionImages:
        return ConditionImages(self, name, setting)


class ConditionImages(Stage):
    """Writes `<name>.conditions`; without pictures nothing is in them and nothing is loaded."""

    reads = ()

    def __init__(self, config: ConditionImagesConfig, name: str, setting: Setting) -> None:
        self.config = config
        self.name = name
        self.setting = setting
        self.images = setting.request.images
        self.writes = (f"{name}.conditions",)
        self.parts = (PartRequest("video_encoder", setting.dtype),) if self.images else ()
        self.size_multiple = (VideoGrid.spatial_factor / config.scale).numerator

    @property
    def grid(self) -> VideoGrid:
        """Of one picture."""
        request, scale = self.setting.request, self.config.scale
        return VideoGrid.from_pixels(1, int(request.height * scale), int(request.width * scale))

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        request = self.setting.request
        problems = _frame_problems(self.images, request.num_frames)
        for number, image in enumerate(self.images):
            try:
                picture_facts(Path(image.path).expanduser())
            except BadMedia as error:
                problems.append(Problem(f"request.images[{number}].path", image.path, str(error)))
        if request.height % self.size_multiple or request.width % self.size_multiple:
            return problems  # the plan says so, once for all stages
        num_appended = sum(map(self._is_appended, self.images))
        shapes[self.writes[0]] = Pair(Appended(num_appended * self.grid.num_tokens), Appended())
        return problems

    def activation_bytes(self, free_bytes: int) -> int:
        if not self.images:
            return 0
        config = VideoVAEConfig.from_metadata(self.setting.artifacts["checkpoint"].config["vae"])
        cost = encode_cost(config, self.setting.device, self.setting.dtype)
        return cost.peak_bytes((1, self.grid.height, self.grid.width), None)

    def describe(self) -> dict[str, Any]:
        return {"images": list(map(self._described, self.images)) or "none"}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        conditions: list[Condition] = []
        context.progress.begin(len(self.images), unit="image")
        for number, image in enumerate(self.images):
            encode, _ = encoder_for(parts["video_encoder"])
            latents = encode(self._pixels(image))
            context.record(f"{self.name}.{number}", latents)
            conditions.append(self._condition(image, self.grid.patchify(latents)))
            context.progress.advance()
        return {self.writes[0]: Pair(tuple(conditions), ())}

    def _pixels(self, image: ImageCondition) -> Tensor:
        """(1, 3, 1, H, W) in [-1, 1], as the encoder takes it."""
        picture = through_h264(read_picture(Path(image.path).expanduser()).pixels, self._crf(image))
        fitted = to_encoder(picture[None], self.grid.height * 32, self.grid.width * 32, self.config.fit)
        return fitted.to(self.setting.device, self.setting.dtype)

    def _condition(self, image: ImageCondition, tokens: Tensor) -> Condition:
        mask = 1 - image.strength
        if not self._is_appended(image):
            return GivenTokens(tokens, start=0, mask=mask)
        rate, span = self.config.rate, self.setting.numerics.keyframe_span_frames
        # A frame that the stage doesn't make stands between two that it does.
        frame = float(self._frame(image) * rate)
        positions = keyframe_positions(self.grid, self.setting.request.fps * rate, frame, span)
        return AppendedTokens(tokens, positions, mask)

    def _is_appended(self, image: ImageCondition) -> bool:
        return self.config.keyframes == "all" or self._frame(image) != 0

    def _frame(self, image: ImageCondition) -> int:
        return image.frame % self.setting.request.num_frames

    def _crf(self, image: ImageCondition) -> int:
        return self.config.crf if image.crf is None else image.crf

    def _described(self, image: ImageCondition) -> str:
        facts = picture_facts(Path(image.path).expanduser())
        alpha = ", alpha dropped" if facts.see_through else ""
        how = "keyframe" if self._is_appended(image) else "first frame"
        return (
            f"{image.path} ({facts.width}x{facts.height}{alpha}) as {how} {self._frame(image)}, strength "
            f"{image.strength:g}, crf {self._crf(image)}"
        )


def _frame_problems(images: tuple[ImageCondition, ...], num_frames: int) -> list[Problem]:
    """Frames that the video doesn't have, and frames that have two pictures."""
    problems = []
    taken: dict[int, int] = {}
    for number, image in enumerate(images):
        where = f"request.images[{number}].frame"
        if not -num_frames <= image.frame < num_frames:
            allowed = f"must be from 0 to {num_frames - 1}, or from the end -1 to -{num_frames}"
            problems.append(Problem(where, image.frame, f"{allowed}; the video has {num_frames} frames"))
            continue
        other = taken.setdefault(image.frame % num_frames, number)
        if other != number:
            message = f"is the frame of request.images[{other}] as well; give each frame one picture"
            problems.append(Problem(where, image.frame, message))
    return problems

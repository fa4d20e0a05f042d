"""Videos and pictures of the request that an IC-LoRA works from -> reference tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ltxgen.artifacts.lora import IC_LORA, reference_downscale_factor
from ltxgen.artifacts.safetensors_file import BadFile
from ltxgen.config.errors import Problem
from ltxgen.config.recipe import ReferenceClip
from ltxgen.config.schema import PositiveFraction
from ltxgen.diffusion.conditions import Appended, AppendedTokens, Condition
from ltxgen.diffusion.grids import VideoGrid
from ltxgen.diffusion.masks import mask_of_tokens
from ltxgen.diffusion.pair import Pair
from ltxgen.diffusion.positions import reference_positions
from ltxgen.media.fit import Fit, to_encoder
from ltxgen.media.footage import footage_facts, read_footage
from ltxgen.media.sound import BadMedia
from ltxgen.models.video_vae import Encoder, VideoVAEConfig, encode_cost, encoder_for
from ltxgen.registry import register
from ltxgen.stage.protocol import PartRequest, RunContext, Setting, Stage


@register("stage", "condition_references")
@dataclass(frozen=True)
class ConditionReferencesConfig:
    """`request.references` for a video at `scale` of the request's height and width, made to fit by `fit`.

    They are as many times smaller than that as the IC-LoRA's metadata say. `request.reference_mask` is fitted alike.
    """

    request_fields: ClassVar = ("references", "reference_mask", "height", "width", "num_frames", "fps")
    metadata_artifacts: ClassVar = (IC_LORA,)

    scale: PositiveFraction = Fraction(1)
    fit: Fit = "cover"

    def build(self, name: str, setting: Setting) -> ConditionReferences:
        return ConditionReferences(self, name, setting)


class ConditionReferences(Stage):
    """Writes `<name>.conditions`; without references nothing is in them and nothing is loaded."""

    reads = ()

    def __init__(self, config: ConditionReferencesConfig, name: str, setting: Setting) -> None:
        self.config = config
        self.name = name
        self.setting = setting
        self.references = setting.request.references
        self.writes = (f"{name}.conditions",)
        self.parts = (PartRequest("video_encoder", setting.dtype),) if self.references else ()
        self.size_multiple = (VideoGrid.spatial_factor / config.scale).numerator
        self.factor = 1  # and then the frames that are used of each reference, once `infer` knows
        self.num_frames: tuple[int, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the video that the references are for."""
        request, scale = self.setting.request, self.config.scale
        return int(request.height * scale), int(request.width * scale)

    def infer(self, shapes: dict[str, Any]) -> list[Problem]:
        problems = [*self._factor_problems(), *self._reference_problems(), *self._mask_problems()]
        if problems:
            return problems
        grids = map(self._grid, self.num_frames)
        attention = None if not self.references else 0.0 if self._mask_path else 1.0
        shapes[self.writes[0]] = Pair(Appended(sum(grid.num_tokens for grid in grids), attention), Appended())
        return []

    def activation_bytes(self, free_bytes: int) -> int:
        if not self.references:
            return 0
        config = VideoVAEConfig.from_metadata(self.setting.artifacts["checkpoint"].config["vae"])
        grid = self._grid(max(self.num_frames))
        cost = encode_cost(config, self.setting.device, self.setting.dtype)
        return cost.peak_bytes((grid.frames, grid.height, grid.width), None)

    def describe(self) -> dict[str, Any]:
        mask = {} if self._mask_path is None else {"mask": str(self._mask_path)}
        return {"references": list(map(self._described, self.references, self.num_frames)) or "none", **mask}

    def run(self, state: Mapping[str, Any], parts: Mapping[str, Any], context: RunContext) -> dict[str, Any]:
        conditions: list[Condition] = []
        context.progress.begin(len(self.references), unit="reference")
        for number, (reference, num_frames) in enumerate(zip(self.references, self.num_frames, strict=True)):
            encode, _ = encoder_for(parts["video_encoder"])
            latents = self._encoded(reference, num_frames, encode)
            context.record(f"{self.name}.{number}", latents)
            conditions.append(self._condition(reference, self._grid(num_frames), latents))
            context.progress.advance()
        return {self.writes[0]: Pair(tuple(conditions), ())}

    def _encoded(self, reference: ReferenceClip, num_frames: int, encode: Encoder) -> Tensor:
        height, width = (side // self.factor for side in self.size)
        frames = read_footage(Path(reference.path).expanduser(), num_frames)
        return encode(to_encoder(frames, height, width, self.config.fit, self.setting.dtype).to(self.setting.device))

    def _condition(self, reference: ReferenceClip, grid: VideoGrid, latents: Tensor) -> Condition:
        positions = reference_positions(grid, self.setting.request.fps, self.factor)
        return AppendedTokens(grid.patchify(latents), positions, 1 - reference.strength, self._attention(grid))

    def _attention(self, grid: VideoGrid) -> float | Tensor:
        if self._mask_path is None:
            return 1.0
        frames = read_footage(self._mask_path, grid.num_frames)
        grey = to_encoder(frames, *self.size, self.config.fit)[0].mean(dim=0)
        return mask_of_tokens(((grey + 1) / 2).clamp(0, 1), grid).to(self.setting.device)

    def _grid(self, num_frames: int) -> VideoGrid:
        return VideoGrid.from_pixels(num_frames, *(side // self.factor for side in self.size))

    @property
    def _mask_path(self) -> Path | None:
        path = self.setting.request.reference_mask.path
        return None if path is None else Path(path).expanduser()

    def _factor_problems(self) -> list[Problem]:
        """What is wrong with the LoRA's factor, or with the request's size for it; notes the factor."""
        lora = self.setting.artifacts.get(IC_LORA)
        try:
            self.factor = 1 if lora is None else reference_downscale_factor(lora)
        except BadFile as error:
            assert lora is not None, "which was read"
            return [Problem(lora.config_path, str(lora.path), str(error))]
        request, multiple = self.setting.request, self.size_multiple * self.factor
        problems = []
        for name in ("height", "width"):
            value = getattr(request, name)
            if value % multiple and not value % self.size_multiple:  # of others the plan says so, once for all stages
                below = value // multiple * multiple
                nearest = f"the nearest are {below} and {below + multiple}" if below else f"the smallest is {multiple}"
                message = (
                    f"must be a multiple of {multiple} with this IC-LoRA, whose references are {self.factor} times "
                    f"smaller than the video; {nearest}"
                )
                problems.append(Problem(f"request.{name}", value, message))
            elif value % multiple:
                return []
        return problems

    def _reference_problems(self) -> list[Problem]:
        """Files that can't be read; notes how many frames of the others are used."""
        problems, used = [], []
        for number, reference in enumerate(self.references):
            try:
                facts = footage_facts(Path(reference.path).expanduser())
            except BadMedia as error:
                problems.append(Problem(f"request.references[{number}].path", reference.path, str(error)))
                continue
            # The official encoder leaves out the last frames as well, where there are not 8k + 1.
            num_frames = min(facts.num_frames, self.setting.request.num_frames)
            used.append((num_frames - 1) // VideoGrid.time_factor * VideoGrid.time_factor + 1)
        self.num_frames = tuple(used)
        return problems

    def _mask_problems(self) -> list[Problem]:
        path = self._mask_path
        if path is None:
            return []
        where = "request.reference_mask.path"
        if not self.references:
            message = "masks references, and there are none; give request.references=[{path: FILE}]"
            return [Problem(where, str(path), message)]
        try:
            num_frames = footage_facts(path).num_frames
        except BadMedia as error:
            return [Problem(where, str(path), str(error))]
        wanted = max(self.num_frames, default=1)
        if 1 < num_frames < wanted:
            message = f"has {num_frames} frames, must have {wanted} as what is used of the references, or 1 for all"
            return [Problem(where, str(path), message)]
        return []

    def _described(self, reference: ReferenceClip, num_frames: int) -> str:
        facts = footage_facts(Path(reference.path).expanduser())
        return (
            f"{reference.path} ({facts.width}x{facts.height}, frame for frame {num_frames} of {facts.num_frames}), "
            f"strength {reference.strength:g}, {self.factor} times smaller than the video"
        )

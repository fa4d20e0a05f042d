"""Pictures, keyframes and references against diffusers' pipelines: conditioning tensors, masks, one guided step.

diffusers' own code prepares, predicts, guides and steps; it gets our weights, contexts and noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    LTX2ConditionPipeline,
    LTX2ImageToVideoPipeline,
    LTX2InContextPipeline,
)
from diffusers.configuration_utils import FrozenDict
from diffusers.pipelines.ltx2 import pipeline_ltx2_condition, pipeline_ltx2_ic_lora, pipeline_ltx2_image2video
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.fusion import FusedLoras
from ltxgen.artifacts.load import load_component
from ltxgen.bench.peers import diffusers_transformer
from ltxgen.diffusion import numerics
from ltxgen.diffusion.latents import LatentState
from ltxgen.media.clip import read_frames
from ltxgen.media.mp4 import Mp4Settings, Mp4Writer
from ltxgen.stage import initial_states

TOLERANCE = 1e-4
# Half of what is asked for, the size of the stage that is compared.
HEIGHT, WIDTH, NUM_FRAMES = 64, 64, 17
SIZE = (f"request.height={2 * HEIGHT}", f"request.width={2 * WIDTH}", f"request.num_frames={NUM_FRAMES}")
# One step from noise to the end; what comes after this stage is of no interest.
SHORT = ("stages.base.steps=null", "stages.base.sigmas=[1.0,0.0]", "stages.refine.sigmas=[0.9,0.0]")


class Peer:
    """A diffusers pipeline without a constructor, around parts of ours."""

    _execution_device = torch.device("cpu")

    def __init__(self, tiny_set: Any, tensors: dict[str, Tensor], loras: dict[str, float]) -> None:
        checkpoint = ResolvedArtifact("checkpoint", tiny_set.file("checkpoint"), "", "")
        encoder = load_component("video_encoder", checkpoint, "cpu", torch.float32)
        transformer = load_component("transformer", checkpoint, "cpu", torch.float32)
        found = [(ResolvedArtifact(name, tiny_set.file(name), "", ""), scale) for name, scale in loras.items()]
        FusedLoras(transformer).apply(found)
        zero, one = torch.zeros(128), torch.ones(128)

        def encode(pixels: Tensor) -> Any:
            return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: encoder(pixels)))

        def connectors(embeds: Tensor, mask: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
            sides = ["negative", "positive"] if len(embeds) == 2 else ["positive"]
            video, audio = (torch.cat([tensors[f"context.{m}.{side}"] for side in sides]) for m in ("video", "audio"))
            return video, audio, torch.ones(video.shape[:2])

        # Not through the pipeline's own __setattr__, which asks for a config of registered modules.
        self.__dict__.update(
            _internal_dict=FrozenDict({}),
            vae=SimpleNamespace(
                encode=encode,
                latents_mean=zero,
                latents_std=one,
                dtype=torch.float32,
                config=SimpleNamespace(scaling_factor=1.0),
            ),
            audio_vae=SimpleNamespace(
                latents_mean=zero, latents_std=one, config=SimpleNamespace(mel_bins=64, latent_channels=8)
            ),
            connectors=connectors,
            text_encoder=None,
            transformer=diffusers_transformer(transformer.config, transformer.state_dict(), perturbed_attn=True),
            scheduler=FlowMatchEulerDiscreteScheduler(),
            audio_scheduler=None,
            tokenizer_padding_side="left",
            vae_spatial_compression_ratio=32,
            vae_temporal_compression_ratio=8,
            transformer_spatial_patch_size=1,
            transformer_temporal_patch_size=1,
            audio_vae_temporal_compression_ratio=4,
            audio_vae_mel_compression_ratio=4,
            audio_sampling_rate=16000,
            audio_hop_length=160,
            audio_mel_bins=64,
            audio_latent_channels=8,
            video_processor=pipeline_ltx2_ic_lora.VideoProcessor(vae_scale_factor=32, resample="bilinear"),
        )

    def maybe_free_model_hooks(self) -> None: ...


class ConditionPeer(Peer, LTX2ConditionPipeline): ...


class InContextPeer(Peer, LTX2InContextPipeline): ...


class ImagePeer(Peer, LTX2ImageToVideoPipeline): ...


@dataclass(frozen=True)
class Ours:
    """A run with all its tensors, and the state of the base stage before noise."""

    tensors: dict[str, Tensor]
    state: LatentState


@pytest.fixture
def run(run_ltxgen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ours]:
    states: list[LatentState] = []
    apply_noise = initial_states.apply_noise

    def watched(state: LatentState, *arguments: Any) -> LatentState:
        states.append(state)
        return apply_noise(state, *arguments)

    monkeypatch.setattr(initial_states, "apply_noise", watched)
    # diffusers computes as the launch code, but for keyframes, which claim one frame as in the current one.
    monkeypatch.setitem(numerics._BY_NAME, "launch", replace(numerics.LAUNCH, keyframe_span_frames=1))

    def ran(*words: str) -> Ours:
        common = ("model=ltx23_tiny", "runtime.numerics=launch", "output.tensors=true", "output.dir=out", *SIZE, *SHORT)
        result = run_ltxgen(*words, *common, cwd=tmp_path)
        assert result.code == 0, result.err
        return Ours(load_file(tmp_path / "out" / "tensors.safetensors"), states[0])

    return ran


@pytest.fixture
def pictures(tmp_path: Path) -> list[Image.Image]:
    random = np.random.default_rng(0)
    images = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((70, 90), (101, 80))]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    return images


def call(peer: Any, module: Any, ours: Ours, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, ...]:
    """What the peer prepared, and its final video and audio latents."""
    noise = [ours.tensors[f"base.noise.{modality}"] for modality in ("video", "audio")]
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **options: in_shape(noise.pop(0), shape))
    prepared: list[Any] = []
    prepare = peer.prepare_latents
    peer.__dict__["prepare_latents"] = lambda *given, **named: prepared.append(prepare(*given, **named)) or prepared[0]
    peer.set_progress_bar_config(disable=True)
    embeds = torch.zeros(1, 1, 1)
    with torch.no_grad():
        video, audio = peer(
            prompt_embeds=embeds,
            prompt_attention_mask=torch.ones(1, 1),
            negative_prompt_embeds=embeds,
            negative_prompt_attention_mask=torch.ones(1, 1),
            height=HEIGHT,
            width=WIDTH,
            num_frames=NUM_FRAMES,
            frame_rate=24.0,
            num_inference_steps=1,
            sigmas=[1.0],
            spatio_temporal_guidance_blocks=[2],
            output_type="latent",
            return_dict=False,
            **options,
        )
    return prepared[0], video, audio


def in_shape(tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Noise as a pipeline draws it: of tokens, of a video (1,C,F,H,W), or of a sound (1,C,T,M)."""
    if len(shape) == 5:
        return tokens.mT.reshape(shape)
    if len(shape) == 4 and tokens.dim() == 3:
        _, channels, length, bins = shape
        return tokens.reshape(1, length, channels, bins).transpose(1, 2)
    return tokens.reshape(shape)


def assert_agree(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert ((ours - theirs).norm() / theirs.norm()).item() <= TOLERANCE


def assert_prepared_alike(ours: Ours, prepared: tuple[Any, ...]) -> None:
    noised, mask, clean, appended, *_ = prepared
    assert_agree(ours.tensors["base.noised.video"], noised)
    assert_agree(1 - ours.state.denoise_mask, mask)
    kept = ours.state.denoise_mask < 1
    assert_agree(ours.state.clean * kept, clean * kept)
    if appended is not None:
        assert_agree(ours.state.positions[:, :, ours.state.num_generated :], appended)


@pytest.mark.parametrize("in_context", [False, True])
def test_a_first_frame_and_a_keyframe(in_context: bool, run, pictures, tiny_set, monkeypatch: pytest.MonkeyPatch):
    """Without the rescaling of guidance: its spread is over all tokens, and diffusers' x0 of a given token is another,
    that of a token at the full noise level, until it puts the given one in its place."""
    words = [f"stages.base.guidance.{modality}.rescale_scale=0" for modality in ("video", "audio")]
    ours = run("+recipe=ltx23_two_stage", "request.images=[{path: 0.png}, {path: 1.png, frame: 9, crf: 20}]", *words)
    kind, module = (InContextPeer, pipeline_ltx2_ic_lora) if in_context else (ConditionPeer, pipeline_ltx2_condition)
    conditions = [LTX2VideoCondition(pictures[0], 0, 1.0, 33), LTX2VideoCondition(pictures[1], 2, 1.0, 20)]
    unscaled = dict.fromkeys(("guidance_rescale", "audio_guidance_rescale"), 0.0)
    peer = kind(tiny_set, ours.tensors, {})
    prepared, video, audio = call(peer, module, ours, monkeypatch, conditions=conditions, **unscaled)
    assert_prepared_alike(ours, prepared)
    assert_agree(ours.tensors["base.final.video"], video)
    assert_agree(ours.tensors["base.final.audio"], audio)


def test_image_to_video(run, tiny_set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The picture has the stage's size: diffusers' pipeline for a first frame alone stretches others to it."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    image.save(tmp_path / "first.png")
    words = [f"stages.base.guidance.{modality}.rescale_scale=0" for modality in ("video", "audio")]  # as above
    ours = run("+recipe=ltx23_two_stage", "request.images=[{path: first.png, crf: 28}]", *words)
    unscaled = dict.fromkeys(("guidance_rescale", "audio_guidance_rescale"), 0.0)
    peer = ImagePeer(tiny_set, ours.tensors, {})
    (noised, mask), video, audio = call(
        peer, pipeline_ltx2_image2video, ours, monkeypatch, image=image, image_crf=28, **unscaled
    )
    assert_agree(ours.tensors["base.noised.video"], noised)
    assert_agree(1 - ours.state.denoise_mask[..., 0], mask)
    assert_agree(ours.tensors["base.final.video"], video)
    assert_agree(ours.tensors["base.final.audio"], audio)


def test_partial_strengths_are_prepared_alike(run, pictures, tiny_set, monkeypatch: pytest.MonkeyPatch):
    """Of a step diffusers has another one here: it takes the velocity of a token that is partly given times sigma, not
    times the token's own timestep."""
    ours = run("+recipe=ltx23_two_stage", "request.images=[{path: 0.png, strength: 0.6}, {path: 1.png, frame: 1, "
               "strength: 0.3}]")  # fmt: skip
    conditions = [LTX2VideoCondition(pictures[0], 0, 0.6, 33), LTX2VideoCondition(pictures[1], 1, 0.3, 33)]
    peer = ConditionPeer(tiny_set, ours.tensors, {})
    prepared, _, _ = call(peer, pipeline_ltx2_condition, ours, monkeypatch, conditions=conditions)
    assert_prepared_alike(ours, prepared)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_references(
    masked: bool, factor: int, run, pictures, tiny_set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of attention in part, diffusers' transformer has another bias than the official one: masks alone are compared.

    `factor`: how many times smaller than the video its references are, by the LoRA's metadata.
    """
    random = torch.Generator().manual_seed(0)
    metadata = {"reference_downscale_factor": str(factor)}
    save_file(load_file(tiny_set.file("ic_lora")), tmp_path / "ic.safetensors", metadata)
    for name, smaller in (("ref", factor), ("mask", 1)):
        with Mp4Writer(tmp_path / f"{name}.mp4", 24, Mp4Settings()) as writer:
            size = (NUM_FRAMES, HEIGHT // smaller // 8, WIDTH // smaller // 8, 3)
            blocks = torch.randint(0, 256, size, generator=random, dtype=torch.uint8)
            writer.write_frames(blocks.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2))
    options: dict[str, Any] = {"reference_downscale_factor": factor}
    words: list[str] = []
    if masked:
        grey = read_frames(tmp_path / "mask.mp4", NUM_FRAMES).float().mean(dim=-1) / 255
        options |= {"conditioning_attention_strength": 0.5, "conditioning_attention_mask": grey[None, None]}
        words = ["stages.base.reference_attention=0.5", "request.reference_mask.path=mask.mp4"]
    ours = run(
        "+recipe=ltx23_ic_lora",
        f"artifacts.checkpoint.path={tiny_set.file('checkpoint')}",
        "request.images=[{path: 1.png, frame: 9}]",
        "request.references=[{path: ref.mp4}, {path: ref.mp4}]",
        "artifacts.ic_lora.path=ic.safetensors",
        "stages.base.loras.ic_lora=0.8",
        *words,
    )
    reference = LTX2ReferenceCondition(list(map(Image.fromarray, read_frames(tmp_path / "ref.mp4", 17).numpy())))
    attention: list[Tensor] = []
    build = LTX2InContextPipeline._build_video_self_attention_mask

    def watched(**given: Any) -> Tensor:
        attention.append(build(**given))
        return attention[0]

    peer = InContextPeer(tiny_set, ours.tensors, {"ic_lora": 0.8})
    peer.__dict__["_build_video_self_attention_mask"] = watched
    prepared, video, audio = call(
        peer,
        pipeline_ltx2_ic_lora,
        ours,
        monkeypatch,
        conditions=[LTX2VideoCondition(pictures[1], 2, 1.0, 33)],
        reference_conditions=[reference, reference],
        **dict.fromkeys(("guidance_scale", "audio_guidance_scale", "modality_scale", "audio_modality_scale"), 1.0),
        **dict.fromkeys(("stg_scale", "audio_stg_scale", "guidance_rescale", "audio_guidance_rescale"), 0.0),
        **options,
    )
    assert_prepared_alike(ours, prepared)
    if masked:
        assert ours.state.attention is not None
        assert_agree(ours.state.attention, attention[0])
    else:
        assert ours.state.attention is None
        assert_agree(ours.tensors["base.final.video"], video)
        assert_agree(ours.tensors["base.final.audio"], audio)

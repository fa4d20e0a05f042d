"""The transformer against diffusers' LTX2VideoTransformer3DModel, on tiny random weights in the official names."""

from dataclasses import replace

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from ltxgen.bench.peers import diffusers_name
from ltxgen.models.transformer import AttentionByRole, ModalityInput, Perturbation, Transformer, TransformerConfig, sdpa

# Audio is narrower than video, and head dims differ: 3 axes leave 2 pads in 30 angles of video's 60 channels.
TINY = {
    "num_layers": 3,
    "in_channels": 8,
    "out_channels": 8,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "cross_attention_dim": 64,
    "audio_in_channels": 6,
    "audio_out_channels": 6,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 12,
    "audio_cross_attention_dim": 24,
    "timestep_scale_multiplier": 1000,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "audio_positional_embedding_max_pos": [20],
    "frequencies_precision": "float64",
    "rope_type": "split",
}
LTX23 = TINY | {
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
}
LTX2 = TINY | {"caption_channels": 20}
VARIANTS = {
    "ltx23": LTX23,
    "ltx2": LTX2,
    "interleaved": LTX23 | {"rope_type": "interleaved"},
    "fp32_frequencies": LTX23 | {"frequencies_precision": "float32"},
    "static_prompt_no_ff_bias": LTX23 | {"use_prompt_adaln_single": False, "ff_bias": False},
    "no_audio_ff_bias": LTX2 | {"audio_ff_bias": False},
}
GRID, AUDIO_TOKENS, TEXT_TOKENS = (3, 2, 3), 5, 7
VIDEO_TOKENS = 3 * 2 * 3
STG = Perturbation(skip_video_self_attention=frozenset({1}), skip_audio_self_attention=frozenset({1}))
ISOLATED = Perturbation(isolate_modalities=True)


def build(settings: dict, seed: int = 0, **options) -> Transformer:
    """A transformer whose every weight is random, read from a state dict as a checkpoint would be."""
    config = TransformerConfig.from_metadata({"transformer": settings})
    with torch.device("meta"):
        model = Transformer(config, **options)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, like in model.state_dict().items():
        spread = like.shape[-1] ** -0.5 if like.ndim == 2 and "table" not in key else 0.3
        weights[key] = torch.randn(like.shape, generator=generator) * spread + (1.0 if "norm" in key else 0.0)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def video_positions(batch: int) -> Tensor:
    frames, height, width = GRID
    starts = torch.cartesian_prod(torch.arange(frames), torch.arange(height), torch.arange(width)).T.double()
    bounds = torch.stack([starts, starts + 1], dim=-1) * torch.tensor([8.0, 32.0, 32.0])[:, None, None]
    bounds[0] = (bounds[0] - 7).clamp(min=0) / 24
    return bounds.float().expand(batch, -1, -1, -1)


def audio_positions(batch: int) -> Tensor:
    starts = torch.arange(AUDIO_TOKENS)
    bounds = (torch.stack([starts, starts + 1], dim=-1) * 4 - 3).clamp(min=0) * 0.01
    return bounds.expand(batch, 1, -1, -1)


def inputs(settings: dict, batch: int = 1, masked: bool = True) -> tuple[ModalityInput, ModalityInput]:
    """Noised tokens of both modalities; `masked` gives tokens timesteps between 0 and the modality's sigma."""
    generator = torch.Generator().manual_seed(11)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def modality(channels: int, tokens: int, text_width: int, positions: Tensor, first_sigma: float) -> ModalityInput:
        sigma = first_sigma - 0.2 * torch.arange(batch, dtype=torch.float32)
        mask = torch.ones(batch, tokens)
        if masked:
            mask[:, : tokens // 3] = 0
            mask[:, tokens // 3 : tokens // 2] = 0.4
        context = randn(batch, TEXT_TOKENS, settings.get("caption_channels", text_width))
        return ModalityInput(randn(batch, tokens, channels), mask * sigma[:, None], sigma, positions, context)

    audio_sigma = 0.6 if masked else 0.9
    return (
        modality(8, VIDEO_TOKENS, settings["cross_attention_dim"], video_positions(batch), 0.9),
        modality(6, AUDIO_TOKENS, settings["audio_cross_attention_dim"], audio_positions(batch), audio_sigma),
    )


def reference(settings: dict, model: Transformer) -> LTX2VideoTransformer3DModel:
    gated, modulated = settings.get("apply_gated_attention", False), settings.get("cross_attention_adaln", False)
    copied = (
        *("num_layers", "in_channels", "out_channels", "num_attention_heads", "attention_head_dim"),
        *("cross_attention_dim", "audio_in_channels", "audio_out_channels", "audio_num_attention_heads"),
        *("audio_attention_head_dim", "audio_cross_attention_dim", "rope_type", "ff_bias", "audio_ff_bias"),
        *("use_prompt_adaln_single", "caption_channels"),
    )
    theirs = LTX2VideoTransformer3DModel(
        **{key: settings[key] for key in copied if key in settings},
        gated_attn=gated,
        audio_gated_attn=gated,
        cross_attn_mod=modulated,
        audio_cross_attn_mod=modulated,
        rope_double_precision=settings["frequencies_precision"] == "float64",
        use_prompt_embeddings="caption_channels" in settings,
        perturbed_attn=True,
    )
    theirs.load_state_dict({diffusers_name(key): value for key, value in model.state_dict().items()})
    return theirs.eval()


@torch.inference_mode()
def reference_velocities(theirs, video: ModalityInput, audio: ModalityInput, **options) -> tuple[Tensor, Tensor]:
    return theirs(
        video.latents,
        audio.latents,
        video.context,
        audio.context,
        timestep=video.timesteps * 1000,
        audio_timestep=audio.timesteps * 1000,
        sigma=video.sigma * 1000,
        audio_sigma=audio.sigma * 1000,
        video_coords=video.positions,
        audio_coords=audio.positions,
        encoder_attention_mask=video.context_mask,
        audio_encoder_attention_mask=audio.context_mask,
        video_self_attention_mask=video.attention_mask,
        use_cross_timestep=True,
        return_dict=False,
        **options,
    )


@torch.inference_mode()
def velocities(model: Transformer, video, audio, perturbation=Perturbation()) -> tuple[Tensor | None, Tensor | None]:  # noqa: B008
    return model(video, audio, perturbation)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


def assert_close(got, wanted, tolerance: float = 1e-5) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape
        assert relative_error(one, other) <= tolerance


def differs(got, wanted) -> bool:
    return all(relative_error(one, other) > 1e-3 for one, other in zip(got, wanted, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", [1, 2])
def test_agrees_with_diffusers(variant: str, batch: int):
    settings = VARIANTS[variant]
    model = build(settings, cross_timestep="other")
    theirs = reference(settings, model)
    video, audio = inputs(settings, batch)

    plain = velocities(model, video, audio)
    perturbed = velocities(model, video, audio, STG)
    isolated = velocities(model, video, audio, ISOLATED)

    assert_close(plain, reference_velocities(theirs, video, audio))
    assert_close(perturbed, reference_velocities(theirs, video, audio, spatio_temporal_guidance_blocks=[1]))
    assert_close(isolated, reference_velocities(theirs, video, audio, isolate_modalities=True))
    assert differs(perturbed, plain)
    assert differs(isolated, plain)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_context_mask_agrees_with_diffusers_and_with_shorter_contexts(dtype: torch.dtype):
    model = build(LTX23, cross_timestep="other")
    video, audio = inputs(LTX23, batch=2)
    mask = torch.ones(2, TEXT_TOKENS, dtype=dtype)
    mask[:, 4:] = 0
    masked = [replace(one, context_mask=mask) for one in (video, audio)]
    shorter = [replace(one, context=one.context[:, :4]) for one in (video, audio)]
    as_integers = [replace(one, context_mask=mask.long()) for one in (video, audio)]

    got = velocities(model, *masked)

    assert_close(got, reference_velocities(reference(LTX23, model), *as_integers))
    assert_close(got, velocities(model, *shorter))
    assert differs(got, velocities(model, video, audio))


def test_float_context_mask_is_added_to_the_logits():
    model = build(LTX23)
    video, audio = inputs(LTX23)
    mask = torch.tensor([[0.0] * 4 + [float("-inf")] * 3])
    got = velocities(model, *(replace(one, context_mask=mask) for one in (video, audio)))
    assert_close(got, velocities(model, *(replace(one, context=one.context[:, :4]) for one in (video, audio))))


def test_self_attention_mask_of_zeros_and_ones_agrees_with_diffusers():
    model = build(LTX23, cross_timestep="other")
    video, audio = inputs(LTX23, batch=2)
    seen = (strengths() > 0.4).float()
    masked = replace(video, attention_mask=seen)

    got = velocities(model, masked, audio)

    assert_close(got, reference_velocities(reference(LTX23, model), masked, audio))
    assert differs(got, velocities(model, video, audio))


def test_self_attention_strengths_multiply_attention_weights():
    # diffusers turns fractions into another bias, so these are compared with the definition.
    video, audio = inputs(LTX23, batch=2)
    strength = strengths()
    strength[:, :, 5:8] = 0

    def weighted(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        weights = (q @ k.mT * q.shape[-1] ** -0.5).exp() * strength[:, None]
        return (weights / weights.sum(-1, keepdim=True)) @ v

    got = velocities(build(LTX23), replace(video, attention_mask=strength), audio)
    assert_close(got, velocities(build(LTX23, attention=AttentionByRole(video_self=weighted)), video, audio))


def test_token_that_may_attend_to_none_stays_finite():
    video, audio = inputs(LTX23)
    nothing = torch.zeros(1, VIDEO_TOKENS, VIDEO_TOKENS)
    got = velocities(build(LTX23), replace(video, attention_mask=nothing), audio)
    assert all(one.isfinite().all() for one in got)


def strengths() -> Tensor:
    strength = torch.rand(2, VIDEO_TOKENS, VIDEO_TOKENS, generator=torch.Generator().manual_seed(1))
    return strength.clamp(min=1e-3).diagonal_scatter(torch.ones(2, VIDEO_TOKENS), dim1=1, dim2=2)


def test_audio_self_attention_mask_hides_tokens():
    # Hidden from the others in every attention that could see it, a token may hold anything.
    model = build(LTX23)
    video, audio = inputs(LTX23)
    seen = torch.ones(1, AUDIO_TOKENS, AUDIO_TOKENS)
    seen[:, :-1, -1] = 0
    audio = replace(audio, attention_mask=seen)
    other = replace(audio, latents=torch.cat([audio.latents[:, :-1], audio.latents[:, -1:] + 3], dim=1))
    _, one = velocities(model, video, audio, ISOLATED)
    _, two = velocities(model, video, other, ISOLATED)
    assert torch.equal(one[:, :-1], two[:, :-1])
    assert not torch.equal(one[:, -1], two[:, -1])


def test_cross_timesteps_agree_without_masks_and_differ_with_them():
    own, other = build(LTX23), build(LTX23, cross_timestep="other")
    unmasked, masked = inputs(LTX23, batch=2, masked=False), inputs(LTX23, batch=2)
    assert_close(velocities(own, *unmasked), velocities(other, *unmasked))
    assert differs(velocities(own, *masked), velocities(other, *masked))


def test_one_shared_timestep_equals_the_same_for_every_token():
    video, audio = inputs(LTX23, batch=2, masked=False)
    shared = [replace(one, timesteps=one.sigma[:, None]) for one in (video, audio)]
    for cross_timestep in ("own", "other"):
        model = build(LTX23, cross_timestep=cross_timestep)
        assert_close(velocities(model, *shared), velocities(model, video, audio))


def test_mixed_perturbations_in_a_batch_equal_separate_runs():
    model = build(LTX23)
    video, audio = inputs(LTX23, batch=4)
    mixed = [
        Perturbation(),
        STG,
        ISOLATED,
        Perturbation(skip_audio_self_attention=frozenset({0, 2}), isolate_modalities=True),
    ]
    got = velocities(model, video, audio, mixed)
    for index, perturbation in enumerate(mixed):
        alone = velocities(model, sample(video, index), sample(audio, index), perturbation)
        assert_close([one[index : index + 1] for one in got], alone)


def sample(modality: ModalityInput, index: int) -> ModalityInput:
    names = ("latents", "timesteps", "sigma", "positions", "context")
    return replace(modality, **{name: getattr(modality, name)[index : index + 1] for name in names})


def test_unknown_block_is_refused():
    with pytest.raises(ValueError, match=r"blocks \[28\].*0\.\.2"):
        velocities(build(LTX23), *inputs(LTX23), Perturbation(skip_video_self_attention=frozenset({1, 28})))


def test_one_modality_alone_equals_isolation():
    model = build(LTX23)
    video, audio = inputs(LTX23)
    isolated_video, isolated_audio = velocities(model, video, audio, ISOLATED)
    alone_video, no_audio = velocities(model, video, None)
    no_video, alone_audio = velocities(model, None, audio)
    assert no_audio is None
    assert no_video is None
    assert_close([alone_video, alone_audio], [isolated_video, isolated_audio], tolerance=0)


@pytest.mark.parametrize("disabled", ["video", "audio"])
def test_disabled_modality_is_left_as_embedded_but_informs_the_other(disabled: str):
    calls: list[str] = []
    model = build(LTX23, attention=recording(calls, {}))
    video, audio = inputs(LTX23)
    pair = {"video": video, "audio": audio}
    pair[disabled] = replace(pair[disabled], enabled=False)

    with torch.inference_mode():
        hidden, shared = model.embed(**pair)
        (after,) = model.run_blocks(hidden, shared, [model.embed_texts(**pair)], [[Perturbation()]])
        result = dict(zip(("video", "audio"), model.head(after, shared), strict=True))

    assert torch.equal(getattr(after, disabled), getattr(hidden, disabled))
    other = "audio" if disabled == "video" else "video"
    assert result[disabled] is None
    assert calls == [f"{other}_self", f"{other}_text", f"{other}_from_{disabled}"] * 3
    alone = dict(zip(("video", "audio"), velocities(model, **pair | {disabled: None}), strict=True))
    assert relative_error(result[other], alone[other]) > 1e-3


def recording(calls: list[str], shapes: dict[str, list[tuple]]) -> AttentionByRole:
    """Attention functions that note their role and the shapes of q, k and v."""

    def function(role: str):
        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            calls.append(role)
            shapes.setdefault(role, []).append((tuple(q.shape), tuple(k.shape), tuple(v.shape), mask))
            return sdpa(q, k, v, mask)

        return attend

    return AttentionByRole(**{role: function(role) for role in AttentionByRole.__dataclass_fields__})


def test_attention_functions_are_called_by_role():
    calls: list[str] = []
    shapes: dict[str, list[tuple]] = {}
    model = build(LTX23, attention=recording(calls, shapes))
    got = velocities(model, *inputs(LTX23, batch=2))

    block = ["video_self", "video_text", "audio_self", "audio_text", "video_from_audio", "audio_from_video"]
    assert calls == block * 3
    video, audio, text = (2, 2, VIDEO_TOKENS, 32), (2, 2, AUDIO_TOKENS, 12), TEXT_TOKENS
    across = (2, 2, VIDEO_TOKENS, 12)
    wanted = {
        "video_self": (video, video, video, None),
        "video_text": (video, (2, 2, text, 32), (2, 2, text, 32), None),
        "audio_self": (audio, audio, audio, None),
        "audio_text": (audio, (2, 2, text, 12), (2, 2, text, 12), None),
        "video_from_audio": (across, audio, audio, None),
        "audio_from_video": (audio, across, across, None),
    }
    assert shapes == {role: [shape] * 3 for role, shape in wanted.items()}
    assert_close(got, velocities(build(LTX23), *inputs(LTX23, batch=2)), tolerance=0)


@pytest.mark.parametrize("role", AttentionByRole.__dataclass_fields__)
def test_each_attention_function_matters(role: str):
    def nothing(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return torch.zeros_like(q)

    plain = velocities(build(LTX23), *inputs(LTX23))
    without = velocities(build(LTX23, attention=AttentionByRole(**{role: nothing})), *inputs(LTX23))
    assert differs(without, plain)


def test_skipped_self_attention_never_attends():
    calls: list[str] = []
    model = build(LTX23, attention=recording(calls, {}))
    velocities(model, *inputs(LTX23), STG)
    assert calls.count("video_self") == calls.count("audio_self") == 2


def test_runs_in_bf16_close_to_fp32():
    model = build(LTX23)
    wanted = velocities(model, *inputs(LTX23))
    tables_in_fp32 = {
        key: value if "scale_shift_table" in key else value.bfloat16() for key, value in model.state_dict().items()
    }
    model.load_state_dict(tables_in_fp32, assign=True)
    got = velocities(model, *inputs(LTX23))
    assert all(one.dtype == torch.bfloat16 for one in got)
    assert_close([one.float() for one in got], wanted, tolerance=0.05)

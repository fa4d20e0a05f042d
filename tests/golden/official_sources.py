"""Golden runs of the official pipelines that start from a sound or a clip, made without any of our code.

Run by hand, as official.py, whose checkpoint set it takes; besides, it needs torchaudio (`pip install --no-deps`; of
its extension only the Python part is used).

    python tests/golden/official_sources.py audio_to_video SET OUT --numerics current --audio song.wav [--start 0.5]
    python tests/golden/official_sources.py retake SET OUT --numerics current --source clip.mp4 --span 0.2 0.5
           [--regenerate video] [--distilled]
    python tests/golden/official_sources.py text_to_audio SET OUT --numerics current
    python tests/golden/official.py compare OUT OTHER

`--numerics current` is the installed code with the later official choices patched in: what official.py patches, and a
modality that isn't generated has a noise level of 0; in a retake it starts from noise. The installed version has no
pipeline for sound alone: its audio-only transformer runs in its own loop and guidance.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
import torchaudio  # noqa: F401 - before official.py puts a stand-in in its place
from official import CORPUS, Float32Torch, Recorder, import_official, load_text_encoder, wrap
from safetensors.torch import save_file


def noiser_class(recorder: Recorder, numerics: str, order: Iterator[str], kept: frozenset[str]) -> type:
    """`kept`: the modalities that a retake doesn't regenerate."""
    from ltx_core.components.noisers import GaussianNoiser

    class RecordingNoiser(GaussianNoiser):
        def __call__(self, state: object, noise_scale: float = 1.0) -> object:
            stage, modality = next(order).split(".")
            before = self.generator.get_state()
            noise = torch.randn(*state.latent.shape, dtype=state.latent.dtype, generator=self.generator)
            if numerics == "launch":
                self.generator.set_state(before)
                noised = super().__call__(state, noise_scale)
            else:
                target = torch.lerp(state.latent, noise, torch.as_tensor(noise_scale, dtype=torch.float32))
                mask = torch.ones_like(state.denoise_mask) if modality in kept else state.denoise_mask
                noised = dataclasses.replace(state, latent=torch.lerp(state.clean_latent, target, mask))
            recorder.put(f"{stage}.noise.{modality}", noise)
            recorder.put(f"{stage}.noised.{modality}", noised.latent)
            recorder.put(f"{stage}.positions.{modality}", noised.positions)
            recorder.put(f"{stage}.mask.{modality}", noised.denoise_mask)
            return noised

    return RecordingNoiser


@contextlib.contextmanager
def patched(
    pipeline: ModuleType, recorder: Recorder, numerics: str, positions: torch.dtype, kept: frozenset[str]
) -> Iterator[None]:
    """The official pipeline in float32 on the CPU, watched by the recorder, with the numerics asked for."""
    from ltx_core.loader import fuse_loras
    from ltx_core.model.transformer import X0Model
    from ltx_core.model.transformer.transformer_args import MultiModalTransformerArgsPreprocessor
    from ltx_core.tools import VideoLatentTools
    from ltx_pipelines.utils import helpers, model_ledger

    def forward(original: Callable, *args: object, **kwargs: object) -> object:
        video, audio = original(*args, **kwargs)
        if recorder.call == 0:
            recorder.put_pair(f"{recorder.stage}.call000.forward{recorder.forward}", "", video, audio)
        recorder.forward += 1
        return video, audio

    def loop(original: Callable, denoise_fn: Callable, sigmas: torch.Tensor, **kwargs: object) -> object:
        def denoise(*args: object) -> object:
            recorder.forward = 0
            video, audio = denoise_fn(*args)
            recorder.put_pair(f"{recorder.stage}.call{recorder.call:03d}.x0", "", video, audio)
            recorder.call += 1
            return video, audio

        recorder.put(f"{recorder.stage}.sigmas", sigmas)
        recorder.call = 0
        return original(denoise_fn=denoise, sigmas=sigmas, **kwargs)

    def stage(original: Callable, **kwargs: object) -> object:
        video = original(**kwargs)
        recorder.put(f"{recorder.stage}.final.video", video.latent)
        recorder.put(f"{recorder.stage}.final.audio", kwargs["initial_audio_latent"])
        recorder.stage = "refine"
        return video

    def decode(modality: str) -> Callable:
        def wrapper(original: Callable, latent: torch.Tensor, *args: object) -> object:
            recorder.put(f"{recorder.stage}.final.{modality}", latent)
            return original(latent, *args)

        return wrapper

    def upsample(original: Callable, **kwargs: object) -> torch.Tensor:
        latent = original(**kwargs)
        recorder.put("upsample.video", latent)
        return latent

    def modality_of(
        original: Callable, state: object, context: object, sigma: torch.Tensor, **kwargs: object
    ) -> object:
        frozen = numerics == "current" and not state.denoise_mask.any()
        return original(state, context, torch.zeros_like(sigma) if frozen else sigma, **kwargs)

    def initial_state(original: Callable, *args: object, **kwargs: object) -> object:
        state = original(*args, **kwargs)
        return dataclasses.replace(state, positions=state.positions.to(positions))

    def own_timesteps(original: Callable, self: object, modality: object, cross_modality: object = None) -> object:
        prepared = original(self, modality, cross_modality)
        if cross_modality is None:
            return prepared
        scaled = modality.timesteps.flatten() * self.simple_preprocessor.timestep_scale_multiplier
        rows, _ = self.cross_scale_shift_adaln(scaled, hidden_dtype=modality.latent.dtype)
        rows = rows.view(modality.latent.shape[0], -1, rows.shape[-1])
        return dataclasses.replace(prepared, cross_scale_shift_timestep=rows)

    two_stages = hasattr(pipeline, "denoise_video_only")
    stages = ("base", "refine") if two_stages else ("base",)
    order = iter([f"{name}.{modality}" for name in stages for modality in ("video", "audio")])
    patches = [
        (pipeline, "encode_prompts", recorder.encode),
        (pipeline, "euler_denoising_loop", loop),
        (helpers, "modality_from_latent_state", modality_of),
        (X0Model, "forward", forward),
        (VideoLatentTools, "create_initial_state", initial_state),
        (model_ledger, "module_ops_from_gemma_root", lambda original, root: ()),
        (model_ledger.ModelLedger, "text_encoder", lambda original, self: load_text_encoder(self.gemma_root_path)),
        (torch.cuda, "synchronize", lambda original: None),
    ]
    if two_stages:
        patches += [(pipeline, "denoise_video_only", stage), (pipeline, "upsample_video", upsample)]
    else:
        patches += [(pipeline, "vae_decode_video", decode("video")), (pipeline, "vae_decode_audio", decode("audio"))]
    with contextlib.ExitStack() as stack:
        for owner, name, wrapper in patches:
            stack.enter_context(wrap(owner, name, wrapper))
        if numerics == "current":
            stack.enter_context(wrap(MultiModalTransformerArgsPreprocessor, "prepare", own_timesteps))
        for owner in (pipeline, fuse_loras):
            stack.enter_context(mock.patch.object(owner, "torch", Float32Torch()))
        noiser = noiser_class(recorder, numerics, order, kept)
        stack.enter_context(mock.patch.object(pipeline, "GaussianNoiser", noiser))
        yield


def guiders(args: argparse.Namespace) -> dict[str, object]:
    from ltx_pipelines.utils.constants import detect_params

    params = detect_params(str(args.set / "checkpoint.safetensors"))
    return {
        f"{modality}_guider_params": dataclasses.replace(guider, stg_blocks=[args.stg_block])
        for modality, guider in (("video", params.video_guider_params), ("audio", params.audio_guider_params))
    }


@torch.inference_mode()
def audio_to_video(args: argparse.Namespace, recorder: Recorder, positions: torch.dtype) -> None:
    import ltx_pipelines.a2vid_two_stage as official
    from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps

    lora = str(args.set / "distilled_lora.safetensors")
    with patched(official, recorder, args.numerics, positions, frozenset()):
        pipeline = official.A2VidPipelineTwoStage(
            checkpoint_path=str(args.set / "checkpoint.safetensors"),
            distilled_lora=[LoraPathStrengthAndSDOps(lora, 1.0, LTXV_LORA_COMFY_RENAMING_MAP)],
            spatial_upsampler_path=str(args.set / "spatial_upscaler.safetensors"),
            gemma_root=str(args.set / "gemma"),
            loras=[],
            device=torch.device("cpu"),
        )
        chunks, sound = pipeline(
            prompt=args.prompt,
            negative_prompt=args.negative,
            seed=args.seed,
            height=args.height,
            width=args.width,
            num_frames=args.frames,
            frame_rate=float(args.fps),
            num_inference_steps=args.steps,
            video_guider_params=guiders(args)["video_guider_params"],
            images=[],
            audio_path=str(args.audio),
            audio_start_time=args.start,
            audio_max_duration=args.duration or float(args.frames / args.fps),
        )
        recorder.put("frames", torch.cat(list(chunks)))
        recorder.put("audio.waveform", sound.waveform.unsqueeze(0))


@torch.inference_mode()
def retake(args: argparse.Namespace, recorder: Recorder, positions: torch.dtype) -> None:
    import ltx_pipelines.retake as official

    kept = frozenset({"video", "audio"} - set(args.regenerate))
    with patched(official, recorder, args.numerics, positions, kept):
        pipeline = official.RetakePipeline(
            checkpoint_path=str(args.set / "checkpoint.safetensors"),
            gemma_root=str(args.set / "gemma"),
            loras=[],
            device=torch.device("cpu"),
        )
        chunks, sound = pipeline(
            video_path=str(args.source),
            prompt=args.prompt,
            start_time=args.span[0],
            end_time=args.span[1],
            seed=args.seed,
            negative_prompt=args.negative,
            num_inference_steps=args.steps,
            regenerate_video="video" in args.regenerate,
            regenerate_audio="audio" in args.regenerate,
            distilled=args.distilled,
            **guiders(args),
        )
        recorder.put("frames", torch.cat(list(chunks)))
        recorder.put("audio.waveform", sound.waveform.unsqueeze(0))


@torch.inference_mode()
def text_to_audio(args: argparse.Namespace, recorder: Recorder, positions: torch.dtype) -> None:
    """The official audio-only transformer in the official loop, put together here."""
    from ltx_core.components.diffusion_steps import EulerDiffusionStep
    from ltx_core.components.guiders import MultiModalGuider
    from ltx_core.components.patchifiers import AudioPatchifier
    from ltx_core.components.schedulers import LTX2Scheduler
    from ltx_core.guidance.perturbations import (
        BatchedPerturbationConfig,
        Perturbation,
        PerturbationConfig,
        PerturbationType,
    )
    from ltx_core.loader import SingleGPUModelBuilder
    from ltx_core.model.transformer import LTXV_MODEL_COMFY_RENAMING_MAP, LTXModelConfigurator, Modality
    from ltx_core.model.transformer import model as transformer_model
    from ltx_core.tools import AudioLatentTools
    from ltx_core.types import AudioLatentShape
    from ltx_pipelines.utils import ModelLedger, helpers, model_ledger

    checkpoint = str(args.set / "checkpoint.safetensors")
    with contextlib.ExitStack() as stack:
        for owner, name, wrapper in (
            (model_ledger, "module_ops_from_gemma_root", lambda original, root: ()),
            (model_ledger.ModelLedger, "text_encoder", lambda original, self: load_text_encoder(self.gemma_root_path)),
            (torch.cuda, "synchronize", lambda original: None),
        ):
            stack.enter_context(wrap(owner, name, wrapper))
        device = torch.device("cpu")
        ledger = ModelLedger(torch.float32, device, checkpoint_path=checkpoint, gemma_root_path=str(args.set / "gemma"))
        contexts = helpers.encode_prompts([args.prompt, args.negative], ledger)
        for side, context in zip(("positive", "negative"), contexts, strict=True):
            recorder.put(f"context.audio.{side}", context.audio_encoding)
        audio_only = transformer_model.LTXModelType.AudioOnly
        with wrap(
            transformer_model.LTXModel, "__init__",
            lambda original, self, **kw: original(self, **{**kw, "model_type": audio_only}),
        ):  # fmt: skip
            builder = SingleGPUModelBuilder(
                model_path=checkpoint,
                model_class_configurator=LTXModelConfigurator,
                model_sd_ops=LTXV_MODEL_COMFY_RENAMING_MAP,
            )
            model = builder.build(device=device, dtype=torch.float32).eval()
        stray = [name for name, value in model.named_parameters() if value.is_meta]
        assert not stray, stray
        assert model.model_type is audio_only

        tools = AudioLatentTools(AudioPatchifier(1), AudioLatentShape.from_duration(1, float(args.frames / args.fps)))
        state = tools.create_initial_state(device, torch.float32)
        noise = torch.randn(*state.latent.shape, generator=torch.Generator().manual_seed(args.seed))
        recorder.put("base.noise.audio", noise)
        latent, step = noise, EulerDiffusionStep()
        sigmas = LTX2Scheduler().execute(steps=args.steps).float()
        recorder.put("base.sigmas", sigmas)
        # No second modality to be isolated from.
        params = dataclasses.replace(guiders(args)["audio_guider_params"], modality_scale=1.0)
        guider = MultiModalGuider(params=params, negative_context=contexts[1].audio_encoding)

        def predict(context: torch.Tensor, sigma: torch.Tensor, skipped: bool = False) -> torch.Tensor:
            modality = Modality(
                latent=latent,
                sigma=sigma.view(1),
                timesteps=state.denoise_mask * sigma,
                positions=state.positions,
                context=context,
                enabled=True,
                context_mask=None,
            )
            skip = Perturbation(PerturbationType.SKIP_AUDIO_SELF_ATTN, blocks=params.stg_blocks)
            which = BatchedPerturbationConfig([PerturbationConfig([skip] if skipped else [])])
            _, velocity = model(video=None, audio=modality, perturbations=which)
            return latent - velocity * (state.denoise_mask * sigma)

        for index in range(len(sigmas) - 1):
            positive, negative = (context.audio_encoding for context in contexts)
            passes = [predict(positive, sigmas[index]), predict(negative, sigmas[index])]
            passes.append(predict(positive, sigmas[index], skipped=True))
            if index == 0:
                for number, x0 in enumerate(passes):
                    recorder.put(f"base.call000.forward{number}.audio", x0)
            x0 = guider.calculate(passes[0], passes[1], passes[2], 0.0)
            recorder.put(f"base.call{index:03d}.x0.audio", x0)
            latent = step.step(latent, x0, sigmas, index)
        final = tools.unpatchify(dataclasses.replace(state, latent=latent)).latent
        recorder.put("base.final.audio", final)
        from ltx_core.model.audio_vae import decode_audio

        sound = decode_audio(final, ledger.audio_decoder(), ledger.vocoder())
        recorder.put("audio.waveform", sound.waveform.unsqueeze(0))


def run(args: argparse.Namespace) -> None:
    positions = args.positions or ("bfloat16" if args.numerics == "launch" else "float32")
    recorder = Recorder()
    args.pipeline(args, recorder, getattr(torch, positions))
    for name, tensor in recorder.tensors.items():
        if not tensor.float().isfinite().all():
            raise SystemExit(f"{name} is not finite")
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(recorder.tensors, args.out / "tensors.safetensors")
    asked = {name: value for name, value in vars(args).items() if name not in ("set", "out", "pipeline")}
    text = json.dumps(asked | {"pipeline": args.pipeline.__name__}, indent=2, default=str)
    (args.out / "case.json").write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for pipeline in (audio_to_video, retake, text_to_audio):
        sub = commands.add_parser(pipeline.__name__)
        sub.add_argument("set", type=Path)
        sub.add_argument("out", type=Path)
        sub.add_argument("--numerics", choices=("launch", "current"), required=True)
        sub.add_argument("--positions", choices=("float32", "bfloat16"), help="dtype of video positions")
        sub.add_argument("--prompt", default=CORPUS[0])
        sub.add_argument("--negative", default=CORPUS[-1])
        sub.add_argument("--fps", type=Fraction, default=Fraction(24))
        sizes = (("seed", 10), ("height", 128), ("width", 192), ("frames", 17), ("steps", 4), ("stg-block", 1))
        for name, value in sizes:
            sub.add_argument(f"--{name}", type=int, default=value)
        sub.add_argument("--audio", type=Path)
        sub.add_argument("--start", type=float, default=0.0)
        sub.add_argument("--duration", type=float)
        sub.add_argument("--source", type=Path)
        sub.add_argument("--span", type=float, nargs=2)
        sub.add_argument("--regenerate", nargs="+", choices=("video", "audio"), default=["video", "audio"])
        sub.add_argument("--distilled", action="store_true")
        sub.set_defaults(pipeline=pipeline)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    import_official()
    run(args)


if __name__ == "__main__":
    main()

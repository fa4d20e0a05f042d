"""Golden runs of the official pipelines that are conditioned on pictures or reference clips, made without our code.

Run by hand, as official.py, whose checkpoint set it takes.

    python tests/golden/official_conditions.py images SET OUT --numerics current --image a.png 0 1.0 [33] --image ...
    python tests/golden/official_conditions.py hq|distilled|one_stage SET OUT --numerics current --image ...
    python tests/golden/official_conditions.py keyframes SET OUT --numerics current --image a.png 0 1.0 ...
    python tests/golden/official_conditions.py lora SET LORA.safetensors [--factor 2]
    python tests/golden/official_conditions.py ic_lora SET OUT --numerics current --lora LORA.safetensors
           --reference clip.mp4 1.0 [--lora-strength 1.0 --attention 0.5 --mask mask.mp4 --one-stage --image ...]
    python tests/golden/official.py compare OUT OTHER

`images` is the two-stage pipeline. `lora` writes the set's LoRA once more as an IC-LoRA that was trained with
references so many times smaller; the set's checkpoint stands for the distilled one. `--numerics current` is the
installed code with the later official choices patched in: what official.py patches, keyframes that claim one frame, and
conditions that the noiser alone brings in.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from official import CORPUS, Float32Torch, Recorder, import_official, load_text_encoder, recording_noiser, wrap
from safetensors.torch import load_file, save_file


@contextlib.contextmanager
def patched(pipeline: ModuleType, recorder: Recorder, numerics: str, positions: torch.dtype) -> Iterator[None]:
    """An official pipeline in float32 on the CPU, watched by the recorder, with the numerics asked for."""
    from ltx_core.conditioning import VideoConditionByKeyframeIndex, VideoConditionByLatentIndex
    from ltx_core.conditioning.types import VideoConditionByReferenceLatent
    from ltx_core.loader import fuse_loras
    from ltx_core.model.audio_vae.audio_vae import AudioDecoder
    from ltx_core.model.transformer import X0Model
    from ltx_core.model.transformer.transformer_args import MultiModalTransformerArgsPreprocessor
    from ltx_core.tools import VideoLatentTools
    from ltx_pipelines.utils import model_ledger

    def forward(original: Callable, *args: object, **kwargs: object) -> object:
        if recorder.call == 0 and recorder.forward == 0 and kwargs["video"].attention_mask is not None:
            recorder.put(f"{recorder.stage}.attention.video", kwargs["video"].attention_mask)
        video, audio = original(*args, **kwargs)
        if recorder.call == 0:
            recorder.put_pair(f"{recorder.stage}.call000.forward{recorder.forward}", "", video, audio)
        recorder.forward += 1
        return video, audio

    def loop(original: Callable, denoise_fn: Callable, sigmas: torch.Tensor, **kwargs: object) -> object:
        def denoise(*args: object, **kwargs: object) -> object:
            recorder.forward = 0
            video, audio = denoise_fn(*args, **kwargs)
            recorder.put_pair(f"{recorder.stage}.call{recorder.call:03d}.x0", "", video, audio)
            recorder.call += 1
            return video, audio

        recorder.put(f"{recorder.stage}.sigmas", sigmas)
        recorder.call = 0
        return original(denoise_fn=denoise, sigmas=sigmas, **kwargs)

    def res2s(original: Callable, **kwargs: object) -> object:
        return loop(functools.partial(original, model_dtype=torch.float32), **kwargs)

    def stage(original: Callable, **kwargs: object) -> object:
        video, audio = original(**kwargs)
        recorder.put_pair(f"{recorder.stage}.final", "", video.latent, audio.latent)
        recorder.stage = "refine"
        return video, audio

    def upsample(original: Callable, **kwargs: object) -> torch.Tensor:
        latent = original(**kwargs)
        recorder.put("upsample.video", latent)
        return latent

    def mel(original: Callable, *args: object) -> torch.Tensor:
        spectrogram = original(*args)
        recorder.put("audio.mel", spectrogram)
        return spectrogram

    def decode_audio(original: Callable, latent: torch.Tensor, *args: object) -> object:
        takes_base = numerics == "current" and "ti2vid_two_stages" in pipeline.__name__
        return original(recorder.tensors["base.final.audio"] if takes_base else latent, *args)

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

    def noisy_as_before(original: Callable, self: object, latent_state: object, latent_tools: object) -> object:
        """What a condition knows is not in the noisy tokens, where new ones are zero, until the noiser brings it in."""
        state = original(self, latent_state, latent_tools)
        noisy = torch.zeros_like(state.latent)
        noisy[:, : latent_state.latent.shape[1]] = latent_state.latent
        return dataclasses.replace(state, latent=noisy)

    def one_frame(original: Callable, self: object, latent_state: object, latent_tools: object) -> object:
        state = noisy_as_before(original, self, latent_state, latent_tools)
        time = state.positions[:, 0, latent_state.positions.shape[2] :]
        time[..., 1] = torch.tensor(float(self.frame_idx + 1)) / latent_tools.fps
        return state

    patches = [
        (pipeline, "encode_prompts", recorder.encode),
        (pipeline, "euler_denoising_loop", loop),
        (pipeline, "res2s_audio_video_denoising_loop", res2s),
        (pipeline, "denoise_audio_video", stage),
        (pipeline, "upsample_video", upsample),
        (pipeline, "vae_decode_audio", decode_audio),
        (AudioDecoder, "forward", mel),
        (X0Model, "forward", forward),
        (VideoLatentTools, "create_initial_state", initial_state),
        (model_ledger, "module_ops_from_gemma_root", lambda original, root: ()),
        (model_ledger.ModelLedger, "text_encoder", lambda original, self: load_text_encoder(self.gemma_root_path)),
        (torch.cuda, "synchronize", lambda original: None),
    ]
    if numerics == "current":
        patches += [
            (MultiModalTransformerArgsPreprocessor, "prepare", own_timesteps),
            (VideoConditionByLatentIndex, "apply_to", noisy_as_before),
            (VideoConditionByReferenceLatent, "apply_to", noisy_as_before),
            (VideoConditionByKeyframeIndex, "apply_to", one_frame),
        ]
    with contextlib.ExitStack() as stack:
        for owner, name, wrapper in patches:
            if hasattr(owner, name):
                stack.enter_context(wrap(owner, name, wrapper))
        for owner in (pipeline, fuse_loras):
            stack.enter_context(mock.patch.object(owner, "torch", Float32Torch()))
        stack.enter_context(mock.patch.object(pipeline, "GaussianNoiser", recording_noiser(recorder, numerics)))
        yield


def common(args: argparse.Namespace) -> dict[str, object]:
    from ltx_pipelines.utils.args import ImageConditioningInput

    images = [
        ImageConditioningInput(path, int(frame), float(strength), *map(int, crf))
        for path, frame, strength, *crf in args.image
    ]
    return {
        "prompt": args.prompt,
        "seed": args.seed,
        "height": args.height,
        "width": args.width,
        "num_frames": args.frames,
        "frame_rate": float(args.fps),
        "images": images,
        "tiling_config": None,
    }


def guided(module: ModuleType, name: str, args: argparse.Namespace) -> object:
    from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps

    checkpoint = str(args.set / "checkpoint.safetensors")
    lora = str(args.set / "distilled_lora.safetensors")
    pipeline = getattr(module, name)(
        checkpoint_path=checkpoint,
        distilled_lora=[LoraPathStrengthAndSDOps(lora, 1.0, LTXV_LORA_COMFY_RENAMING_MAP)],
        spatial_upsampler_path=str(args.set / "spatial_upscaler.safetensors"),
        gemma_root=str(args.set / "gemma"),
        loras=[],
        device=torch.device("cpu"),
    )
    return pipeline(negative_prompt=args.negative, num_inference_steps=args.steps, **common(args), **guiders(args))


def guiders(args: argparse.Namespace) -> dict[str, object]:
    from ltx_pipelines.utils.constants import detect_params

    params = detect_params(str(args.set / "checkpoint.safetensors"))
    return {
        f"{modality}_guider_params": dataclasses.replace(guider, stg_blocks=[args.stg_block])
        for modality, guider in (("video", params.video_guider_params), ("audio", params.audio_guider_params))
    }


def images(args: argparse.Namespace) -> tuple[ModuleType, Callable[[], object]]:
    import ltx_pipelines.ti2vid_two_stages as official

    return official, lambda: guided(official, "TI2VidTwoStagesPipeline", args)


def keyframes(args: argparse.Namespace) -> tuple[ModuleType, Callable[[], object]]:
    import ltx_pipelines.keyframe_interpolation as official

    return official, lambda: guided(official, "KeyframeInterpolationPipeline", args)


def hq(args: argparse.Namespace) -> tuple[ModuleType, Callable[[], object]]:
    import ltx_pipelines.ti2vid_two_stages_hq as official
    from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps
    from ltx_pipelines.utils.constants import LTX_2_3_HQ_PARAMS

    def call() -> object:
        lora = str(args.set / "distilled_lora.safetensors")
        pipeline = official.TI2VidTwoStagesHQPipeline(
            checkpoint_path=str(args.set / "checkpoint.safetensors"),
            distilled_lora=[LoraPathStrengthAndSDOps(lora, 1.0, LTXV_LORA_COMFY_RENAMING_MAP)],
            distilled_lora_strength_stage_1=0.25,
            distilled_lora_strength_stage_2=0.5,
            spatial_upsampler_path=str(args.set / "spatial_upscaler.safetensors"),
            gemma_root=str(args.set / "gemma"),
            loras=[],
            device=torch.device("cpu"),
        )
        return pipeline(
            negative_prompt=args.negative,
            num_inference_steps=args.steps,
            video_guider_params=LTX_2_3_HQ_PARAMS.video_guider_params,
            audio_guider_params=LTX_2_3_HQ_PARAMS.audio_guider_params,
            **common(args),
        )

    return official, call


def distilled(args: argparse.Namespace) -> tuple[ModuleType, Callable[[], object]]:
    import ltx_pipelines.distilled as official

    def call() -> object:
        pipeline = official.DistilledPipeline(
            distilled_checkpoint_path=str(args.set / "checkpoint.safetensors"),
            spatial_upsampler_path=str(args.set / "spatial_upscaler.safetensors"),
            gemma_root=str(args.set / "gemma"),
            loras=[],
            device=torch.device("cpu"),
        )
        return pipeline(**common(args))

    return official, call


def one_stage(args: argparse.Namespace) -> tuple[ModuleType, Callable[[], object]]:
    import ltx_pipelines.ti2vid_one_stage as official

    def call() -> object:
        checkpoint = str(args.set / "checkpoint.safetensors")
        pipeline = official.TI2VidOneStagePipeline(
            checkpoint_path=checkpoint, gemma_root=str(args.set / "gemma"), loras=[], device=torch.device("cpu")
        )
        asked = {name: value for name, value in common(args).items() if name != "tiling_config"}
        return pipeline(negative_prompt=args.negative, num_inference_steps=args.steps, **asked, **guiders(args))

    return official, call


def ic_lora(args: argparse.Namespace) -> tuple[ModuleType, Callable[[], object]]:
    import ltx_pipelines.ic_lora as official
    from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps

    def call() -> object:
        lora = LoraPathStrengthAndSDOps(str(args.lora), args.lora_strength, LTXV_LORA_COMFY_RENAMING_MAP)
        pipeline = official.ICLoraPipeline(
            distilled_checkpoint_path=str(args.set / "checkpoint.safetensors"),
            spatial_upsampler_path=str(args.set / "spatial_upscaler.safetensors"),
            gemma_root=str(args.set / "gemma"),
            loras=[lora],
            device=torch.device("cpu"),
        )
        mask = None
        if args.mask is not None:
            mask = official._load_mask_video(str(args.mask), args.height // 2, args.width // 2, args.frames)
        return pipeline(
            video_conditioning=[(path, float(strength)) for path, strength in args.reference],
            conditioning_attention_strength=args.attention,
            conditioning_attention_mask=mask,
            skip_stage_2=args.one_stage,
            **common(args),
        )

    return official, call


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    positions = args.positions or ("bfloat16" if args.numerics == "launch" else "float32")
    recorder = Recorder()
    module, call = args.pipeline(args)
    with patched(module, recorder, args.numerics, getattr(torch, positions)):
        chunks, sound = call()
        recorder.put("frames", torch.cat(list(chunks)))
        recorder.put("audio.waveform", sound.waveform.unsqueeze(0))
    for name, tensor in recorder.tensors.items():
        if not tensor.float().isfinite().all():
            raise SystemExit(f"{name} is not finite")
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(recorder.tensors, args.out / "tensors.safetensors")
    asked = {name: value for name, value in vars(args).items() if name not in ("set", "out", "pipeline", "function")}
    text = json.dumps(asked | {"pipeline": args.pipeline.__name__, "positions": positions}, indent=2, default=str)
    (args.out / "case.json").write_text(text + "\n")


def lora(args: argparse.Namespace) -> None:
    metadata = {"reference_downscale_factor": str(args.factor)} if args.factor != 1 else {}
    save_file(load_file(args.set / "distilled_lora.safetensors"), args.out, {"format": "pt", **metadata})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for pipeline in (images, keyframes, hq, distilled, one_stage, ic_lora):
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
        sub.add_argument("--image", nargs="+", action="append", default=[], help="path, frame, strength, crf")
        sub.add_argument("--reference", nargs=2, action="append", default=[], help="path, strength")
        sub.add_argument("--lora", type=Path)
        sub.add_argument("--lora-strength", type=float, default=1.0)
        sub.add_argument("--attention", type=float, default=1.0)
        sub.add_argument("--mask", type=Path)
        sub.add_argument("--one-stage", action="store_true")
        sub.set_defaults(function=run, pipeline=pipeline)
    sub = commands.add_parser("lora")
    sub.add_argument("set", type=Path)
    sub.add_argument("out", type=Path)
    sub.add_argument("--factor", type=int, default=1)
    sub.set_defaults(function=lora)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    import_official()
    args.function(args)


if __name__ == "__main__":
    main()

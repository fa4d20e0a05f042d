"""Golden runs of the official LTX code, made without any of ours.

Run by hand; pytest does not collect it. It needs the packages ltx-core 1.0.0 and ltx-pipelines 1.0.0
(`pip install --no-deps`, plus einops and av); torchaudio, scipy and triton are not needed.

    python tests/golden/official.py make SET [--seed 0]
    python tests/golden/official.py run SET OUT --numerics current --prompt "..." --negative "..."
           [--pipeline two_stage|hq|distilled|one_stage --skip-step 0 0 --unguided-below 0.5]
           [--seed 10 --height 128 --width 192 --frames 17 --fps 24 --steps 4 --stg-block 1 --strength 1.0]
    python tests/golden/official.py compare OUT OTHER

`make` writes a tiny random checkpoint set in the official on-disk format. `run` sends it through an official pipeline
in float32 on the CPU and writes OUT/tensors.safetensors and OUT/case.json; `distilled` runs the same checkpoint as the
others. `compare` prints the relative L2 of every tensor that two folders share.

`--numerics launch` is the installed code; its video positions are rounded to bfloat16, as they are in every official
run of it (`--positions float32` gives what it does when the run's dtype is float32 all through). `--numerics current`
is the same code with the later official choices patched in: float32 positions, own timesteps for the scale and shift
of cross-attention, noising by two lerps, a modality that skips a step left out of its negative pass as well, and in
`two_stage` and `hq` sound decoded from the base stage.

Beyond the names that issue 2 lists, `frames.tiled` holds the refined latent decoded in small tiles (case.json: tiling).
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import logging
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from official_set import CORPUS, import_official, make
from safetensors.torch import load_file, save_file

PIPELINES = {
    "two_stage": ("ti2vid_two_stages", "TI2VidTwoStagesPipeline"),
    "hq": ("ti2vid_two_stages_hq", "TI2VidTwoStagesHQPipeline"),
    "distilled": ("distilled", "DistilledPipeline"),
    "one_stage": ("ti2vid_one_stage", "TI2VidOneStagePipeline"),
}  # of --pipeline: module and class
TILING = {"spatial": [64, 32], "temporal": [16, 8]}  # size and overlap, in pixels and frames


class Float32Torch:
    """torch for an official module that names bfloat16: there the name means float32."""

    bfloat16 = torch.float32

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


# ---------------------------------------------------------------- run


class Recorder:
    """Keeps what passes through the official pipeline, under the names that the checks use."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.stage, self.call, self.forward = "base", 0, 0

    def put(self, name: str, value: torch.Tensor) -> None:
        value = value if value.dtype == torch.uint8 else value.float()
        self.tensors[name] = value.detach().clone().contiguous()

    def put_pair(self, name: str, suffix: str, video: torch.Tensor, audio: torch.Tensor) -> None:
        self.put(f"{name}.video{suffix}", video)
        self.put(f"{name}.audio{suffix}", audio)

    def encode(self, original: Callable, *args: object, **kwargs: object) -> object:
        """The official prompt encoder, wrapped: keeps the contexts of the prompt and of the negative, if any."""
        contexts = original(*args, **kwargs)
        sides = ("positive", "negative")[: len(contexts)]
        for side, context in zip(sides, contexts, strict=True):
            self.put_pair("context", f".{side}", context.video_encoding, context.audio_encoding)
        return contexts


def wrap(owner: object, name: str, wrapper: Callable) -> contextlib.AbstractContextManager:
    """Replace owner.name by wrapper(original, ...) for a while."""
    original = getattr(owner, name)
    return mock.patch.object(owner, name, lambda *args, **kwargs: wrapper(original, *args, **kwargs))


def recording_noiser(recorder: Recorder, numerics: str) -> type:
    from ltx_core.components.noisers import GaussianNoiser

    class RecordingNoiser(GaussianNoiser):
        order = iter(("base.video", "base.audio", "refine.video", "refine.audio"))

        def __call__(self, state: object, noise_scale: float = 1.0) -> object:
            before = self.generator.get_state()
            latent = state.latent
            noise = torch.randn(*latent.shape, dtype=latent.dtype, generator=self.generator)
            if numerics == "launch":
                self.generator.set_state(before)
                noised = super().__call__(state, noise_scale)
            else:
                target = torch.lerp(latent, noise, torch.as_tensor(noise_scale, dtype=torch.float32))
                noised = dataclasses.replace(state, latent=torch.lerp(state.clean_latent, target, state.denoise_mask))
            stage, modality = next(self.order).split(".")
            recorder.put(f"{stage}.noise.{modality}", noise)
            recorder.put(f"{stage}.noised.{modality}", noised.latent)
            recorder.put(f"{stage}.positions.{modality}", noised.positions)
            return noised

    return RecordingNoiser


def load_text_encoder(root: str) -> object:
    """The official encoder around Gemma as transformers loads it; the official loader expects an older transformers."""
    from ltx_core.text_encoders.gemma import GemmaTextEncoder
    from ltx_core.text_encoders.gemma.tokenizer import LTXVGemmaTokenizer
    from transformers import Gemma3ForConditionalGeneration

    model, info = Gemma3ForConditionalGeneration.from_pretrained(root, dtype=torch.float32, output_loading_info=True)
    if any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")):
        raise SystemExit(f"Gemma weights do not fit: {info}")
    return GemmaTextEncoder(model=model.eval(), tokenizer=LTXVGemmaTokenizer(root, 1024), dtype=torch.float32)


@contextlib.contextmanager
def patched(
    pipeline: ModuleType, recorder: Recorder, numerics: str, positions: torch.dtype, decodes_base_audio: bool
) -> Iterator[None]:
    """The official `pipeline` in float32 on the CPU, watched by the recorder, with the numerics asked for."""
    from ltx_core.loader import fuse_loras
    from ltx_core.model.audio_vae.audio_vae import AudioDecoder
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
        return original(recorder.tensors["base.final.audio"] if decodes_base_audio else latent, *args)

    def initial_state(original: Callable, *args: object, **kwargs: object) -> object:
        state = original(*args, **kwargs)
        return dataclasses.replace(state, positions=state.positions.to(positions))

    skipping: dict[int, tuple[object, bool]] = {}  # by the state's id: the state, and whether it is enabled

    def modality(original: Callable, state: object, *args: object, **kwargs: object) -> object:
        """The negative pass doesn't say what is enabled: as in the positive pass of the same states before it."""
        if "enabled" in kwargs:
            skipping[id(state)] = (state, kwargs["enabled"])
        _, enabled = skipping.get(id(state), (state, True))
        return original(state, *args, **{**kwargs, "enabled": enabled})

    def own_timesteps(original: Callable, self: object, modality: object, cross_modality: object = None) -> object:
        prepared = original(self, modality, cross_modality)
        if cross_modality is None:
            return prepared
        scaled = modality.timesteps.flatten() * self.simple_preprocessor.timestep_scale_multiplier
        rows, _ = self.cross_scale_shift_adaln(scaled, hidden_dtype=modality.latent.dtype)
        rows = rows.view(modality.latent.shape[0], -1, rows.shape[-1])
        return dataclasses.replace(prepared, cross_scale_shift_timestep=rows)

    with contextlib.ExitStack() as stack:
        for owner, name, wrapper in (
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
        ):
            if hasattr(owner, name):
                stack.enter_context(wrap(owner, name, wrapper))
        if numerics == "current":
            stack.enter_context(wrap(helpers, "modality_from_latent_state", modality))
            stack.enter_context(wrap(MultiModalTransformerArgsPreprocessor, "prepare", own_timesteps))
        for owner in (pipeline, fuse_loras):
            stack.enter_context(mock.patch.object(owner, "torch", Float32Torch()))
        stack.enter_context(mock.patch.object(pipeline, "GaussianNoiser", recording_noiser(recorder, numerics)))
        yield


def build(args: argparse.Namespace, pipeline: type) -> object:
    from ltx_core.loader import LTXV_LORA_COMFY_RENAMING_MAP, LoraPathStrengthAndSDOps

    lora = LoraPathStrengthAndSDOps(
        str(args.set / "distilled_lora.safetensors"), args.strength, LTXV_LORA_COMFY_RENAMING_MAP
    )
    checkpoint = "distilled_checkpoint_path" if args.pipeline == "distilled" else "checkpoint_path"
    options = {checkpoint: str(args.set / "checkpoint.safetensors")}
    if args.pipeline != "one_stage":
        options["spatial_upsampler_path"] = str(args.set / "spatial_upscaler.safetensors")
    if args.pipeline in ("two_stage", "hq"):
        options["distilled_lora"] = [lora]
    if args.pipeline == "hq":
        options["distilled_lora_strength_stage_1"] = args.base_strength
        options["distilled_lora_strength_stage_2"] = args.strength
    return pipeline(gemma_root=str(args.set / "gemma"), loras=[], device=torch.device("cpu"), **options)


def guidance(args: argparse.Namespace) -> dict[str, object]:
    """The pipeline's own guidance as the case changes it; nothing for one that has none."""
    from ltx_core.components.guiders import MultiModalGuiderFactory, MultiModalGuiderParams
    from ltx_pipelines.utils.constants import LTX_2_3_HQ_PARAMS, detect_params

    if args.pipeline == "distilled":
        return {}
    is_hq = args.pipeline == "hq"
    params = LTX_2_3_HQ_PARAMS if is_hq else detect_params(str(args.set / "checkpoint.safetensors"))
    options: dict[str, object] = {"negative_prompt": args.negative, "num_inference_steps": args.steps}
    for modality, skip_step in zip(("video", "audio"), args.skip_step, strict=True):
        own = getattr(params, f"{modality}_guider_params")
        blocks = [] if is_hq else [args.stg_block]
        guided = dataclasses.replace(own, stg_blocks=blocks, skip_step=skip_step)
        if args.unguided_below is not None:
            plain = MultiModalGuiderParams(skip_step=skip_step)
            guided = MultiModalGuiderFactory.from_dict({1.0: guided, args.unguided_below: plain})
        options[f"{modality}_guider_params"] = guided
    return options


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    from ltx_core.model.video_vae import SpatialTilingConfig, TemporalTilingConfig, TilingConfig

    module, name = PIPELINES[args.pipeline]
    official = importlib.import_module(f"ltx_pipelines.{module}")
    positions = args.positions or ("bfloat16" if args.numerics == "launch" else "float32")
    decodes_base_audio = args.numerics == "current" and args.pipeline in ("two_stage", "hq")
    recorder = Recorder()
    with patched(official, recorder, args.numerics, getattr(torch, positions), decodes_base_audio):
        pipeline = build(args, getattr(official, name))
        chunks, sound = pipeline(
            prompt=args.prompt,
            seed=args.seed,
            height=args.height,
            width=args.width,
            num_frames=args.frames,
            frame_rate=float(args.fps),
            images=[],
            **guidance(args),
        )
        recorder.put("frames", torch.cat(list(chunks)))
        recorder.put("audio.waveform", sound.waveform.unsqueeze(0))
        tiling = TilingConfig(SpatialTilingConfig(*TILING["spatial"]), TemporalTilingConfig(*TILING["temporal"]))
        ledger = pipeline.stage_2_model_ledger if hasattr(pipeline, "stage_2_model_ledger") else pipeline.model_ledger
        final = "base.final.video" if args.pipeline == "one_stage" else "refine.final.video"
        tiles = official.vae_decode_video(recorder.tensors[final], ledger.video_decoder(), tiling)
        recorder.put("frames.tiled", torch.cat(list(tiles)))

    for name, tensor in recorder.tensors.items():
        value = tensor.float()
        if not value.isfinite().all():
            raise SystemExit(f"{name} is not finite")
        print(f"{name:40} {tuple(tensor.shape)!s:24} mean {value.mean():9.4f}  std {value.std():9.4f}")
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(recorder.tensors, args.out / "tensors.safetensors")
    asked = {name: value for name, value in vars(args).items() if name not in ("set", "out", "function")}
    asked |= {"fps": str(args.fps), "positions": positions, "tiling": TILING, "sampling_rate": sound.sampling_rate}
    (args.out / "case.json").write_text(json.dumps(asked, indent=2) + "\n")


# ---------------------------------------------------------------- compare


def compare(args: argparse.Namespace) -> None:
    ours, theirs = (load_file(folder / "tensors.safetensors") for folder in (args.out, args.other))
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = ours[name].double(), theirs[name].double()
        if a.shape != b.shape:
            print(f"{name:40} shapes {tuple(a.shape)} and {tuple(b.shape)}")
        else:
            print(f"{name:40} {float((a - b).norm() / b.norm().clamp(min=1e-30)):.3e}")
    for folder, names in ((args.out, ours.keys() - theirs.keys()), (args.other, theirs.keys() - ours.keys())):
        for name in sorted(names):
            print(f"{name:40} only in {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("make", help="write a tiny random checkpoint set")
    sub.add_argument("set", type=Path)
    sub.add_argument("--seed", type=int, default=0)
    sub.set_defaults(function=make)
    sub = commands.add_parser("run", help="send a set through an official pipeline")
    sub.add_argument("set", type=Path)
    sub.add_argument("out", type=Path)
    sub.add_argument("--pipeline", choices=PIPELINES, default="two_stage")
    sub.add_argument("--numerics", choices=("launch", "current"), required=True)
    sub.add_argument("--positions", choices=("float32", "bfloat16"), help="dtype of video positions")
    sub.add_argument("--prompt", default=CORPUS[0])
    sub.add_argument("--negative", default=CORPUS[-1])
    sub.add_argument("--fps", type=Fraction, default=Fraction(24))
    sub.add_argument("--strength", type=float, default=1.0, help="of the distilled LoRA, in the refine stage")
    sub.add_argument("--base-strength", type=float, default=0.25, help="of the distilled LoRA, in hq's base stage")
    sub.add_argument("--skip-step", type=int, nargs=2, default=(0, 0), help="of the guidance of video and of audio")
    sub.add_argument("--unguided-below", type=float, help="sigma from which on down no guidance (two_stage, one_stage)")
    for name, value in (("seed", 10), ("height", 128), ("width", 192), ("frames", 17), ("steps", 4), ("stg-block", 1)):
        sub.add_argument(f"--{name}", type=int, default=value)
    sub.set_defaults(function=run)
    sub = commands.add_parser("compare", help="relative L2 of the tensors in two output folders")
    sub.add_argument("out", type=Path)
    sub.add_argument("other", type=Path)
    sub.set_defaults(function=compare)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if args.function is not compare:
        import_official()
    args.function(args)


if __name__ == "__main__":
    main()

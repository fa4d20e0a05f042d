"""Steps recorded as CUDA graphs: replayed, a step costs the host one launch instead of thousands.

A small step takes the GPU less time than the host needs to launch its kernels one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ltxgen.models.transformer.inputs import ModalityInput
from ltxgen.models.transformer.model import PassesModel, Transformer, Velocities
from ltxgen.models.transformer.passes import TransformerPass

GRAPHED_TOKENS = 8192
"""Steps whose passes have up to so many video tokens are recorded.

A forward took the hosts of H100s and H200s 105 to 245 ms to launch, whatever its size; its kernels take 83 ms at 1536
tokens, 336 at 6144 and 221 there in fp8. Four passes in fp8 took 729 ms recorded, and launched 866."""
SHARED_GRAPHED_TOKENS = 2 * GRAPHED_TOKENS
"""The same for a rank that shares a step with others, of its own tokens: its host launches exchanges as well."""

Run = Callable[[], list[Velocities]]
Record = Callable[[Run], Run]
"""Calls what it is given, and returns what does the same again without the host's doing."""
CHANGING = ("latents", "timesteps", "sigma")  # from step to step; all else of an input is the same tensors


class CudaRecorder:
    """Records the kernels that are launched as a CUDA graph. Its recordings take turns: they share their memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile: an encoder, a watchdog.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            results = run()

        def replay() -> list[Velocities]:
            graph.replay()
            return results

        return replay


@dataclass(eq=False)
class Recorded:
    """A kind of step. `passes` read their changing tensors from places of their own, filled before each replay.

    `replay` is None until the step is met again: the first time it runs as it is, which compiles and remembers what a
    recording must find done.
    """

    passes: Sequence[TransformerPass]
    replay: Run | None = None


class GraphedPasses:
    """A transformer whose steps are recorded the second time that they are met, and replayed from then on.

    For one use of it, a stage: in between, its weights may move. Passes of more than `max_tokens` video tokens run as
    they are. The recordings' memory goes with this object.
    """

    def __init__(
        self, transformer: PassesModel, max_tokens: int = GRAPHED_TOKENS, record: Record | None = None
    ) -> None:
        self.transformer = transformer
        self.max_tokens = max_tokens
        self._record = record or CudaRecorder()
        self._recorded: dict[tuple[object, ...], Recorded] = {}

    def forward_passes(self, passes: Sequence[TransformerPass]) -> list[Velocities]:
        """As `Transformer.forward_passes`."""
        if _num_tokens(passes) > self.max_tokens:
            return self.transformer.forward_passes(passes)
        # What is the same tensors each time is known by them. They are held with it, so that no other takes their id.
        kind = _kind(passes)
        known = self._recorded.get(kind)
        if known is None:
            self._recorded[kind] = Recorded(passes)
            return self.transformer.forward_passes(passes)
        if known.replay is None:
            known.passes = _with_own_tensors(passes)
            known.replay = self._record(lambda: self.transformer.forward_passes(known.passes))
        _fill(known.passes[0], passes[0])
        return [_copied(velocities) for velocities in known.replay()]


def graphed(
    transformer: PassesModel,
    max_tokens: int,
    wrap: Callable[[PassesModel], PassesModel] = lambda transformer: transformer,
    counted: Callable[[Record], Record] = lambda record: record,
) -> PassesModel:
    """What `wrap` makes of `transformer`, with steps recorded whose passes have up to `max_tokens` video tokens.

    Where they can be, which is where every step launches the same kernels on the same memory: a transformer with all
    its weights on a GPU, without hooks, which may fetch weights. What `wrap` has it exchange with other ranks is
    recorded with it, if all of them record the same step; `counted` is to count it.
    """
    wrapped = wrap(transformer)
    if max_tokens == 0 or not isinstance(transformer, Transformer) or transformer.is_hooked:
        return wrapped
    there = all(weight.is_cuda for weight in transformer.parameters())
    return GraphedPasses(wrapped, max_tokens, counted(CudaRecorder())) if there else wrapped


def _num_tokens(passes: Sequence[TransformerPass]) -> int:
    """Video tokens of a pass; all passes have the same."""
    video = passes[0].video
    return 0 if video is None else video.latents.shape[1]


def _kind(passes: Sequence[TransformerPass]) -> tuple[object, ...]:
    """Equal for steps that one recording serves."""

    def of(modality: ModalityInput | None) -> tuple[object, ...]:
        if modality is None:
            return ()
        values = ((field.name, getattr(modality, field.name)) for field in fields(modality))
        return tuple(
            (value.shape, value.dtype) if name in CHANGING else id(value) if isinstance(value, Tensor) else value
            for name, value in values
        )

    return tuple((of(each.video), of(each.audio), each.samples) for each in passes)


def _with_own_tensors(passes: Sequence[TransformerPass]) -> list[TransformerPass]:
    """`passes` with copies of the changing tensors, which they go on to share."""
    video, audio = (_own(modality) for modality in (passes[0].video, passes[0].audio))

    def moved(modality: ModalityInput | None, own: ModalityInput | None) -> ModalityInput | None:
        if modality is None or own is None:
            return None
        return replace(modality, latents=own.latents, timesteps=own.timesteps, sigma=own.sigma)

    return [TransformerPass(moved(each.video, video), moved(each.audio, audio), each.perturbation) for each in passes]


def _own(modality: ModalityInput | None) -> ModalityInput | None:
    if modality is None:
        return None
    copies = modality.latents.clone(), modality.timesteps.clone(), modality.sigma.clone()
    return replace(modality, latents=copies[0], timesteps=copies[1], sigma=copies[2])


def _fill(own: TransformerPass, given: TransformerPass) -> None:
    for to, source in ((own.video, given.video), (own.audio, given.audio)):
        if to is not None:
            for name in CHANGING:
                getattr(to, name).copy_(getattr(source, name))


def _copied(velocities: Velocities) -> Velocities:
    """Not overwritten by the next replay."""
    video, audio = velocities
    return None if video is None else video.clone(), None if audio is None else audio.clone()

"""What a sampler is: the walk of both modalities down one schedule, given a way to predict clean latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from ltxgen.diffusion.latents import LatentState
from ltxgen.diffusion.noise import NoiseSource
from ltxgen.diffusion.pair import Pair

# (states, sigma, step) -> the guided clean prediction x0 of each modality, tokens in the states' dtype. A sampler that
# evaluates twice in a step says which step index the second one counts as.
Denoise = Callable[[Pair[LatentState], float, int], Pair[Tensor]]

Memory = Mapping[str, Tensor]


class OnStep(Protocol):
    """Told of each step when it is done."""

    def __call__(self, step: int, states: Pair[LatentState], memory: Memory | None = None) -> None:
        """`states` after step `step`, and what else the next step depends on (an earlier prediction, the state of a
        generator of the sampler's own); None for a sampler whose steps depend on the states alone."""


class Evaluation(NamedTuple):
    """One call of `denoise`: at which noise level, and the step index that it counts as."""

    sigma: float
    step: int


class Sampler(Protocol):
    """Takes states noised to `sigmas[0]` to clean ones. Puts given tokens back into each prediction."""

    def evaluations(self, sigmas: Sequence[float]) -> Sequence[Evaluation]:
        """Every call of `denoise` that these sigmas take, in order. ValueError, in words that complete "the sampler
        ...", for sigmas that it can't step through."""
        ...

    def sample(
        self,
        states: Pair[LatentState],
        sigmas: Tensor,
        denoise: Denoise,
        noise: NoiseSource,
        on_step: OnStep | None = None,
        *,
        start: int = 0,
        memory: Memory | None = None,
    ) -> Pair[LatentState]:
        """The states at `sigmas[-1]`, which is 0; `sigmas` (steps + 1,) is fp32.

        A sampler that adds noise draws it from `noise`, video before audio, or from a source of its own made from it.
        A walk may go on after its first `start` steps: `states` and `memory` are then what `on_step` was told of step
        `start - 1`, and the result is bit for bit that of the walk in one piece.
        """
        ...


class SamplerConfig(Protocol):
    """A sampler's YAML."""

    def build(self) -> Sampler: ...


def one_a_step(sigmas: Sequence[float]) -> Sequence[Evaluation]:
    """The evaluations of a first-order sampler: one at the start of each step."""
    return [Evaluation(sigma, step) for step, sigma in enumerate(sigmas[:-1])]

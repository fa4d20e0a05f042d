"""Builds a component and fills it, strictly and tensor by tensor.

Host memory stays at the component (when it goes to the CPU) plus one stored tensor, or for a GPU a ring of buffers: the
module is built on the meta device, and tensors are read, moved and cast in the order in which their file has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ltxgen.artifacts.artifact import ResolvedArtifact
from ltxgen.artifacts.components import COMPONENTS, TEXT_PROJECTIONS, TRANSFORMERS, BuildOptions, ComponentSpec
from ltxgen.artifacts.float8 import SCALE, WEIGHT, Float8Source
from ltxgen.artifacts.placement import WHOLE, Placement, ReadRows
from ltxgen.artifacts.safetensors_file import ALL_ROWS, BadFile
from ltxgen.artifacts.source import FileSource, TensorSource
from ltxgen.artifacts.synthetic import SyntheticSource
from ltxgen.config.errors import Problem, Refusal
from ltxgen.models.transformer.float8 import FLOAT8, use_float8

NAMES_SHOWN = 5

OnTensor = Callable[[str, int], None]  # module key, bytes


class ReadTensor(Protocol):
    """Reads a tensor, or rows of it, by its key in the module; without a device it is where the source has it."""

    def __call__(self, key: str, device: torch.device | None, rows: slice = ALL_ROWS) -> torch.Tensor: ...


def load_component(
    component: str | ComponentSpec,
    artifact: ResolvedArtifact,
    device: torch.device | str,
    dtype: torch.dtype,
    options: BuildOptions | None = None,
    *,
    placement: Placement = WHOLE,
    on_tensor: OnTensor | None = None,
) -> nn.Module:
    """The component on `device`, in eval mode and without gradients.

    Its floating tensors are in `dtype`, but for layers in fp8 (`options.float8`). `placement` says which part of each
    tensor is read and held; `on_tensor` is called after each, for progress. Raises Refusal when the file does not fit
    the architecture; `check_artifacts` finds that before any weight is read.
    """
    return Loading(component, artifact, device, dtype, options, placement=placement, on_tensor=on_tensor).load()


class Cancelled(Exception):
    """Raised by `Loading.load` after `cancel`."""


class Loading:
    """A component whose module is built, checked and without weights; arguments and errors as `load_component`.

    What imports modules or touches global state is done when it is made; `load` may run in another thread.
    """

    def __init__(
        self,
        component: str | ComponentSpec,
        artifact: ResolvedArtifact,
        device: torch.device | str,
        dtype: torch.dtype,
        options: BuildOptions | None = None,
        *,
        placement: Placement = WHOLE,
        on_tensor: OnTensor | None = None,
    ) -> None:
        self._spec = COMPONENTS[component] if isinstance(component, str) else component
        self._artifact, self._device, self._dtype = artifact, torch.device(device), dtype
        self._placement, self._on_tensor = placement, on_tensor
        self._cancelled = False
        options = options or BuildOptions()
        with self._refusing(), ExitStack() as stack:
            self._source = stack.enter_context(open_source(artifact, self._spec, options, self._device))
            self._module = build_on_meta(self._spec, artifact, options, self._source.shapes)
            wanted = {key: tuple(tensor.shape) for key, tensor in self._module.state_dict().items()}
            self._file_keys = self._spec.file_keys(self._source.shapes)
            if problems := key_problems(self._spec, wanted, self._file_keys, self._source.shapes):
                raise ValueError("; ".join(problems))
            placement.prepare(self._spec.name, self._module)
            self._open = stack.pop_all()

    def load(self) -> nn.Module:
        """Read the weights; returns the component. To be called once; raises Cancelled after `cancel`."""
        # Parameters made in inference mode could never be changed in place, and LoRAs are fused in place.
        with self._refusing(), torch.inference_mode(False), torch.no_grad(), self._open, beside(self._device):
            module = self._module
            del self._module  # it is the caller's alone
            module.load_state_dict(self._weights(module), assign=True)
            module.eval().requires_grad_(False)
            materialize = getattr(module, "materialize_buffers", None)  # Gemma's tables, which no file holds
            if materialize is not None:
                materialize(self._device)
            return module

    def cancel(self) -> None:
        """Let `load`, which has to be called nevertheless, end at the next tensor. From any thread."""
        self._cancelled = True

    def _weights(self, module: nn.Module) -> dict[str, torch.Tensor]:
        likes = module.state_dict(keep_vars=True)
        module_keys = {self._file_keys[key]: key for key in likes}
        reads = {file_key: self._placement.reads(likes[key]) for file_key, key in module_keys.items()}
        state = {}
        for file_key in self._source.expect(reads, self._device):
            if self._cancelled:
                raise Cancelled
            key = module_keys[file_key]
            state[key] = self._placement.place(likes[key], _reader(self._source, file_key, self._device, self._dtype))
            if self._on_tensor is not None:
                self._on_tensor(key, self._placement.local(state[key]).nbytes)
        return state

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (BadFile, ValueError) as error:
            path = str(self._artifact.path)
            raise Refusal([Problem(self._artifact.config_path, path, str(error))]) from error


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """On a GPU, run what is queued within on a stream of its own, beside what is computed; it is done at the end."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield
        stream.synchronize()


def _reader(source: TensorSource, key: str, device: torch.device, dtype: torch.dtype) -> ReadRows:
    def read(rows: slice = ALL_ROWS, *, move: bool = True) -> torch.Tensor:
        return source.read(key, device if move else None, dtype, rows)

    return read


@contextmanager
def tensor_reader(
    component: str | ComponentSpec,
    artifact: ResolvedArtifact,
    dtype: torch.dtype,
    options: BuildOptions | None = None,
    made_on: torch.device | str | None = None,
) -> Iterator[ReadTensor]:
    """Reads single tensors of a component again, by module key, as the module built with `options` holds them.

    LoRAs are taken out this way without a kept copy. `made_on` is the device that the component was loaded for:
    synthetic tensors are made there.
    """
    spec = COMPONENTS[component] if isinstance(component, str) else component
    with open_source(artifact, spec, options or BuildOptions(), made_on) as source:
        file_keys = spec.file_keys(source.shapes)

        def read(key: str, device: torch.device | None, rows: slice = ALL_ROWS) -> torch.Tensor:
            return source.read(file_keys[key], device, dtype, rows)

        yield read


def open_source(
    artifact: ResolvedArtifact, spec: ComponentSpec, options: BuildOptions, made_on: torch.device | str | None = None
) -> TensorSource:
    """The artifact's tensors: all of its file, or the component's own for the synthetic source. Raises BadFile.

    Synthetic tensors are made on the device `made_on`, or without one where they are read to.
    """
    source = _stored_source(artifact, spec, options, made_on)
    if spec.name not in TRANSFORMERS:
        return source
    try:
        return Float8Source(source, spec, options.float8, made_on)
    except BaseException:
        source.__exit__(None, None, None)
        raise


def _stored_source(
    artifact: ResolvedArtifact, spec: ComponentSpec, options: BuildOptions, made_on: torch.device | str | None
) -> TensorSource:
    if artifact.path is not None:
        return FileSource(artifact.path)
    shapes = component_shapes(spec, artifact, options)
    in_file = {spec.keys.file_key(key): shape for key, shape in shapes.items()}
    return SyntheticSource(in_file, artifact.seed, component=spec.name, made_on=made_on)


def component_shapes(
    spec: ComponentSpec,
    artifact: ResolvedArtifact,
    options: BuildOptions,
    stored: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, tuple[int, ...]]:
    """The shapes of a component's tensors by their keys in its module; `stored` and errors as of `build_on_meta`."""
    if spec.shapes is not None:
        return dict(spec.shapes(artifact.config))
    stored = stored or {}
    num_states = spec.options_for(options, artifact.config, stored).num_text_states
    question = (
        spec.name,
        num_states if spec.name in TEXT_PROJECTIONS else None,
        frozenset(scaled_layers(spec, stored)),
    )
    if question not in artifact.shapes:
        module = build_on_meta(spec, artifact, options, stored)
        artifact.shapes[question] = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    return artifact.shapes[question]


def component_bytes(
    spec: ComponentSpec, artifact: ResolvedArtifact, options: BuildOptions, dtype: torch.dtype
) -> dict[str, int]:
    """What a component's tensors take, by their keys in its module, once it is loaded. Raises as `build_on_meta`."""
    shapes = component_shapes(spec, artifact, options)
    if options.float8 is not None:  # which layers are in fp8 depends on what the file stores
        with open_source(artifact, spec, options) as source:
            shapes = component_shapes(spec, artifact, options, source.shapes)

    def itemsize(key: str) -> int:
        if key.endswith(SCALE):
            return torch.float32.itemsize
        return FLOAT8.itemsize if key.removesuffix(WEIGHT) + SCALE in shapes else dtype.itemsize

    return {key: math.prod(shape) * itemsize(key) for key, shape in shapes.items()}


def build_on_meta(
    spec: ComponentSpec, artifact: ResolvedArtifact, options: BuildOptions, shapes: Mapping[str, tuple[int, ...]]
) -> nn.Module:
    """The component's module without memory, its linear layers in fp8 where `shapes` have a `weight_scale`.

    Raises ValueError for a config that doesn't fit, BadFile for none.
    """
    chosen = spec.options_for(options, artifact.config, shapes)
    with torch.device("meta"), _Uninitialized():
        module = spec.build(artifact.config, chosen)
    linear = {name for name, layer in module.named_modules() if type(layer) is nn.Linear}
    use_float8(module, linear & scaled_layers(spec, shapes))
    return module


class _Uninitialized(TorchFunctionMode):
    """Leaves out what fills new parameters: on the meta device it fills nothing, in half of the time that building
    takes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__ and kwargs["tensor"].is_meta:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def scaled_layers(spec: ComponentSpec, shapes: Mapping[str, tuple[int, ...]]) -> set[str]:
    """The layers that come in fp8 from a source of tensors with these shapes."""
    return {key.removesuffix(SCALE) for key in spec.file_keys(shapes) if key.endswith(SCALE)}


def key_problems(
    spec: ComponentSpec,
    wanted: Mapping[str, tuple[int, ...]],
    file_keys: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> list[str]:
    """What keeps a file's tensors from being exactly the component's: missing, unexpected, wrong shapes."""
    problems = []
    if not file_keys:
        example = spec.keys.file_key(next(iter(wanted)))
        return [f"holds no {spec.name} (no tensor like {example})"]
    missing = [spec.keys.file_key(key) for key in wanted if key not in file_keys]
    if missing:
        problems.append(f"lacks {len(missing)} of {len(wanted)} tensors of {spec.name}: {first_names(missing)}")
    unexpected = [file_key for key, file_key in file_keys.items() if key not in wanted]
    if unexpected:
        problems.append(f"holds {len(unexpected)} tensors that {spec.name} doesn't have: {first_names(unexpected)}")
    wrong = [
        f"{file_keys[key]} is {list(shapes[file_keys[key]])}, must be {list(shape)}"
        for key, shape in wanted.items()
        if key in file_keys and shapes[file_keys[key]] != shape
    ]
    if wrong:
        problems.append(f"has {len(wrong)} tensors of {spec.name} in other shapes: {first_names(wrong)}")
    return problems


def first_names(names: list[str]) -> str:
    """The first few, and how many more."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown}, and {len(names) - NAMES_SHOWN} more"

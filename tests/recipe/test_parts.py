"""Components on the embedded model: LoRAs fitted by request, and memory freed without a garbage collection."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from ltxgen.artifacts.artifact import ArtifactSpec
from ltxgen.artifacts.components import COMPONENTS, UPSCALERS, BuildOptions
from ltxgen.artifacts.resolver import Places, resolve_all
from ltxgen.recipe.parts import ArtifactParts
from ltxgen.stage.protocol import PartRequest

NAMES = ("checkpoint", "distilled_lora", *UPSCALERS, "text_encoder")


@pytest.fixture
def parts(tiny_set) -> ArtifactParts:
    found = resolve_all([ArtifactSpec(name, source="embedded") for name in NAMES], Places()).artifacts
    return ArtifactParts(found, BuildOptions(), torch.device("cpu"))


def assert_it_dies(parts: ArtifactParts, name: str) -> None:
    """A component is gone with its last reference, without a garbage collection."""
    request = PartRequest(name, torch.float32)
    component = parts.build(request)
    parts.adapt(component, request, ())
    alive = weakref.ref(component)
    gc.disable()
    try:
        del component
        parts.released([name])
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_dies_with_its_last_reference(parts: ArtifactParts, name: str):
    assert_it_dies(parts, name)


def test_loras_follow_the_request_and_leave_no_trace(parts: ArtifactParts):
    def request(*loras: tuple[str, float]) -> PartRequest:
        return PartRequest("transformer", torch.float32, loras)

    transformer = parts.build(request())
    clean = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    parts.adapt(transformer, request(("distilled", 0.5)), ())
    changed = [name for name, tensor in transformer.state_dict().items() if not torch.equal(tensor, clean[name])]
    assert changed
    assert all(name.endswith(".weight") for name in changed)
    parts.adapt(transformer, request(), ())
    assert all(torch.equal(tensor, clean[name]) for name, tensor in transformer.state_dict().items())

"""Files of models: found with a reason, checked before loading, loaded strictly and tensor by tensor, LoRAs fused."""

from ltxgen.artifacts.artifact import ArtifactSpec, Attempt, Candidate, ResolvedArtifact
from ltxgen.artifacts.check import CheckResult, check_artifacts
from ltxgen.artifacts.components import COMPONENT_NAMES, COMPONENTS, BuildOptions, ComponentSpec, artifact_of
from ltxgen.artifacts.fusion import FusedLoras, Fusion
from ltxgen.artifacts.load import load_component, tensor_reader
from ltxgen.artifacts.resolver import Places, Resolution, fetch, resolve_all
from ltxgen.artifacts.tokenizer import load_tokenizer

__all__ = [
    "COMPONENTS",
    "COMPONENT_NAMES",
    "ArtifactSpec",
    "Attempt",
    "BuildOptions",
    "Candidate",
    "CheckResult",
    "ComponentSpec",
    "FusedLoras",
    "Fusion",
    "Places",
    "Resolution",
    "ResolvedArtifact",
    "artifact_of",
    "check_artifacts",
    "fetch",
    "load_component",
    "load_tokenizer",
    "resolve_all",
    "tensor_reader",
]

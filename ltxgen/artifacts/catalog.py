"""The published LTX-2.3 and LTX-2 files, newest first, with sizes and digests of the hub. A config can name others."""

from __future__ import annotations

from collections.abc import Mapping

from ltxgen.artifacts.artifact import ArtifactSpec, Candidate

LTX23 = "Lightricks/LTX-2.3"
LTX2 = "Lightricks/LTX-2"
GEMMA = "google/gemma-3-12b-it-qat-q4_0-unquantized"

GEMMA_PATTERNS = ("*.json", "*.safetensors", "tokenizer.model", "*.jinja")


def _ltx23(file: str, size_bytes: int | None = None, sha256: str | None = None) -> Candidate:
    return Candidate(LTX23, f"{file}.safetensors", size_bytes=size_bytes, sha256=sha256)


def _ltx2(*files: str) -> tuple[Candidate, ...]:
    return tuple(Candidate(LTX2, f"{file}.safetensors") for file in files)


DEV = _ltx23("ltx-2.3-22b-dev", 46_149_344_974, "7ab7225325bc403448ea84b6db2269811a880e5118cd2ee2b6282a93d585016f")
DISTILLED = (
    _ltx23(
        "ltx-2.3-22b-distilled-1.1",
        46_149_345_334,
        "b33b7fe4bbfe084f484be4aaf90b0f1d95dca20d403ac4c0e037eb8c4f0af7cc",
    ),
    _ltx23("ltx-2.3-22b-distilled", 46_149_345_038),
)
DISTILLED_LORA = (
    _ltx23("ltx-2.3-22b-distilled-lora-384-1.1", 7_605_507_256),
    _ltx23("ltx-2.3-22b-distilled-lora-384", 7_605_507_256),
    _ltx23("ltx-2.3-20b-distilled-lora-384"),  # a name that some tools carry for the file above
)
SPATIAL_UPSCALER_X2 = (
    _ltx23(
        "ltx-2.3-spatial-upscaler-x2-1.1",
        995_743_560,
        "5f416311fa8172b65af67530758964708d29a317b830d689a51143b7f91913ed",
    ),
    _ltx23("ltx-2.3-spatial-upscaler-x2-1.0", 995_743_504),
)
SPATIAL_UPSCALER_X1_5 = (_ltx23("ltx-2.3-spatial-upscaler-x1.5-1.0", 1_090_125_794),)
TEMPORAL_UPSCALER_X2 = (_ltx23("ltx-2.3-temporal-upscaler-x2-1.0", 262_000_000),)
TEXT_ENCODER = (Candidate(GEMMA, size_bytes=24_400_000_000, patterns=GEMMA_PATTERNS),)

KNOWN_CANDIDATES: Mapping[tuple[str, str], Candidate] = {
    (candidate.repo, candidate.file): candidate
    for candidate in (
        DEV,
        *DISTILLED,
        *DISTILLED_LORA,
        *SPATIAL_UPSCALER_X2,
        *SPATIAL_UPSCALER_X1_5,
        *TEMPORAL_UPSCALER_X2,
        *TEXT_ENCODER,
    )
}


def candidate(repo: str, file: str = "", revision: str | None = None) -> Candidate:
    """A candidate named in a config, with the published size and digest where they are known.

    A pinned revision may hold other content, so digests are kept only for the default one.
    """
    known = KNOWN_CANDIDATES.get((repo, file))
    if known is not None and revision is None:
        return known
    patterns = () if file else GEMMA_PATTERNS
    size = known.size_bytes if known else None
    return Candidate(repo, file, revision, size_bytes=size, patterns=patterns)


LTX2_CHECKPOINT = _ltx2("ltx-2-19b-dev", "ltx-2-19b-dev-fp8", "ltx-2-19b-distilled", "ltx-2-19b-distilled-fp8")
LTX2_DISTILLED_LORA = _ltx2("ltx-2-19b-distilled-lora-384")
LTX2_SPATIAL_UPSCALER_X2 = _ltx2("ltx-2-spatial-upscaler-x2-1.0")
LTX2_TEMPORAL_UPSCALER_X2 = _ltx2("ltx-2-temporal-upscaler-x2-1.0")

_LTX_LICENCE = f"https://huggingface.co/{LTX23}/blob/main/LICENSE"

LTX23_SPECS: Mapping[str, ArtifactSpec] = {
    spec.name: spec
    for spec in (
        ArtifactSpec(
            "checkpoint",
            (DEV,),
            licence_url=_LTX_LICENCE,
            others=LTX2_CHECKPOINT,
        ),
        ArtifactSpec("distilled_lora", DISTILLED_LORA, licence_url=_LTX_LICENCE, others=LTX2_DISTILLED_LORA),
        ArtifactSpec(
            "spatial_upscaler",
            SPATIAL_UPSCALER_X2,
            licence_url=_LTX_LICENCE,
            others=LTX2_SPATIAL_UPSCALER_X2,
        ),
        ArtifactSpec("spatial_upscaler_x1_5", SPATIAL_UPSCALER_X1_5, licence_url=_LTX_LICENCE),
        ArtifactSpec(
            "temporal_upscaler",
            TEMPORAL_UPSCALER_X2,
            licence_url=_LTX_LICENCE,
            others=LTX2_TEMPORAL_UPSCALER_X2,
        ),
        ArtifactSpec(
            "text_encoder",
            TEXT_ENCODER,
            generation=None,
            licence_url=f"https://huggingface.co/{GEMMA}",
            gated=True,
        ),
    )
}

LTX2_SPECS: Mapping[str, ArtifactSpec] = {
    "text_encoder": LTX23_SPECS["text_encoder"],
    **{
        name: ArtifactSpec(
            name,
            candidates,
            generation="LTX-2",
            licence_url=f"https://huggingface.co/{LTX2}/blob/main/LICENSE",
            others=LTX23_SPECS[name].candidates,
        )
        for name, candidates in (
            ("checkpoint", LTX2_CHECKPOINT[:1]),
            ("distilled_lora", LTX2_DISTILLED_LORA),
            ("spatial_upscaler", LTX2_SPATIAL_UPSCALER_X2),
            ("temporal_upscaler", LTX2_TEMPORAL_UPSCALER_X2),
        )
    },
}
SPECS = {"LTX-2.3": LTX23_SPECS, "LTX-2": LTX2_SPECS}
"""What is published for each generation, by artifact."""

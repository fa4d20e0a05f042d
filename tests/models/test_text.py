"""Tokenizer, Gemma text tower, feature extractors and connectors, each against an independent implementation."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

from ltxgen.models.connectors import Connector, ConnectorConfig
from ltxgen.models.text_encoder.features import FeatureExtractorConfig, FeatureExtractorV1, FeatureExtractorV2
from ltxgen.models.text_encoder.gemma import GemmaTextEncoder
from ltxgen.models.text_encoder.layout import (
    DEFAULT_SIZES,
    IGNORED_KEY_PREFIXES,
    KEY_PREFIXES,
    parameter_shapes,
    state_dict_key,
)
from ltxgen.models.text_encoder.tokenizer import GemmaTokenizer

# The caption keys by which a checkpoint says that it is LTX-2.3.
CAPTION_KEYS = {
    "caption_proj_before_connector": True,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
}
LTX23_CONNECTORS = {
    "caption_channels": 3840,
    "connector_num_attention_heads": 32,
    "connector_attention_head_dim": 128,
    "audio_connector_num_attention_heads": 32,
    "audio_connector_attention_head_dim": 64,
    "connector_num_layers": 8,
    "connector_positional_embedding_max_pos": [4096],
    "connector_apply_gated_attention": True,
    "rope_type": "split",
    "frequencies_precision": "float64",
    **CAPTION_KEYS,
}
TINY_LTX23 = LTX23_CONNECTORS | {
    "caption_channels": 24,
    "connector_num_attention_heads": 4,
    "connector_attention_head_dim": 8,
    "audio_connector_num_attention_heads": 2,
    "audio_connector_attention_head_dim": 6,
    "connector_num_layers": 2,
}
TINY_LTX2 = {
    "caption_channels": 24,
    "connector_num_attention_heads": 3,
    "connector_attention_head_dim": 8,
    "audio_connector_num_attention_heads": 3,
    "audio_connector_attention_head_dim": 8,
    "connector_positional_embedding_max_pos": [4096],
    "rope_type": "split",
    "frequencies_precision": "float64",
}
NUM_STATES = 3
LENGTH = 256  # twice the registers, so that their index wraps around


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def randomize(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "q_norm" in name or "k_norm" in name else 0.0, std=0.3)


def left_padded_mask(num_tokens: list[int], length: int = LENGTH) -> Tensor:
    return torch.arange(length)[None] >= length - torch.tensor(num_tokens)[:, None]


class OurTextConnectors(nn.Module):
    """The three parts side by side, named so that their keys map onto those of diffusers."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        self.projection = FeatureExtractorConfig.from_metadata(config, NUM_STATES).build()
        self.video_connector = Connector(ConnectorConfig.for_video(config))
        self.audio_connector = Connector(ConnectorConfig.for_audio(config))

    def forward(self, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        video, audio = self.projection(hidden, mask)
        return self.video_connector(video, mask), self.audio_connector(audio, mask)


def diffusers_connectors(config: dict) -> LTX2TextConnectors:
    is_v2 = "caption_proj_before_connector" in config
    gated = config.get("connector_apply_gated_attention", False)
    num_layers = config.get("connector_num_layers", 2)
    return LTX2TextConnectors(
        caption_channels=config["caption_channels"],
        text_proj_in_factor=NUM_STATES,
        video_connector_num_attention_heads=config["connector_num_attention_heads"],
        video_connector_attention_head_dim=config["connector_attention_head_dim"],
        video_connector_num_layers=num_layers,
        video_gated_attn=gated,
        audio_connector_num_attention_heads=config["audio_connector_num_attention_heads"],
        audio_connector_attention_head_dim=config["audio_connector_attention_head_dim"],
        audio_connector_num_layers=num_layers,
        audio_gated_attn=gated,
        connector_rope_base_seq_len=config["connector_positional_embedding_max_pos"][0],
        rope_double_precision=config.get("frequencies_precision") == "float64",
        rope_type=config["rope_type"],
        per_modality_projections=is_v2,
        video_hidden_dim=ConnectorConfig.for_video(config).width,
        audio_hidden_dim=ConnectorConfig.for_audio(config).width,
        proj_bias=is_v2,
    )


def diffusers_key(key: str) -> str:
    for ours, theirs in (
        ("projection.video_aggregate_embed", "video_text_proj_in"),
        ("projection.audio_aggregate_embed", "audio_text_proj_in"),
        ("projection.aggregate_embed", "text_proj_in"),
        ("transformer_1d_blocks", "transformer_blocks"),
        ("attn1.q_norm", "attn1.norm_q"),
        ("attn1.k_norm", "attn1.norm_k"),
    ):
        key = key.replace(ours, theirs)
    return key


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(TINY_LTX23, id="v2"),
        pytest.param(TINY_LTX23 | {"rope_type": "interleaved"}, id="v2-interleaved"),
        pytest.param(TINY_LTX23 | {"frequencies_precision": None}, id="v2-float32-grid"),
        pytest.param(TINY_LTX2, id="v1"),
    ],
)
@pytest.mark.parametrize("num_tokens", [1, 37, 150, LENGTH])
@torch.inference_mode()
def test_extractor_and_connectors_agree_with_diffusers(config: dict, num_tokens: int) -> None:
    torch.manual_seed(0)
    ours, theirs = OurTextConnectors(config), diffusers_connectors(config)
    randomize(ours)
    theirs.load_state_dict({diffusers_key(key): tensor for key, tensor in ours.state_dict().items()})
    # Far from zero mean and unit range, which both extractors remove.
    hidden = 5 + 20 * torch.randn(1, LENGTH, config["caption_channels"], NUM_STATES)
    mask = left_padded_mask([num_tokens])

    video, audio = ours(hidden, mask)
    expected_video, expected_audio, _ = theirs(hidden, mask.long())

    assert relative_error(video, expected_video) <= 1e-5
    assert relative_error(audio, expected_audio) <= 1e-5


@pytest.mark.parametrize("config", [TINY_LTX23, TINY_LTX2], ids=["v2", "v1"])
@torch.inference_mode()
def test_rows_of_different_lengths_are_independent(config: dict) -> None:
    torch.manual_seed(0)
    ours = OurTextConnectors(config)
    randomize(ours)
    hidden = torch.randn(3, LENGTH, config["caption_channels"], NUM_STATES)
    mask = left_padded_mask([5, 200, 1])
    batched = ours(hidden, mask)
    for row in range(3):
        alone = ours(hidden[row : row + 1], mask[row : row + 1])
        for one_of_batch, single in zip(batched, alone, strict=True):
            assert relative_error(one_of_batch[row], single[0]) <= 1e-5


@torch.inference_mode()
def test_padding_side_does_not_matter_to_a_connector() -> None:
    torch.manual_seed(0)
    connector = Connector(ConnectorConfig.for_video(TINY_LTX23))
    randomize(connector)
    features, mask = torch.randn(1, LENGTH, connector.config.width), left_padded_mask([20])
    assert torch.equal(connector(features, mask), connector(features.roll(20, dims=1), mask.roll(20, dims=1)))


@torch.inference_mode()
def test_parts_keep_bfloat16() -> None:
    torch.manual_seed(0)
    for config in (TINY_LTX23, TINY_LTX2):
        ours = OurTextConnectors(config)
        randomize(ours)
        hidden, mask = torch.randn(1, LENGTH, config["caption_channels"], NUM_STATES), left_padded_mask([20])
        exact = ours(hidden, mask)
        rounded = ours.bfloat16()(hidden.bfloat16(), mask)
        for low, full in zip(rounded, exact, strict=True):
            assert low.dtype == torch.bfloat16
            assert relative_error(low, full) <= 0.05


def test_keys_and_shapes_at_full_size() -> None:
    with gzip.open(Path(__file__).parent / "ltx23-keys.json.gz") as file:
        inventory = json.load(file)
    with torch.device("meta"):
        modules = {
            ("text_projection", "text_embedding_projection."): FeatureExtractorConfig.from_metadata(
                LTX23_CONNECTORS
            ).build(),
            ("video_connector", "model.diffusion_model.video_embeddings_connector."): Connector(
                ConnectorConfig.for_video(LTX23_CONNECTORS)
            ),
            ("audio_connector", "model.diffusion_model.audio_embeddings_connector."): Connector(
                ConnectorConfig.for_audio(LTX23_CONNECTORS)
            ),
        }
    for (component, prefix), module in modules.items():
        ours = {prefix + key: list(tensor.shape) for key, tensor in module.state_dict().items()}
        assert ours == {key: shape for key, (shape, _) in inventory[component].items()}


def test_metadata_without_keys_is_ltx2() -> None:
    video, audio = ConnectorConfig.for_video({}), ConnectorConfig.for_audio({})
    assert video == audio
    assert (video.num_heads, video.head_dim, video.num_layers, video.gated_attention) == (30, 128, 2, False)
    with torch.device("meta"):
        extractor = FeatureExtractorConfig.from_metadata({}).build()
    assert {key: list(tensor.shape) for key, tensor in extractor.state_dict().items()} == {
        "aggregate_embed.weight": [3840, 188160]
    }


def test_extractor_version_follows_the_caption_keys() -> None:
    assert isinstance(FeatureExtractorConfig.from_metadata(TINY_LTX23, NUM_STATES).build(), FeatureExtractorV2)
    assert isinstance(FeatureExtractorConfig.from_metadata(TINY_LTX2, NUM_STATES).build(), FeatureExtractorV1)
    for key, value in CAPTION_KEYS.items():
        with pytest.raises(ValueError, match="caption keys"):
            FeatureExtractorConfig.from_metadata({k: v for k, v in TINY_LTX23.items() if k != key}, NUM_STATES)
        with pytest.raises(ValueError, match="caption keys"):
            FeatureExtractorConfig.from_metadata(TINY_LTX23 | {key: not value}, NUM_STATES)
        with pytest.raises(ValueError, match="caption keys"):
            FeatureExtractorConfig.from_metadata(TINY_LTX2 | {key: value}, NUM_STATES)


def test_bad_metadata_is_refused() -> None:
    with pytest.raises(ValueError, match="rope_type = 'spiral'"):
        ConnectorConfig.for_video(TINY_LTX23 | {"rope_type": "spiral"})
    with pytest.raises(ValueError, match="connector_positional_embedding_max_pos"):
        ConnectorConfig.for_video(TINY_LTX23 | {"connector_positional_embedding_max_pos": [20, 2048]})
    with pytest.raises(ValueError, match="caption_channels = 24"):
        FeatureExtractorConfig.from_metadata(TINY_LTX2 | {"connector_num_attention_heads": 4}, NUM_STATES)
    with pytest.raises(ValueError, match="whole config"):
        ConnectorConfig.for_video({"transformer": TINY_LTX23})


# A global layer needs index 5, and a window below the sequence length makes local layers differ from it.
TINY_GEMMA_TEXT = {
    "model_type": "gemma3_text",
    "vocab_size": 64,
    "hidden_size": 60,
    "intermediate_size": 48,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 6,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
}
TINY_GEMMA = {
    "model_type": "gemma3",
    "text_config": TINY_GEMMA_TEXT,
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    },
    "mm_tokens_per_image": 4,
    "image_token_index": 63,
}


def saved_reference(kind: str, folder: Path) -> tuple[type, dict]:
    """Write a tiny random reference model to `folder`; returns its class and the content of its config.json."""
    torch.manual_seed(0)
    if kind == "multimodal":
        reference = Gemma3ForConditionalGeneration(Gemma3Config(**TINY_GEMMA))
    else:
        reference = Gemma3ForCausalLM(Gemma3TextConfig(**TINY_GEMMA_TEXT))
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.2)
    reference.save_pretrained(folder)
    return type(reference), json.loads((folder / "config.json").read_text())


def load_encoder(config: dict, folder: Path, dtype: torch.dtype) -> GemmaTextEncoder:
    """The way the loader goes: build on meta, map the file's keys, assign strictly."""
    with torch.device("meta"):
        encoder = GemmaTextEncoder(config)
    tensors = load_file(folder / "model.safetensors")
    state = {state_dict_key(key): tensor.to(dtype) for key, tensor in tensors.items() if state_dict_key(key)}
    encoder.load_state_dict(state, assign=True)
    return encoder.eval()


@pytest.mark.parametrize("kind", ["multimodal", "causal"])
@pytest.mark.parametrize("original_config", [True, False], ids=["hub-config", "rewritten-config"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-3)])
@torch.inference_mode()
def test_gemma_agrees_with_transformers(
    kind: str, original_config: bool, dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    reference_class, saved_config = saved_reference(kind, tmp_path)
    hub_config = TINY_GEMMA if kind == "multimodal" else TINY_GEMMA_TEXT
    encoder = load_encoder(hub_config if original_config else saved_config, tmp_path, dtype)
    reference = reference_class.from_pretrained(tmp_path, dtype=dtype, attn_implementation="sdpa").eval()

    ids, mask = torch.randint(3, 60, (2, 20)), left_padded_mask([20, 9], 20)
    ids[~mask] = 0
    hidden = encoder(ids, mask)
    expected = reference.model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states

    assert hidden.shape == (2, 20, 60, 8)
    assert hidden.dtype == dtype
    assert hidden.isfinite().all()
    for layer, state in enumerate(expected):
        assert relative_error(hidden[mask][..., layer], state[mask]) <= tolerance, f"state {layer}"


@torch.inference_mode()
def test_gemma_states_of_real_tokens_do_not_depend_on_pads(tmp_path: Path) -> None:
    _, config = saved_reference("causal", tmp_path)
    encoder = load_encoder(config, tmp_path, torch.float32)
    ids = torch.randint(3, 60, (1, 9))
    padded_ids = torch.cat((torch.zeros(1, 11, dtype=torch.int64), ids), dim=1)
    padded = encoder(padded_ids, left_padded_mask([9], 20))
    assert relative_error(padded[:, 11:], encoder(ids, torch.ones(1, 9))) <= 1e-5


@torch.inference_mode()
def test_gemma_buffers_survive_casts_and_emptying(tmp_path: Path) -> None:
    _, config = saved_reference("causal", tmp_path)
    ids, mask = torch.randint(3, 60, (1, 20)), left_padded_mask([20], 20)
    assigned = load_encoder(config, tmp_path, torch.bfloat16)
    cast = load_encoder(config, tmp_path, torch.float32).bfloat16()
    with torch.device("meta"):
        emptied = GemmaTextEncoder(config)
    emptied.bfloat16().to_empty(device="cpu").load_state_dict(cast.state_dict())
    assert torch.equal(assigned(ids, mask), cast(ids, mask))
    assert torch.equal(assigned(ids, mask), emptied(ids, mask))
    frequencies = [buffer for name, buffer in cast.model.named_buffers() if name.endswith("inv_freq")]
    assert frequencies
    assert all(buffer.dtype == torch.float32 for buffer in frequencies)
    assert any(not torch.equal(buffer, buffer.bfloat16().float()) for buffer in frequencies)


@torch.inference_mode()
def test_embedding_scale_is_rounded_to_the_weight_dtype() -> None:
    config = TINY_GEMMA_TEXT | {"hidden_size": 3840, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 4}
    encoder = GemmaTextEncoder(config)
    encoder.model.embed_tokens.weight.fill_(1.0)
    for dtype, scale in ((torch.float32, 3840**0.5), (torch.bfloat16, 62.0)):
        encoder.to(dtype)
        encoder.materialize_buffers("cpu")
        assert encoder.model.embed_tokens(torch.tensor([1])).unique().item() == pytest.approx(scale, rel=1e-7)


def test_gemma_keys_of_every_layout_map_to_the_state_dict() -> None:
    with torch.device("meta"):
        keys = set(GemmaTextEncoder(TINY_GEMMA).state_dict())
    for prefix in KEY_PREFIXES:
        assert {state_dict_key(prefix + key.removeprefix("model.")) for key in keys} == keys
    for prefix in IGNORED_KEY_PREFIXES:
        assert state_dict_key(prefix + "weight") is None


def test_other_text_encoders_are_refused() -> None:
    with pytest.raises(ValueError, match="'llama'"):
        GemmaTextEncoder({"model_type": "llama"})
    with pytest.raises(ValueError, match="use_bidirectional_attention"):
        GemmaTextEncoder(TINY_GEMMA_TEXT | {"use_bidirectional_attention": True})


CORPUS = ["a red fox runs over the snow", "the sea at night, slow waves", "a choir sings in a stone church"] * 4
SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>"]


def write_tokenizer(folder: Path, *, adds_bos: bool, config: dict | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL_TOKENS))
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize(
    "config",
    [None, {"bos_token": "<bos>", "pad_token": {"content": "<pad>"}, "tokenizer_class": "GemmaTokenizer"}],
    ids=["json-only", "with-config"],
)
def test_tokens_stand_at_the_end_behind_one_bos(adds_bos: bool, config: dict | None, tmp_path: Path) -> None:
    raw = write_tokenizer(tmp_path, adds_bos=adds_bos, config=config)
    tokenizer = GemmaTokenizer.from_folder(tmp_path, max_length=32)
    prompt = "a red fox sings"
    expected = [2, *raw.encode(prompt, add_special_tokens=False).ids]

    ids, mask = tokenizer(f"  {prompt}\n")

    assert (ids.shape, ids.dtype, mask.shape, mask.dtype) == ((1, 32), torch.int64, (1, 32), torch.bool)
    assert ids[0].tolist() == [0] * (32 - len(expected)) + expected
    assert mask[0].tolist() == [False] * (32 - len(expected)) + [True] * len(expected)
    assert tokenizer.count(prompt) == len(expected)
    assert tokenizer(f"<bos>{prompt}")[0].equal(ids)


def test_long_prompts_lose_their_end_and_empty_ones_are_bos(tmp_path: Path) -> None:
    raw = write_tokenizer(tmp_path, adds_bos=True)
    tokenizer = GemmaTokenizer.from_folder(tmp_path)
    prompt = "the sea at night " * 400
    whole = raw.encode(prompt.strip()).ids
    assert len(whole) > 1024

    ids, mask = tokenizer(prompt)
    assert ids[0].tolist() == whole[:1024]
    assert mask.all()
    assert tokenizer.count(prompt) == len(whole)

    for empty in ("", " \n"):
        ids, mask = tokenizer(empty)
        assert ids[0].tolist() == [0] * 1023 + [2]
        assert mask.sum() == 1


def test_tokenizer_without_pad_token_pads_with_eos(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, adds_bos=True, config={"bos_token": "<bos>", "pad_token": "<none>", "eos_token": "<eos>"})
    assert GemmaTokenizer.from_folder(tmp_path, max_length=8)("")[0].tolist() == [[1] * 7 + [2]]


def test_sentencepiece_model_alone_will_do(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=60,
        model_type="bpe",
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        add_dummy_prefix=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ids, mask = GemmaTokenizer.from_folder(tmp_path, max_length=32)("a red fox sings")
    assert ids[mask].tolist() == [2, *processor.encode("a red fox sings")]
    assert (ids[~mask] == 0).all()


def test_unusable_tokenizer_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must hold tokenizer\.json or tokenizer\.model"):
        GemmaTokenizer.from_folder(tmp_path)
    write_tokenizer(tmp_path, adds_bos=False, config={"bos_token": "<s>"})
    with pytest.raises(ValueError, match="BOS token '<s>'"):
        GemmaTokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"attention_bias": True, "num_key_value_heads": 1},
        {"head_dim": None},
        dict.fromkeys(("intermediate_size", "num_key_value_heads", "vocab_size")),
    ],
)
def test_shapes_are_known_without_transformers(changed: dict[str, object]):
    """None stands for a size that config.json leaves out."""
    text = {name: value for name, value in (TINY_GEMMA_TEXT | changed).items() if value is not None}
    with torch.device("meta"):
        encoder = GemmaTextEncoder({"text_config": text})
    wanted = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert parameter_shapes({"text_config": text}) == wanted


def test_defaults_are_those_of_transformers():
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig()
    assert {name: getattr(config, name) for name in DEFAULT_SIZES} == DEFAULT_SIZES

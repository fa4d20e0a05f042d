"""Text encoding up to the connectors: tokenizer, Gemma 3 text tower, feature extractors."""

from ltxgen.models.text_encoder.features import FeatureExtractorConfig, FeatureExtractorV1, FeatureExtractorV2
from ltxgen.models.text_encoder.gemma import IGNORED_KEY_PREFIXES, KEY_PREFIXES, GemmaTextEncoder, state_dict_key
from ltxgen.models.text_encoder.tokenizer import GemmaTokenizer

__all__ = [
    "IGNORED_KEY_PREFIXES",
    "KEY_PREFIXES",
    "FeatureExtractorConfig",
    "FeatureExtractorV1",
    "FeatureExtractorV2",
    "GemmaTextEncoder",
    "GemmaTokenizer",
    "state_dict_key",
]

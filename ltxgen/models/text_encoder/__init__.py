"""Text encoding up to the connectors: tokenizer, Gemma 3 text tower, feature extractors.

Nothing is imported here: two of its modules import transformers, which takes seconds.
"""

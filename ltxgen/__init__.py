"""ltxgen: LTX-2.3 audio-video generation from committed YAML."""

__version__ = "0.1.0"

"""A page to look at runs: one static HTML file beside them, that opens from disk and asks the network for nothing."""

from ltxgen.media.gallery.pages import write_comparison, write_gallery

__all__ = ["write_comparison", "write_gallery"]

"""TATS: trajectory-aware adaptive token sampling for masked video modelling (arXiv 2505.08561)."""

__version__ = "0.1.0"

"""prerank: Generative Pseudo-Labeling for the pre-ranking stage (arXiv 2602.20995)."""

__version__ = "0.1.0"

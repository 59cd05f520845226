"""MegaScale: reliable training of large language models on thousands of GPUs."""

__version__ = "0.1.0"

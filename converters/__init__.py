"""Checkpoints, merge recipes and GGUFs become quantized GGUF."""

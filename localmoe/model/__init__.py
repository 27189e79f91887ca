"""A model: its configuration, weights, KV cache and forward pass."""

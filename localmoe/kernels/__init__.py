"""Compiled code over plain memory: matrix products, attention and the steps between them."""

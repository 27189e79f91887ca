"""Sampling, sessions and the Python API."""

"""Measurement of all claims about GPUs by one command: ``python -m benchmarks.gpu``."""

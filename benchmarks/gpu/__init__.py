"""Everything that is claimed of GPUs, measured by one command: ``python -m benchmarks.gpu``."""

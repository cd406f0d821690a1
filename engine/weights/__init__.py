"""Checkpoints, and loading of weights into networks."""

"""Checkpoints, and weights into networks."""

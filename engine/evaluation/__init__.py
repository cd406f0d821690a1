"""Metrics and pictures of label maps."""

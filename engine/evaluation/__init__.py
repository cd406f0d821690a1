"""Metrics and figures of label maps."""

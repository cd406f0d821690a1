"""Public archives as downloaded: what is in them, and the way to a dataset folder."""

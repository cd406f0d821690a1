"""Code that the scripts share: checks, checkpoints, sampling, prediction, metrics, pictures."""

"""What a training run consists of beside the method: state, optimiser, validation, log."""

"""Components of a training run apart from the method itself: state, optimiser, step, validation, log."""

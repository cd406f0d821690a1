"""Ways to compute the large-kernel convolution on a GPU that are not yet measured against the FFT."""

"""Ways to compute the large-kernel convolution on a GPU that wait for a measurement against the FFT."""

"""Report of a training run as one HTML page."""

"""Prediction: from a network and a volume to a label map on the image's native grid."""

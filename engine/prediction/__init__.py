"""From a network and a volume to a label map on the image's own grid."""

"""Code that travels in a bundle, with copies of Rep3D's networks and of those modules of its engine that it needs."""

"""Ways out of the repository: other frameworks that run the networks."""

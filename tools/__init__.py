"""Stand-alone commands that prepare, check and report on data and models."""

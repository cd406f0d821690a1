"""Data, from files to batches: descriptions, cases, checks, crops, augmentation, cache, loading."""

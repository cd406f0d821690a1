"""MONAI bundles: ``scripts`` and ``files`` go into every bundle, the modules here write and test it."""

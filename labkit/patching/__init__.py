"""Tokens made: how an image is cut into tokens. One idea per file; each maps images to `(x, grid)`."""

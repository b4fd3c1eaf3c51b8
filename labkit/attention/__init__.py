"""Tokens talking: which pairs may mix, and how exactly. One idea per file."""

"""Weights: how many there are, which are shared, and which fold into their neighbours. One idea per file."""

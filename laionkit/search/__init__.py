"""Filtered vector search over a dataset's index."""

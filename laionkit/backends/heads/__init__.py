"""Heads: published ones by name, ours and others' from files."""

from laionkit.backends.heads.files import heads_folder, load_head, save_head
from laionkit.backends.heads.head import Head, Layer, sigmoid
from laionkit.backends.heads.published import PUBLISHED, heads_that_fit

__all__ = [
    "PUBLISHED",
    "Head",
    "Layer",
    "heads_folder",
    "heads_that_fit",
    "load_head",
    "save_head",
    "sigmoid",
]

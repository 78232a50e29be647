"""Entries in captions: the dictionary of word runs finds what a search for substrings finds."""

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from laionkit.ops.entries import Entries, keep_chance

WORDS = st.sampled_from(["red", "fox", "a", "in", "New", "York", "new", "fox,", "1.5", "!", ""])
TEXT = st.lists(WORDS, max_size=8).map(" ".join)


def by_substring(entries: list[str], caption: str) -> list[int]:
    """As MetaCLIP's released code looks: every entry with a space on either side."""
    spaced = f" {caption} "
    for mark in ",.;:?!`":
        spaced = spaced.replace(mark, f" {mark} ")
    spaced = re.sub("[\t\n\r]", " ", spaced)
    return [number for number, entry in enumerate(entries) if f" {entry} " in spaced]


@given(
    entries=st.lists(TEXT.filter(lambda t: t.strip() == t != ""), unique=True, max_size=6),
    caption=TEXT,
)
def test_word_runs_find_what_substrings_find(entries, caption):
    assert Entries(entries).matched(caption) == by_substring(entries, caption)


def test_an_entry_stands_as_words_and_punctuation_parts_them():
    entries = Entries(["fox", "red fox", "New York", "ox"])
    assert entries.matched("A red fox, in\tNew York.") == [0, 1, 2]
    assert entries.matched("new york foxes") == []


def test_a_rare_entry_keeps_all_and_a_common_one_its_cap():
    assert keep_chance(np.array([0, 5, 20, 80]), 20).tolist() == [1, 1, 1, 0.25]

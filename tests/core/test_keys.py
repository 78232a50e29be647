"""Keys round-trip, sort like their numbers, and keep img2dataset's spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from laionkit.core.errors import ConfigError
from laionkit.core.keys import KeyScheme


def test_row_5_of_shard_1_at_10000_a_shard_is_spelt_as_img2dataset_spells_it():
    assert KeyScheme().key(1, 5) == "000010005"


@given(st.sampled_from([10, 100, 1000, 10_000]), st.integers(0, 99_999), st.data())
def test_a_key_splits_into_what_it_was_made_of(size, shard, data):
    index = data.draw(st.integers(0, size - 1))
    scheme = KeyScheme(size)
    assert scheme.split(scheme.key(shard, index)) == (shard, index)


@given(st.lists(st.tuples(st.integers(0, 99_999), st.integers(0, 99)), min_size=2))
def test_keys_sort_as_their_numbers_do(pairs):
    scheme = KeyScheme(100)
    keys = [scheme.key(*pair) for pair in sorted(pairs)]
    assert keys == sorted(keys)


def test_a_shards_keys_are_the_keys_one_by_one():
    scheme = KeyScheme(1000)
    assert scheme.keys(7, 3).to_pylist() == [scheme.key(7, i) for i in range(3)]


def test_laion_5b_needs_six_digits():
    assert KeyScheme.for_rows(5_850_000_000).shard_digits == 6
    assert KeyScheme.for_rows(0).shard_digits == 5


@pytest.mark.parametrize("size", [0, 20, 9999])
def test_a_shard_size_that_is_no_power_of_ten_is_refused(size):
    with pytest.raises(ConfigError, match="power of ten"):
        KeyScheme(size)


def test_a_shard_that_outgrows_its_digits_is_refused():
    with pytest.raises(ConfigError, match="more than 5 digits"):
        KeyScheme().shard_name(100_000)

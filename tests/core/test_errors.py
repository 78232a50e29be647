"""Errors carry an exit code; a full disk is recognised behind other errors."""

import errno

import pytest

from laionkit.core import errors


@pytest.mark.parametrize(
    ("kind", "code"),
    [("ConfigError", 2), ("InputError", 2), ("StaleOutput", 2), ("StageFailed", 1)],
)
def test_each_error_has_the_exit_code_its_tree_states(kind, code):
    assert getattr(errors, kind).exit_code == code
    assert issubclass(getattr(errors, kind), errors.LaionkitError)


def test_a_near_miss_is_suggested_and_a_far_one_is_not():
    assert errors.did_you_mean("imge_size", ["image_size"]) == " (did you mean image_size?)"
    assert errors.did_you_mean("zzz", ["image_size"]) == ""


def test_a_full_disk_is_seen_behind_another_error():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise ValueError("writing failed") from error
    except ValueError as error:
        assert errors.is_disk_full(error)
    assert not errors.is_disk_full(ValueError("other"))

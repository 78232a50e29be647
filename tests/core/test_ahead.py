"""One piece of work ahead: in order, at most one waiting, errors not lost."""

import pytest

from laionkit.core.ahead import OneAhead


def test_work_runs_in_the_order_in_which_it_was_handed_over() -> None:
    ahead, done = OneAhead(), []
    for i in range(50):
        ahead.hand_over(done.append, i)
    ahead.wait()
    ahead.close()
    assert done == list(range(50))


def test_what_a_piece_raises_comes_out_of_the_next_call_and_only_once() -> None:
    ahead = OneAhead()
    ahead.hand_over(int, "no number")
    with pytest.raises(ValueError, match="no number"):
        ahead.hand_over(int, "1")
    ahead.wait()
    ahead.close()

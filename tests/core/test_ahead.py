"""Work behind the caller's back: in order, so many under way and no more, errors not lost."""

import threading

import pytest

from laionkit.core.ahead import Behind


@pytest.mark.parametrize("most", [1, 4])
def test_work_runs_in_the_order_in_which_it_was_handed_over(most: int) -> None:
    behind, done = Behind(most), []
    for i in range(50):
        behind.hand_over(done.append, i)
    behind.wait()
    behind.close()
    assert done == list(range(50))


def test_handing_over_waits_while_so_many_are_under_way() -> None:
    behind, go_on, done = Behind(2), threading.Event(), []
    behind.hand_over(go_on.wait, 60)
    behind.hand_over(done.append, 1)
    third = threading.Thread(target=behind.hand_over, args=(done.append, 2))
    third.start()
    third.join(0.05)
    assert third.is_alive()
    go_on.set()
    third.join(60)
    behind.wait()
    behind.close()
    assert done == [1, 2]


def test_what_a_piece_raises_comes_out_of_the_next_call_and_only_once() -> None:
    behind = Behind()
    behind.hand_over(int, "no number")
    with pytest.raises(ValueError, match="no number"):
        behind.hand_over(int, "1")
    behind.wait()
    behind.close()


def test_nothing_runs_after_a_piece_that_failed() -> None:
    behind, go_on, done = Behind(3), threading.Event(), []
    behind.hand_over(go_on.wait, 60)
    behind.hand_over(int, "no number")
    behind.hand_over(done.append, 1)
    go_on.set()
    with pytest.raises(ValueError, match="no number"):
        behind.wait()
    behind.close()
    assert done == []

"""Work in a thread behind the caller: order, bound, errors."""

import threading

import pytest
import torch

from ltxgen.media import Background


def test_tensors_are_worked_on_in_order_in_another_thread():
    seen, threads = [], set()

    def work(tensor):
        seen.append(int(tensor))
        threads.add(threading.get_ident())

    with Background(work) as background:
        for number in range(20):
            background(torch.tensor(number))
    assert seen == list(range(20))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_the_caller_goes_on_while_work_is_done_and_waits_when_it_is_two_ahead():
    begun, go_on, given = threading.Event(), threading.Event(), []

    def work(tensor):
        begun.set()
        assert go_on.wait(10)

    def give_three():
        with Background(work) as background:
            for number in range(3):
                background(torch.tensor(number))
                given.append(number)

    caller = threading.Thread(target=give_three)
    caller.start()
    assert begun.wait(10)
    caller.join(0.2)
    assert caller.is_alive()
    assert given == [0, 1]
    go_on.set()
    caller.join(10)
    assert given == [0, 1, 2]


def failing(tensor):
    raise OSError(f"no room for {int(tensor)}")


def test_an_error_of_the_work_reaches_the_caller_at_the_end():
    with pytest.raises(OSError, match="no room for 7"), Background(failing) as background:
        background(torch.tensor(7))


def test_an_error_of_the_work_stops_a_caller_that_goes_on():
    given = []

    def give_many():
        with Background(failing) as background:
            for number in range(10):
                background(torch.tensor(number))
                given.append(number)

    with pytest.raises(OSError, match="no room for 0"):
        give_many()
    assert len(given) < 10


def test_an_error_of_the_caller_is_the_one_that_is_raised_and_the_rest_is_dropped():
    go_on, seen = threading.Event(), []

    def work(tensor):
        assert go_on.wait(10)
        seen.append(int(tensor))

    def fail():
        with Background(work) as background:
            background(torch.tensor(0))
            background(torch.tensor(1))
            threading.Timer(0.1, go_on.set).start()
            raise KeyError("decoder")

    with pytest.raises(KeyError, match="decoder"):
        fail()
    assert 1 not in seen


def test_work_runs_in_inference_mode_on_tensors_made_in_it():
    with torch.inference_mode():
        frames = torch.zeros(2)
    with Background(lambda tensor: tensor.add_(1)) as background:
        background(frames)
    assert frames.tolist() == [1, 1]

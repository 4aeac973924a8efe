import threading

from selrel_deploy.live.newest import Newest


def test_the_newest_wins_and_the_others_are_counted():
    queue = Newest(2)
    for number in range(5):
        queue.put(number)
    assert (len(queue), queue.dropped) == (2, 3)
    assert [queue.get(0), queue.get(0), queue.get(0)] == [3, 4, None]


def test_who_waits_gets_what_comes():
    queue = Newest()
    timer = threading.Timer(0.02, queue.put, ["frame"])
    timer.start()
    assert queue.get(5) == "frame"
    timer.join()

"""A thread whose core another process has is withheld, and tried again; a figure of a window."""

import pytest

from bitnet.compute.threads import ContentionThrottle

MS = 1_000_000
WINDOW = 20 * MS


class Machine:
    """Cores of which some are taken: runs windows of operations on as many threads as it may."""

    def __init__(self, n_threads, n_taken=0):
        self.throttle, self.n_threads, self.n_taken, self.now = (
            ContentionThrottle(),
            n_threads,
            n_taken,
            0,
        )

    def window(self):
        """One window; its number of threads."""
        size = self.throttle.size(self.n_threads, self.now)
        self.now += WINDOW
        if size > 1:
            is_in_the_way = size > self.n_threads - self.n_taken
            waited = WINDOW * 0.6 if is_in_the_way else WINDOW * 0.02
            self.throttle.record(WINDOW, int(waited), size, self.now)
        return size

    def sizes(self, seconds):
        end = self.now + seconds * 1000 * MS
        found = []
        while self.now < end:
            found.append(self.window())
        return found


@pytest.mark.parametrize("n_threads", [2, 3, 8, 16])
def test_all_threads_where_all_cores_are_free(n_threads):
    assert set(Machine(n_threads).sizes(2)) == {n_threads}


@pytest.mark.parametrize(("n_threads", "n_taken"), [(2, 1), (4, 1), (4, 2), (16, 3)])
def test_threads_whose_cores_are_taken_are_withheld(n_threads, n_taken):
    machine = Machine(n_threads, n_taken)
    machine.sizes(10)
    sizes = machine.sizes(20)
    free = n_threads - n_taken
    assert min(sizes) == free
    assert sum(size > free for size in sizes) < 0.05 * len(sizes)


def test_a_thread_comes_back_when_its_core_is_free_again():
    machine = Machine(2, 1)
    assert machine.sizes(10)[-1] == 1
    machine.n_taken = 0
    assert set(machine.sizes(2)[-10:]) == {2}
    assert machine.throttle.withheld == 0


def test_at_least_one_thread():
    machine = Machine(2, 2)
    machine.sizes(1)
    assert machine.throttle.size(1, machine.now) == 1
    assert machine.throttle.size(2, machine.now) == 1


@pytest.mark.parametrize(("waited", "withheld"), [(0.49, 0), (0.51, 1)])
def test_of_two_threads_one_goes_where_waiting_is_half_of_the_time(waited, withheld):
    throttle = ContentionThrottle()
    for i in range(100):  # operations of 0.2 ms: judged together, not one by one
        assert throttle.withheld == 0
        throttle.record(MS // 5, int(waited * MS / 5), 2, i * MS)
    assert throttle.withheld == withheld


def test_what_items_explain_does_not_make_up_for_a_long_wait():
    """A wait that is less than an item takes is none, not less than none."""
    throttle = ContentionThrottle()
    for i in range(100):
        throttle.record(MS // 5, MS // 5 if i % 5 < 3 else -MS, 2, i * MS)
    assert throttle.withheld == 1

"""Work in threads: results in their order, errors where they are awaited, one display for all bars."""

import sys
import threading
import time

import pytest

from flowknife._progress import progress
from flowknife._threads import in_threads


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_results_come_in_the_order_of_the_calls(threads):
    def slower_first(i):
        time.sleep(0.01 * (4 - i))
        return i, threading.current_thread() is threading.main_thread()

    results = in_threads([lambda i=i: slower_first(i) for i in range(5)], threads)
    assert [i for i, _ in results] == [0, 1, 2, 3, 4]
    assert all(main is (threads == 1) for _, main in results)


def test_an_error_in_a_thread_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        in_threads([lambda: 1, lambda: 1 / 0], 2)


def test_bars_of_two_threads_share_a_display(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    both = threading.Barrier(2, timeout=10)

    def work(name):
        with progress(name) as report:
            both.wait()
            report(1.0, f"{name} done")
            both.wait()

    in_threads([lambda name=name: work(name) for name in ("coarse", "fine")], 2)
    shown = capsys.readouterr().err
    assert "coarse done" in shown
    assert "fine done" in shown
    # and after they have left it another one begins
    with progress("alone") as report:
        report(1.0, "alone done")
    assert "alone done" in capsys.readouterr().err

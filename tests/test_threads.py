"""Work in threads: results in their order, errors where they are awaited, one display for all bars."""

import os
import signal
import sys
import threading
import time

import pytest

from flowknife._progress import note, of_job, progress
from flowknife._threads import in_threads, raise_if_interrupted
from flowknife.errors import Interrupted


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


def test_an_interruption_reaches_the_threads_of_threads():
    inside, stopped = threading.Event(), []

    def innermost():
        inside.set()
        for _ in range(200):
            try:
                raise_if_interrupted()
            except KeyboardInterrupt:
                stopped.append(True)
                raise
            time.sleep(0.05)

    def outermost():
        return in_threads([innermost, lambda: None], 2)

    def interrupt():
        inside.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest-xdist ignores the signal
    try:
        with pytest.raises(Interrupted):
            in_threads([outermost, lambda: None], 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped == [True]


def test_progress_of_jobs_side_by_side_is_labelled(capsys):
    def work(name):
        with of_job(name), progress("fitting") as report:
            report(1.0, "done")
            note("few rows")
            in_threads([lambda: note("from a thread"), lambda: None], 2)

    in_threads([lambda name=name: work(name) for name in ("moons", "ring")], 2)
    shown = capsys.readouterr().err
    for name in ("moons", "ring"):
        assert f"{name}: fitting: 100 %" in shown
        assert f"note: {name}: few rows" in shown and f"note: {name}: from a thread" in shown


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

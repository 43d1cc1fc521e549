"""A signal handler that works on top of what it interrupts."""

import os
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import work


def on_alarm(_number, _frame):
    work.spin(0.01)


def wait():
    while True:
        # On one line, as it is noted: the signal comes while it sleeps, or before that on a busy host.
        signal.setitimer(signal.ITIMER_REAL, 0.001), time.sleep(0.01)


signal.signal(signal.SIGALRM, on_alarm)
wait()

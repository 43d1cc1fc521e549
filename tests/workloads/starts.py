"""Processes that come and go for tests/tests/kernel/scale.rs.

    starts.py MARKER STARTS_A_SECOND SECONDS MICROSECONDS

Starts a child so often for so long; each works for so long on a CPU and ends. Then it prints how many it started, and
the CPU time of all of them in microseconds.
"""

import os
import resource
import sys
import time


def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        for _ in range(200):
            pass


rate, seconds, work_seconds = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) / 1e6
print("ready", flush=True)
sys.stdin.readline()
begun = time.monotonic()
n_started = n_waited = 0
while n_started < rate * seconds:
    due = int((time.monotonic() - begun) * rate) + 1
    while n_started < min(due, rate * seconds):
        if os.fork() == 0:
            work(work_seconds)
            os._exit(0)
        n_started += 1
    while n_waited < n_started and os.waitpid(-1, os.WNOHANG)[0]:
        n_waited += 1
    time.sleep(0.001)
elapsed = time.monotonic() - begun
while n_waited < n_started:
    os.wait()
    n_waited += 1
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(n_started, int((usage.ru_utime + usage.ru_stime) * 1e6), int(elapsed * 1e6), flush=True)
sys.stdin.read()

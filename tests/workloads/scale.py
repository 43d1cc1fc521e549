"""Many processes for tests/tests/kernel/scale.rs.

    scale.py MARKER N_CHILDREN MICROSECONDS

Forks its children, says that it is ready, waits for a line, and lets them work for so long on a CPU, two at a time.
Then it prints a line `PID MICROSECONDS` for each, with what the kernel says of its time, and `end`. All of them stay
until its standard input closes.
"""

import os
import sys
import time


def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        for _ in range(200):
            pass


def child(begin, next_one, out, hold):
    os.read(begin, 1)
    before = time.process_time()
    work(seconds)
    os.write(out, b"%d %d\n" % (os.getpid(), (time.process_time() - before) * 1e6))
    os.write(next_one, b".")
    os.read(hold, 1)
    os._exit(0)


n_children, seconds = int(sys.argv[2]), int(sys.argv[3]) / 1e6
begin, begin_write = os.pipe()
out_read, out = os.pipe()
hold, hold_write = os.pipe()
for _ in range(n_children):
    if os.fork() == 0:
        os.close(hold_write)
        os.close(0)
        child(begin, begin_write, out, hold)
print("ready", flush=True)
sys.stdin.readline()
os.write(begin_write, b"..")
with os.fdopen(out_read) as lines:
    for _ in range(n_children):
        sys.stdout.write(lines.readline())
print("end", flush=True)
sys.stdin.read()
os.close(hold_write)
for _ in range(n_children):
    os.wait()

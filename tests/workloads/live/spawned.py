"""What the children of spawn.py do."""

import os
import time

# CPU seconds of the interpreter's start.
STARTED = time.process_time()


def spin():
    total = 0
    for number in range(3_000_000):
        total += number & 3
    return total


def child(path):
    with open(path, "ab", 0) as file:
        file.write(b'{"pid": %d, "started": %f}\n' % (os.getpid(), STARTED))
    spin()

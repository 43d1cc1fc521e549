"""Lives for half a second and starts another one of itself, to the depth that it is told."""

import os
import subprocess
import sys
import time

# CPU seconds of the interpreter's start.
STARTED = time.process_time()


def spin(seconds):
    end = time.monotonic() + seconds
    total = 0
    while time.monotonic() < end:
        for number in range(1000):
            total += number & 3
    return total


def main():
    path, depth = sys.argv[1], int(sys.argv[2])
    with open(path, "ab", 0) as file:
        file.write(b'{"pid": %d, "started": %f}\n' % (os.getpid(), STARTED))
    child = None
    if depth > 1:
        child = subprocess.Popen([sys.executable, __file__, path, str(depth - 1)])
    spin(0.4)
    if child:
        child.wait()


main()

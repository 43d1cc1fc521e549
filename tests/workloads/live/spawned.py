"""What the children of spawn.py do."""

import os


def spin():
    total = 0
    for number in range(3_000_000):
        total += number & 3
    return total


def child(path):
    with open(path, "ab", 0) as file:
        file.write(b'{"pid": %d}\n' % os.getpid())
    spin()

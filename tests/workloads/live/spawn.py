"""Children by `spawn`: new interpreters that `multiprocessing` starts."""

import multiprocessing
import os

from harness import run

CONTEXT = multiprocessing.get_context("spawn")
run.passes_left = 1


def spin():
    total = 0
    for number in range(400_000):
        total += number & 3
    return total


def body():
    import spawned

    child = CONTEXT.Process(target=spawned.child, args=(run.legal.path,))
    child.start()
    spin()
    child.join()

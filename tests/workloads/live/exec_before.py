"""Becomes another program, run by another interpreter: that of exec_after.py."""

import functools
import os

from harness import run

NEXT = os.environ["LIVE_NEXT"]
AFTER = os.environ["LIVE_AFTER"]


def before():
    total = 0
    for number in range(10_000):
        total += number & 3
    return total


def body():
    before()


run.at_end = functools.partial(os.execv, NEXT, [NEXT, "-I", "-S", "-B", AFTER])

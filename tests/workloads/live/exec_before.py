"""Becomes another program, run by another interpreter: that of exec_after.py."""

import os

from harness import run


def before():
    total = 0
    for number in range(10_000):
        total += number & 3
    return total


def body():
    before()


def become():
    os.execv(os.environ["LIVE_NEXT"], [os.environ["LIVE_NEXT"], "-I", "-S", "-B", os.environ["LIVE_AFTER"]])


run.at_end = become

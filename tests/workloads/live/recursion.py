"""Recursions of known depth: whenever the bottom spins, exactly so many frames are above it."""

from harness import run

run.report["depths"] = [["shallow", "shallow_bottom", 20], ["deep", "deep_bottom", 900]]


def spin():
    total = 0
    for number in range(10_000):
        total += number & 3
    return total


def shallow_bottom():
    return spin()


def shallow(depth):
    if depth == 1:
        return shallow_bottom()
    return shallow(depth - 1) + 1


def deep_bottom():
    return spin()


def deep(depth):
    if depth == 1:
        return deep_bottom()
    return deep(depth - 1) + 1


def body():
    shallow(20)
    deep(900)

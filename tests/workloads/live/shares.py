"""Pure Python: a function that spins three times as long as another one."""

from harness import run


def long_turn():
    total = 0
    for number in range(30_000):
        total += number * number & 7
    return total


def short_turn():
    total = 0
    for number in range(10_000):
        total += number * number & 7
    return total


def body():
    run.measure(long_turn)
    run.measure(short_turn)

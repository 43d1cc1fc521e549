"""Allocates, resizes and frees blocks of many sizes, after a line from its standard input; then it ends at once."""

import os
import sys

SIZES = [600, 1000, 5000, 40_000, 200_000]


def work():
    kept = []
    for turn in range(8):
        for size in SIZES:
            kept.append(bytes(size + turn))
            kept.append(b"x" * (size + turn))
            grown = bytearray(b"y" * size)
            for _ in range(6):
                grown += b"z" * size
            kept.append(grown)
        numbers = list(range(500))
        numbers.extend(range(5000))
        kept.append(numbers)
        if turn % 2:
            kept.clear()


print("ready", flush=True)
sys.stdin.readline()
work()
os._exit(0)

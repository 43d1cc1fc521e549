"""What exec_before.py becomes."""

import os
import time


def after():
    total = 0
    for number in range(10_000):
        total += number & 3
    return total


def main():
    while time.process_time() < 1.5:
        after()
    os.write(1, b'["done", {"shares": [], "threads": []}]\n')
    os.read(0, 1)


main()

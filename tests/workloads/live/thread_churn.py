"""Threads that start, work for a moment and are joined."""

import threading


def work():
    total = 0
    for number in range(5_000):
        total += number & 3
    return total


def body():
    for _ in range(5):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

"""200 threads that take turns with the GIL; even ones work in another function than odd ones."""

import sys

from harness import Crew

# Turns that are short against the 5 ms after which a thread asks for the GIL, in debug builds too: the time in
# which the kernel takes a thread from its CPU counts as the thread's, but a tick in it falls on the next one.
N_STEPS = 400 if hasattr(sys, "gettotalrefcount") else 4_000


def even():
    total = 0
    for number in range(N_STEPS):
        total += number & 3
    return total


def odd():
    total = 0
    for number in range(N_STEPS):
        total -= number & 3
    return total


N_THREADS = 200
CREW = Crew(["worker-%d" % idx for idx in range(N_THREADS)], [even, odd] * (N_THREADS // 2))


def body():
    CREW.round()

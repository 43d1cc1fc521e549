"""200 threads that take turns with the GIL; even ones work in another function than odd ones."""

from harness import Crew


def even():
    total = 0
    for number in range(4_000):
        total += number & 3
    return total


def odd():
    total = 0
    for number in range(4_000):
        total -= number & 3
    return total


N_THREADS = 200
CREW = Crew(["worker-%d" % idx for idx in range(N_THREADS)], [even, odd] * (N_THREADS // 2))


def body():
    CREW.round()

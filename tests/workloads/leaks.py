"""Programs whose memory grows, or does not: what `pyagent leaks` is to find, and what it is not to.

    leaks.py NAME SECONDS [PART]

begins when it is told to, and goes on until it is ended. SECONDS is how long it is watched: all that a program does is in
proportion to that. PART, from 0 to 1, tells several runs of a program apart: when it stops, or how long things live.
"""
import heapq
import random
import sys
import time
from collections import deque

MIB = 1 << 20
N_STEPS = 600
# What is kept, or filled, during the watch.
GROWTH = 60 * MIB
name, seconds = sys.argv[1], float(sys.argv[2])
part = float(sys.argv[3]) if len(sys.argv) > 3 else 0.5


class Row:
    __slots__ = ("first", "second")


def steps():
    """Yields once each 600th of the watch, with the time since the begin as a part of it."""
    begun = time.monotonic()
    n = 0
    while True:
        now = (time.monotonic() - begun) / seconds
        yield now
        n += 1
        time.sleep(max(0.0, n * seconds / N_STEPS - now * seconds))


def small(kept):
    row = Row()
    row.first = bytes(400)
    kept.append(row)
    return sys.getsizeof(row) + sys.getsizeof(row.first)


def block(kept):
    kept.append(bytes(20000))
    return 20000


def leak(add):
    """Keeps GROWTH during the watch, and as much in the next."""
    kept = []
    n_bytes = 0
    for now in steps():
        while n_bytes < now * GROWTH:
            n_bytes += add(kept)


def entry(cache, size):
    cache[random.random()] = bytes(size)
    return size


def fills():
    """A cache that is full after up to 9 tenths of the watch, and is looked up from then on."""
    cache = {}
    n_bytes = 0
    for now in steps():
        while n_bytes < min(now, 0.9 * part) * GROWTH:
            n_bytes += entry(cache, 300 if len(cache) % 4 else 8000)
        cache.get(random.random())


def refills():
    """The same, but emptied at the middle of the watch, and filled again by 8 or 9 tenths of it."""
    cache = {}
    n_bytes, is_emptied = 0, False
    for now in steps():
        if now > 0.5 and not is_emptied:
            cache.clear()
            n_bytes, is_emptied = 0, True
        begin, end = (0.5, 0.8 + 0.1 * part) if is_emptied else (0.0, 0.1 + 0.3 * part)
        while n_bytes < min(now - begin, end - begin) * GROWTH:
            n_bytes += entry(cache, 300 if len(cache) % 4 else 8000)


def churn():
    """Lives for 1 to 20 sixtieths of the watch on average, exponentially; of all sizes."""
    life = (1 + 19 * part) / 60
    alive = []
    n_bytes = 0
    # Some 20 MiB are alive.
    rate = min(20 * MIB / life, 20 * GROWTH)
    for now in steps():
        while alive and alive[0][0] < now:
            heapq.heappop(alive)
        while n_bytes < now * rate:
            size = random.choice((100, 400, 3000, 40000))
            heapq.heappush(alive, (now + random.expovariate(1 / life), random.random(), bytes(size)))
            n_bytes += size


def batch():
    """Grows, is freed at once, and again; its period is 2 to 9 tenths of the watch, and it begins anywhere in it."""
    period = 0.2 + 0.7 * part
    phase = random.random() * period
    rows = []
    n_bytes, last = 0, 0
    for now in steps():
        n_period, within = divmod(now + phase, period)
        if n_period > last:
            rows = []
            n_bytes, last = 0, n_period
        while n_bytes < within / period * GROWTH / 2:
            n_bytes += small(rows) if len(rows) % 50 else block(rows)


def replaces():
    """A full cache whose entries live for 1.1 to 2 watches."""
    n_watches = 1.1 + 0.9 * part
    size = 5000
    cache = deque(bytes(size) for n in range(int(GROWTH / size)))
    n_new = 0
    print("ready", flush=True)
    sys.stdin.readline()
    for now in steps():
        while n_new < now / n_watches * len(cache):
            cache.append(bytes(size))
            cache.popleft()
            n_new += 1


def starts():
    """Imports and builds its tables in the first 1 to 5 tenths of the watch, and works in the rest."""
    modules = "asyncio email.mime.text http.server unittest xml.dom.minidom sqlite3 decimal ctypes".split()
    tables = []
    for now in steps():
        if now < 0.1 + 0.4 * part:
            if modules:
                __import__(modules.pop(0))
            tables.append([bytes(100) for n in range(1000)])
        else:
            sorted(random.random() for n in range(1000))


programs = {
    "small": lambda: leak(small),
    "blocks": lambda: leak(block),
    "fills": fills,
    "refills": refills,
    "churn": churn,
    "batch": batch,
    "replaces": replaces,
    "starts": starts,
}
if name != "replaces":
    print("ready", flush=True)
    sys.stdin.readline()
programs[name]()

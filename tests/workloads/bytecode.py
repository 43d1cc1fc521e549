"""Runs functions of which it is known where their time goes, and says what stands in their bytecode: before and after.

Prints a line of JSON, waits for a line, runs each function for a while, prints a line again, and waits for the end of its
standard input. The lines have for each function its places: offset, name in memory, name without specialization.
"""

import dis
import json
import operator
import sys
import time

CPU_SECONDS = float(sys.argv[1])
IS_ADAPTIVE = sys.version_info >= (3, 11)
BIG = 1 << 400000
LONG = list(range(20000))
WHOLE = slice(None)


def add(n):
    a, b = BIG, BIG + 1
    for _ in range(n):
        c = a + b
    return c


def store(n):
    into, key, items = list(LONG), WHOLE, LONG
    for _ in range(n):
        into[key] = items


def call(n):
    f, items = sum, LONG
    for _ in range(n):
        f(items)


def small(n):
    x = 0
    for i in range(100 * n):
        x += i * 2
        x -= i
        x ^= 3
    return x


def tiny():
    return 1


def calls(n):
    for _ in range(100 * n):
        tiny()


def numbers(n):
    for i in range(100 * n):
        yield i


def generates(n):
    for i in numbers(n):
        i + 1


class Items(list):
    slow = property(sum)


# The name that is looked up has a number above 255: its instruction has a prefix.
NAMES = "".join("        items.name%d\n" % i for i in range(300))
exec(
    compile(
        "def wide(n):\n    items = Items(LONG)\n    if n < 0:\n%s    for _ in range(n):\n        items.slow\n" % NAMES,
        "wide.py",
        "exec",
    )
)


def watched(n):
    x = 0
    for i in range(10 * n):
        x += i
        x -= i
    return x


FUNCTIONS = [add, store, call, small, tiny, calls, numbers, generates, wide, watched]


def places(function):
    more = {"adaptive": True} if IS_ADAPTIVE else {}
    plain = {it.offset: it.opname for it in dis.get_instructions(function)}
    now = dis.get_instructions(function, **more)
    return [(it.offset, it.opname, plain.get(it.offset)) for it in now]


def say():
    print(json.dumps({it.__name__: places(it) for it in FUNCTIONS}), flush=True)


def watch():
    """Events for each line of `watched`, which instrument its bytecode (3.12+)."""
    monitoring = sys.monitoring
    monitoring.use_tool_id(1, "test")
    monitoring.register_callback(1, monitoring.events.LINE, operator.is_)
    monitoring.set_local_events(1, watched.__code__, monitoring.events.LINE)


def run(function, seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        function(50)


for function in FUNCTIONS:
    if function not in (tiny, numbers):
        run(function, 0.02)
if hasattr(sys, "monitoring"):
    watch()
    watched(10)
say()
sys.stdin.readline()
for function in FUNCTIONS:
    if function not in (tiny, numbers):
        run(function, CPU_SECONDS)
say()
sys.stdin.read()

"""A heap that grows by a known amount, counted by guppy3 from inside.

Arguments: the folder with guppy3, and the scale. Prints `ready` once guppy is loaded and has looked, so that what it keeps
for itself is there. Each line on standard input is a command, answered by one line: `grow` makes the objects, `count` says
by type how many objects guppy sees and their bytes (JSON). It ends with its input.

`grow` is answered by the number and bytes of the strings that are keys of dicts and nothing else refers to. guppy goes where
the collector goes, and a dict whose keys are all str does not show them to it.
"""
import sys

sys.path.insert(0, sys.argv[1])

import array
import collections
import gc

from guppy import hpy


class Plain:
    def __init__(self, number):
        self.number = number
        self.text = "plain %d" % number


class Slotted:
    __slots__ = ("left", "right")

    def __init__(self, left, right):
        self.left = left
        self.right = right


class Outer:
    class Inner(list):
        pass


class Text(str):
    pass


class Table(dict):
    pass


class Failure(Exception):
    pass


# The place of those with such keys.
KEYED = 7


def build(scale):
    # What is interned without another reference is known to the interpreter alone, which guppy does not ask.
    return [
        [Plain(n) for n in range(20 * scale)],
        [Slotted(n, None) for n in range(10 * scale)],
        [Outer.Inner([n]) for n in range(3 * scale)],
        [Text("text %d" % n) for n in range(3 * scale)],
        [Table(a=n) for n in range(2 * scale)],
        [Failure(n) for n in range(2 * scale)],
        [{i: i for i in range(n % 40)} for n in range(4 * scale)],
        [{"key %d" % i: i for i in range(n % 10)} for n in range(2 * scale)],
        [list(range(n % 100)) for n in range(4 * scale)],
        [set(range(n % 50)) for n in range(2 * scale)],
        [frozenset(range(n % 50)) for n in range(scale)],
        [tuple(range(n % 20)) for n in range(4 * scale)],
        [float(n) + 0.5 for n in range(10 * scale)],
        [10 ** (n % 60 + 1) + n for n in range(10 * scale)],
        [bytes(n % 700 + 2) for n in range(2 * scale)],
        [bytearray(n % 700) for n in range(scale)],
        ["x" * (n % 900) + str(n) for n in range(4 * scale)],
        ["\u043b" * (n % 300) + str(n) for n in range(2 * scale)],
        [collections.deque(range(n % 200)) for n in range(scale)],
        [array.array("d", range(n % 50)) for n in range(scale)],
    ]


def hidden_keys(keep):
    # Those of attributes and keyword arguments are interned, and in code objects too.
    dicts = keep[0][KEYED]
    sizes = [sys.getsizeof(key) for one in dicts for key in one]
    return len(sizes), sum(sizes)


def count(heapy):
    """By type, as text: what holds the figures would be counted too."""
    gc.collect()
    rows = []
    for part in heapy.heap().bytype.parts:
        kind = part.kind.arg
        rows.append('"%s.%s": [%d, %d]' % (kind.__module__, kind.__qualname__, part.count, part.size))
    return "{" + ", ".join(rows) + "}"


def main():
    scale = int(sys.argv[2])
    heapy = hpy()
    keep = []
    count(heapy)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "grow":
            keep.append(build(scale))
            gc.collect()
            print("[%d, %d]" % hidden_keys(keep), flush=True)
        else:
            counted = count(heapy)
            # Before the answer: who reads it looks at a heap that does not change.
            gc.collect()
            print(counted, flush=True)


main()

"""A heap with known objects, and the truth about it.

Prints `ready` once it is made. Each line on standard input is a command, answered by one line:
`count` says by type how many objects there are (JSON), as the collector and `sys.getsizeof` know it;
`grow N` adds N objects of a class; `rss` says what /proc says of the process. It ends with its input.

Objects are made before they are counted: what counting itself makes is left out.
"""
import array
import collections
import enum
import gc
import json
import sys
import types
import weakref


class Plain:
    def __init__(self, number):
        self.number = number
        self.text = "plain %d" % number


class Slotted:
    __slots__ = ("left", "right")

    def __init__(self, left, right):
        self.left = left
        self.right = right


class Meta(type):
    pass


class OfMeta(metaclass=Meta):
    pass


class Outer:
    class Inner(list):
        pass


class Text(str):
    pass


class Number(int):
    pass


class Table(dict):
    pass


class Color(enum.Enum):
    RED = 1
    GREEN = 2


Point = collections.namedtuple("Point", "x y")


class Grown:
    pass


def generator(first, second):
    yield first
    yield [first, second]


@types.coroutine
def pause():
    yield


async def coroutine(number):
    await pause()
    return number


async def asynchronous(first, second, third):
    yield first, second, third


def fails(depth):
    if depth:
        fails(depth - 1)
    raise ValueError(depth)


def calls(scale):
    """What keeps the frame of a call: one that has begun, has not, has ended, or has failed."""
    begun = [generator(n, n) for n in range(4 * scale)]
    for it in begun[: 3 * scale]:
        next(it)
    for it in begun[: scale]:
        list(it)
    begun += [asynchronous(n, n, n) for n in range(2 * scale)]
    for it in begun[-scale:]:
        try:
            it.asend(None).send(None)
        except StopIteration:
            pass
    # Something refers weakly to every other one, as event loops do.
    weak = [weakref.ref(it) for it in begun[::2]]
    coroutines = [coroutine(n) for n in range(scale)]
    for it in coroutines:
        it.send(None)
    failures = []
    for n in range(scale):
        try:
            fails(n % 3)
        except ValueError as error:
            failures.append(error)
    return begun, weak, coroutines, failures


def build(scale):
    keep = []
    keep.append([Plain(i) for i in range(20 * scale)])
    keep.append([Slotted(i, None) for i in range(10 * scale)])
    keep.append([OfMeta() for i in range(5 * scale)])
    keep.append([Outer.Inner([i]) for i in range(3 * scale)])
    keep.append([Text("text %d" % i) for i in range(3 * scale)])
    keep.append([Number(i % 2000 - 1000) for i in range(3 * scale)])
    keep.append([Table(a=i) for i in range(2 * scale)])
    keep.append([Point(i, str(i)) for i in range(4 * scale)])
    keep.append([{i: i for i in range(n % 40)} for n in range(4 * scale)])
    keep.append([{"key %d" % i: i for i in range(n % 10)} for n in range(2 * scale)])
    keep.append([list(range(n % 100)) for n in range(4 * scale)])
    keep.append([set(range(n % 50)) for n in range(2 * scale)])
    keep.append([frozenset(range(n % 50)) for n in range(scale)])
    keep.append([tuple(range(n % 20)) for n in range(4 * scale)])
    keep.append([float(n) + 0.5 for n in range(10 * scale)])
    keep.append([10 ** (n % 60) + n for n in range(10 * scale)])
    keep.append([bytes(n % 700) for n in range(2 * scale)])
    keep.append([bytearray(n % 700) for n in range(scale)])
    keep.append(["x" * (n % 900) + str(n) for n in range(4 * scale)])
    keep.append(["\u043b" * (n % 300) + str(n) for n in range(2 * scale)])
    keep.append(["\U0001f600" * (n % 90) + str(n) for n in range(scale)])
    keep.append([collections.deque(range(n % 200)) for n in range(scale)])
    keep.append([array.array("d", range(n % 50)) for n in range(scale)])
    keep.append([(lambda n=n: n) for n in range(scale)])
    # What is freed must not be counted: every other one, and whole stretches.
    gone = [Plain(i) for i in range(20 * scale)]
    del gone[::2]
    gone = [Slotted(i, {}) for i in range(10 * scale)] + [[str(i)] for i in range(10 * scale)]
    del gone
    text = ""
    for n in range(scale):
        text += "appended %d " % n
    keep.append(text)
    keep.append(tuple(n for n in range(scale)))
    keep.append([object() for n in range(scale)])
    keep.append(calls(scale))
    keep.append(bytes(3 << 20))
    return keep


def referents(obj):
    found = gc.get_referents(obj)
    if isinstance(obj, dict):
        # A dict whose keys are all str does not show them to the collector.
        found += dict.keys(obj)
    if isinstance(obj, type):
        found += [obj.__mro__, obj.__bases__]
    if isinstance(obj, type(build.__code__)):
        # What is not kept but made for who asks is left out.
        for name, end in (
            ("co_consts", (4,)),
            ("co_names", (4,)),
            ("co_filename", (4,)),
            ("co_name", (4,)),
            ("co_lnotab", (3, 10)),
            ("co_code", (3, 11)),
        ):
            if sys.version_info < end:
                found.append(getattr(obj, name))
        if sys.version_info >= (3, 11):
            found.append(obj.co_qualname)
            found.append(obj.co_linetable)
            found.append(obj.co_exceptiontable)
        else:
            found += [obj.co_varnames, obj.co_freevars, obj.co_cellvars]
        if sys.version_info >= (3, 10):
            found.append(obj.co_linetable)
    return found


def add(table, obj, tracked):
    kind = type(obj)
    key = "%s.%s" % (kind.__module__, kind.__qualname__)
    row = table.get(key)
    if row is None:
        row = table[key] = [0, 0, 0]
    row[0] += 1
    row[1] += sys.getsizeof(obj)
    row[2] += tracked


def count():
    objects = gc.get_objects()
    own = {id(objects), id(sys._getframe()), id(sys._getframe().f_locals)}
    table = {}
    seen = set(own)
    todo = []
    for obj in objects:
        if id(obj) not in seen:
            seen.add(id(obj))
            todo.append(obj)
            add(table, obj, 1)
    own |= {id(todo), id(own), id(seen), id(table)}
    seen |= own
    while todo:
        obj = todo.pop()
        if obj is table or obj is seen or obj is todo or obj is objects:
            continue
        for other in referents(obj):
            if id(other) not in seen:
                seen.add(id(other))
                todo.append(other)
                add(table, other, 0)
    return table


def rss():
    with open("/proc/self/status") as status:
        rows = dict(line.split(":", 1) for line in status)
    with open("/proc/self/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return {
        "rss_kib": int(rows["VmRSS"].split()[0]),
        "swap_kib": int(rows["VmSwap"].split()[0]),
        "major_faults": int(fields[9]),
    }


def main():
    scale = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    keep = build(scale)
    gc.collect()
    print("ready", flush=True)
    for line in sys.stdin:
        command = line.split()
        if command[0] == "count":
            print(json.dumps(count()), flush=True)
        elif command[0] == "grow":
            keep.append([Grown() for _ in range(int(command[1]))])
            print("grown", flush=True)
        elif command[0] == "rss":
            print(json.dumps(rss()), flush=True)


main()

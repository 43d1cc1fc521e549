"""Threads that stop in functions with local variables of many kinds, made by chance from the seed in the first argument.

For each line on its standard input it prints what the interpreter itself says: by thread, the functions from the innermost
one on, and their variables as pyagent is to show them. Runs on 3.6 and newer.
"""
import collections
import datetime
import decimal
import enum
import functools
import importlib
import importlib.machinery
import json
import os
import random
import struct
import sys
import tempfile
import threading
import types
import zipimport

CHANCE = random.Random(int(sys.argv[1]))
WAIT = threading.Event()
OPTIMIZED = 1
MAX_DIGITS = 64


class Plain:
    class Inner:
        pass


class Slotted:
    __slots__ = ("a",)


class Text(str):
    pass


class Number(int):
    pass


class Real(float):
    pass


class Items(list):
    pass


class Pair(tuple):
    pass


class Bag(dict):
    pass


class Group(set):
    pass


class Frozen(frozenset):
    pass


class Failed(ValueError):
    pass


class Queue(collections.deque):
    pass


class Ordered(collections.OrderedDict):
    pass


class Default(collections.defaultdict):
    pass


class Space(types.SimpleNamespace):
    pass


class Day(datetime.date):
    pass


class Color(enum.Enum):
    RED = 1
    BLUE = "it's"


class Level(enum.IntEnum):
    LOW = 1


class Way(enum.Flag):
    UP = 1


class Called:
    def __call__(self):
        pass

    def method(self):
        pass

    @classmethod
    def of_class(cls):
        pass

    def generate(self):
        yield


async def a_coroutine():
    pass


async def an_async_generator():
    yield


def a_function():
    def inner():
        pass

    return inner


def made_in_c(kind):
    """Whether a type is the interpreter's own; the library has some of Python for where there is none."""
    return not kind.__flags__ & 1 << 9 or bool(kind.__flags__ & 1 << 8)


CALENDAR = (datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone)
# What `repr` says of these is what is to be shown, as long as only such objects and plain ones are in them.
OWN = [range, slice, type({}.keys()), type({}.values()), type({}.items()), types.MappingProxyType, types.SimpleNamespace]
OWN += [type(collections.OrderedDict().keys()), type(collections.OrderedDict().values())]
OWN += [type(collections.OrderedDict().items()), types.ModuleType, types.FunctionType, types.BuiltinFunctionType]
OWN += [types.MethodType, types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, types.CodeType]
OWN += [staticmethod, classmethod, type((lambda it: lambda: it)(1).__closure__[0])]
OWN += [collections.defaultdict, collections.OrderedDict, collections.deque, functools.partial]
OWN += [kind for kind in CALENDAR + (decimal.Decimal,) if made_in_c(kind)]
OWN += [Color, Way, type(threading.Lock()), type(threading.RLock())]


def name(kind):
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else "%s.%s" % (module, kind.__qualname__)


def show(value, path=()):
    """As pyagent shows a value without any bounds: `repr`, with names of classes for what is derived."""
    kind = type(value)
    marks = [(list, "[...]"), (tuple, "(...)"), (dict, "{...}"), ((set, frozenset), "{...}")]
    if id(value) in path:
        return next(mark for of, mark in marks if isinstance(value, of))
    inside = path + (id(value),)
    items = lambda values: ", ".join(show(it, inside) for it in values)
    if value is None or kind is bool or value is Ellipsis or value is NotImplemented:
        return repr(value)
    if kind in OWN:
        return repr(value)
    if isinstance(value, type):
        return "<class '%s'>" % name(value)
    if isinstance(value, BaseException):
        comma = "," if len(value.args) == 1 and sys.version_info < (3, 7) else ""
        return "%s(%s%s)" % (name(kind), items(value.args), comma)
    if isinstance(value, (Queue, Ordered, Default, Space, Day)):
        shown = kind.__mro__[1].__repr__(value)
        return name(kind) + shown[shown.index("("):]
    base = None
    if isinstance(value, int):
        base = int
        n_digits = (value.bit_length() + 29) // 30
        sign = "negative " if value < 0 else ""
        text = "<%sint of %d bits>" % (sign, value.bit_length()) if n_digits > MAX_DIGITS else int.__repr__(value)
    elif isinstance(value, (float, complex, str, bytes, bytearray)):
        base = next(it for it in (float, complex, str, bytes, bytearray) if isinstance(value, it))
        text = base.__repr__(value)
    elif isinstance(value, list):
        base, text = list, "[%s]" % items(list.__iter__(value))
    elif isinstance(value, tuple):
        base, text = tuple, "(%s%s)" % (items(tuple.__iter__(value)), "," if len(value) == 1 else "")
    elif isinstance(value, dict):
        base = dict
        pairs = dict.items(value)
        text = "{%s}" % ", ".join("%s: %s" % (show(k, inside), show(v, inside)) for k, v in pairs)
    elif isinstance(value, (set, frozenset)):
        base = set if isinstance(value, set) else frozenset
        text = "{%s}" % items(value) if value else "set()"
        if kind is frozenset:
            text = "frozenset(%s)" % (text if value else "")
    else:
        return "<%s object at %s>" % (name(kind), hex(id(value)))
    return text if kind is base else "%s(%s)" % (name(kind), text)


TEXTS = ["", "word", "it's", '"both\'"', "a\\b", "line\n\ttab\r", "\x1b[31mred\x1b[0m", "\0\x7f\x9b", "na\xefve",
         "\u0416\u0443\u043a", "\u51fd\u6570", "\U0001f600", "\u202edrow\u202c", "\udcff", "\ue000", "\xa0\u2028"]


def scalar():
    choice = CHANCE.randrange(16)
    if choice < 3:
        return CHANCE.choice([None, True, False, Ellipsis, NotImplemented])
    if choice < 6:
        return CHANCE.choice([1, -1]) * CHANCE.getrandbits(CHANCE.choice([1, 8, 30, 31, 60, 64, 200]))
    if choice < 8:
        return struct.unpack("<d", struct.pack("<Q", CHANCE.getrandbits(64)))[0]
    if choice == 8:
        return CHANCE.choice([0.0, -0.0, 1e16, 1e-5, 0.1, 123456789.125, float("inf"), float("nan")])
    if choice == 9:
        return CHANCE.choice([1j, complex(-0.0, 2), complex(1.5, -2), complex(0, float("nan"))])
    if choice < 13:
        return CHANCE.choice(TEXTS) + CHANCE.choice(TEXTS)
    if choice == 13:
        return bytes(CHANCE.getrandbits(8) for _ in range(CHANCE.randrange(8)))
    if choice == 14:
        return CHANCE.choice([int, Plain, Plain.Inner, a_function, len, sys])
    return CHANCE.choice([Text("derived's"), Number(-7), Real(2.5), Plain(), Slotted(), bytearray(b"by'te"), Failed("x", 1)])


def hashable():
    while True:
        value = scalar()
        try:
            hash(value)
            return value
        except TypeError:
            pass


def nested(depth):
    if depth == 0 or CHANCE.random() < 0.4:
        return scalar()
    some = [nested(depth - 1) for _ in range(CHANCE.randrange(4))]
    choice = CHANCE.randrange(10)
    if choice < 3:
        return CHANCE.choice([list, Items])(some)
    if choice < 5:
        return CHANCE.choice([tuple, Pair])(some)
    if choice < 8:
        made = CHANCE.choice([dict, Bag])((hashable(), it) for it in some)
        made["gone"] = 1
        del made["gone"]
        return made
    if choice == 8:
        made = CHANCE.choice([set, Group])(hashable() for _ in some)
        made.add("gone")
        made.discard("gone")
        return made
    return CHANCE.choice([frozenset, Frozen])(hashable() for _ in some)


def circular():
    it = [1]
    it.append(it)
    both = {"self": it}
    both["both"] = both
    it.append((it, both))
    return it


def attributes():
    it = Plain()
    it.first, it.second = nested(1), nested(1)
    return vars(it)


def wait():
    WAIT.wait()


def plain(first, second=nested(2), *rest, key, **more):
    number, text = scalar(), CHANCE.choice(TEXTS)
    unbound = 1
    del unbound
    if not number and number is not number:
        never = 1
    deep = nested(4)
    wait()


def long_values(items=list(range(100000)), text="x'" * 3000, data=bytes(5000), many={n: n for n in range(50000)}):
    large, negative = 10 ** 5000, -10 ** 700
    group = set(range(30000))
    within = [["y" * 700, "z" * 700], items, items]
    deep = []
    for _ in range(40):
        deep = [deep]
    swept = dict.fromkeys(range(20000))
    for n in range(19990):
        del swept[n]
    wait()


def callables():
    instance = Called()
    function, inner, method, of_class = a_function, a_function(), instance.method, instance.of_class
    of_number = types.MethodType(len, 3)
    of_instance = types.MethodType(instance, [1])
    builtin, of_list, of_type, of_derived = len, [].append, dict.fromkeys, Bag().get
    generator, coroutine, later = instance.generate(), a_coroutine(), an_async_generator()
    expression = (it for it in ())
    code, static, classy = a_function.__code__, staticmethod(len), classmethod(a_function)
    cell = (lambda it: lambda: it)(instance).__closure__[0]
    partial = functools.partial(int, "7", base=8)
    partials = functools.partial(partial, [1], key=(2,), other={"a": None})
    bare = functools.partial(len)
    names = [len, {"f": a_function}, (instance.method,), repr, print]
    wait()
    coroutine.close()


def modules():
    system, frozen, script, builtin, path = sys, importlib._bootstrap, sys.modules["__main__"], sys.modules["builtins"], os
    package, archive, encodings = collections, zipimport, sys.modules["encodings"]
    sys.path.append(tempfile.mkdtemp())
    folder = os.path.join(sys.path[-1], "without_a_file")
    os.mkdir(folder)
    without_a_file = importlib.import_module("without_a_file")
    os.rmdir(folder)
    os.rmdir(sys.path[-1])
    made, empty = types.ModuleType("made"), types.ModuleType.__new__(types.ModuleType)
    told = types.ModuleType("told")
    told.__file__ = "/nowhere/it's.py"
    loaded = types.ModuleType("loaded")
    loaded.__loader__ = 5
    of_spec = types.ModuleType("of spec")
    of_spec.__spec__ = importlib.machinery.ModuleSpec("other", None, origin="somewhere")
    bare_spec = types.ModuleType("bare spec")
    bare_spec.__spec__ = importlib.machinery.ModuleSpec("bare", None)
    loader_spec = types.ModuleType("loader spec")
    loader_spec.__spec__ = importlib.machinery.ModuleSpec("by", 7)
    wait()


def collected():
    few, steps, down, huge = range(3), range(1, 9, 2), range(9, 1, -1), range(10 ** 30)
    cut, mixed = slice(1, None, 2), slice("a", (1, [2]), None)
    table = {"a": 1, 2: [3], None: (4,)}
    keys, values, items, none = table.keys(), table.values(), table.items(), {}.items()
    proxy, proxies = types.MappingProxyType(table), [types.MappingProxyType({})]
    space, nothing = types.SimpleNamespace(b=1, a="it's", c=[2]), types.SimpleNamespace()
    space.again = space
    derived_space = Space(x=1)
    counts = collections.defaultdict(int, table)
    lists, plain_default = collections.defaultdict(list), collections.defaultdict()
    lists["own"].append(lists)
    derived_default = Default(a_function, {1: 2})
    queue, bounded, empty = collections.deque([1, "two"]), collections.deque(range(9), 4), collections.deque()
    rotated = collections.deque(range(40))
    rotated.rotate(17)
    moved = collections.deque(range(70))
    for n in range(63):
        moved.popleft()
        moved.append(n)
    moved.extend([moved])
    derived_queue = Queue([1], 5)
    ordered = collections.OrderedDict([("a", 1), ("b", [2]), ("c", 3), ("gone", 4), ("d", 5)])
    ordered.move_to_end("a")
    ordered.move_to_end("d", last=False)
    del ordered["gone"]
    no_order, derived_order = collections.OrderedDict(), Ordered(x=1, y=2)
    ordered_keys, ordered_values, ordered_items = ordered.keys(), ordered.values(), ordered.items()
    errors = [ValueError("x"), KeyError(), OSError(2, "no"), SystemExit(1, 2)]
    color, colors, level, way = Color.RED, [Color.BLUE], Level.LOW, Way.UP
    lock, held, again, twice = threading.Lock(), threading.Lock(), threading.RLock(), threading.RLock()
    held.acquire()
    twice.acquire()
    twice.acquire()
    thing, attribute, iterator, prop = object(), Plain(), iter([]), property(len)
    wait()


def calendar():
    date, first, derived = datetime.date(2026, 11, 23), datetime.date.min, Day(2000, 2, 29)
    whole, seconds = datetime.datetime(2026, 11, 23, 4, 5), datetime.datetime(1, 2, 3, 4, 5, 6)
    micros, last = datetime.datetime(2026, 1, 2, 3, 4, 0, 70000), datetime.datetime.max
    utc = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
    folded = datetime.datetime(2026, 1, 2, 3, 4, 5, fold=1, tzinfo=datetime.timezone(datetime.timedelta(0, 3600), "it's"))
    time, late = datetime.time(1, 2), datetime.time(23, 59, 59, 999999, datetime.timezone(datetime.timedelta(hours=-3)))
    zero, day, all_fields = datetime.timedelta(), datetime.timedelta(1), datetime.timedelta(1, 2, 3)
    less, tiny = datetime.timedelta(-1), datetime.timedelta(microseconds=5)
    zone, unnamed = datetime.timezone.utc, datetime.timezone(datetime.timedelta(minutes=30))
    texts = "0 -0 1.5 100 1E+3 1E-7 0.000001 -0.00000123 12345678901234567890123.4567 Infinity -NaN NaN12 sNaN 0E+2 0.00 1.2E-9"
    decimals = [decimal.Decimal(text) for text in texts.split()][:8]
    more_decimals = [decimal.Decimal(text) for text in texts.split()][8:]
    wait()


def long_collections():
    many = dict.fromkeys(range(5000))
    keys, values, items, proxy = many.keys(), many.values(), many.items(), types.MappingProxyType(many)
    queue, default = collections.deque(range(9999)), collections.defaultdict(int, many)
    order = collections.OrderedDict(many)
    order.move_to_end(0)
    space = types.SimpleNamespace(**{"n%d" % n: n for n in range(500)})
    partial = functools.partial(int, *range(5000))
    wait()


def cells(argument, other):
    value = nested(2)

    def inner(own):
        nonlocal value
        seen = (argument, value)
        wait()

    value = nested(3)
    later = lambda: not_yet
    inner(nested(1))
    not_yet = 1


def generating(of):
    for it in of:
        yield it
        wait()


def comprehending(items):
    return [(wait(), it) for it in items if it]


def repeated(n, kept):
    if n == 0:
        wait()
    else:
        repeated(n - 1, (n, kept))


def with_class(name):
    class Body:
        attribute = name
        wait()


class Owner:
    def method(self, circle=circular(), attributes=attributes()):
        super().__init__()
        try:
            raise Failed("why", nested(1))
        except ValueError as error:
            wait()

    @classmethod
    def of_class(cls, *args):
        wait()


NAMED = [
    ("plain", lambda: plain(nested(2), key=nested(3), extra=scalar())),
    ("rest", lambda: plain(scalar(), scalar(), *[nested(1) for _ in range(3)], key=1, a=scalar(), b=nested(1))),
    ("long", long_values),
    ("callables", callables),
    ("modules", modules),
    ("collected", collected),
    ("calendar", calendar),
    ("long collections", long_collections),
    ("cells", lambda: cells(nested(2), other=scalar())),
    ("generating", lambda: list(generating([nested(2), 3]))),
    ("comprehending", lambda: comprehending((nested(2), 1, nested(2)))),
    ("repeated", lambda: repeated(5, "kept")),
    ("class", lambda: with_class("called")),
    ("method", lambda: Owner().method()),
    ("of class", lambda: Owner.of_class(nested(2), nested(2))),
]
THREADS = [threading.Thread(target=run, name=called, daemon=True) for called, run in NAMED]


def frames(thread):
    frame = sys._current_frames()[thread.ident]
    found = []
    while frame is not None:
        own = frame.f_locals if frame.f_code.co_flags & OPTIMIZED else {}
        shown = {called: [name(type(value)), show(value)] for called, value in dict(own).items()}
        found.append([frame.f_code.co_name, shown])
        frame = frame.f_back
    return found


def is_waiting(thread):
    frame = sys._current_frames().get(thread.ident)
    names = []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    # Condition.wait below Event.wait below ours.
    return names[:3] == ["wait", "wait", "wait"]


for thread in THREADS:
    # One after the other: who draws which values is decided.
    thread.start()
    while not is_waiting(thread):
        threading.Event().wait(0.005)
threading.Event().wait(0.05)
print("ready", flush=True)
for _ in sys.stdin:
    print(json.dumps({thread.name: frames(thread) for thread in THREADS}), flush=True)

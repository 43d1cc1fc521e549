"""Blocks in one deep stack of every kind of frame, in two threads, each having printed that stack itself.

A line of JSON a thread: its ident, and [file, line, name] of every frame, leaf first, as `traceback` has them.
Then it waits until standard input closes.
"""
import functools
import json
import os
import sys
import threading
import traceback

reading, writing = os.pipe()
printing = threading.Lock()


def show(frame):
    stack = [
        (f.f_code.co_filename, line, getattr(f.f_code, "co_qualname", f.f_code.co_name))
        for f, line in traceback.walk_stack(frame)
    ]
    with printing:
        print(json.dumps({"ident": threading.get_ident(), "stack": stack}), flush=True)


def leaf():
    show(sys._getframe()), os.read(reading, 1)


class Outer:
    class Inner:
        def __init__(self, then):
            if then:
                then()

        @property
        def value(self):
            return leaf()

        def method(self):
            return self.value

    @staticmethod
    def static():
        return Outer.Inner(None).method()

    @classmethod
    def of_class(cls):
        return cls.static()


def by_name(наименование):
    def 内部の関数():
        return наименование()

    return 内部の関数()


def by_generator(then):
    def inner():
        yield 1
        yield then()

    def outer():
        yield from inner()

    return list(outer())


def by_coroutine(then):
    async def inner():
        return then()

    async def outer():
        return await inner()

    try:
        outer().send(None)
    except StopIteration:
        pass


def by_exec(then):
    code = compile("def made():\n\n    then()\nmade()\n", "<made é 数>", "exec")
    exec(code, {"then": then})


def by_class_body(then):
    class Body:
        then()


def by_init(then):
    # Often enough that 3.12 and newer specialise the call and put a frame of their own below __init__.
    for _ in range(1000):
        Outer.Inner(None)
    for i in range(3):
        Outer.Inner(then if i == 2 else None)


def by_c(then):
    sorted([2, 1], key=lambda _: functools.partial(max, [1], key=lambda _: then())())


def by_comprehension(then):
    return [[then() for _ in range(1)] for _ in range(1)]


def by_many_locals(then):
    a = b = c = d = e = f = g = h = i = j = k = l = m = n = o = p = q = r = s = t = 1
    return then(), a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t


def recurse(depth, then):
    if depth == 0:
        return then()
    if depth % 7 == 0:
        return by_many_locals(lambda: recurse(depth - 1, then))
    return recurse(depth - 1, then)


WAYS = [by_name, by_generator, by_coroutine, by_exec, by_class_body, by_init, by_c, by_comprehension]


def all_ways(idx):
    if idx == len(WAYS):
        return Outer.of_class()
    return recurse(40, lambda: WAYS[idx](lambda: all_ways(idx + 1)))


threading.Thread(target=all_ways, args=(0,), daemon=True).start()
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
all_ways(0)

"""Loops whose bytecode is stepped through by tests/leaf.rs. Runs on 3.11 and newer.

Prints one line of JSON: the address of this thread's PyThreadState, that of the evaluation loop, and for
each code object of this file its address, co_code's offset in it (argument 2), its number of code units and
the line of each. Then it runs the loop named by argument 1 until it is killed.
"""

import ctypes
import itertools
import json
import operator
import sys


def arithmetic():
    a, b, c = 3, 4, 5.5
    for i in range(1000):
        d = a + i
        e = d - b
        f = e * 3
        g = c * 2.5
        h = g + c
        a = (f ^ e) & 1023
        if a > b:
            b = a % 7 + 1
        else:
            b = d | 1
        c = h - g
        k = -a
        b += k == e


def statements():
    for _ in range(1000):
        v = 1
        w = 2
        x = v
        y = w
        v = 3
        w = x
        x = None
        y = 5
        v = 6
        w = 7
        x = 8
        y = v


class Point:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x = x
        self.y = y

    def norm(self):
        return (
            self.x * self.x
            + self.y * self.y
        )


def fib(n):
    if n < 2:
        return n
    left = fib(
        n - 1
    )
    right = fib(n - 2)
    return (
        left
        + right
    )


def generate(n):
    i = 0
    while i < n:
        got = (
            yield
            i
        )
        i += 1


def delegate(n):
    yield from generate(n)


def fail(n):
    try:
        if n % 2:
            raise ValueError(n)
        return n
    except ValueError as error:
        return len(
            error.args
        )
    finally:
        n = 0


def calls():
    total = 0
    for i in range(50):
        total += fib(3)
        p = Point(i, total & 255)
        total += p.norm()
        for j in generate(3):
            total ^= j
        total += sum(delegate(2))
        total += fail(i)
        squares = [
            k * k
            for k in (1, 2, 3)
        ]
        names = {str(k): k for k in squares}
        a, *rest = squares
        text = f"{a}-{rest[0]}"
        total += len(
            text
        )
        add = lambda left, right=1: (
            left
            + right
        )
        total = add(
            total,
            right=names["4"],
        ) & 0xFFFF


def code_objects(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            yield from code_objects(constant)


def describe(code, code_offset):
    lines = list(map(operator.itemgetter(0), code.co_positions()))
    return {"address": id(code), "first": id(code) + code_offset, "lines": lines, "first_line": code.co_firstlineno}


def main():
    name, code_offset = sys.argv[1], int(sys.argv[2])
    workload = {"arithmetic": arithmetic, "statements": statements, "calls": calls}[name]
    functions = [arithmetic, statements, Point.__init__, Point.norm, fib, generate, delegate, fail, calls]
    codes = itertools.chain.from_iterable(code_objects(function.__code__) for function in functions)
    current = ctypes.pythonapi.PyThreadState_Get
    current.restype = ctypes.c_void_p
    evaluate = ctypes.cast(ctypes.pythonapi._PyEval_EvalFrameDefault, ctypes.c_void_p)
    # The interpreter specialises code that runs often: let it do so first.
    for _ in range(20):
        workload()
    description = {
        "thread_state": current(),
        "eval": evaluate.value,
        "codes": [describe(code, code_offset) for code in codes],
    }
    print(json.dumps(description), flush=True)
    while True:
        workload()


main()

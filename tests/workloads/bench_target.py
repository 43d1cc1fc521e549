"""The busy process of the benchmark: a stack of a known depth whose leaf does the same work again and again.

Arguments: the kind of stack (`recursion` or `functions`), its depth in frames with the module's and the
leaf's, the number of idle threads. Prints `ready`, then obeys lines on stdin:

    time N                the fewest nanoseconds that a piece of N rounds took, of some pieces
    pieces N SECONDS      pieces of N rounds for SECONDS: fewest and mean nanoseconds of a piece
    spin                  works until it is killed, or its parent has gone
"""

import os
import sys
import threading
import time


def work(n_rounds):
    value = 1
    for index in range(n_rounds):
        value = (value * 3 + index) & 0xFFFF
    return value


def timed_pieces(n_rounds, seconds, at_least):
    clock = time.perf_counter_ns
    pieces = []
    end = clock() + int(seconds * 1e9)
    while clock() < end or len(pieces) < at_least:
        begun = clock()
        work(n_rounds)
        pieces.append(clock() - begun)
    pieces.sort()
    return pieces


def serve():
    print("ready", flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "time":
            print(timed_pieces(int(arguments[0]), 0, 50)[0], flush=True)
        elif command == "pieces":
            pieces = timed_pieces(int(arguments[0]), float(arguments[1]), 1)
            print(pieces[0], sum(pieces) / len(pieces), flush=True)
        elif command == "spin":
            # Before all others on its CPU: it must not outlive who measures.
            parent = os.getppid()
            while os.getppid() == parent:
                work(20_000)


def descend(n_more):
    if n_more == 0:
        return serve()
    return descend(n_more - 1)


def different_functions(n_functions):
    """The first of a chain of functions, each of which calls the next; the last one serves."""
    lines = ["def f0():", "    return serve()"]
    for index in range(1, n_functions):
        lines += [f"def f{index}():", f"    return f{index - 1}()"]
    namespace = {"serve": serve}
    exec("\n".join(lines), namespace)
    return namespace[f"f{n_functions - 1}"]


def start_idle_threads(n_threads):
    threading.stack_size(128 * 1024)
    never = threading.Event()
    for _ in range(n_threads):
        threading.Thread(target=never.wait, daemon=True).start()


kind, depth, n_threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
start_idle_threads(n_threads)
# The module, serve and work are frames too.
n_links = depth - 3
if kind == "recursion":
    descend(n_links - 1)
else:
    different_functions(n_links)()

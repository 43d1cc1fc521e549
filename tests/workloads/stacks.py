"""Threads that wait in different ways and one that runs; on a line of input it says what the interpreter says of their
stacks: by name of the thread its id, and its frames, innermost first."""
import ctypes
import json
import os
import platform
import sys
import threading
import time

GETTID = {"x86_64": 186, "aarch64": 178}[platform.machine()]
syscall = ctypes.CDLL(None).syscall
tids = {}


class Sleeper:
    def outer(self):
        return [self.middle() for _ in range(1)]

    def middle(self):
        inner = lambda: time.sleep(1000)
        inner()


def lock_twice(lock):
    with lock:
        lock.acquire()


def read(pipe):
    yield os.read(pipe, 1)


def step(n):
    total = 0
    for i in range(n):
        total += i
    return total


def spin():
    while True:
        step(50)


def recurse(depth):
    if depth:
        recurse(depth - 1)
    else:
        time.sleep(1000)


def run(ready, function, *arguments):
    tids[threading.current_thread().name] = syscall(GETTID)
    ready.set()
    function(*arguments)


def start(name, function, *arguments):
    ready = threading.Event()
    thread = threading.Thread(target=run, name=name, args=(ready, function) + arguments, daemon=True)
    thread.start()
    ready.wait()


def frames(frame):
    while frame is not None:
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        yield [name, code.co_filename, frame.f_lineno, code.co_firstlineno]
        frame = frame.f_back


tids["MainThread"] = syscall(GETTID)
start("sleeper", Sleeper().outer)
start("locker", lock_twice, threading.Lock())
start("reader", list, read(os.pipe()[0]))
start("deep", recurse, 500)
start("spinner", spin)
names = {thread.ident: thread.name for thread in threading.enumerate()}
# Until they are where they stay.
time.sleep(0.3)
print("ready", flush=True)
for line in sys.stdin:
    stacks = {names[ident]: list(frames(frame)) for ident, frame in sys._current_frames().items()}
    print(json.dumps({"tids": tids, "stacks": stacks}), flush=True)

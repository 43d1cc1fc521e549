"""Several interpreters in a process: one works in a thread of its own, two take turns in the main thread."""

import os
import sys
import threading

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, FOLDER)

import work

try:
    import _interpreters

    def create():
        return _interpreters.create("legacy")

    run = _interpreters.exec
except ImportError:
    import _xxsubinterpreters

    create = _xxsubinterpreters.create
    run = _xxsubinterpreters.run_string

SOURCE = """
import sys
sys.path.insert(0, %r)
import work
def %s():
    work.spin(%f)
%s()
"""


def source(name, seconds):
    return SOURCE % (FOLDER, name, seconds, name)


def own_thread(other):
    # Up to 3.12 it runs with the state of the thread that created the interpreter.
    run(other, source("alone", 600.0))


def take_turns():
    others = {"first": create(), "second": create()}
    while True:
        for name, other in others.items():
            run(other, source(name, 0.3))
        work.spin(0.3)


threading.Thread(target=own_thread, args=(create(),)).start()
take_turns()

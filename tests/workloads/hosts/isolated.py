"""Interpreters with a GIL of their own: some in which nothing runs, one that works in a thread, and, where there are pools
of them, one that works in a pool. The main thread works too."""

import os
import sys
import threading

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, FOLDER)

import _interpreters
import work

SOURCE = """
import sys
sys.path.insert(0, %r)
import work
def %s():
    work.spin()
%s()
"""


def source(name):
    return SOURCE % (FOLDER, name, name)


def in_thread(other):
    _interpreters.exec(other, source("alone"))


def in_pool():
    from concurrent.futures import InterpreterPoolExecutor

    pool = InterpreterPoolExecutor(1)
    pool.submit(exec, source("pooled"), {})


threading.Thread(target=in_thread, args=(_interpreters.create(),)).start()
if sys.version_info >= (3, 14):
    in_pool()
idle = [_interpreters.create(), _interpreters.create("legacy")]
work.spin()

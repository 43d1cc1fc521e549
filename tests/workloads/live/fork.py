"""Children by `fork`: `os.fork`, `multiprocessing` and a pool of it, and a child of a child."""

import multiprocessing
import os

from harness import run

CONTEXT = multiprocessing.get_context("fork")
run.passes_left = 11


def spin():
    total = 0
    for number in range(60_000):
        total += number & 3
    return total


def announce():
    run.legal.append({"pid": os.getpid()})


def bare_child():
    announce()
    # Long enough to be looked at while it is there: what it alone runs can be read only then.
    for _ in range(5):
        spin()


def process_child():
    announce()
    child = CONTEXT.Process(target=grandchild)
    child.start()
    spin()
    child.join()


def grandchild():
    announce()
    spin()


def by_os_fork():
    pid = os.fork()
    if pid == 0:
        bare_child()
        os._exit(0)
    os.waitpid(pid, 0)


def by_multiprocessing():
    child = CONTEXT.Process(target=process_child)
    child.start()
    spin()
    child.join()


def body():
    by_os_fork()
    by_multiprocessing()

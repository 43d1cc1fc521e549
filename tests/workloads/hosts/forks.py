"""A program with threads whose child goes on alone."""

import os
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import work


def parent():
    work.spin()


def child():
    work.spin()


for _ in range(3):
    threading.Thread(target=parent, daemon=True).start()
if os.fork() == 0:
    child()
os.wait()

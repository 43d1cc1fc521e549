"""Greenlets that switch their stacks all the time, in one thread. `sys.path` has the package."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import greenlet
import work

main = greenlet.getcurrent()


def even():
    while True:
        work.spin(0.0005)
        main.switch()


def odd(depth=5):
    if depth > 0:
        odd(depth - 1)
    while True:
        work.spin(0.0005)
        main.switch()


def switch():
    members = [greenlet.greenlet(even), greenlet.greenlet(odd)]
    while True:
        for member in members:
            member.switch()


switch()

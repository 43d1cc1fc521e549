"""A program whose main thread has ended, as with pthread_exit(3): only the others have memory that /proc shows."""

import ctypes
import os
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import work


def main_has_ended():
    with open("/proc/self/task/%d/stat" % os.getpid()) as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"


def worker():
    while not main_has_ended():
        time.sleep(0.01)
    work.spin()


threading.Thread(target=worker).start()
ctypes.CDLL(None).pthread_exit(None)

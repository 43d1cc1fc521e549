"""An interpreter that shuts down: its main module has ended, a handler of its end works."""

import atexit
import os
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import work


def at_exit():
    work.spin()


threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
atexit.register(at_exit)

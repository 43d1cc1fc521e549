"""A tree of processes: a program that starts programs that start programs, each alive for a moment."""

import os
import subprocess
import sys

from harness import run

CHILD = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "tree_child.py")
run.passes_left = 1


def body():
    child = subprocess.Popen([sys.executable, CHILD, run.legal.path, "2"])
    child.wait()

"""Work three functions deep, for tests/tests/kernel/hosts.rs, that says which stacks are true.

The innermost function notes its whole stack once, from its own call site: what is sampled later is one of the
noted stacks or the outer part of one. A line of JSON for each goes to `$HOST_OUT/<pid>`: from the innermost frame
to the outermost its name, file, first line, line, and for the first frame all lines that its code has.
"""

import dis
import json
import os
import sys
import time

# What notes are written to is the same after some.
notes_left = 20


def lines(code):
    """All lines of a code object, as the interpreter says them."""
    found = {line for _, _, line in code.co_lines()} if hasattr(code, "co_lines") else set()
    found.update(line for _, line in dis.findlinestarts(code))
    found.add(code.co_firstlineno)
    return sorted(line for line in found if line)


def note(frame):
    global notes_left
    if notes_left == 0:
        return
    notes_left -= 1
    frames = []
    while frame is not None:
        code = frame.f_code
        name = getattr(code, "co_qualname", code.co_name)
        frames.append([name, code.co_filename, code.co_firstlineno, frame.f_lineno, lines(code)])
        frame = frame.f_back
    path = os.path.join(os.environ["HOST_OUT"], str(os.getpid()))
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(out, json.dumps(frames).encode() + b"\n")
    os.close(out)


def innermost(is_noted):
    if not is_noted:
        note(sys._getframe())
    total = 0
    for number in range(2000):
        total += number & 3
    return True


def middle(is_noted):
    for _ in range(20):
        is_noted = innermost(is_noted)
    return True


def spin(seconds=600.0):
    end = time.monotonic() + seconds
    is_noted = False
    while time.monotonic() < end:
        is_noted = middle(is_noted)

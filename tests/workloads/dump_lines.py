"""Writes the line table of every code object of the standard library, and what this interpreter itself says
of every instruction's line, to stdout. Runs on 3.6 and newer. What is written is read by tests/lines.rs.

Each code object is: u32 co_firstlineno, u32 length of the table, the table, u32 number of runs, and for each
run u32 number of code units and i32 line (-1: no line). A first line of 0xffffffff ends the stream; a u32
number of files follows that were compiled. All little-endian.
"""

import dis
import os
import struct
import sys
from itertools import groupby
from operator import itemgetter


def runs_of(code):
    """(number of code units, line or None) for all code units, in order, by the interpreter's own words."""
    if sys.version_info >= (3, 11):
        # One item for each code unit, inline caches included.
        lines = map(itemgetter(0), code.co_positions())
        return [(sum(1 for _ in group), line) for line, group in groupby(lines)]
    if sys.version_info >= (3, 10):
        return [((end - start) // 2, line) for start, end, line in code.co_lines()]
    starts = list(dis.findlinestarts(code))
    ends = [start for start, _ in starts[1:]] + [len(code.co_code)]
    return [((end - start) // 2, line) for (start, line), end in zip(starts, ends)]


def dump(code, out):
    table = code.co_linetable if sys.version_info >= (3, 10) else code.co_lnotab
    runs = runs_of(code)
    assert sum(n_units for n_units, _ in runs) * 2 == len(code.co_code), code
    numbers = []
    for n_units, line in runs:
        numbers += (n_units, -1 if line is None else line)
    out.write(struct.pack("<II", code.co_firstlineno, len(table)))
    out.write(table)
    out.write(struct.pack("<I%di" % len(numbers), len(runs), *numbers))
    for constant in code.co_consts:
        if isinstance(constant, type(code)):
            dump(constant, out)


def main():
    # Some of the library's tests nest expressions deeply.
    sys.setrecursionlimit(5000)
    out = sys.stdout.buffer
    n_files = 0
    for folder, folders, files in os.walk(os.path.dirname(os.__file__)):
        folders[:] = sorted(set(folders) - {"site-packages", "dist-packages", "__pycache__"})
        for name in sorted(files):
            if not name.endswith(".py"):
                continue
            path = os.path.join(folder, name)
            with open(path, "rb") as source:
                text = source.read()
            try:
                code = compile(text, path, "exec", dont_inherit=True)
            except (SyntaxError, ValueError, UnicodeDecodeError):
                continue  # lib2to3 and the tests have files that are not meant to compile.
            dump(code, out)
            n_files += 1
    out.write(struct.pack("<II", 0xFFFFFFFF, n_files))


main()

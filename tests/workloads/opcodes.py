"""Prints the opcodes of the interpreter that runs it, as profiler-agent/src/python/opcodes/*.txt has them.

A line each: number, name, entries of inline cache behind it, number of the opcode that it is a form of. A question mark: what
it stands for is not in the bytecode. Made anew by, for example,

    python3.12 -IS tests/workloads/opcodes.py > profiler-agent/src/python/opcodes/3.12.txt
"""

import dis
import opcode
import sys

# What stands where another instruction was, which CPython keeps elsewhere.
IN_PLACE_OF_ANY = ("INSTRUMENTED_LINE", "INSTRUMENTED_INSTRUCTION", "ENTER_EXECUTOR", "RESERVED")

# Up to 3.10 there is nothing but what `opmap` has; 3.11 and 3.12 list the specialized forms in `dis` alone.
numbers = dict(getattr(dis, "_all_opmap", opcode.opmap))
numbers.update(opcode.opmap)
numbers.update(getattr(opcode, "_specialized_opmap", {}))
numbers = {name: number for name, number in numbers.items() if number < 256}

base_of = {}
for base, forms in getattr(opcode, "_specializations", {}).items():
    for form in forms:
        base_of[form] = base
for name in numbers:
    if name.startswith("INSTRUMENTED_") and name not in IN_PLACE_OF_ANY:
        base_of[name] = name[len("INSTRUMENTED_"):]

# By number in 3.11 and 3.12, by name since.
cache = getattr(opcode, "_inline_cache_entries", {})


def n_cache_entries(name):
    if name in IN_PLACE_OF_ANY:
        return "?"
    return cache.get(name, 0) if hasattr(cache, "get") else cache[numbers[name]]


print("# CPython %d.%d: number, name, cache entries, form of" % sys.version_info[:2])
for name, number in sorted(numbers.items(), key=lambda it: it[1]):
    base = base_of.get(name, name)
    print(number, name, n_cache_entries(base), numbers[base])

"""Allocates amounts that are known, one a function, when it is told to; then says how much, and waits.

Says by function: allocations from malloc and their bytes, those of them that are kept, the bytes of small objects that
are kept, and the bytes of arenas that the interpreter took for them, by its own count. Sizes are those of the objects as `sys.getsizeof` has them: what CPython asks its allocator for.
"""
import ctypes
import json
import os
import re
import sys
import tempfile

COUNT = 3000
SIZE = 20000
PIECE = bytes(50000)
kept = [None] * (8 * COUNT)
rows = [None] * 700000


class Row(object):
    __slots__ = ("first", "second")


def small():
    for n in range(700000):
        row = Row()
        rows[n] = row
    # The collector's head is in front of each.
    return [0, 0, 0, 0, 700000 * (sys.getsizeof(rows[0]) + 15 & ~15)]


def big():
    kept[0] = bytearray(256 << 20)
    return [1, 256 << 20, 1, 256 << 20, 0]


def churn():
    for n in range(10 * COUNT):
        block = bytearray(SIZE)
        block = None
    return [10 * COUNT, 10 * COUNT * SIZE, 0, 0, 0]


def keep():
    for n in range(COUNT):
        kept[n + 1] = bytearray(SIZE)
    return [COUNT, COUNT * SIZE, COUNT, COUNT * SIZE, 0]


def halve():
    for n in range(2 * COUNT):
        kept[2 * COUNT + n] = bytearray(SIZE)
    for n in range(COUNT):
        kept[2 * COUNT + 2 * n] = None
    return [2 * COUNT, 2 * COUNT * SIZE, COUNT, COUNT * SIZE, 0]


def grow():
    # Each step is a new allocation of the whole.
    data = bytearray(1)
    n_allocations = n_bytes = 0
    before = 0
    for n in range(400):
        data.extend(PIECE)
        size = sys.getsizeof(data)
        if size != before:
            before = size
            n_allocations += 1
            n_bytes += size
    kept[-1] = data
    return [n_allocations, n_bytes, 1, before, 0]


def touch(address, size):
    # What is in use is resident, so that most is resident when most is in use: at the end.
    ctypes.memset(address, 1, size)


def native():
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.calloc.restype = ctypes.c_void_p
    library.calloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    library.realloc.restype = ctypes.c_void_p
    library.realloc.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    library.posix_memalign.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    place = ctypes.c_void_p()
    for n in range(500):
        touch(library.malloc(SIZE), SIZE)
        touch(library.calloc(10, SIZE // 10), SIZE)
        library.free(library.malloc(SIZE))
        touch(library.realloc(library.malloc(SIZE), 2 * SIZE), 2 * SIZE)
        library.posix_memalign(ctypes.byref(place), 64, SIZE)
        touch(place, SIZE)
        touch(library.realloc(None, SIZE), SIZE)
    return [3500, 4000 * SIZE, 2500, 3000 * SIZE, 0]


def aligned():
    library = ctypes.CDLL(None)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    place = pointer()
    library.posix_memalign.argtypes = [pointer, size, size]
    library.free.argtypes = [pointer]
    n_allocations = 0
    for name, arguments in (
        ("memalign", (64, SIZE)),
        ("aligned_alloc", (32, SIZE)),
        ("valloc", (SIZE,)),
        ("pvalloc", (SIZE,)),
        ("reallocarray", (None, 10, SIZE // 10)),
    ):
        function = getattr(library, name)
        function.restype = pointer
        function.argtypes = [pointer if it is None else size for it in arguments]
        for n in range(500):
            touch(function(*arguments), SIZE)
        n_allocations += 500
    for n in range(500):
        library.posix_memalign(ctypes.byref(place), 4096, SIZE)
        library.free(place)
    return [n_allocations + 500, (n_allocations + 500) * SIZE, n_allocations, n_allocations * SIZE, 0]


def of_cpp(library, name, *arguments):
    """A function of libstdc++, or of the allocator that takes its place, with arguments of so many bits."""
    function = getattr(library, name)
    function.restype = ctypes.c_void_p
    function.argtypes = arguments
    return function


def operators():
    # C++'s, which other allocators have of their own. libstdc++'s call malloc.
    try:
        ctypes.CDLL("libstdc++.so.6", ctypes.RTLD_GLOBAL)
    except OSError:
        return [0, 0, 0, 0, 0]
    # What comes first in the process counts, as it does for an extension that is written in C++.
    library = ctypes.CDLL(None)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    make = [
        (of_cpp(library, "_Znwm", size), ()),
        (of_cpp(library, "_Znam", size), ()),
        (of_cpp(library, "_ZnwmRKSt9nothrow_t", size, pointer), (0,)),
        (of_cpp(library, "_ZnwmSt11align_val_t", size, size), (64,)),
        (of_cpp(library, "_ZnamSt11align_val_t", size, size), (64,)),
        (of_cpp(library, "_ZnwmSt11align_val_tRKSt9nothrow_t", size, size, pointer), (64, 0)),
    ]
    drop = [
        (of_cpp(library, "_ZdlPv", pointer), ()),
        (of_cpp(library, "_ZdaPvm", pointer, size), (SIZE,)),
        (of_cpp(library, "_ZdlPvRKSt9nothrow_t", pointer, pointer), (0,)),
        (of_cpp(library, "_ZdlPvmSt11align_val_t", pointer, size, size), (SIZE, 64)),
        (of_cpp(library, "_ZdaPvmSt11align_val_t", pointer, size, size), (SIZE, 64)),
        (of_cpp(library, "_ZdlPvSt11align_val_tRKSt9nothrow_t", pointer, size, pointer), (64, 0)),
    ]
    for n in range(500):
        for (new, more), (delete, with_it) in zip(make, drop):
            touch(new(SIZE, *more), SIZE)
            delete(new(SIZE, *more), *with_it)
    return [6000, 6000 * SIZE, 3000, 3000 * SIZE, 0]


def arena_bytes():
    """Bytes of all arenas that were ever taken (Objects/obmalloc.c, `_PyObject_DebugMallocStats`); None without arenas."""
    with tempfile.TemporaryFile() as file:
        errors = os.dup(2)
        os.dup2(file.fileno(), 2)
        sys._debugmallocstats()
        os.dup2(errors, 2)
        os.close(errors)
        file.seek(0)
        text = file.read().decode().replace(",", "")
    total = re.search(r"# arenas allocated total += +(\d+)", text)
    size = re.search(r"(\d+) bytes/arena", text)
    return int(total.group(1)) * int(size.group(1)) if total and size else None


def room():
    """Pools of every size (Objects/obmalloc.c: 512 bytes at most, one size each 16) with free places that are never all
    that is used of them: else an object that comes and goes could take a pool each time, or an arena, and give it back."""
    objects = [bytes(size - sys.getsizeof(b"")) for size in range(48, 513, 16) for n in range(64)]
    objects += [n + 0.5 for n in range(64)] + [n + (1 << 20) for n in range(64)]
    del objects[::2]
    return objects


def measured(work):
    places = room()
    before = arena_bytes()
    amounts = work()
    after = arena_bytes()
    return [work.__name__, amounts + [-1 if None in (before, after) else after - before]]


# What it needs itself is taken before.
arena_bytes()
WORKS = (small, big, churn, keep, halve, grow, native, aligned, operators)
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([measured(work) for work in WORKS]), flush=True)
sys.stdin.readline()

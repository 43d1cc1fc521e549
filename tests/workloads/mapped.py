"""Maps amounts that are known, one a function, when it is told to; then says how much, and waits.

Says by function: mappings and their bytes, those of them that are kept, and the bytes that are kept of them.
"""
import ctypes
import json
import mmap
import sys

MIB = 1 << 20
PAGE = 4096
kept = []

libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.sbrk.restype = ctypes.c_void_p
libc.sbrk.argtypes = [ctypes.c_long]
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def map_pages(n_bytes, protection=READ_WRITE, flags=PRIVATE, address=None):
    return libc.mmap(address, n_bytes, protection, flags, -1, 0)


def anonymous():
    for n in range(40):
        memory = mmap.mmap(-1, 4 * MIB)
        if n % 2:
            kept.append(memory)
        else:
            memory.close()
    return [40, 160 * MIB, 20, 80 * MIB]


def arrays():
    # The C library maps each one, with a header.
    for n in range(10):
        kept.append(bytearray(48 * MIB))
    return [10, 10 * (48 * MIB + PAGE), 10, 10 * (48 * MIB + PAGE)]


def in_parts():
    for n in range(8):
        start = map_pages(16 * MIB)
        # From the middle, and from both ends at once with a neighbour that is not there.
        libc.munmap(start + 4 * MIB, 2 * MIB)
        libc.munmap(start, MIB)
        libc.munmap(start + 15 * MIB, MIB)
    return [8, 128 * MIB, 8, 96 * MIB]


def resized():
    for n in range(8):
        start = map_pages(4 * MIB)
        start = libc.mremap(start, 4 * MIB, 12 * MIB, 1)
        libc.mremap(start, 12 * MIB, 8 * MIB, 1)
    return [24, 8 * 24 * MIB, 8, 64 * MIB]


def replaced():
    MAP_FIXED = 0x10
    start = map_pages(32 * MIB)
    map_pages(8 * MIB, flags=PRIVATE | MAP_FIXED, address=start + 8 * MIB)
    return [2, 40 * MIB, 2, 32 * MIB]


def reserved():
    # May not be touched: no memory.
    map_pages(512 * MIB, protection=0)
    return [0, 0, 0, 0]


def churn():
    for n in range(50):
        start = map_pages(32 * MIB)
        libc.munmap(start, 32 * MIB)
    return [50, 1600 * MIB, 0, 0]


def failing():
    # More than there are addresses.
    for n in range(10):
        assert map_pages(1 << 60) == ctypes.c_void_p(-1).value
    return [0, 0, 0, 0]


def heap():
    n_bytes = 24 * MIB
    libc.sbrk(n_bytes)
    libc.sbrk(-8 * MIB)
    return [1, n_bytes, 1, 16 * MIB]


sys.stdout.write("ready\n")
sys.stdout.flush()
sys.stdin.readline()
functions = [anonymous, arrays, in_parts, resized, replaced, reserved, churn, failing, heap]
print(json.dumps([(function.__name__, [float(n) for n in function()] + [0.0, 0.0]) for function in functions]), flush=True)
sys.stdin.readline()

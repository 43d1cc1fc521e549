"""Makes memory of every kind, as much as it says, and waits for a line between.

Prints `ready`, then one line of JSON: bytes by kind that it has made, and of small objects those in use.
"""

import ctypes
import json
import mmap
import sys
import tempfile
import threading

MIB = 1 << 20

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]


def small_objects(n, size):
    """Objects whose blocks take `size` bytes each, and nothing besides."""
    empty = sys.getsizeof(b"")
    made = [None] * n
    for idx in range(n):
        made[idx] = bytes(size - empty)
    return made


def pool_bytes():
    return 4096 if sys.version_info < (3, 10) else 16384


def malloc(n, size):
    """Blocks of the C library: below the size from which each is a mapping of its own."""
    blocks = [None] * n
    for idx in range(n):
        blocks[idx] = libc.malloc(size)
        libc.memset(blocks[idx], 1, size)
    return blocks


def main():
    print("ready", flush=True)
    sys.stdin.readline()
    said = {}
    kept = []

    n, size = 50000, 448
    kept.append(small_objects(n, size))
    per_pool = (pool_bytes() - 48) // size
    said["small_objects"] = -(-n // per_pool) * pool_bytes()
    said["small_objects_in_use"] = n * size

    # The lists of all this are blocks too.
    n, size = 20000, 2032
    kept.append(malloc(n, size))
    of_thread = []
    thread = threading.Thread(target=lambda: of_thread.append(malloc(10000, 2032)))
    thread.start()
    thread.join()
    kept.append(of_thread)
    array = bytearray(64 * MIB)
    array[::4096] = b"x" * len(array[::4096])
    kept.append(array)
    lists = sum(sys.getsizeof(made) for made in (kept[0], kept[1], of_thread[0]))
    said["malloc"] = 30000 * 2048 + 64 * MIB + lists
    # Their addresses are small objects.
    block = (sys.getsizeof(kept[1][0]) + 15) // 16 * 16 if sys.version_info >= (3, 7) else 32
    said["small_objects"] += -(-30000 // ((pool_bytes() - 48) // block)) * pool_bytes()
    said["small_objects_in_use"] += 30000 * block

    private = mmap.mmap(-1, 24 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    shared = mmap.mmap(-1, 16 * MIB)
    with tempfile.TemporaryFile(dir=sys.argv[1]) as file:
        file.write(b"y" * (40 * MIB))
        file.flush()
        mapped = mmap.mmap(file.fileno(), 40 * MIB, access=mmap.ACCESS_READ)
    for memory in (private, shared):
        for at in range(0, len(memory), 4096):
            memory[at] = 1
    total = 0
    for at in range(0, len(mapped), 4096):
        total += mapped[at]
    kept += [private, shared, mapped]
    said["mmap"] = 24 * MIB
    said["shared_memory"] = 16 * MIB
    said["mapped_files"] = 40 * MIB
    print(json.dumps(said), flush=True)
    sys.stdin.readline()


main()

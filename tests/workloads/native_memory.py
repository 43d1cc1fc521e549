"""Memory that is not made of Python's own objects, in amounts that are known, one a function: that of a C extension, of
numpy's arrays, of a mapped file, of a forked worker.

The argument is JSON: the folders of the extension and of numpy (or null), a file to map, and whether tracemalloc watches.
Prints `ready`, then `forked PID`, then what it did (JSON), and waits for a line each time. Of each function it says:
- `calls`: calls of the C library's allocator, as rows of how many, how many bytes each, and how many of them are kept
- `n_faults`, as the kernel counts them, and `touched`: bytes that become resident; null where nobody knows
- `pool_bytes`: bytes of small objects that are kept; 0 where nobody looks
- `pid`: the process that runs it
- `traced`: the bytes that tracemalloc says are kept of requests above 512 bytes, which go to the C library; null without;
  and `is_traced`: whether it can know of them
"""
import json
import mmap
import os
import resource
import sys

OPTIONS = json.loads(sys.argv[1])
for folder in (OPTIONS["extension"], OPTIONS["numpy"]):
    if folder:
        sys.path.insert(0, folder)
if OPTIONS["trace"]:
    import tracemalloc
if OPTIONS["extension"]:
    import native_memory
if OPTIONS["numpy"]:
    # Its threads are of no use here, and take memory.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import numpy

MIB = 1 << 20
PAGE = mmap.PAGESIZE
SIZE = 20000
COUNT = 3000
N_ARRAYS = 100000
# Above 512 bytes tracemalloc's figures are of the C library; below 1024 numpy keeps freed ones for itself.
ARRAY_SIZE = 1000

kept = {}
blocks = [None] * COUNT
arrays = [None] * N_ARRAYS


def of_bytearray(size):
    """Bytes that a bytearray asks for: without the object itself, which is small."""
    return sys.getsizeof(bytearray(size)) - bytearray.__basicsize__


def big_array():
    kept["big"] = bytearray(64 * MIB)
    return {"calls": [[1, 64 * MIB, 1]], "touched": 64 * MIB}


def mapped_file():
    with open(OPTIONS["file"], "rb", buffering=0) as file:
        area = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    total = 0
    for offset in range(0, len(area), PAGE):
        total += area[offset]
    kept["area"] = area
    return {"calls": []}


def native_kept():
    for _ in range(COUNT):
        native_memory.take(SIZE)
    return {"calls": [[COUNT, SIZE, COUNT - COUNT // 3]]}


def native_given_back():
    native_memory.give_back(COUNT // 3)
    return {"calls": []}


def native_raw():
    for _ in range(COUNT):
        native_memory.take_raw(SIZE)
    return {"calls": [[COUNT, SIZE, COUNT]], "is_traced": True}


def native_touched():
    native_memory.touch(64 * MIB, 32 * MIB)
    return {"calls": [[1, 64 * MIB, 1]], "touched": 32 * MIB}


def array_64():
    kept["64"] = numpy.ones(64 * MIB, numpy.uint8)
    return {"calls": [[1, 64 * MIB, 1]], "touched": 64 * MIB}


def array_256():
    # numpy asks for huge pages from 4 MiB on.
    kept["256"] = numpy.ones(256 * MIB, numpy.uint8)
    return {"calls": [[1, 256 * MIB, 1]], "touched": 256 * MIB}


def arrays_untouched():
    kept["empty"] = numpy.empty(256 * MIB, numpy.uint8)
    kept["zeros"] = numpy.zeros(256 * MIB, numpy.uint8)
    return {"calls": [[2, 256 * MIB, 2]], "touched": 0}


def array_resized():
    array = numpy.empty(8 * MIB, numpy.uint8)
    array.resize(16 * MIB, refcheck=False)
    kept["resized"] = array
    return {"calls": [[1, 8 * MIB, 0], [1, 16 * MIB, 1]]}


def arrays_dropped():
    for _ in range(COUNT):
        numpy.ones(SIZE, numpy.uint8)
    return {"calls": [[COUNT, SIZE, 0]]}


def arrays_kept():
    for n in range(N_ARRAYS):
        arrays[n] = numpy.empty(ARRAY_SIZE, numpy.uint8)
    for n in range(0, N_ARRAYS, 2):
        arrays[n] = None
    # Shape and strides, two numbers, are a block of their own.
    return {
        "calls": [[N_ARRAYS, ARRAY_SIZE, N_ARRAYS // 2], [N_ARRAYS, 16, N_ARRAYS // 2]],
        "pool_bytes": N_ARRAYS * (numpy.ndarray.__basicsize__ + 15 & ~15),
    }


def arrays_cached():
    # numpy gives out what it kept of those that were dropped, and never asks for more.
    for _ in range(N_ARRAYS):
        numpy.empty(ARRAY_SIZE, numpy.uint8)
    return {"calls": []}


def before_fork():
    kept["shared"] = bytearray(64 * MIB)
    for n in range(COUNT):
        blocks[n] = bytearray(SIZE)
    # Half of them are given back after the fork.
    return {"calls": [[1, 64 * MIB, 1], [COUNT, of_bytearray(SIZE), COUNT // 2]]}


def worker_copies():
    # Its parent's pages, by writing to them.
    shared = kept["shared"]
    for offset in range(0, 64 * MIB, PAGE):
        shared[offset] = 1
    return {"calls": [], "touched": 64 * MIB}


def worker_gives_back():
    # What its parent allocated, and keeps.
    for n in range(COUNT):
        blocks[n] = None
    return {"calls": []}


def worker_takes():
    kept["own"] = bytearray(64 * MIB)
    return {"calls": [[1, 64 * MIB, 1]], "touched": 64 * MIB}


def after_fork():
    for n in range(0, COUNT, 2):
        blocks[n] = None
    return {"calls": []}


def faults():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def run(work):
    before = faults()
    phase = work()
    phase["n_faults"] = faults() - before
    phase["pid"] = os.getpid()
    phase["function"] = work.__name__
    phase.setdefault("touched", None)
    phase.setdefault("pool_bytes", 0)
    phase.setdefault("is_traced", not work.__name__.startswith("native"))
    phase["traced"] = None
    return phase


def fork():
    """A worker that works when it is told to, and lives as long as its parent. Its figures."""
    begin_reader, begin_writer = os.pipe()
    answer_reader, answer_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(begin_writer)
        os.read(begin_reader, 1)
        phases = [run(work) for work in (worker_copies, worker_gives_back, worker_takes)]
        os.write(answer_writer, json.dumps(phases).encode() + b"\n")
        os.read(begin_reader, 1)
        os._exit(0)
    print("forked", pid, flush=True)
    sys.stdin.readline()
    os.write(begin_writer, b"1")
    kept["writer"] = begin_writer
    answer = b""
    while not answer.endswith(b"\n"):
        answer += os.read(answer_reader, 10000)
    return json.loads(answer)


def traced(phases):
    """Adds what tracemalloc says, by the lines of the functions."""
    starts = sorted(value.__code__.co_firstlineno for value in globals().values() if hasattr(value, "__code__"))
    by_line = {}
    for phase in phases:
        if phase["pid"] == os.getpid():
            phase["traced"] = 0
            start = globals()[phase["function"]].__code__.co_firstlineno
            end = starts[starts.index(start) + 1]
            by_line.update((line, phase) for line in range(start, end))
    for trace in tracemalloc.take_snapshot().traces:
        for frame in trace.traceback if trace.size > 512 else []:
            if frame.filename == __file__ and frame.lineno in by_line:
                by_line[frame.lineno]["traced"] += trace.size


def main():
    works = [big_array, mapped_file]
    if OPTIONS["extension"]:
        works += [native_kept, native_given_back, native_raw, native_touched]
    if OPTIONS["numpy"]:
        works += [array_64, array_256, arrays_untouched, array_resized, arrays_dropped, arrays_kept, arrays_cached]
        # What it makes once, when it is used first, is none of theirs.
        numpy.ones(SIZE, numpy.uint8).resize(2 * SIZE, refcheck=False)
        for _ in range(10):
            numpy.empty(ARRAY_SIZE, numpy.uint8)
    if OPTIONS["trace"]:
        tracemalloc.start(4)
    phases = [run(work) for work in works + [before_fork]]
    phases += fork()
    phases.append(run(after_fork))
    if OPTIONS["trace"]:
        traced(phases)
    print(json.dumps(phases), flush=True)
    sys.stdin.readline()


print("ready", flush=True)
sys.stdin.readline()
main()

"""Programs that are switched out all the time, or never: how long their own work takes.

`pipes`: two processes on one CPU pass a byte to and fro, two switches each time. `threads`: two threads of one process do.
`calls`: system calls that do not wait.
"""
import os
import sys
import threading
import time

WHAT, N = sys.argv[1], int(sys.argv[2])


def pass_on(reads, writes):
    read, write = os.read, os.write
    while True:
        byte = read(reads, 1)
        if not byte:
            return
        write(writes, byte)


def pairs():
    there, back = os.pipe(), os.pipe()
    if WHAT == 'threads':
        threading.Thread(target=pass_on, args=[there[0], back[1]], daemon=True).start()
    elif os.fork() == 0:
        os.close(there[1])
        pass_on(there[0], back[1])
        os._exit(0)
    read, write, reads, writes = os.read, os.write, back[0], there[1]
    for _ in range(N // 10):
        write(writes, b'x')
        read(reads, 1)
    began = time.perf_counter()
    for _ in range(N):
        write(writes, b'x')
        read(reads, 1)
    return time.perf_counter() - began


def calls():
    getppid = os.getppid
    began = time.perf_counter()
    for _ in range(N):
        getppid()
    return time.perf_counter() - began


os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
print('seconds %.6f' % (calls() if WHAT == 'calls' else pairs()), flush=True)

"""Runs a workload for tests/live: first under `sys.setprofile`, then to be sampled.

    harness.py WORKLOAD CPU_SECONDS LEGAL

WORKLOAD is a file with a function `body()`, one pass. While the passes are traced, each pair of a caller at a
line and the function it has called is written to the file LEGAL, one JSON value a line, as the interpreter
itself says it (`frame.f_back.f_lineno`); so is each function with its lines. Then the workload says that it is
ready, waits for a line, runs untraced for CPU_SECONDS of the process's CPU time, says that it is done, and
stays as it is until its standard input closes.

`body()` has one call site, so that what was traced is what is sampled. What runs outside the traced passes
calls nothing but C functions.
"""

import dis
import functools
import inspect
import json
import os
import resource
import sys
import threading
import time

# The folder is not on the path under `-I`.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.modules["harness"] = sys.modules[__name__]

N_TRACED_PASSES = 3

# C functions; 3.6 and 3.7 lack those of these names.
thread_time = functools.partial(time.clock_gettime, time.CLOCK_THREAD_CPUTIME_ID)
if sys.version_info >= (3, 8):
    get_native_id = threading.get_native_id
else:
    import ctypes

    SYS_GETTID = 186
    get_native_id = functools.partial(ctypes.CDLL(None).syscall, SYS_GETTID)


class Legal:
    """What the interpreter says of its own calls. Also of forked children: the file is open for appending."""

    def __init__(self, path):
        self.path = path
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.seen = set()
        self.start = None

    def note(self, frame, event=None, argument=None):
        """A profile function. What is new has its whole chain noted: frames that began before count too."""
        while frame is not None:
            back = frame.f_back
            code = frame.f_code
            pair = (code, None, 0) if back is None else (code, back.f_code, back.f_lineno or 0)
            if pair in self.seen:
                break
            self.seen.add(pair)
            self.write(*pair)
            if back is not None and back.f_code.co_name == "traced_thread":
                # Threads that nobody traces begin here.
                self.write(code, None, 0)
            frame = back

    def write(self, code, caller, line):
        if code not in self.seen:
            self.seen.add(code)
            self.append({"function": function(code), **facts(code)})
        self.append({"callee": function(code), "caller": caller and function(caller), "line": line})

    def trace_threads(self):
        """From their first function on: `threading.setprofile` begins in the middle of the second."""
        name = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"
        start = getattr(threading, name)
        self.start = (name, start)

        def start_traced(function, *arguments, **named):
            def traced_thread(*arguments):
                sys.setprofile(self.note)
                return function(*arguments)

            return start(traced_thread, *arguments, **named)

        setattr(threading, name, start_traced)

    def leave_threads(self):
        setattr(threading, *self.start)

    def append(self, record):
        os.write(self.fd, json.dumps(record).encode() + b"\n")


def facts(code):
    """The lines of a code object (0: some instruction has none), those that call, whether a call only makes a
    generator or coroutine: that is no event for `sys.setprofile`."""
    lines = {line or 0 for _, _, line in code.co_lines()} if hasattr(code, "co_lines") else set()
    starts = dict(dis.findlinestarts(code))
    line = code.co_firstlineno
    calling = set()
    for instruction in dis.get_instructions(code):
        line = starts.get(instruction.offset) or line
        if "CALL" in instruction.opname:
            calling.add(line)
    lines.update(line for line in starts.values() if line)
    lines.add(code.co_firstlineno)
    generator_flags = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
    making = set()
    if code.co_flags & generator_flags:
        # 0: no line. From 3.15 on a generator expression makes its iterator before it is a generator itself.
        making.update((0, code.co_firstlineno))
        line = code.co_firstlineno
        instructions = list(dis.get_instructions(code))
        names = [instruction.opname for instruction in instructions]
        if "RETURN_GENERATOR" in names:
            for instruction in instructions[: names.index("RETURN_GENERATOR") + 1]:
                line = starts.get(instruction.offset) or line
                making.add(line)
    return {"lines": sorted(lines), "calling": sorted(calling), "making": sorted(making)}


def function(code):
    """Name, file, first line: qualified where the version has it."""
    return [getattr(code, "co_qualname", code.co_name), code.co_filename, code.co_firstlineno]


# Seconds of CPU time in one round above one and a half times the usual ones, from which on they are a pause of the host.
PAUSE = 0.002


def paused(rounds):
    """The CPU time in which the host had stopped. Rounds do the same work; when the host stops a CPU and the kernel is
    not told, the pause is CPU time of the thread that stood there, without ticks: a round far longer than usual."""
    usual = sorted(rounds)[len(rounds) // 2] if rounds else 0.0
    return sum(spent - usual for spent in rounds if spent > 1.5 * usual + PAUSE)


class Run:
    """Where the run stands."""

    def __init__(self, cpu_seconds, legal):
        self.cpu_seconds = cpu_seconds
        self.legal = legal
        self.n_passes = 0
        self.is_traced = True
        self.deadline = 0.0
        self.crews = []
        self.passes = []
        self.last_pass = 0.0
        # For workloads whose children do the work: passes that are sampled.
        self.passes_left = 1 << 30
        self.output = os.open(os.devnull, os.O_WRONLY)
        # A C function: nobody has traced the end.
        self.at_end = functools.partial(os.read, 0, 1)
        self.shares = {}
        self.report = {"shares": [], "threads": []}
        legal.trace_threads()

    def untrace_thread(self):
        """Threads that stay call this at the end of each pass."""
        if self.n_passes == N_TRACED_PASSES - 1:
            sys.setprofile(None)

    def measure(self, work):
        """Runs a function and adds its CPU time to the report."""
        share = self.share(work.__code__)
        begun = thread_time()
        work()
        if not self.is_traced:
            share[1] += thread_time() - begun

    def share(self, code):
        if code not in self.shares:
            self.shares[code] = [function(code), 0.0]
            self.report["shares"].append(self.shares[code])
        return self.shares[code]

    def next_pass(self):
        """Goes on, from the traced passes to the sampled ones to the end, which is rehearsed while traced."""
        now = time.process_time()
        self.passes.append(now - self.last_pass)
        self.last_pass = now
        is_over = now >= self.deadline or self.passes_left == 0
        self.passes_left -= not self.is_traced
        if self.is_traced or is_over:
            if not self.is_traced:
                usage = resource.getrusage(resource.RUSAGE_CHILDREN)
                self.report["children_cpu"] = usage.ru_utime + usage.ru_stime - self.children_before
            for crew in self.crews:
                crew.find_pauses()
            self.report["paused"] = paused(self.passes)
            os.write(self.output, json.dumps(["done", self.report]).encode() + b"\n")
            if self.is_traced:
                self.after_traced_pass()
            else:
                # Keeps still until the test has looked.
                self.at_end()
                os._exit(0)

    def after_traced_pass(self):
        self.n_passes += 1
        if self.n_passes < N_TRACED_PASSES:
            return
        self.is_traced = False
        self.output = 1
        self.legal.leave_threads()
        sys.setprofile(None)
        os.environ.pop("LIVE_LEGAL", None)
        os.write(1, b'["ready", {}]\n')
        if not os.read(0, 3):
            os._exit(0)
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.children_before = usage.ru_utime + usage.ru_stime
        self.passes.clear()
        self.last_pass = time.process_time()
        self.deadline = self.last_pass + self.cpu_seconds


class Crew:
    """Threads that work in rounds and stay. Each reports its id, its name, its CPU time, and what of it a host
    that paused may have taken."""

    def __init__(self, names, works):
        self.members = [Member(name, work) for name, work in zip(names, works)]
        run.crews.append(self)
        for member in self.members:
            member.start()

    def round(self):
        for member in self.members:
            member.begin.release()
        for member in self.members:
            member.ended.acquire()

    def find_pauses(self):
        for member in self.members:
            member.entry[4] = paused(member.rounds)


class Member(threading.Thread):
    def __init__(self, name, work):
        super().__init__(name=name, daemon=True)
        self.work = work
        self.begin = threading.Lock()
        self.begin.acquire()
        self.ended = threading.Lock()
        self.ended.acquire()
        self.entry = [0, name, function(work.__code__), 0.0, 0.0]
        self.traced_seconds = 0.0
        self.rounds = []
        run.report["threads"].append(self.entry)

    def run(self):
        self.entry[0] = get_native_id()
        while True:
            self.begin.acquire()
            self.work()
            run.untrace_thread()
            if run.is_traced:
                self.traced_seconds = thread_time()
            else:
                seconds = thread_time() - self.traced_seconds
                self.rounds.append(seconds - self.entry[3])
                self.entry[3] = seconds
            self.ended.release()


def load(path):
    """The workload as a module of its own, under a name that `multiprocessing` can import."""
    with open(path, "rb") as file:
        code = compile(file.read(), path, "exec")
    module = type(sys)("workload")
    module.__file__ = path
    sys.modules["workload"] = module
    exec(code, module.__dict__)
    return module


def follow(path):
    """For processes that a workload starts: they are traced from `sitecustomize` on."""
    global run
    legal = Legal(path)
    legal.append({"pid": os.getpid()})
    legal.trace_threads()
    sys.setprofile(legal.note)


run = None
if __name__ == "__main__":
    run = Run(float(sys.argv[2]), Legal(sys.argv[3]))
    workload = load(sys.argv[1])
    sys.setprofile(run.legal.note)
    while True:
        workload.body()
        run.next_pass()

"""Reads what a tool has written, and prints it as one line of JSON: `answers.py TOOL FILE SCRIPT ROOT`.

`functions`: of each function of SCRIPT what it takes itself and with what it calls. `lines`: by function and source text
what a line takes with what it calls. `root`: what the function ROOT takes, which shares are of. `samples`: how many
samples ROOT has; null for tools that trace. Units are the tool's own. Machine code belongs to the Python function that calls
it.
"""

import json
import os
import pstats
import re
import sys


class Answer:
    def __init__(self, script):
        self.script = os.path.basename(script)
        with open(script) as source:
            self.source = source.read().split("\n")
        self.functions = {}
        self.lines = {}

    def is_of_script(self, file):
        return os.path.basename(file) == self.script

    def add(self, name, own, cumulative):
        # Some tools name a function with what it is in: main.<locals>.application.
        name = name.rpartition(".")[2]
        amounts = self.functions.setdefault(name, [0.0, 0.0])
        amounts[0] += own
        amounts[1] += cumulative

    def add_line(self, name, number, amount):
        name = name.rpartition(".")[2]
        text = self.source[number - 1].strip() if 0 < number <= len(self.source) else ""
        lines = self.lines.setdefault(name, {})
        lines[text] = lines.get(text, 0.0) + amount


def read_pstats(answer, file):
    stats = pstats.Stats(file).stats
    for (filename, _, name), (_, _, own, cumulative, _) in stats.items():
        if answer.is_of_script(filename):
            answer.add(name, own, cumulative)
    # What a function of C takes itself is its callers', by what each of them caused.
    for (filename, _, _), (_, _, _, _, callers) in stats.items():
        # yappi has the module's name there.
        if filename == "~" or not filename.endswith((".py", ">")):
            for (caller_file, _, caller), amounts in callers.items():
                if answer.is_of_script(caller_file):
                    answer.add(caller, amounts[2], 0.0)


def read_pyinstrument(answer, file):
    with open(file) as text:
        session = json.load(text)

    def visit(frame, above):
        children = frame.get("children", [])
        inside = frame["time"] - sum(child["time"] for child in children)
        name, path = frame["function"], frame.get("file_path") or ""
        is_python = os.path.isabs(path) or path.startswith("<frozen")
        owner = above
        if is_python and name != "[self]":
            owner = name if answer.is_of_script(path) else None
            if owner is not None and owner not in on_stack:
                answer.add(owner, 0.0, frame["time"])
        if owner is not None:
            answer.add(owner, inside, 0.0)
        on_stack.append(owner)
        for child in children:
            visit(child, owner)
        on_stack.pop()

    on_stack = []
    root = session["root_frame"]
    visit(root, None)
    return session["sample_count"] / root["time"]


FRAME = re.compile(r"(.*) \((.*):(\d+)\)$")


def read_folded(answer, file):
    with open(file) as text:
        for line in text:
            stack, _, n = line.rstrip("\n").rpartition(" ")
            frames = [FRAME.match(frame) for frame in stack.split(";")]
            frames = [(f[1], f[2], int(f[3])) if f else ("", "", 0) for f in frames]
            names = {name for name, path, _ in frames if answer.is_of_script(path)}
            places = {(name, at) for name, path, at in frames if answer.is_of_script(path)}
            for name in names:
                answer.add(name, 0.0, int(n))
            for name, at in places:
                answer.add_line(name, at, int(n))
            if answer.is_of_script(frames[-1][1]):
                answer.add(frames[-1][0], int(n), 0.0)


def read_line_profiler(answer, file):
    import line_profiler

    for (path, _, name), lines in line_profiler.load_stats(file).timings.items():
        if answer.is_of_script(path):
            for number, _, time in lines:
                answer.add_line(name, number, time)
            # A function's lines, with what they call, are all of it.
            answer.add(name, 0.0, sum(time for _, _, time in lines))


def read_report(answer, file):
    with open(file) as text:
        report = json.load(text)
    samples = {}
    for function in report.get("lines", []):
        if answer.is_of_script(function["file"]):
            for line in function["lines"]:
                answer.add_line(function["function"], line["line"], line["total"] / 1e9)
    for function in report.get("functions", []):
        if answer.is_of_script(function["file"]):
            samples[function["function"]] = function["samples"]
    return samples


def main(tool, file, script, root):
    answer = Answer(script)
    samples = None
    if tool in ("cProfile", "yappi"):
        read_pstats(answer, file)
    elif tool == "pyinstrument":
        a_second = read_pyinstrument(answer, file)
        samples = answer.functions[root][1] * a_second
    elif tool == "py-spy":
        read_folded(answer, file)
        samples = answer.functions[root][1]
    elif tool == "line_profiler":
        read_line_profiler(answer, file)
    elif tool == "pyagent":
        read_pstats(answer, file + ".pstats")
        read_report(answer, file + ".lines.json")
        samples = read_report(answer, file + ".functions.json")[root]
    else:
        sys.exit("answers: no such tool: " + tool)
    if root not in answer.functions:
        sys.exit("answers: %s says nothing of %s in %s" % (tool, root, file))
    document = {
        "root": answer.functions[root][1],
        "samples": samples,
        "functions": answer.functions,
        "lines": answer.lines,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main(*sys.argv[1:])

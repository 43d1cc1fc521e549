"""What the lines of the Julia set's inner loop take, without a tool: a line is run three times more, and a third of what the
loop then takes longer is the line's time. What is left of the loop is the line that the loop begins with, the jump back
included.

Prints one line of JSON: `lines`, the share of each line in the loop, and `sum`, what all lines take in parts of the loop when
the first one is measured like the others: without its jump, so somewhat less than 1 if nothing disturbed.
"""

import inspect
import json
import time

import julia

WIDTH = 50
N_ROUNDS = 50
N_MORE = 3

LOOP = "while abs(z) < 2 and n < max_iterations:"
# The lines as they stand in the source, and the same work without an effect on the loop.
EXTRA = {
    LOOP: "abs(z) < 2 and n < max_iterations",
    "z = z * z + c": "w = z * z + c",
    "n += 1": "m = n + 1",
}


def with_extra(extra):
    lines = []
    for line in inspect.getsource(julia.calculate_z_serial_purepython).splitlines():
        lines.append(line)
        if extra and line.lstrip().startswith("while"):
            lines.extend([" " * 12 + extra] * N_MORE)
    names = {}
    exec("\n".join(lines), names)
    return names["calculate_z_serial_purepython"]


def main():
    zs = julia.coordinates(WIDTH)
    plain = with_extra(None)
    runs = {line: (with_extra(extra), julia.MAX_ITERATIONS) for line, extra in EXTRA.items()}
    runs["all"] = plain, julia.MAX_ITERATIONS
    # The loop around it, and the first look at its condition.
    runs["around"] = plain, 0
    # What disturbs a run makes it longer: the shortest one is the least disturbed.
    shortest = dict.fromkeys(runs, float("inf"))
    for _ in range(N_ROUNDS):
        for name, (function, max_iterations) in runs.items():
            begin = time.thread_time()
            function(max_iterations, zs, julia.C)
            shortest[name] = min(shortest[name], time.thread_time() - begin)
    loop = shortest["all"] - shortest["around"]
    parts = {line: (shortest[line] - shortest["all"]) / N_MORE / loop for line in EXTRA}
    whole = sum(parts.values())
    parts[LOOP] = 1 - (whole - parts[LOOP])
    print(json.dumps({"lines": parts, "sum": whole}))


if __name__ == "__main__":
    main()

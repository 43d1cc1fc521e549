"""What the lines of the Julia set's inner loop take, without a tool: a line is run once, twice and three times more, and what
the loop then takes longer for each time is the line's time, all of them together. What is left of the loop is the line that the
loop begins with, the jump back included.

Prints one line of JSON: `lines`, the share of each line in the loop, and `sum`, what all lines take in parts of the loop when
the first one is measured like the others, without its jump: somewhat less than 1, if a line that is run more often takes as much
longer. Of those for once, twice and three times more it is the one that is furthest from 1.
"""

import inspect
import json
import time

import julia

WIDTH = 50
N_ROUNDS = 50
N_MORE = 1, 2, 3

LOOP = "while abs(z) < 2 and n < max_iterations:"
# The lines as they stand in the source, and the same work without an effect on the loop.
EXTRA = {
    LOOP: "abs(z) < 2 and n < max_iterations",
    "z = z * z + c": "w = z * z + c",
    "n += 1": "m = n + 1",
}


def with_extra(extra, n_more):
    lines = []
    for line in inspect.getsource(julia.calculate_z_serial_purepython).splitlines():
        lines.append(line)
        if line.lstrip().startswith("while"):
            lines.extend([" " * 12 + extra] * n_more)
    names = {}
    exec("\n".join(lines), names)
    return names["calculate_z_serial_purepython"]


def main():
    zs = julia.coordinates(WIDTH)
    plain = with_extra("", 0)
    runs = {
        (line, n_more): (with_extra(extra, n_more), julia.MAX_ITERATIONS)
        for line, extra in EXTRA.items()
        for n_more in N_MORE
    }
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
    longer = {line: sum(shortest[line, n_more] - shortest["all"] for n_more in N_MORE) for line in EXTRA}
    parts = {line: seconds / sum(N_MORE) / loop for line, seconds in longer.items()}
    parts[LOOP] = 1 - sum(share for line, share in parts.items() if line != LOOP)
    sums = [sum(shortest[line, n_more] - shortest["all"] for line in EXTRA) / n_more / loop for n_more in N_MORE]
    print(json.dumps({"lines": parts, "sum": max(sums, key=lambda whole: abs(1 - whole))}))


if __name__ == "__main__":
    main()

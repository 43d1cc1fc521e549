"""The Julia set, as tutorials draw it: complex numbers one after the other, in plain Python.

Argument: the width of the picture in points. What is computed is always the same.
"""

import sys
import time

from clock import thread_time, write

X1, X2, Y1, Y2 = -1.8, 1.8, -1.8, 1.8
C = complex(-0.62772, -0.42193)
MAX_ITERATIONS = 300


def coordinates(width):
    step = (X2 - X1) / width
    xs = [X1 + i * step for i in range(width)]
    ys = [Y2 - i * step for i in range(width)]
    zs = []
    for y in ys:
        for x in xs:
            zs.append(complex(x, y))
    return zs


def calculate_z_serial_purepython(max_iterations, zs, c):
    output = [0] * len(zs)
    for i in range(len(zs)):
        n = 0
        z = zs[i]
        while abs(z) < 2 and n < max_iterations:
            z = z * z + c
            n += 1
        output[i] = n
    return output


def grey(output):
    darkest = max(output)
    rows = []
    for n in output:
        level = 255 - int(255 * (n / darkest) ** 0.5)
        rows.append("#%02x%02x%02x" % (level, level, level // 2))
    return rows


def histogram(colours):
    counts = {}
    for _ in range(8):
        for colour in colours:
            counts[colour] = counts.get(colour, 0) + 1
    return sorted(counts.items())


def calc_pure_python(width):
    wall, begin = time.perf_counter(), thread_time()
    zs = coordinates(width)
    drawn = thread_time()
    output = calculate_z_serial_purepython(MAX_ITERATIONS, zs, C)
    calculated = thread_time()
    colours = grey(output)
    coloured = thread_time()
    counts = histogram(colours)
    end = thread_time()
    wall = time.perf_counter() - wall
    own = {
        "coordinates": drawn - begin,
        "calculate_z_serial_purepython": calculated - drawn,
        "grey": coloured - calculated,
        "histogram": end - coloured,
    }
    lines = {
        "zs = coordinates(width)": own["coordinates"],
        "output = calculate_z_serial_purepython(MAX_ITERATIONS, zs, C)": own["calculate_z_serial_purepython"],
        "colours = grey(output)": own["grey"],
        "counts = histogram(colours)": own["histogram"],
    }
    print(sum(output), len(counts))
    write(
        {
            "root": "calc_pure_python",
            "own": own,
            "cumulative": dict(own, calc_pure_python=end - begin),
            "lines": {"calc_pure_python": lines},
            "wall": wall,
        }
    )


if __name__ == "__main__":
    calc_pure_python(int(sys.argv[1]))

"""The N-body problem, as tutorials have it: the Sun, the giant planets, and a ring of small bodies, step after step.

Argument: the number of steps. The numbers of the planets are those of the Computer Language Benchmarks Game.
"""

import math
import sys
import time

from clock import thread_time, write

SOLAR_MASS = 4 * math.pi ** 2
DAYS = 365.24
N_SMALL = 19


class Body:
    def __init__(self, position, velocity, mass):
        self.x, self.y, self.z = position
        self.vx, self.vy, self.vz = (v * DAYS for v in velocity)
        self.mass = mass * SOLAR_MASS


def small_body(i):
    angle, radius = 2 * math.pi * i / N_SMALL, 2.2 + 0.03 * i
    speed = 2 * math.pi / math.sqrt(radius) / DAYS
    return Body(
        (radius * math.cos(angle), radius * math.sin(angle), 0.01 * i),
        (-speed * math.sin(angle), speed * math.cos(angle), 0.0),
        1e-10,
    )


def solar_system():
    planets = [
        Body((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 1.0),
        Body(
            (4.84143144246472090e00, -1.16032004402742839e00, -1.03622044471123109e-01),
            (1.66007664274403694e-03, 7.69901118419740425e-03, -6.90460016972063023e-05),
            9.54791938424326609e-04,
        ),
        Body(
            (8.34336671824457987e00, 4.12479856412430479e00, -4.03523417114321381e-01),
            (-2.76742510726411899e-03, 4.99852801234917238e-03, 2.30417297573763929e-05),
            2.85885980666130812e-04,
        ),
        Body(
            (1.28943695621391310e01, -1.51111514016986312e01, -2.23307578892655734e-01),
            (2.96460137564761618e-03, 2.37847173959480950e-03, -2.96589568540237556e-05),
            4.36624404335156298e-05,
        ),
        Body(
            (1.53796971148509165e01, -2.59193146099879641e01, 1.79258772950371181e-01),
            (2.68067772490389322e-03, 1.62824170038242295e-03, -9.51592254519715870e-05),
            5.15138902046611451e-05,
        ),
    ]
    return planets + [small_body(i) for i in range(N_SMALL)]


def offset_momentum(bodies):
    sun = bodies[0]
    sun.vx = -sum(body.vx * body.mass for body in bodies) / sun.mass
    sun.vy = -sum(body.vy * body.mass for body in bodies) / sun.mass
    sun.vz = -sum(body.vz * body.mass for body in bodies) / sun.mass


def distance(one, other):
    dx = one.x - other.x
    dy = one.y - other.y
    dz = one.z - other.z
    return math.sqrt(dx * dx + dy * dy + dz * dz)


def accelerate(bodies, dt):
    for i, one in enumerate(bodies):
        for other in bodies[i + 1 :]:
            magnitude = dt / distance(one, other) ** 3
            dx = one.x - other.x
            dy = one.y - other.y
            dz = one.z - other.z
            one.vx -= dx * other.mass * magnitude
            one.vy -= dy * other.mass * magnitude
            one.vz -= dz * other.mass * magnitude
            other.vx += dx * one.mass * magnitude
            other.vy += dy * one.mass * magnitude
            other.vz += dz * one.mass * magnitude


def move(bodies, dt):
    for body in bodies:
        body.x += dt * body.vx
        body.y += dt * body.vy
        body.z += dt * body.vz


def kinetic_energy(bodies):
    energy = 0.0
    for body in bodies:
        speed = body.vx * body.vx + body.vy * body.vy + body.vz * body.vz
        energy += 0.5 * body.mass * speed
    return energy


def potential_energy(bodies):
    energy = 0.0
    for i, one in enumerate(bodies):
        for other in bodies[i + 1 :]:
            energy -= one.mass * other.mass / distance(one, other)
    return energy


class Account:
    accelerate = move = kinetic = potential = 0.0


def advance(bodies, dt, account):
    begin = thread_time()
    accelerate(bodies, dt)
    accelerated = thread_time()
    move(bodies, dt)
    account.move += thread_time() - accelerated
    account.accelerate += accelerated - begin


def report_energy(bodies, account):
    begin = thread_time()
    kinetic = kinetic_energy(bodies)
    known = thread_time()
    potential = potential_energy(bodies)
    account.potential += thread_time() - known
    account.kinetic += known - begin
    return kinetic + potential


def simulate(n_steps):
    account = Account()
    wall, begin = time.perf_counter(), thread_time()
    bodies = solar_system()
    offset_momentum(bodies)
    for _ in range(n_steps):
        advance(bodies, 0.001, account)
        energy = report_energy(bodies, account)
    end = thread_time()
    wall = time.perf_counter() - wall
    print("%.9f" % energy)
    return account, end - begin, wall


def main(n_steps):
    account, seconds, wall = simulate(n_steps)
    cumulative = {
        "simulate": seconds,
        "advance": account.accelerate + account.move,
        "accelerate": account.accelerate,
        "move": account.move,
        "report_energy": account.kinetic + account.potential,
        "kinetic_energy": account.kinetic,
        "potential_energy": account.potential,
    }
    own = {"move": account.move, "kinetic_energy": account.kinetic}
    lines = {
        "advance": {"accelerate(bodies, dt)": account.accelerate, "move(bodies, dt)": account.move},
        "report_energy": {
            "kinetic = kinetic_energy(bodies)": account.kinetic,
            "potential = potential_energy(bodies)": account.potential,
        },
    }
    write({"root": "simulate", "own": own, "cumulative": cumulative, "lines": lines, "wall": wall})


if __name__ == "__main__":
    main(int(sys.argv[1]))

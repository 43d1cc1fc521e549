"""Generators, coroutines and comprehensions, nested in each other."""

import asyncio


def square(number):
    return number * number


def numbers(count):
    for number in range(count):
        yield square(number)


def chained(count):
    yield from numbers(count)
    yield from (square(number) for number in numbers(count))


def two_ways():
    received = 0
    while received < 100:
        received += yield received


def abandoned():
    try:
        for number in numbers(1000):
            yield number
    finally:
        square(3)


class Countdown:
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return self

    def __next__(self):
        if self.count == 0:
            raise StopIteration
        self.count -= 1
        return self.count


def comprehensions():
    as_list = [square(number) for number in range(100)]
    as_set = {square(number) for number in Countdown(100)}
    as_dict = {number: square(number) for number in numbers(50)}
    nested = [[square(column) for column in range(row)] for row in range(10)]
    return len(as_list) + len(as_set) + len(as_dict) + len(nested)


async def ticks(count):
    for number in range(count):
        yield square(number)


async def leaf(number):
    return square(number)


async def middle():
    total = 0
    async for number in ticks(50):
        total += await leaf(number)
    values = [await leaf(number) async for number in ticks(20)]
    return total + sum(values)


async def root():
    await asyncio.gather(middle(), middle())
    await asyncio.sleep(0)


LOOP = asyncio.new_event_loop()


def body():
    for _ in range(5):
        sum(chained(200))
        comprehensions()
        generator = two_ways()
        next(generator)
        try:
            while True:
                generator.send(3)
        except StopIteration:
            pass
        begun = abandoned()
        next(begun)
        begun.close()
    LOOP.run_until_complete(root())

"""Closures, decorators, lambdas and partials: many code objects on few lines."""

import functools


def doubled(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments) * 2

    return wrapper


def times(factor):
    def decorator(function):
        @functools.wraps(function)
        def wrapper(number):
            return factor * function(number)

        return wrapper

    return decorator


@doubled
@times(3)
@doubled
def decorated(number):
    return number + 1


def counter():
    count = 0

    def increment(step):
        nonlocal count

        def add():
            nonlocal count
            count += step
            return count

        return add()

    return increment


def apply(function, number):
    return function(number)


def body():
    increment = counter()
    add = functools.partial(apply, lambda number: (lambda value: value + 1)(number) + 1)
    for number in range(1_000):
        decorated(number)
        increment(
            number
        )
        add(number)
        apply(lambda value: increment(value), number); apply(decorated, number)

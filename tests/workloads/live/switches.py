"""C that calls Python in loops, generators that yield at once, classes that are created: the moments in which
CPython moves from frame to frame."""


def negative(number):
    return -number


def sorted_with_key():
    for _ in range(20):
        sorted(range(100), key=negative)


def mapped():
    for _ in range(20):
        for _ in map(negative, range(100)):
            pass


def empty_generator():
    for number in range(100):
        yield number


def generator_loop():
    for _ in range(20):
        for _ in empty_generator():
            pass


def class_creation():
    for number in range(30):

        class Created:
            attribute = number

            def __init__(self):
                self.number = number

        Created()


class Compared:
    def __init__(self, number):
        self.number = number

    def __lt__(self, other):
        return self.number < other.number

    def __hash__(self):
        return self.number

    def __eq__(self, other):
        return self.number == other.number


def special_methods():
    some = [Compared(number) for number in range(100)]
    some.sort()
    len({one: one for one in some})


def body():
    sorted_with_key()
    mapped()
    generator_loop()
    class_creation()
    special_methods()

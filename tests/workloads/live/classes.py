"""Classes whose methods have the same names, one of which works three times as long."""

from harness import run


class First:
    def work(self):
        total = 0
        for number in range(30_000):
            total += self.value(number)
        return total

    def value(self, number):
        return number & 3


class Second:
    def work(self):
        total = 0
        for number in range(10_000):
            total += self.value(number)
        return total

    def value(self, number):
        return number & 3


class Derived(First):
    @property
    def size(self):
        return self.value(3)

    @classmethod
    def make(cls):
        return cls()

    def __getattr__(self, name):
        return self.value(len(name))

    def __add__(self, other):
        return self.size + other

    def value(self, number):
        return super().value(number) + 1


FIRST = First()
SECOND = Second()


def derived():
    for _ in range(300):
        made = Derived.make()
        made.size
        made.absent
        made + 1


def body():
    run.measure(FIRST.work)
    run.measure(SECOND.work)
    derived()

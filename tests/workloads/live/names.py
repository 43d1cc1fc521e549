"""Names that are not ASCII, in each width that CPython stores strings in. The file is copied to such a path."""

from harness import Crew, run


def café():
    return spin()


def функция():
    return spin()


def 函数():
    return spin()


def 𠀀𠀁():
    return spin()


class Größe:
    def métier(self):
        def 内部():
            return spin()

        return 内部()


def spin():
    total = 0
    for number in range(2_000):
        total += number & 3
    return total


def métier():
    return Größe().métier()


CREW = Crew(["été", "поток", "工作线程", "🐍 thread"], [café, функция, 函数, 𠀀𠀁])


def body():
    CREW.round()
    run.measure(métier)

# A program whose threads stop in deep mixes of frames, after each has told its own: a line of JSON for each.
import asyncio
import functools
import json
import os
import sys
import threading

ready = threading.Lock()


def native_id():
    # threading.get_native_id() came with 3.8.
    return int(os.readlink("/proc/thread-self").rpartition("/")[2])


def tell():
    """The frames of this thread below the caller's, innermost first, as the interpreter itself has them."""
    frames = []
    frame = sys._current_frames()[threading.get_ident()].f_back
    while frame is not None:
        code = frame.f_code
        frames.append([code.co_name, getattr(code, "co_qualname", code.co_name), code.co_filename, frame.f_lineno])
        frame = frame.f_back
    with ready:
        print(json.dumps([threading.get_ident(), native_id(), frames]), flush=True)


def stop():
    # On one line, so that the line told is the line stopped on.
    tell(), os.read(0, 1)


def recurse(depth, then):
    if depth:
        return recurse(
            depth - 1,
            then,
        )
    return then()


class Thing:
    def __init__(self, then):
        self.then = then
        self.value

    @property
    def value(self):
        return len(self)

    def __len__(self):
        return self["x"]

    def __getitem__(self, key):
        return [self.then() for _ in range(1)][0] or 1

    def __add__(self, other):
        return other()


def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments, **names):
        return function(*arguments, **names)
    return wrapper


def generate(then):
    yield then()


def delegate(then):
    yield from generate(then)


@decorated
def through_generators(then, unused=None):
    for _ in delegate(then):
        pass


def through_sort(then):
    return sorted([1], key=lambda x: then() or x)


def through_exception(then):
    try:
        raise ValueError(
            "x"
        )
    except ValueError:
        with open(os.devnull):
            then()


def through_class(then):
    class Body:
        attribute = then()


def through_exec(then):
    exec(compile("\n\nthen(\n)", "café α 😀.py", "exec"), {"then": then})


async def awaited(then):
    return then()


async def awaiting(then):
    return await awaited(then)


def through_coroutine(then):
    asyncio.new_event_loop().run_until_complete(awaiting(then))


def through_operator(then):
    Thing.__add__(Thing.__new__(Thing), then)
    Thing.__new__(Thing) + then


STEPS = [through_generators, Thing, through_sort, through_exception, through_class, through_exec, through_operator]


def chain(steps, then):
    for step in reversed(steps):
        then = functools.partial(step, then)
    return then


def hot(then):
    for number in range(5000):
        last = (lambda: then() if number == 4999 else None)()


DEEP = [
    chain(STEPS, stop),
    chain([hot] + STEPS[::-1], stop),
    chain([through_coroutine], stop),
    functools.partial(recurse, 40, chain(STEPS, stop)),
    stop,
]
for deep in DEEP:
    threading.Thread(target=deep, daemon=True).start()
recurse(7, chain(STEPS, stop))

# A program whose threads stop in deep mixes of frames. The main thread tells the frames of all, as the interpreter itself has
# them (one line of JSON), and stops too. It ends when its standard input does.
import _thread
import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from threading import get_ident

never, _writer = os.pipe()  # nothing is ever written
held = threading.Lock()
held.acquire()
stopping = {}  # pthread_self(): (number of the thread, where it stops)


def native_id():
    # threading.get_native_id() came with 3.8.
    return int(os.readlink("/proc/thread-self").rpartition("/")[2])


# Each names itself and stops on one line and in one frame: where it is seen is where it stops, though it may not be there yet.
def in_read():
    stopping[get_ident()] = (native_id(), "read"); os.read(never, 1)


def in_lock():
    stopping[get_ident()] = (native_id(), "lock"); held.acquire()


def in_sleep():
    stopping[get_ident()] = (native_id(), "sleep"); time.sleep(86400)


def recurse(depth, then):
    if depth:
        return recurse(
            depth - 1,
            then,
        )
    return then()


def generator(then):
    yield 0
    yield then()


def delegate(then):
    yield from generator(then)


def through_generator(then):
    for _ in delegate(then):
        pass


def through_comprehensions(then):
    return [
        {number: then() for number in range(1)}
        for _ in range(1)
    ]


def through_generator_expression(then):
    return sum(then() or 0 for _ in range(1))


class Thing:
    def __init__(self, then):
        self.then = then
        self.attribute

    @property
    def attribute(self):
        return len(self)

    def __len__(self):
        return self.then() or 0


class Derived(Thing):
    def __init__(self, then):
        super().__init__(then)


def through_class_body(then):
    class Body:
        one = 1
        two = (
            then()
        )


def through_exec(then):
    exec(compile("if True:\n\n    then(\n    )\n", "a café ☕.py", "exec"), {"then": then})


def through_eval_and_lambda(then):
    return eval("(lambda: then())()", {"then": then})


def through_with_and_except(then):
    try:
        raise ValueError(
            "x"
        )
    except ValueError:
        with open(os.devnull), open(os.devnull):
            then()


@contextlib.contextmanager
def manager(then):
    try:
        yield
    finally:
        then()


def through_manager(then):
    with manager(then):
        pass


def through_finally(then):
    try:
        return 1
    finally:
        then()


def through_sort(then):
    return sorted([2, 1], key=lambda value: then() or value)


async def awaited(then):
    return then()


async def asynchronous(then):
    yield await awaited(then)


async def awaiting(then):
    async for _ in asynchronous(then):
        pass


def through_coroutines(then):
    asyncio.new_event_loop().run_until_complete(awaiting(then))


def through_bare_coroutine(then):
    coroutine = awaited(then)
    try:
        coroutine.send(None)
    except StopIteration:
        pass


def loop_hot(then):
    # Long enough for specialised instructions.
    for number in range(5000):
        (lambda: then() if number == 4999 else None)()


STEPS = [
    through_generator,
    through_comprehensions,
    through_generator_expression,
    Derived,
    through_class_body,
    through_exec,
    through_eval_and_lambda,
    through_with_and_except,
    through_manager,
    through_finally,
    through_sort,
    through_bare_coroutine,
    loop_hot,
]


def chain(steps, then):
    for step in reversed(steps):
        then = (lambda step, then: lambda: step(then))(step, then)
    return then


def native_thread():
    """A thread that Python knows nothing of, in a function of the C library."""
    import ctypes

    library = ctypes.CDLL(None)
    handle = ctypes.c_ulong()
    return library.pthread_create(ctypes.byref(handle), None, library.pause, None) == 0


def tell():
    frames = {}
    for thread, frame in sys._current_frames().items():
        told = frames[thread] = []
        while frame is not None:
            code = frame.f_code
            told.append([code.co_name, getattr(code, "co_qualname", code.co_name), code.co_filename, frame.f_lineno])
            frame = frame.f_back
    del frames[get_ident()][0]
    threads = [
        {"pthread": thread, "number": number, "place": place, "frames": frames[thread]}
        for thread, (number, place) in stopping.items()
    ]
    print(json.dumps({"threads": threads, "native": native}), flush=True)


def in_main():
    stopping[get_ident()] = (native_id(), "read"); tell(); os.read(0, 1); os._exit(0)


THREADS = [
    chain(STEPS, in_read),
    chain(STEPS[::-1], in_lock),
    chain(STEPS[::2] + STEPS[1::2], in_sleep),
    chain([through_coroutines] + STEPS[:3], in_read),
    lambda: recurse(40, chain(STEPS[3:], in_lock)),
    lambda: recurse(300, chain(STEPS, in_sleep)),
    in_read,
]
try:
    native = native_thread()
except (ImportError, OSError, AttributeError):
    native = False
for thread in THREADS:
    threading.Thread(target=thread, daemon=True).start()
_thread.start_new_thread(in_lock, ())  # one without the frames of the threading module
while len(stopping) < len(THREADS) + 1:
    os.sched_yield()
recurse(5, chain(STEPS, in_main))

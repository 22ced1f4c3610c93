"""Checks the line events of marked functions against an oracle, without BPF and without root.

Run by the unit test `line_events_agree_with_the_interpreter` of launch/mod.rs on every Python it finds: with the shim
directory in PYTHONPATH, where the extension is its test build (-DRMPROF_TEST), which remembers what the sites were given.
By hand: PYTHONPATH=<shim> python3 line_events.py
With the word `every`, where the shim has every function give line events: no function is marked, and all code of a scenario is
compared, its module and class bodies too, from their first execution on.

Every scenario is compiled and run twice: once marked with our `profile`, once watched by the interpreter's own means
(sys.settrace up to 3.11, a sys.monitoring tool with Python callbacks from 3.12), and the two must have given the same
(function, line, what) in every thread. Scenarios whose events are the same in all versions also have them written down.
"""
import builtins
import sys
import threading

MARK = builtins.profile
EVERY = sys.argv[1:] == ["every"]
CELLS = dict(zip(MARK.__code__.co_freevars, (c.cell_contents for c in MARK.__closure__)))
INNER = CELLS["mark"]
EXTENSION = getattr(INNER, "__self__", None)
if EXTENSION is None:
    EXTENSION = dict(zip(INNER.__code__.co_freevars, (c.cell_contents for c in INNER.__closure__)))["extension"]


class Oracle:
    def __init__(self):
        self.codes, self.events, self.name = set(), [], None

    def profile(self, func):
        inner = getattr(func, "__func__", getattr(func, "fget", func))
        self.codes.add(inner.__code__)
        return func

    def has(self, code):
        return code.co_filename == self.name if EVERY else code in self.codes

    def note(self, code, line, what):
        if self.has(code):
            self.events.append((code, line, what, threading.get_ident()))


class TraceOracle(Oracle):
    def trace(self, frame, event, arg):
        if not self.has(frame.f_code):
            return None
        if event in ("line", "return"):
            self.note(frame.f_code, frame.f_lineno, int(event == "return"))
        return self.trace

    def run(self, function):
        threading.settrace(self.trace)
        sys.settrace(self.trace)
        try:
            function()
        finally:
            sys.settrace(None)
            threading.settrace(None)


class MonitorOracle(Oracle):
    def run(self, function):
        monitoring = sys.monitoring
        events = monitoring.events
        monitoring.use_tool_id(5, "oracle")
        monitoring.register_callback(5, events.LINE, lambda code, line: self.note(code, line, 0))
        end = lambda code, offset, _: self.note(code, self.line_of(code, offset), 1)
        for event in (events.PY_RETURN, events.PY_YIELD, events.PY_UNWIND):
            monitoring.register_callback(5, event, end)
        # 3.13 and later tell no line of a lambda otherwise.
        events_of_lines = events.LINE | events.PY_START
        monitoring.set_events(5, events_of_lines | events.PY_RETURN | events.PY_YIELD | events.PY_UNWIND)
        try:
            function()
        finally:
            monitoring.set_events(5, 0)
            monitoring.free_tool_id(5)

    @staticmethod
    def line_of(code, offset):
        for start, end, line in code.co_lines():
            if start <= offset < end:
                return -1 if line is None else line


def by_thread(events):
    threads = {}
    for code, line, what, thread in events:
        threads.setdefault(thread, []).append((code.co_name, line, what))
    return sorted(threads.values())


# name: (source, expected or None). The source defines run(); `profile` is given. Line 1 is the line after the quotes.
SCENARIOS = {}


def scenario(name, source, expected=None):
    SCENARIOS[name] = (source.lstrip("\n"), expected)


scenario("straight line", """
@profile
def f():
    a = 1
    b = [
        a,
    ]
    return b
run = f
""")
scenario("for and while", """
@profile
def f():
    for i in range(3):
        i += 1
    while i:
        i -= 1
    return i
run = f
""")
scenario("short for", """
@profile
def f(n):
    for i in range(n):
        pass
    n += 1
    return n
def run(): f(2)
""", [("f", 3, 0), ("f", 4, 0), ("f", 3, 0), ("f", 4, 0), ("f", 3, 0), ("f", 5, 0), ("f", 6, 0), ("f", 6, 1)])
scenario("one line", """
f = profile(lambda n: n + 1)
def g(n): n += 1; return n
profile(g)
def run(): f(1); f(2); g(1)
""", [("<lambda>", 1, 0), ("<lambda>", 1, 1)] * 2 + [("g", 2, 0), ("g", 2, 1)])
scenario("lambda of two lines", """
f = profile(lambda n: [
    g(n), n
])
g = profile(lambda n: (n,
    n + 1))
def run(): f(1)
""")
scenario("one line generators", """
f = profile(lambda n: ((yield n), (yield n)))
def g(n): yield n; n += 1; yield n
profile(g)
async def h(n): return n
profile(h)
def run():
    list(f(1)); list(g(2))
    try: h(1).send(None)
    except StopIteration: pass
""")
scenario("try", """
@profile
def f(x):
    try:
        try:
            x = 1 / x
        except ZeroDivisionError:
            x = 2
        else:
            x = 3
        finally:
            x += 1
        raise KeyError(x)
    except (KeyError, ValueError) as e:
        return e
    finally:
        x = 0
def run():
    f(0)
    f(1)
""")
scenario("with", """
import contextlib
class C:
    def __enter__(self): return self
    @profile
    def __exit__(self, *a):
        x = 1
        return True
@profile
def f():
    with C() as c, contextlib.suppress(KeyError):
        x = 1
        raise ValueError
    return 1
run = f
""")
scenario("recursion", """
@profile
def f(n):
    if n == 0:
        return 0
    return f(n - 1) + f(0)
def run(): f(6)
""")
scenario("generator", """
@profile
def g(n):
    for i in range(n):
        x = yield i
        y = x
    return 1
def run():
    list(g(3))
    it = g(5); next(it); it.send(4); it.close()
    it = g(5); next(it)
    try: it.throw(KeyError)
    except KeyError: pass
    it = g(1); it.close()
    it = g(2); next(it); del it
""")
scenario("generator in another thread", """
import threading
@profile
def g():
    yield 1
    yield 2
    yield 3
def run():
    it = g()
    next(it)
    t = threading.Thread(target=lambda: next(it)); t.start(); t.join()
    next(it, None); next(it, None)
""")
scenario("yield from", """
@profile
def inner():
    x = yield 1
    return x
@profile
def outer():
    a = yield from inner()
    b = yield from [1, 2]
    return a
def run(): list(outer())
""")
scenario("asyncio", """
import asyncio
@profile
async def leaf(n):
    await asyncio.sleep(0)
    if n == 2:
        raise ValueError
    return n
@profile
async def tree():
    leaves = [asyncio.ensure_future(leaf(n)) for n in range(3)]  # gather of 3.6 would start them in any order
    r = await asyncio.gather(*leaves, return_exceptions=True)
    try:
        await asyncio.wait_for(asyncio.sleep(9), 0.001)
    except asyncio.TimeoutError:
        pass
    return r
def run(): asyncio.new_event_loop().run_until_complete(tree())
""")
scenario("async generator", """
import asyncio
class M:
    async def __aenter__(self): return 1
    async def __aexit__(self, *a): return True
@profile
async def ag():
    for i in range(3):
        await asyncio.sleep(0)
        yield i
@profile
async def f():
    async for i in ag():
        x = i
    async with M() as m:
        raise KeyError
    async for i in ag():
        break
    return [i async for i in ag()]
def run(): asyncio.new_event_loop().run_until_complete(f())
""")
scenario("comprehension", """
@profile
def f():
    a = [
        x + 1
        for x in range(3)
    ]
    b = {x for x in a}
    return sum(x for x in b)
run = f
""")
scenario("threads", """
import threading
together = threading.Barrier(4)  # else one thread may end before the next begins, and give it its identity
@profile
def f(n):
    together.wait()
    s = 0
    for i in range(n):
        s += i
    together.wait()
    return s
def run():
    ts = [threading.Thread(target=f, args=(200,)) for n in range(4)]
    for t in ts: t.start()
    for t in ts: t.join()
""")
scenario("exception leaves", """
@profile
def f():
    x = 1
    raise KeyError
def run():
    try: f()
    except KeyError: pass
""", [("f", 3, 0), ("f", 4, 0), ("f", 4, 1)])
scenario("decorators above and below", """
import functools
def twice(f):
    @functools.wraps(f)
    def g(*a):
        f(*a)
        return f(*a)
    return g
@twice
@profile
def below(x):
    return x
@profile
@twice
def above(x):
    return x
class K:
    @profile
    @staticmethod
    def s(): return 1
    @classmethod
    @profile
    def c(cls): return 2
    @profile
    @property
    def p(self): return 3
def run():
    below(1); above(1); K.s(); K.c(); K().p
""")
scenario("nested marks", """
@profile
def inner(x):
    y = x
    return y
@profile
def outer():
    a = inner(1)
    b = max([1, 2], key=inner)
    return sorted([3, 1], key=lambda v: inner(v))
run = outer
""")
scenario("unmarked callees", """
def hot(n):
    s = 0
    for i in range(n):
        s += i
    return s
class D:
    def __del__(self): self.x = hot(3)
    def __add__(self, o): return hot(2)
@profile
def f():
    a = hot(1000)
    b = [hot(i) for i in range(3)]
    c = D() + 1
    d = D()
    del d
    return a
run = f
""", None)
scenario("program uses setprofile", """
import sys
calls = []
def prof(frame, event, arg): calls.append(event)
@profile
def f():
    x = abs(1)
    return x
def g():
    f()
    return f()
def run():
    sys.setprofile(prof)
    g()
    sys.setprofile(None)
    assert len(calls) >= 9, calls
""")
scenario("exec and class body", """
@profile
def f():
    class A:
        x = 1
    exec("y = 1\\nz = 2")
    return A
run = f
""")


def execute(source, profile, name):
    space = {"profile": profile, "__name__": "scenario"}
    exec(compile(source, "<%s>" % name, "exec"), space)
    return space["run"]


def difference(ours, truth):
    for mine, theirs in zip(ours, truth):
        for i, (a, b) in enumerate(zip(mine + [None], theirs + [None])):
            if a != b:
                return "event %d is %r instead of %r" % (i, mine[i:i + 6], theirs[i:i + 6])
    return "%d threads instead of %d" % (len(ours), len(truth))


def check(name, source, expected):
    import gc
    oracle = (MonitorOracle if hasattr(sys, "monitoring") else TraceOracle)()
    oracle.name = "<%s>" % name
    if EVERY:
        expected = None
        EXTENSION.events(None)
        execute(source, lambda function: function, name)()
    else:
        run = execute(source, MARK, name)
        EXTENSION.events(None)
        run()
    gc.collect()
    ours = by_thread(event for event in EXTENSION.events(None) if not EVERY or event[0].co_filename == oracle.name)
    def watched():
        run()
        gc.collect()
    def watched_whole():
        execute(source, lambda function: function, name)()
        gc.collect()
    if not EVERY:
        run = execute(source, oracle.profile, name)
    oracle.run(watched_whole if EVERY else watched)
    truth = by_thread(oracle.events)
    if ours != truth:
        return "%s: %s" % (name, difference(ours, truth))
    if not ours:
        return "%s: no events" % name
    if expected is not None and ours != [expected]:
        return "%s: %s" % (name, difference(ours, [expected]))
    if sys.gettrace() is not None:
        return "%s: a trace function was left behind" % name
    return None


def settrace_stays_theirs():
    """A program that installs a trace function sees what it would have seen, and gets no line events up to 3.11."""
    seen = []
    def tracer(frame, event, arg):
        seen.append((frame.f_code.co_name, event))
        return tracer
    @MARK
    def marked():
        x = 1
        return x
    def plain():
        return marked()
    sys.settrace(tracer)
    plain()
    sys.settrace(None)
    want = [("plain", "call"), ("plain", "line"), ("marked", "call"), ("marked", "line"), ("marked", "line"),
            ("marked", "return"), ("plain", "return")]
    events = by_thread(EXTENSION.events(None))
    if seen != want:
        return "settrace: %r" % seen
    if bool(events) != hasattr(sys, "monitoring"):
        return "settrace: events %r" % events
    @MARK
    def switches():
        sys.settrace(tracer)
        plain()
        sys.settrace(None)
        return 1
    del seen[:]
    switches()
    if seen != want:
        return "settrace within: %r" % seen
    if sys.gettrace() is not None:
        return "settrace within: left behind"
    EXTENSION.events(None)
    marked()
    if len(EXTENSION.events(None)) != 3:
        return "settrace within: events did not come back"
    return None


def same_object():
    """profile gives back what it was given."""
    import functools
    def f(x): return x
    code = f.__code__
    things = [f, staticmethod(f), classmethod(f), property(f), int, type("T", (), {}), functools.partial(f, 1),
              functools.lru_cache()(f), print, 3, None and 0]
    for thing in things[:-1]:
        if MARK(thing) is not thing or MARK(precision=3, stream=sys.stderr)(thing) is not thing:
            return "profile(%r) is another object" % (thing,)
    if f.__code__ is not code or MARK()(f) is not f:
        return "profile changed f"
    from memory_profiler import profile as theirs
    if theirs is not MARK:
        return "memory_profiler.profile is another mark"
    return None


def audit_silent():
    """Running a marked function raises no audit event of ours."""
    heard = []
    if not hasattr(sys, "addaudithook"):  # 3.8
        return None
    @MARK
    def f():
        return abs(-1)
    f()
    listening = [True]
    sys.addaudithook(lambda name, args: heard.append(name) if listening else None)
    f()
    listening.clear()
    return "audit events: %r" % heard if heard else None


def after_fork():
    """A child of fork goes on giving line events."""
    import os
    @MARK
    def f():
        x = 1
        return x
    f()
    EXTENSION.events(None)
    child = os.fork()
    if child == 0:
        f()
        os._exit(len(EXTENSION.events(None)))
    count = os.waitpid(child, 0)[1] >> 8
    return None if count == 3 else "after fork: %d events" % count


def deep_recursion():
    """The recursion limit is met at the same depth with the mark as without."""
    def depth(mark):
        @mark
        def f(n):
            try:
                return f(n + 1)
            except RecursionError:
                return n
        return f(0)
    plain, ours = depth(lambda f: f), depth(MARK)
    EXTENSION.events(None)
    return None if abs(plain - ours) <= 2 else "recursion: %d without the mark, %d with it" % (plain, ours)


def many_marks():
    """The table of marked code grows; every mark is found again."""
    space = {"profile": MARK}
    exec("".join("@profile\ndef f%d():\n    return %d\n" % (i, i) for i in range(3000)), space)
    EXTENSION.events(None)
    for i in range(3000):
        space["f%d" % i]()
    events = EXTENSION.events(None)
    return None if len(events) == 6000 else "many marks: %d events" % len(events)


def code_that_runs_once_is_given_back():
    """Code that is no function is kept no longer than it runs, and measured again when it comes back."""
    import gc
    import weakref
    text = "def f():\n    return 1\nclass A:\n    x = 1\n"

    def runs(filename):
        code = compile(text, filename, "exec")
        EXTENSION.events(None)
        for _ in range(2):
            exec(code, {})
        exec(compile(text, filename, "exec"), {})
        events = [event[1:3] for event in EXTENSION.events(None) if event[0].co_filename == filename]
        return events, weakref.ref(code)

    unmeasured, without = runs("<rmprof-bpf, not measured>")
    events, reference = runs("once.py")
    gc.collect()
    third = len(events) // 3
    if unmeasured or not third or events[:third] * 3 != events:
        return "once: %r" % events
    if (reference() is None) != (without() is None):  # free-threaded builds keep it themselves
        return "once: the code object is still there"
    return None


def main():
    if EVERY and sys.version_info < (3, 11):
        del SCENARIOS["unmarked callees"]  # the oracle's f_locals keep what `del` lets go of
    failures = [f for f in (check(name, *rest) for name, rest in SCENARIOS.items()) if f]
    if EVERY:
        failures += filter(None, [code_that_runs_once_is_given_back()])
    for function in () if EVERY else (settrace_stays_theirs, same_object, audit_silent, after_fork, deep_recursion, many_marks):
        failures += filter(None, [function()])
    for failure in failures:
        print("FAILED", failure)
    print("%d.%d.%d: %d scenarios, %d failures" % (sys.version_info[:3] + (len(SCENARIOS) + 6, len(failures))))
    sys.exit(bool(failures))


main()

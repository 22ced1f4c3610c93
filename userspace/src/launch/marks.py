# The builtin `profile` of a started program: marks functions, wraps nothing. CPython 3.6 to 3.15; see mod.rs.
# Executed by sitecustomize.py in a namespace of its own, with the file name "<rmprof-bpf>".
import sys

_bootstrap = sys.modules["_frozen_importlib"]
_FunctionType = type(lambda: None)
_MethodType = type((lambda self: None).__get__(sys))
_EXTENSION = "_rmprof_launch"
_PACKAGE = "memory_profiler"

# Where the tracing state of 3.6 to 3.11 is (PyThreadState, _PyCFrame, PyInterpreterState: offsetof on the headers of
# 3.6.15, 3.7.16, 3.8.18, 3.9.18, 3.10.13, 3.11.7; the extension proves them before use). In the order of `at` in line_events.c:
# tracing, c_profilefunc, c_tracefunc, cframe, use_tracing, its width, tracing_possible's base
# (0 none, 1 _PyRuntime, 2 interpreter, 3 cannot be reached) and offset, interp, eval_frame (to 3.8), the frame's code, f_lineno (to 3.9).
_LAYOUTS = {
    6: (40, 48, 56, -1, 44, 4, 3, 0, 16, 112, 32, 124),
    7: (44, 56, 64, -1, 48, 4, 1, 708, 16, 464, 32, 108),
    8: (44, 56, 64, -1, 48, 4, 1, 588, 16, 568, 32, 108),
    9: (44, 56, 64, -1, 48, 4, 2, 68, 16, -1, 32, 108),
    10: (44, 56, 64, 48, 0, 4, 0, 0, 16, -1, 32, -1),
    11: (44, 64, 72, 56, 0, 1, 0, 0, 16, -1, 32, -1),
}


def _load(directory):
    # Neither sys.modules nor a finder sees the extension: it is nobody's business.
    spec = _bootstrap.ModuleSpec(_EXTENSION, None, origin=directory + "/" + _EXTENSION + ".so")
    imp = sys.modules["_imp"]
    extension = imp.create_dynamic(spec)
    imp.exec_dynamic(extension)
    return extension


def _codes(thing, depth=0):
    # The code objects a decorator line above `thing` means. Only exact knowledge: nothing is guessed from attributes
    # that a proxy or a mock would answer too.
    kind = type(thing)
    if kind is _FunctionType:
        return [thing.__code__]
    if depth == 8 or issubclass(kind, type):
        return []
    if issubclass(kind, (staticmethod, classmethod, _MethodType)):
        return _codes(thing.__func__, depth + 1)
    if issubclass(kind, property):
        return [code for part in (thing.fget, thing.fset, thing.fdel) for code in _codes(part, depth + 1)]
    if kind.__module__ == "functools":  # partial, partialmethod, cached_property, singledispatchmethod; lru_cache
        return _codes(getattr(thing, "func", None) or getattr(thing, "__wrapped__", None), depth + 1)
    return []


def _monitor(extension, monitoring):
    # A tool id, our callbacks on it, and the events that are not local to a code object; None when all ids are taken.
    events = monitoring.events
    for tool in (3, 4, 1, 2, 5, 0):
        try:
            monitoring.use_tool_id(tool, "rmprof-bpf")
        except ValueError:
            continue
        monitoring.register_callback(tool, events.LINE, extension.on_line)
        for event in (events.PY_RETURN, events.PY_YIELD, events.PY_UNWIND):
            monitoring.register_callback(tool, event, extension.on_end)
        monitoring.set_events(tool, events.PY_UNWIND)
        return tool
    return None


def _make_tool(extension, monitoring):
    tool = None

    def get():
        nonlocal tool
        if tool is None:
            tool = _monitor(extension, monitoring)
        return tool

    return get


def _local_events(events):
    # PY_START needs no callback: from 3.13 on CPython tells no line of code that begins where its RESUME stands, as
    # a lambda does, unless that is asked for (Python/instrumentation.c, _Py_call_instrumentation_line).
    return events.LINE | events.PY_START | events.PY_RETURN | events.PY_YIELD


def _make_mark(extension, monitoring, get_tool):
    if monitoring is None:
        return extension.mark
    local = _local_events(monitoring.events)

    def mark(code):
        if extension.mark(code):
            tool = get_tool()
            if tool is not None:
                monitoring.set_local_events(tool, code, local)

    return mark


def _make_profile(mark):
    # The parameters are memory_profiler's; where the report goes and how precise it is are rmprof-bpf's own options.
    def profile(func=None, stream=None, precision=1, backend="psutil", **options):
        if func is None:
            return profile
        try:
            for code in _codes(func):
                mark(code)
        except Exception:
            pass
        return func

    profile.__module__ = _PACKAGE
    profile.__qualname__ = "profile"
    return profile


class _StandIn:
    # Finder and loader of a `memory_profiler` that has the mark, and imports the real package when asked for more.

    def __init__(self, profile):
        self._profile = profile
        self._real = None

    def find_spec(self, name, path=None, target=None):
        if name != _PACKAGE:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            self._real = find(name, path, target) if find else None
            if self._real is not None:
                break
        spec = _bootstrap.ModuleSpec(name, self, origin=getattr(self._real, "origin", None))
        spec.has_location = spec.origin is not None
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.profile = self._profile
        module.__getattr__ = attribute = self._attribute(module)
        if sys.version_info < (3, 7):  # a module's own __getattr__ came with PEP 562

            class Module(type(sys)):
                def __getattr__(self, name):
                    return attribute(name)

            module.__class__ = Module

    def get_code(self, name):  # python -m memory_profiler
        if self._real is None:
            raise ImportError("No module named " + name, name=name)
        return self._real.loader.get_code(name)

    def _attribute(self, stand_in):
        real = None

        def __getattr__(name):
            nonlocal real
            # Asked of every module by somebody or other: not worth an import.
            if name[:2] != "__" or name == "__version__":
                if real is None and self._real is not None:
                    try:
                        real = _bootstrap._load(self._real)
                        real.profile = self._profile
                    except BaseException:
                        sys.modules[_PACKAGE] = stand_in
                        raise
                if real is not None:
                    return getattr(real, name)
            raise AttributeError("module %r has no attribute %r" % (_PACKAGE, name))

        return __getattr__


def _run(directory, name, filename):
    # What else a file of ours has, if it is there.
    try:
        with sys.modules["_io"].FileIO(directory + "/" + name) as file:
            text = file.readall()
    except OSError:
        return None
    space = {"__name__": "<rmprof-bpf>", "__builtins__": sys.modules["builtins"]}
    exec(compile(text, filename, "exec"), space)
    return space["start"]


def _start_every(extension, directory, monitoring, get_tool):
    start_every = _run(directory, "rmprof-every.py", "<rmprof-bpf work>")
    if start_every is None:
        return
    if monitoring is None:
        start_every(extension, directory, None, None)
    elif get_tool() is not None:
        start_every(extension, directory, get_tool(), _local_events(monitoring.events))


def start(directory):
    extension = _load(directory)
    minor = sys.version_info[1]
    if minor in _LAYOUTS:
        extension.use_layout(*_LAYOUTS[minor])
    monitoring = getattr(sys, "monitoring", None)
    get_tool = _make_tool(extension, monitoring)
    profile = _make_profile(_make_mark(extension, monitoring, get_tool))
    sys.meta_path.insert(0, _StandIn(profile))
    extension.hello(sys.hexversion, sys.modules["posix"].getpid())
    try:
        _start_every(extension, directory, monitoring, get_tool)
    except Exception:
        pass  # functions that are not marked are not measured then: they have nothing in these columns
    try:
        start_debugger = _run(directory, "rmprof-debugger.py", "<rmprof-bpf debugger>")
        if start_debugger is not None:
            start_debugger(extension, directory)
    except Exception:
        extension.limit(3, 3)  # refused: unknown
    return profile

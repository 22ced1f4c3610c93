# ---- In a program that we have started: the debugger that opens when resident memory passes LIMIT bytes (--pdb-mmem), which the line put
# above both files says. See mod.rs and stop.h. Executed by marks.py.

_CALL_STOPPED, _CALL_REFUSED = 1, 3  # enum rm_limit_call of probes/bpf/rmprof.h, and rm_limit_refusal:
_NO_TERMINAL, _UNKNOWN, _NO_PDB = 2, 3, 5

# 3.12 and later: the fields of `pending` in stop.h (offsetof on the headers of 3.12.1, 3.13.0, 3.14.10, 3.15.2).
_LATER = (88, 24, 40, 44, 56, 24, 300, 7256, 7260)
_PENDING = {
    12: (72, 368, 408, 416, 424, 16, 32, 936, 940),
    13: _LATER,
    14: _LATER,
    15: (112,) + _LATER[1:],
}


def _terminal():
    # What pdb is to read and write: the program's own streams where they are the terminal's, so that a line can be edited.
    try:
        if sys.stdin is sys.__stdin__ and sys.stdout is sys.__stdout__ and sys.stdin.isatty() and sys.stdout.isatty():
            return {}
    except (AttributeError, ValueError):
        pass
    try:
        return {"stdin": _io.open("/dev/tty"), "stdout": _io.open("/dev/tty", "w")}
    except OSError:
        return None


def _make_class(pdb, extension, library):
    base = _make_base(pdb)

    class Debugger(base):
        def open(self, frame):
            with library:
                self.set_trace(frame)
            frame.f_trace = self.trace_dispatch(frame, "line", None)

        def trace_dispatch(self, frame, event, arg):
            if event == "line" or event == "return":
                if self.at_first:
                    self.at_first = False
                else:
                    extension.line(frame.f_code, frame.f_lineno, event == "return")
            try:
                return pdb.Pdb.trace_dispatch(self, frame, event, arg)
            except pdb.bdb.BdbQuit:
                pass
            _quit()

        def interaction(self, *arguments):
            with library:
                return pdb.Pdb.interaction(self, *arguments)

        def set_continue(self):
            pdb.Pdb.set_continue(self)
            extension.resume(self.curframe.f_code)

    return Debugger


def _quit():
    # pdb's BdbQuit would be caught by `except Exception` and end with a traceback.
    sys.settrace(None)
    threading = sys.modules.get("threading")
    if threading is not None and threading.current_thread() is not threading.main_thread():
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                pass
        _posix._exit(1)
    raise SystemExit(1)


def _mib(size):
    return "%.2f MiB" % (size / 1048576.0)


class _Stopper:
    def __init__(self, extension):
        self.extension = extension
        self.library = _Library()
        self.type = None
        self.waits_for_marks = False
        self.entered = None

    def at_line(self, bytes_then, early):
        """Called by stop.h at each line event of the thread that passed the limit."""
        frame = sys._getframe(1)
        if early:
            if not self._is_first_to_stop(frame):
                return
        elif not _own(frame.f_code.co_filename):
            return
        size = max(bytes_then, self.extension.resident())
        debugger = self._prepare()
        if debugger is not None:
            self.extension.limit(_CALL_STOPPED, 0)
            debugger.stdout.write(
                "Current memory %s exceeded the maximum of %s\nStepping into the debugger\n" % (_mib(size), _mib(LIMIT))
            )
            debugger.stdout.flush()
            debugger.open(frame)

    def _is_first_to_stop(self, frame):
        # The limit is below what the interpreter itself takes. A program without marks stops at its first line. One with marks does
        # as with memory_profiler: it is looked at each line of a marked function, and stops at the one after.
        if self.waits_for_marks:
            if self.entered == id(frame):
                return True
            self.entered = id(frame)
            return False
        filename = frame.f_code.co_filename
        if not _own(filename) or filename.endswith(("/sitecustomize.py", "/usercustomize.py")):
            return False
        if "profile" in frame.f_code.co_names:
            self.waits_for_marks = True
            self.extension.disarm(1)
            return False
        return True

    def _prepare(self):
        self.extension.disarm(0)
        reason = _NO_TERMINAL
        try:
            streams = _terminal()
            if streams is not None:
                reason = _NO_PDB
                with self.library:
                    if self.type is None:
                        import pdb

                        self.type = _make_class(pdb, self.extension, self.library)
                    debugger = self.type(nosigint=True, **streams)
                debugger.at_first = True
                return debugger
        except Exception:
            pass
        self.extension.limit(_CALL_REFUSED, reason)


def _data_of_3_6(extension):
    # Where the interpreter's variables are: the mapping of one that has a name.
    address = extension.variable()
    with _io.open("/proc/self/maps", "rb") as maps:
        for line in maps:
            start, end = (int(number, 16) for number in line.split(b" ", 1)[0].split(b"-"))
            if start <= address < end:
                return start, end
    return 0, 0


def start(extension, directory):
    global _help
    _help = directory + "/"
    minor = sys.version_info[1]
    if minor == 6:
        layout = (0,) * 7 + _data_of_3_6(extension)
    else:
        layout = _PENDING.get(minor, (0,) * 9)
    if not extension.prepare(_Stopper(extension).at_line, *layout):
        return
    for _ in range(3):  # the eval breaker is looked at
        pass
    extension.ready()

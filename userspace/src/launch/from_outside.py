# ---- In a process that runs already (attach): the debugger that its interpreter was asked for from outside (PEP 768, CPython 3.14 and
# later), in the thread that passed the limit. FRAME is where that was interrupted. It talks with us over a socket in our folder, DIRECTORY, which nobody but us can write to. What
# it says first is a line (STOPPED, or REFUSED and a digit); all that follows is pdb's, and what comes is typed. When we are gone, or let go,
# the socket is at its end: then the program goes on, without a trace function.

_TRACED, _UNKNOWN, _NO_PDB = 1, 3, 5  # enum rm_limit_refusal of probes/bpf/rmprof.h
_SOME = 255  # so many events between two looks whether we are still there


class _Talk:
    """Both streams of pdb. Nothing that is written here fails: of one that nobody reads any more the program must not hear."""

    encoding, errors = "utf-8", "backslashreplace"

    def __init__(self, module, directory):
        self.module = module
        self.socket = module.socket(module.AF_UNIX, module.SOCK_STREAM)
        self.socket.settimeout(None)  # the program may have set a default
        self.socket.connect(directory + "/socket")
        # struct ucred: the number of the process that listens, its user, its group.
        peer = self.socket.getsockopt(module.SOL_SOCKET, module.SO_PEERCRED, 12)
        if int.from_bytes(peer[4:8], sys.byteorder) != _posix.stat(directory).st_uid:
            raise OSError("the socket is not that of who made its folder")
        self.typed = b""

    def write(self, text):
        try:
            # Without a signal, which the program may not ignore.
            self.socket.sendall(text.encode(self.encoding, self.errors), self.module.MSG_NOSIGNAL)
        except OSError:
            pass
        return len(text)

    def flush(self):
        pass

    def isatty(self):
        return False

    def readline(self):
        while b"\n" not in self.typed:
            try:
                more = self.socket.recv(4096)
            except OSError:
                more = b""
            if not more:
                return ""
            self.typed += more
        line, _, self.typed = self.typed.partition(b"\n")
        return line.decode(self.encoding, "replace") + "\n"

    def is_over(self):
        try:
            return not self.socket.recv(1, self.module.MSG_PEEK | self.module.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def end(self):
        try:
            self.socket.shutdown(self.module.SHUT_RDWR)  # a fork may have a copy
        except OSError:
            pass
        self.socket.close()


def _make_class(pdb, talk):
    class Debugger(_make_base(pdb)):
        events = 0
        local = None

        def open(self, frame):
            self.local = self.trace_dispatch
            self.set_trace(frame)
            pdb.Pdb._last_pdb_instance = None  # a thread that ends takes the debugger with it
            frame.f_trace = self.trace_dispatch(frame, "line", None)

        def trace_dispatch(self, frame, event, arg):
            self.events += 1
            try:
                if self.events & _SOME or not talk.is_over():
                    # Of one that has let go the frame is to keep nothing.
                    return pdb.Pdb.trace_dispatch(self, frame, event, arg) and self.local
            except Exception:
                pass  # pdb's own: none of it is the program's
            self.let_go()

        def set_continue(self):
            pdb.Pdb.set_continue(self)
            if not self.breaks:
                self.finish()

        def let_go(self):
            self.clear_all_breaks()
            self.set_continue()

        def finish(self):
            _untrace(sys._getframe(), self.trace_dispatch)
            self.local = None
            talk.end()

        def do_quit(self, _):
            """q(uit) | exit
            Lets the program go on, without a debugger. Nothing here ends it."""
            self.message("The debugger lets go: the program goes on")
            self.let_go()
            return 1

        do_q = do_exit = do_quit

        def do_EOF(self, _):
            """EOF
            As quit."""
            self.let_go()
            return 1

        def do_interact(self, _):
            """interact
            Not possible here: it would read the standard input of the program."""
            self.error("interact is not possible from outside: it would read the standard input of the program")

        def _prompt_for_confirmation(self, prompt, default):
            talk.write(prompt)
            return (talk.readline() or default).strip().lower()

    return Debugger


def _untrace(frame, function):
    sys.settrace(None)
    while frame is not None:
        if frame.f_trace == function:
            frame.f_trace = None
        frame = frame.f_back


class _Waiter:
    """Traces the thread until a line of the user's own begins."""

    def __init__(self, talk, library):
        self.talk = talk
        self.library = library
        self.events = 0

    def begin(self, frame):
        while frame is not None:
            if _own(frame.f_code.co_filename):
                frame.f_trace = self.trace
            frame = frame.f_back
        sys.settrace(self.trace)

    def end(self, frame):
        _untrace(frame, self.trace)

    def trace(self, frame, event, arg):
        try:
            self.events += 1
            if not self.events & _SOME and self.talk.is_over():
                self.end(frame)
            elif _own(frame.f_code.co_filename):
                if event != "line":
                    return self.trace
                self.end(frame)
                self.stop(frame)
        except Exception:
            self.end(frame)
            self.talk.end()

    def stop(self, frame):
        if self.talk.is_over():
            return
        debugger = self.prepare()
        if debugger is None:
            _refuse(self.talk, _NO_PDB)
        else:
            self.talk.write("STOPPED\n")
            debugger.open(frame)

    def prepare(self):
        try:
            with self.library:
                import pdb

                # It would be imported to edit lines of the program's own terminal, and may write to that.
                readline = sys.modules.get("readline", self)
                sys.modules["readline"] = None
                try:
                    return _make_class(pdb, self.talk)(stdin=self.talk, stdout=self.talk, nosigint=True, readrc=False)
                finally:
                    if readline is self:
                        del sys.modules["readline"]
                    else:
                        sys.modules["readline"] = readline
        except Exception:
            return None


def _refuse(talk, reason):
    talk.write("REFUSED %d\n" % reason)
    talk.end()


def _begin(frame):
    library = _Library()
    with library:
        import _socket
    talk = _Talk(_socket, DIRECTORY)
    if sys.gettrace() is not None:
        _refuse(talk, _TRACED)
    elif frame is None:
        _refuse(talk, _UNKNOWN)
    else:
        _Waiter(talk, library).begin(frame)


_help = DIRECTORY + "/"
_begin(FRAME)
del FRAME  # it lives as long as its function runs

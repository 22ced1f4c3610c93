# Every function of the user's own code gives line events: what is measured is said by the lines put above this file (ALL, GLOBS).
# CPython 3.6 to 3.15; see mod.rs and every.h. Executed by marks.py in a namespace of its own, with the file name "<rmprof-bpf work>": what
# is allocated below a frame of that name is ours, not the line's.
import sys


async def _sample(*words, **options):  # its flags are no number that a code object has elsewhere
    yield


def _has_command(words):
    # Is the program the text after -c? Only its lines have the file name "<string>" rightly.
    words = iter(words[1:])
    for word in words:
        if word[:1] != b"-" or len(word) == 1:
            return False
        for place, letter in enumerate(word[1:].decode("latin-1"), 2):
            if letter in "cm":
                return letter == "c"
            if letter in "WX":  # with a value, here or in the next word
                if place == len(word):
                    next(words, None)
                break
            if letter == "-":
                break
    return False


def start(extension, directory, tool, local):
    code = _sample.__code__
    monitoring = getattr(sys, "monitoring", None)
    begin = None
    if monitoring is not None:

        def give_events(code):
            if extension.measure(code):
                monitoring.set_local_events(tool, code, local)

        begin = give_events, monitoring.DISABLE
    with sys.modules["_io"].FileIO("/proc/self/cmdline") as file:
        command = _has_command(file.readall().split(b"\0"))
    on_start = extension.every(code, code.co_filename, code.co_flags, ALL, command, directory + "/", GLOBS, begin)
    if monitoring is not None:
        events = monitoring.events
        monitoring.register_callback(tool, events.PY_START, on_start)
        monitoring.set_events(tool, events.PY_UNWIND | events.PY_START)

"""Programs that change their resident memory in every way there is. Without an argument: their names; with one: that program.

Each ends by writing its number and its own /proc/self/smaps_rollup, and at once, so that nothing is touched between.
"""
import ctypes
import gc
import mmap
import os
import sys
import tempfile
import threading

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = LIBC.malloc.restype = LIBC.mremap.restype = LIBC.sbrk.restype = ctypes.c_void_p
PAGE = 4096
MIB = 1 << 20
READ_WRITE = 3
PRIVATE, SHARED, ANONYMOUS, POPULATE = 2, 1, 0x20, 0x8000
DONTNEED, FREE, REMOVE, HUGEPAGE, NOHUGEPAGE, PAGEOUT = 4, 8, 9, 14, 15, 21
programs = {}


def program(function):
    programs[function.__name__] = function
    return function


def tell():
    """By system calls alone, all of which were made before, so that nothing is touched for the first time between."""
    ROOM[:16] = (b"pid %d" % os.getpid()).ljust(15) + b"\n"
    sink = os.open("/dev/null", os.O_WRONLY)
    for output, last in ((sink, 39), (1, 231)):  # getpid, exit_group
        rollup = os.open("/proc/self/smaps_rollup", os.O_RDONLY)
        LIBC.read(rollup, ctypes.byref(ROOM, 16), 1500)
        LIBC.write(output, ROOM, 1516)
        LIBC.syscall(last, 0)


ROOM = ctypes.create_string_buffer(b"\n" * 2048)


def area(size, flags=PRIVATE | ANONYMOUS, protection=READ_WRITE, file=-1, at=None):
    address = LIBC.mmap(ctypes.c_void_p(at), ctypes.c_size_t(size), protection, flags, file, ctypes.c_long(0))
    assert address != 2**64 - 1, os.strerror(ctypes.get_errno())
    return address


def write(address, size, value=7):
    ctypes.memset(ctypes.c_void_p(address), value, size)


def read(address, size):
    for page in range(address, address + size, PAGE):
        ctypes.string_at(page, 1)


def call(name, address, *arguments):
    result = getattr(LIBC, name)(ctypes.c_void_p(address), *map(ctypes.c_size_t, arguments))
    assert result == 0, (name, os.strerror(ctypes.get_errno()))


def file_of(size):
    file = tempfile.TemporaryFile()
    file.write(b"x" * size)
    file.flush()
    return file


@program
def nothing():
    pass


@program
def small_objects():
    return [str(number) * 3 for number in range(100000)]


@program
def small_objects_gone():
    kept = [str(number) * 3 for number in range(100000)]
    del kept[::2]
    del kept


@program
def large_blocks():
    return [bytearray(b"x" * 300000) for _ in range(40)]


@program
def large_blocks_gone():
    kept = [bytearray(b"x" * 300000) for _ in range(40)]
    del kept[::3]


@program
def large_temporaries():
    return [len(b"x" * (size * MIB)) for size in range(1, 9)]


@program
def a_list_that_grows():
    kept = []
    for number in range(500000):
        kept.append(None)
    while len(kept) > 1000:
        kept.pop()


@program
def cycles():
    for _ in range(20000):
        one = [bytes(200)]
        one.append(one)
    gc.collect()


@program
def trimmed():
    blocks = [LIBC.malloc(60000) for _ in range(200)]
    for block in blocks:
        write(block, 60000)
    for block in blocks:
        LIBC.free(ctypes.c_void_p(block))
    LIBC.malloc_trim(0)


@program
def by_brk():
    begin = LIBC.sbrk(ctypes.c_long(3 * MIB))
    write(begin, 3 * MIB)
    LIBC.sbrk(ctypes.c_long(-1 * MIB))


@program
def touched():
    write(area(8 * MIB), 8 * MIB)


@program
def read_only():
    read(area(8 * MIB), 8 * MIB)  # the zero page, which is nobody's


@program
def populated():
    area(5 * MIB, PRIVATE | ANONYMOUS | POPULATE)


@program
def unmapped_in_part():
    begin = area(8 * MIB)
    write(begin, 8 * MIB)
    call("munmap", begin + MIB, 2 * MIB)
    call("munmap", begin + 6 * MIB, 4 * PAGE)


@program
def mapped_over():
    begin = area(4 * MIB)
    write(begin, 4 * MIB)
    area(MIB, PRIVATE | ANONYMOUS | 0x10, at=begin + MIB)


@program
def moved():
    begin = area(4 * MIB)
    write(begin, 4 * MIB)
    begin = LIBC.mremap(ctypes.c_void_p(begin), ctypes.c_size_t(4 * MIB), ctypes.c_size_t(16 * MIB), 1)
    write(begin + 8 * MIB, MIB)
    LIBC.mremap(ctypes.c_void_p(begin), ctypes.c_size_t(16 * MIB), ctypes.c_size_t(2 * MIB), 0)


@program
def not_needed():
    begin = area(8 * MIB)
    write(begin, 8 * MIB)
    call("madvise", begin + MIB, 3 * MIB, DONTNEED)
    write(begin + 2 * MIB, MIB)


@program
def free_when_short():
    begin = area(4 * MIB)
    write(begin, 4 * MIB)
    call("madvise", begin, 4 * MIB, FREE)


@program
def protected():
    begin = area(4 * MIB)
    write(begin, 4 * MIB)
    call("mprotect", begin, 2 * MIB, 0)


@program
def huge_pages():
    begin = area(12 * MIB)
    begin = (begin + 2 * MIB - 1) // (2 * MIB) * (2 * MIB)
    call("madvise", begin, 8 * MIB, HUGEPAGE)
    write(begin, 8 * MIB)


@program
def huge_pages_split():
    begin = area(12 * MIB)
    begin = (begin + 2 * MIB - 1) // (2 * MIB) * (2 * MIB)
    call("madvise", begin, 8 * MIB, HUGEPAGE)
    write(begin, 8 * MIB)
    call("madvise", begin + MIB, 8 * PAGE, DONTNEED)
    call("munmap", begin + 3 * MIB, 2 * MIB)
    # Or the kernel's own thread (khugepaged) fills the gap again, maybe after what is resident was told.
    call("madvise", begin, 3 * MIB, NOHUGEPAGE)
    call("madvise", begin + 5 * MIB, 3 * MIB, NOHUGEPAGE)


@program
def locked():
    call("mlock", area(3 * MIB), 3 * MIB)


@program
def all_locked():
    if LIBC.mlockall(1) == 0:  # what is there, and may be more than is allowed
        write(area(MIB), MIB)
        LIBC.munlockall()


@program
def a_file_read():
    file = file_of(6 * MIB)
    read(area(6 * MIB, PRIVATE, file=file.fileno()), 6 * MIB)


@program
def a_file_copied_on_write():
    file = file_of(6 * MIB)
    begin = area(6 * MIB, PRIVATE, file=file.fileno())
    read(begin, 6 * MIB)
    write(begin, 2 * MIB)


@program
def a_file_shared():
    file = file_of(6 * MIB)
    begin = area(6 * MIB, SHARED, file=file.fileno())
    write(begin, 3 * MIB)
    os.ftruncate(file.fileno(), MIB)


@program
def a_file_paged_out():
    file = file_of(6 * MIB)
    begin = area(6 * MIB, PRIVATE, file=file.fileno())
    read(begin, 6 * MIB)
    LIBC.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(6 * MIB), PAGEOUT)


@program
def shared_memory():
    begin = area(6 * MIB, SHARED | ANONYMOUS)
    write(begin, 4 * MIB)
    call("madvise", begin, MIB, REMOVE)


@program
def a_python_mapping():
    memory = mmap.mmap(-1, 5 * MIB)
    memory[:] = b"y" * (5 * MIB)
    memory.close()
    return mmap.mmap(-1, 3 * MIB)


@program
def threads():
    def work(number, kept):
        kept.append(bytes(number * 100000))
        kept.append([str(each) for each in range(20000)])
        recursion(200)

    def recursion(depth):
        return depth and recursion(depth - 1)

    kept = []
    workers = [threading.Thread(target=work, args=(number, kept)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    del kept[::2]


@program
def a_fork_that_writes():
    kept = bytearray(b"x" * (8 * MIB))
    child = os.fork()
    if child == 0:
        kept[: 4 * MIB] = b"y" * (4 * MIB)
        tell()
    os.waitpid(child, 0)
    kept[MIB : 2 * MIB] = b"z" * MIB


@program
def forks_of_forks():
    kept = bytearray(b"x" * (4 * MIB))
    for depth in range(3):
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            break
        kept[depth * MIB : (depth + 1) * MIB] = b"y" * MIB


@program
def another_program():
    import subprocess

    subprocess.check_call(["true"])
    subprocess.check_call([sys.executable, __file__, "small_objects"])


@program
def executes():
    write(area(4 * MIB), 4 * MIB)
    os.execv(sys.executable, [sys.executable, __file__, "touched"])


@program
def looked_at_while_it_ends():
    """Who reads its memory waits in a page fault that this process would have to handle, until it has ended."""
    import fcntl, struct

    handler = LIBC.syscall(323, 0)  # userfaultfd
    if handler < 0:
        return
    fcntl.ioctl(handler, 0xC018AA3F, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
    place = area(PAGE)
    fcntl.ioctl(handler, 0xC020AA00, bytearray(struct.pack("QQQQ", place, PAGE, 1, 0)))
    os.write(1, b"look %d %d\n" % (os.getpid(), place))
    os.read(handler, 32)


@program
def imports():
    import decimal, json, sqlite3, unittest, xml.dom.minidom

    return decimal, json, sqlite3, unittest, xml


if __name__ == "__main__":
    if sys.argv[1:]:
        kept = programs[sys.argv[1]]()
        tell()
    print("\n".join(programs))

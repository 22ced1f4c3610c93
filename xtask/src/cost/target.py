# What `cargo xtask cost` measures: COUNT times WORK, DEPTH calls deep. It says when it is ready, waits for a line, does it, says how many
# nanoseconds of processor time that took and how often it was done, and waits for another line before it ends.
import mmap
import sys
import time

work, depth, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
begin = end = 0


def blocks(size):
    global begin, end
    text = "x"
    begin = time.process_time_ns()
    for _ in range(count):
        text * size  # malloc, where bytes(size) would be calloc
    end = time.process_time_ns()


def pages():
    global begin, end
    memory = mmap.mmap(-1, count * mmap.PAGESIZE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    begin = time.process_time_ns()
    for at in range(0, count * mmap.PAGESIZE, mmap.PAGESIZE):
        memory[at] = 1
    end = time.process_time_ns()


WORKS = {"small": lambda: blocks(600), "large": lambda: blocks(3000), "pages": pages}


def call(depth):
    if depth:
        call(depth - 1)
    else:
        WORKS[work]()


print("ready", flush=True)
sys.stdin.readline()
call(depth)
print(end - begin, count, flush=True)
sys.stdin.readline()

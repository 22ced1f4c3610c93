# What `cargo xtask attached` measures. It says when it is ready; for each line it hears it does COUNT units of WORK, and says how many
# nanoseconds these took of processor time and by the clock. At `gap` it does the shortest steps it can until it hears the next line, and
# then says how many nanoseconds it took from one to the next at most: by the clock, and without those in which it was ready to run and
# another had its processor.
import json
import mmap
import os
import select
import sys
import time

work, count = sys.argv[1], int(sys.argv[2])
# So long a unit computes.
UNIT = 9_000_000
# So much a growing one keeps.
GROWTH = 1 << 20

document = {str(number): [number, str(number), {"of": number / 7}] for number in range(200)}
content = b"x" * GROWTH
kept = []


def compute(times):
    for _ in range(times):
        json.loads(json.dumps(document))


def grow():
    area = mmap.mmap(-1, GROWTH)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    area[:] = content
    kept.append(area)


def gaps():
    """A step takes and gives back a block, and in a growing program has a page given back and touched again: either would wait for a lock
    that somebody holds of the process's memory or of its probes."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    waits = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    told = select.poll()
    told.register(sys.stdin, select.POLLIN)

    def look():
        return time.perf_counter_ns(), int(os.pread(waits, 64, 0).split()[1])

    (_, first), (clock, waited) = look(), look()
    greatest = [0, 0]
    while not told.poll(0):
        bytes(600)
        if work == "growing":
            page.madvise(mmap.MADV_DONTNEED)
            page[0] = 1
        before, (clock, now) = clock, look()
        # It may have waited after the clock was read, too: that is in this gap and was in the waits before.
        greatest = [max(greatest[0], clock - before), max(greatest[1], clock - before - (now - first))]
        first, waited = waited, now
    os.close(waits)
    return greatest


begin = time.process_time_ns()
compute(20)
times = max(1, 20 * UNIT // (time.process_time_ns() - begin))
print("ready", flush=True)
for word in sys.stdin:
    if word == "gap\n":
        print("begun", flush=True)
        greatest = gaps()
        sys.stdin.readline()
        print(*greatest, flush=True)
        continue
    processor, clock = time.process_time_ns(), time.monotonic_ns()
    for _ in range(count):
        compute(times)
        if work == "growing":
            grow()
    processor, clock = time.process_time_ns() - processor, time.monotonic_ns() - clock
    kept.clear()
    print(processor, clock, flush=True)

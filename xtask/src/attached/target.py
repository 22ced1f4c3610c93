# What `cargo xtask attached` measures. It says when it is ready; for each line it hears it does COUNT units of WORK, and says how many
# nanoseconds these took of processor time and by the clock.
import json
import mmap
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


begin = time.process_time_ns()
compute(20)
times = max(1, 20 * UNIT // (time.process_time_ns() - begin))
print("ready", flush=True)
for _ in sys.stdin:
    processor, clock = time.process_time_ns(), time.monotonic_ns()
    for _ in range(count):
        compute(times)
        if work == "growing":
            grow()
    processor, clock = time.process_time_ns() - processor, time.monotonic_ns() - clock
    kept.clear()
    print(processor, clock, flush=True)

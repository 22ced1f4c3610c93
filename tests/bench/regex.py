# Regular expressions over text: processor time, and some matches that are kept for a moment.
import re
import time

ROUNDS = 60
TEXT = " ".join(f"word{n} {n * 7}.{n % 100:02} user{n}@example.org" for n in range(3_000))
PATTERN = re.compile(r"(\w+)@(\w+)\.org|(\d+)\.(\d\d)")


def search():
    count = 0
    for _ in range(ROUNDS):
        for match in PATTERN.finditer(TEXT):
            count += len(match.group())
    return count


begin, used = time.perf_counter(), time.process_time()
search()
print(time.perf_counter() - begin, time.process_time() - used, ROUNDS * 6_000)

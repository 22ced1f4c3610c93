# Records to text and back, as a service does all day.
import json
import time

ROUNDS = 60
RECORDS = [{"id": n, "name": f"user {n}", "tags": ["a", "b", str(n)], "score": n / 7} for n in range(2_000)]


def convert():
    for _ in range(ROUNDS):
        json.loads(json.dumps(RECORDS))


begin, used = time.perf_counter(), time.process_time()
convert()
print(time.perf_counter() - begin, time.process_time() - used, ROUNDS * len(RECORDS))

# Memory that grows by blocks of a mebibyte, is touched, and dropped at once every hundred blocks.
import time

ROUNDS = 10
BLOCKS = 100


def grow():
    for _ in range(ROUNDS):
        kept = []
        for _ in range(BLOCKS):
            kept.append(bytearray(b"\x01") * (1 << 20))


begin, used = time.perf_counter(), time.process_time()
grow()
print(time.perf_counter() - begin, time.process_time() - used, ROUNDS * BLOCKS)

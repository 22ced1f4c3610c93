"""More processes than processors, so each waits for the others at any moment: each keeps 96 MiB of its own mappings and 24 MiB of blocks."""
import mmap
import os


def take():
    kept = []
    for _ in range(1500):
        kept.append(mmap.mmap(-1, 1 << 16))  #: maps
        mmap.mmap(-1, 4096).close()
    for _ in range(24):
        kept.append(bytearray(1 << 20))  #: here
    return kept


children = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        kept = take()
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0

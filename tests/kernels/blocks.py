"""Keeps 2,000 blocks of the C allocator, which one line takes."""


def take():
    return [bytes(600) for _ in range(2000)]  #: here


kept = take()

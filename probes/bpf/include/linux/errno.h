/* Stub: the types come from core.h; libbpf's headers ask for this file by name. */

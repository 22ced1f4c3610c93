/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* The few system calls that are made, without the C library. */
#ifndef SYSTEM_H
#define SYSTEM_H

static long call(long number, long a, long b, long c, long d, long e, long f)
{
	long answer;
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "=a"(answer)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "=r"(answer) : "r"(x8), "0"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
#else
#error "x86_64 and aarch64 are known"
#endif
	return answer;
}

/* arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h */
#if defined(__x86_64__)
enum { CLOSE = 3, MMAP = 9, MUNMAP = 11, MADVISE = 28, MREMAP = 25, GETPID = 39, FTRUNCATE = 77, PRLIMIT = 302, VM_READ = 310, MEMFD = 319 };
#else
enum { CLOSE = 57, MMAP = 222, MUNMAP = 215, MADVISE = 233, MREMAP = 216, GETPID = 172, FTRUNCATE = 46, PRLIMIT = 261, VM_READ = 270, MEMFD = 279 };
#endif

/* Reads our own memory by a system call, which fails where a load would end the program. 0: all of it was read. */
static inline bool read_with_care(void *to, size_t size, __u64 from)
{
	struct {
		const void *base;
		size_t length;
	} local = { to, size }, remote = { (const void *)from, size };

	return call(VM_READ, call(GETPID, 0, 0, 0, 0, 0, 0), (long)&local, 1, (long)&remote, 1, 0) != (long)size;
}

static inline __u64 thread_pointer(void)
{
	__u64 pointer;
#if defined(__x86_64__)
	__asm__("mov %%fs:0, %0" : "=r"(pointer));
#else
	__asm__("mrs %0, tpidr_el0" : "=r"(pointer));
#endif
	return pointer;
}

#endif

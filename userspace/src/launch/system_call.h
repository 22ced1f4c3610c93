/* System calls without a C library, of line_events.c. */
#if defined(__x86_64__)
enum { SYS_READ = 0, SYS_CLOSE = 3, SYS_MMAP = 9, SYS_SIGACTION = 13, SYS_OPENAT = 257 };
/* The fifth and sixth argument are no descriptor and no offset: mmap's. */
static long system_call(long number, long a, long b, long c, long d)
{
	long result;
	register long fourth __asm__("r10") = d, fifth __asm__("r8") = -1, sixth __asm__("r9") = 0;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth), "r"(sixth)
			 : "rcx", "r11", "memory");
	return result;
}
#else
enum { SYS_READ = 63, SYS_CLOSE = 57, SYS_MMAP = 222, SYS_SIGACTION = 134, SYS_OPENAT = 56 };
static long system_call(long number, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c, x3 __asm__("x3") = d,
		      x4 __asm__("x4") = -1, x5 __asm__("x5") = 0;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
#endif

// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/*
 * The preloaded library: stands before the C library's allocator in a program that we start, and counts what passes through in the
 * memory described as THE TALLY in rmprof.h. A trap for every block would cost a microsecond; this costs some tens of nanoseconds.
 *
 * What it is and is not. It hands every call on to the C library unchanged and keeps its results. It takes no lock, allocates
 * nothing, starts no thread, handles no signal and opens no file that stays open. It reads the Python frames of the thread it runs
 * in, as the kernel side does and by the same offsets, to tell stacks apart; whose a stack is the kernel side reads itself, once,
 * when it is met for the first time (rmprof_site_stack). Without us at the other end it counts nothing.
 *
 * It needs no header and no library: the same file serves any glibc from 2.27 on.
 */
#include "host.h"
#include "system.h"
#include "rmprof.h"

/* The same words as in the kernel, on our own memory. What is not there cannot be asked for here: see `careful`. */
#define READ_USER(to, size, from) (__builtin_memcpy(to, (const void *)(from), size), 0)
#define READ_OTHERS(to, size, from) read_with_care(to, size, from)
#define WALK_LOOP(steps, step, context) ((void)(step))
#include "python.bpf.h"

#define PUBLIC __attribute__((visibility("default")))
#define WEAK __attribute__((weak))
#define UNUSED __attribute__((unused))
#define likely(condition) __builtin_expect(!!(condition), 1)
#define unlikely(condition) __builtin_expect(!!(condition), 0)

typedef void *one_function(size_t);
typedef void *two_function(size_t, size_t);
typedef int three_function(void **, size_t, size_t);

/*
 * The C library's own names for the functions that ours hide, and what its loader offers. Weak: a program must not fail to start for
 * want of one. What is not there is asked of the loader by the usual name.
 */
extern WEAK one_function __libc_malloc;
extern WEAK two_function __libc_calloc;
extern WEAK void *__libc_realloc(void *, size_t);
extern WEAK void __libc_free(void *);
extern WEAK int *__errno_location(void);
extern WEAK void *dlsym(void *, const char *);
extern WEAK char __libc_single_threaded; /* glibc 2.32: no second thread was ever made */

enum { ENOMEM = 12 };

/* Where this process counts; 0: nowhere. */
static struct rm_tally *tally;
/* What it does at its next event (enum rm_tally_order). */
static __u32 order;

/* The place of the first is told to the kernel side. */
static __thread struct rm_tally_thread thread;
static __thread struct {
	__u64 slot;    /* where the thread's PyThreadState stands; 0: not found yet */
	__u64 of;      /* the thread pointer it was found for */
	__u64 stack;   /* the stack of the last event */
	__u64 other;   /* as running_state has it */
	struct rm_tally *in; /* where that was counted: not where a fork counts */
	__u32 site;    /* and its site plus one */
	bool collector; /* it was the garbage collector's */
	struct known *known; /* this thread's stacks; 0: none are kept */
	struct rm_tally *known_in; /* as `in` */
	__u64 known_of; /* as `of` */
	struct collection collection;
} last;

/* A probe is here: the kernel side reads the stack that runs, and notes that it is `site`'s. `frame` as in current_stack, `other` as in
 * running_state: it is to take the same thread state. */
__attribute__((naked, noinline, used, aligned(16), visibility("default"))) void rmprof_site_stack(UNUSED __u64 site, UNUSED const void *frame,
												     UNUSED bool collector, UNUSED __u64 other)
{
	__asm__("nop\n\tret");
}

/* Another: the kernel side learns where a fork counts. */
__attribute__((naked, noinline, used, aligned(16), visibility("default"))) void rmprof_site_tally(UNUSED const void *address)
{
	__asm__("nop\n\tret");
}

#include "memory.h"
#include "table.h"
#include "known.h"
#include "stack.h"
#include "sample.h"
#include "events.h"

/* ---- the start ----------------------------------------------------------------------------------------------------------- */

static struct rm_tally *first_part(void)
{
	struct rm_tally *t = (struct rm_tally *)place(FIRST, 0);

	/* All of the head is there from now on: what says so is in it. */
	for (__u32 page = 0; t && page < RM_TALLY_HEAD_BYTES / RM_PAGE; page++) {
		touch(t, page * RM_PAGE);
		((volatile char *)t)[page * RM_PAGE] |= 0;
	}
	if (t)
		t->magic = RM_TALLY_MAGIC;
	return t;
}

/* Makes the memory and says that it is there: the system call has no other effect, and nothing happens where nobody watches. */
static struct rm_tally *make(void)
{
	enum { RLIMIT_FSIZE = 1, MFD_CLOEXEC = 1, MFD_ALLOW_SEALING = 2, READ_WRITE = 3, SHARED_NORESERVE = 0x4001, NOHUGEPAGE = 15, DONTDUMP = 16 };
	static const char name[] = "rmprof-bpf";
	__u64 segments = RM_TALLY_SEGMENTS, limit[2];
	struct rm_tally *t = 0;
	long file;

	/* Beyond this limit the kernel sends SIGXFSZ, for a file in memory too. */
	if (call(PRLIMIT, 0, RLIMIT_FSIZE, 0, (long)limit, 0, 0))
		limit[0] = 0;
	if (RM_PAGE + segments * RM_TALLY_BYTES > limit[0])
		segments = 1;
	if (RM_PAGE + segments * RM_TALLY_BYTES > limit[0])
		segments = 0;
	file = segments ? call(MEMFD, (long)name, MFD_CLOEXEC | MFD_ALLOW_SEALING, 0, 0, 0, 0) : -1;
	if (file >= 0 && !call(FTRUNCATE, file, RM_PAGE + segments * RM_TALLY_BYTES, 0, 0, 0, 0)) {
		root = (char *)call(MMAP, 0, RM_PAGE, READ_WRITE, SHARED_NORESERVE, file, 0);
		if ((__u64)root > -4096ull)
			root = 0;
	}
	if (root) {
		/* What is mapped by it inherits these. */
		call(MADVISE, (long)root, RM_PAGE, NOHUGEPAGE, 0, 0, 0);
		call(MADVISE, (long)root, RM_PAGE, DONTDUMP, 0, 0, 0);
		t = first_part();
	}
	/* With nothing there it is said too: somebody waits for it. */
	call(CLOSE, RM_TALLY_ANNOUNCE, file, (long)t, (long)&order, (__u64)&thread - thread_pointer(), t ? segments : 0);
	if (file >= 0)
		call(CLOSE, file, 0, 0, 0, 0, 0);
	if (t && t->enabled)
		return t;
	unmap_parts();
	if (root)
		call(MUNMAP, (long)root, RM_PAGE, 0, 0, 0, 0);
	root = 0;
	return 0;
}

/* Something is to be done before the next event is counted. */
static __attribute__((noinline)) void obey(void)
{
	__u32 what = __atomic_exchange_n(&order, RM_TALLY_GO_ON, __ATOMIC_ACQ_REL);
	struct rm_tally *t = 0;

	if (what == RM_TALLY_GO_ON) /* another thread does it */
		return;
	__atomic_store_n(&tally, (struct rm_tally *)0, __ATOMIC_RELEASE);
	/* What a fork knows is of its parent's, and its own may come to lie at the same address. */
	last.in = 0;
	last.known_in = 0;
	if (what == RM_TALLY_BEGIN) {
		t = make();
	} else {
		unmap_parts(); /* the parent's */
		segment = what - RM_TALLY_MOVE;
		if (what >= RM_TALLY_MOVE && segment < RM_TALLY_SEGMENTS)
			t = first_part();
		if (what >= RM_TALLY_MOVE)
			rmprof_site_tally(t); /* 0 is told too: what it does is then counted by nobody */
	}
	if (t)
		make_filter(t);
	__atomic_store_n(&tally, t, __ATOMIC_RELEASE);
}

/* Where to count, if anywhere. */
static inline struct rm_tally *counting(void)
{
	struct rm_tally *t;

	if (unlikely(order != RM_TALLY_GO_ON))
		obey();
	t = tally;
	return likely(t) && likely(t->enabled) ? t : 0;
}

static bool ends_with(const char *text, const char *end)
{
	size_t length = 0, tail = 0;

	while (text[length])
		length++;
	while (end[tail])
		tail++;
	while (tail && length && text[length - 1] == end[tail - 1])
		length--, tail--;
	return !tail;
}

/* What brought us here is nobody's business, and is not to be inherited: takes it out of the environment again. */
static void leave_environment(char **variables)
{
	static const char name[] = "LD_PRELOAD=";

	for (char **at = variables; at && *at; at++) {
		char *text = *at, *colon = 0;
		size_t i = 0;

		while (name[i] && text[i] == name[i])
			i++;
		if (name[i] || !ends_with(text, "/" RM_TALLY_FILE))
			continue;
		for (; text[i]; i++)
			if (text[i] == ':')
				colon = text + i;
		if (colon) {
			*colon = 0;
			continue;
		}
		for (char **rest = at; *rest; rest++)
			rest[0] = rest[1];
		at--;
	}
}

/*
 * Of line_events.c, before and after a line event is told to the kernel side. Before: it has to know where this process counts, which a
 * fork that has asked for no block yet has not said. After: what the line that ended reached has been read.
 */
PUBLIC void rmprof_tally_line(long told)
{
	if (told)
		thread.highest = thread.net;
	else
		counting();
}

/* ---- the allocator's functions ------------------------------------------------------------------------------------------- */

/* What the C library has under a name, found when first asked for. */
static void *next(void **known, const char *name)
{
	void *const next_library = (void *)-1; /* RTLD_NEXT */
	void *found = __atomic_load_n(known, __ATOMIC_RELAXED);

	if (!found && dlsym) {
		found = dlsym(next_library, name);
		__atomic_store_n(known, found, __ATOMIC_RELAXED);
	}
	return found;
}

static void *next_malloc, *next_calloc, *next_realloc, *next_free;
static void *next_memalign, *next_aligned_alloc, *next_valloc, *next_pvalloc, *next_posix_memalign;

typedef void *realloc_function(void *, size_t);
typedef void free_function(void *);

/* What a call is handed on to. Where we count that is the C library's own, without asking the loader. Where we do not, another
 * allocator may stand between it and us: a program that is linked to one. */
#define REAL(name, type, counted) ((type *)(counted && __libc_##name ? (void *)__libc_##name : own_or_next(&next_##name, #name, __libc_##name)))

static void *own_or_next(void **known, const char *name, void *own)
{
	void *found = next(known, name);

	return found ? found : own;
}

/* The frame of the function that the program called: its caller's frame pointer and the return address stand there. */
#define FRAME __builtin_frame_address(0)

#define WITH_DEPTH(expression)          \
	({                              \
		thread.depth++;         \
		void *r_ = expression;  \
		thread.depth--;         \
		r_;                     \
	})

PUBLIC void *malloc(size_t bytes)
{
	struct rm_tally *t = counting();

	if (unlikely(!t))
		return REAL(malloc, one_function, false)(bytes);
	void *address = WITH_DEPTH(REAL(malloc, one_function, true)(bytes));
	if (likely(address))
		record(t, address, bytes, FRAME);
	return address;
}

PUBLIC void free(void *address)
{
	struct rm_tally *t = counting();

	if (unlikely(!t || !address)) {
		REAL(free, free_function, t)(address);
		return;
	}
	struct rm_tally_site *site = record_release(t, address);

	thread.depth++;
	REAL(free, free_function, true)(address);
	thread.depth--;
	if (likely(site))
		draw(t, site);
}

/* C23's; glibc has them from 2.43 on, as other names of free. */
PUBLIC void free_sized(void *address, UNUSED size_t bytes)
{
	free(address);
}

PUBLIC void free_aligned_sized(void *address, UNUSED size_t alignment, UNUSED size_t bytes)
{
	free(address);
}

PUBLIC void *calloc(size_t number, size_t size)
{
	struct rm_tally *t = counting();

	if (unlikely(!t))
		return REAL(calloc, two_function, false)(number, size);
	void *address = WITH_DEPTH(REAL(calloc, two_function, true)(number, size));
	if (likely(address))
		record(t, address, number * size, FRAME);
	return address;
}

static inline void *reallocate(void *old, size_t bytes, const void *frame)
{
	struct rm_tally *t = counting();
	struct taken taken;
	void *address;

	if (unlikely(!t))
		return REAL(realloc, realloc_function, false)(old, bytes);
	taken = take_before_move(t, old);
	address = WITH_DEPTH(REAL(realloc, realloc_function, true)(old, bytes));
	if (likely(address || (old && !bytes)))
		record_move(t, old, taken, address, bytes, frame);
	else if (taken.known)
		put_back(t, old, taken); /* it failed and changed nothing */
	return address;
}

PUBLIC void *realloc(void *old, size_t bytes)
{
	return reallocate(old, bytes, FRAME);
}

PUBLIC void *reallocarray(void *old, size_t number, size_t size)
{
	size_t bytes;

	if (__builtin_mul_overflow(number, size, &bytes)) {
		if (__errno_location)
			*__errno_location() = ENOMEM;
		return 0;
	}
	return reallocate(old, bytes, FRAME);
}

static void *aligned(const char *name, void **known, size_t alignment, size_t bytes, const void *frame)
{
	struct rm_tally *t = counting();
	two_function *function = (two_function *)next(known, name);
	void *address = WITH_DEPTH(function ? function(alignment, bytes) : 0);

	if (t && address)
		record(t, address, bytes, frame);
	return address;
}

PUBLIC void *memalign(size_t alignment, size_t bytes)
{
	return aligned("memalign", &next_memalign, alignment, bytes, FRAME);
}

PUBLIC void *aligned_alloc(size_t alignment, size_t bytes)
{
	return aligned("aligned_alloc", &next_aligned_alloc, alignment, bytes, FRAME);
}

static void *of_pages(const char *name, void **known, size_t bytes, const void *frame)
{
	struct rm_tally *t = counting();
	one_function *function = (one_function *)next(known, name);
	void *address = WITH_DEPTH(function ? function(bytes) : 0);

	if (t && address)
		record(t, address, bytes, frame);
	return address;
}

PUBLIC void *valloc(size_t bytes)
{
	return of_pages("valloc", &next_valloc, bytes, FRAME);
}

PUBLIC void *pvalloc(size_t bytes)
{
	return of_pages("pvalloc", &next_pvalloc, bytes, FRAME);
}

PUBLIC int posix_memalign(void **out, size_t alignment, size_t bytes)
{
	struct rm_tally *t = counting();
	three_function *function = (three_function *)next(&next_posix_memalign, "posix_memalign");
	int error;

	thread.depth++;
	error = function ? function(out, alignment, bytes) : ENOMEM;
	thread.depth--;
	if (t && !error)
		record(t, *out, bytes, FRAME);
	return error;
}

/* glibc hands its constructors what main gets. */
__attribute__((constructor)) static void begin(UNUSED int count_, UNUSED char **arguments, char **variables)
{
	leave_environment(variables);
	/* Now, while nobody else can hold the loader's lock. */
	next(&next_malloc, "malloc");
	next(&next_calloc, "calloc");
	next(&next_realloc, "realloc");
	next(&next_free, "free");
	next(&next_memalign, "memalign");
	next(&next_aligned_alloc, "aligned_alloc");
	next(&next_valloc, "valloc");
	next(&next_pvalloc, "pvalloc");
	next(&next_posix_memalign, "posix_memalign");
	counting();
}

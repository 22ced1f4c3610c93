/* Native functions with known names, compiled by tests/live/native.rs. None of them ends in a tail call. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define OWN __attribute__((noinline, visibility("default")))

static volatile size_t kept;

OWN void *grab_block(size_t bytes)
{
	void *block = malloc(bytes);
	kept += bytes;
	return block;
}

OWN void *grab_zeroed(size_t bytes)
{
	void *block = calloc(bytes, 1);
	kept += bytes;
	return block;
}

OWN void *grab_again(void *block, size_t bytes)
{
	block = realloc(block, bytes);
	kept += bytes;
	return block;
}

OWN void *grab_aligned(size_t bytes)
{
	void *block = 0;
	if (posix_memalign(&block, 64, bytes))
		return 0;
	kept += bytes;
	return block;
}

OWN void *grab_mapping(size_t bytes)
{
	void *memory = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	kept += bytes;
	return memory;
}

/* A wrapper of the allocator by its name: not to be named. Frames as large as those of real ones. */
OWN void *PyMem_grab(size_t bytes)
{
	volatile char room[300];
	room[0] = 1;
	void *block = malloc(bytes + room[0] - 1);
	kept += bytes;
	return block;
}

OWN void *grab_through_wrapper(size_t bytes)
{
	void *block = PyMem_grab(bytes);
	kept += bytes;
	return block;
}

OWN void *grab_elsewhere_through_wrapper(size_t bytes)
{
	volatile char room[100];
	room[0] = 1;
	void *block = PyMem_grab(bytes + room[0] - 1);
	kept += bytes;
	return block;
}

/* Both, from one Python instruction. */
OWN void *grab_both(size_t bytes)
{
	void *block = grab_through_wrapper(bytes);
	void *more = grab_elsewhere_through_wrapper(2 * bytes);
	kept += bytes;
	return block ? more : block;
}

/* Touches memory, page by page. */
OWN void touch_mapping(char *memory, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += 4096)
		memory[at] = 1;
	kept += bytes;
}

/* Takes blocks of the interpreter's own, each page of them for the first time, below stack that nobody has touched. */
OWN void take_below_untouched_stack(void *(*take)(size_t), size_t blocks)
{
	volatile char room[1 << 20];
	__asm__ volatile("" : : "r"(room));
	while (blocks--)
		kept += take(500) != 0;
}

OWN void *worker_of_native_code(void *bytes)
{
	return malloc((size_t)bytes);
}

OWN void *other_worker_of_native_code(void *bytes)
{
	return malloc((size_t)bytes);
}

static void run(void *(*what)(void *), size_t bytes)
{
	pthread_t thread;
	if (!pthread_create(&thread, 0, what, (void *)bytes))
		pthread_join(thread, 0);
}

OWN void work_in_threads(size_t bytes)
{
	run(worker_of_native_code, bytes);
	run(worker_of_native_code, bytes);
	run(other_worker_of_native_code, bytes);
	kept += bytes;
}

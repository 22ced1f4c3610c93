/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* The memory that is shared with us: one segment of it, in parts, and which of its pages are there. */
#ifndef MEMORY_H
#define MEMORY_H

/* Was no second thread ever made? Asked once for an event: a compiler must believe that each store may change it. */
static inline bool has_one_thread(void)
{
	return &__libc_single_threaded && __libc_single_threaded;
}

static inline void add(bool single, __u64 *to, __u64 amount)
{
	if (single)
		*to += amount;
	else
		__atomic_fetch_add(to, amount, __ATOMIC_RELAXED);
}

static inline void count(struct rm_tally *t, enum rm_counter counter)
{
	__atomic_fetch_add(&t->counters[counter], 1, __ATOMIC_RELAXED);
}

static inline bool is_touched(const struct rm_tally *t, __u32 offset)
{
	__u32 page = offset / RM_PAGE;

	return t->touched[page / 64] >> (page % 64) & 1;
}

/* Says that a page of the segment is about to be there, before it is: then the kernel side never takes it for the program's. */
static inline void touch(struct rm_tally *t, __u32 offset)
{
	__u32 page = offset / RM_PAGE;
	__u64 bit = 1ull << (page % 64);

	if (likely(t->touched[page / 64] & bit))
		return;
	if (!(__atomic_fetch_or(&t->touched[page / 64], bit, __ATOMIC_RELAXED) & bit))
		__atomic_fetch_add(&t->touched_bytes, RM_PAGE, __ATOMIC_RELAXED);
}

/* The parts of a segment, each mapped by itself. */
enum part { FIRST, MORE_SITES, STACKS_2, STACKS_3, BLOCKS_2, BLOCKS_3, BLOCKS_4, PARTS };
static const __u32 part_at[PARTS + 1] = {
	0,
	RM_TALLY_MORE_SITES_AT,
	RM_TALLY_STACKS_2_AT,
	RM_TALLY_STACKS_3_AT,
	RM_TALLY_BLOCKS_2_AT,
	RM_TALLY_BLOCKS_3_AT,
	RM_TALLY_BLOCKS_4_AT,
	RM_TALLY_BYTES,
};
static char *parts[PARTS];
static bool absent[PARTS]; /* it could not be mapped, and is not tried again */

/* The first page of the memory, by which the rest is mapped; 0: there is no memory. */
static char *root;
/* The segment that is ours. */
static __u32 segment;

/* Maps a piece of the memory; 0: it cannot be done. The file is not open any more, but a shared mapping gives further ones (mremap(2),
 * an old size of 0), from its own start on: what is before the piece is unmapped again. */
static char *map(__u64 offset, __u64 bytes)
{
	enum { MREMAP_MAYMOVE = 1 };
	char *whole = (char *)call(MREMAP, (long)root, 0, offset + bytes, MREMAP_MAYMOVE, 0, 0);

	if ((__u64)whole > -4096ull)
		return 0;
	call(MUNMAP, (long)whole, offset, 0, 0, 0, 0);
	return whole + offset;
}

static __attribute__((noinline)) char *map_part(enum part part)
{
	__u32 bytes = part_at[part + 1] - part_at[part];
	char *none = 0, *start;

	if (absent[part] || !root)
		return 0;
	start = map(RM_PAGE + (__u64)segment * RM_TALLY_BYTES + part_at[part], bytes);
	if (!start) {
		absent[part] = true;
	} else if (!__atomic_compare_exchange_n(&parts[part], &none, start, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
		call(MUNMAP, (long)start, bytes, 0, 0, 0, 0); /* another thread was first */
		start = none;
	}
	return start;
}

static void unmap_parts(void)
{
	for (int part = 0; part < PARTS; part++) {
		if (parts[part])
			call(MUNMAP, (long)parts[part], part_at[part + 1] - part_at[part], 0, 0, 0, 0);
		parts[part] = 0;
		absent[part] = false;
	}
}

/* A place of the segment; 0: its part cannot be had. `part` is what `offset` is in. */
static inline void *place(enum part part, __u32 offset)
{
	char *start = __atomic_load_n(&parts[part], __ATOMIC_ACQUIRE);

	if (unlikely(!start) && !(start = map_part(part)))
		return 0;
	return start + (offset - part_at[part]);
}

#endif

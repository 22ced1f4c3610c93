/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* Tables in the segment: from stacks to sites, from blocks to sizes and sites. */
#ifndef TABLE_H
#define TABLE_H

/*
 * A key is where its hash says, in the first level whose bucket had room. A bucket that was full once says so for good, and the next
 * level is looked at as well. Keys are put in by compare-and-swap and taken out by their owner alone: a block is in the hands of one
 * thread from malloc to free, and stacks stay.
 */
struct table {
	__u32 buckets; /* of the first level */
	__u32 depth;   /* how many levels there are */
	struct {
		enum part part;
		__u32 at; /* of the segment */
	} levels[RM_TALLY_LEVELS];
};

#define SECOND_LEVEL(table) (RM_TALLY_##table##S_AT + RM_TALLY_##table##_BUCKETS * RM_TALLY_BUCKET_BYTES)

static const struct table stacks = {
	RM_TALLY_STACK_BUCKETS,
	4,
	{ { FIRST, RM_TALLY_STACKS_AT }, { FIRST, SECOND_LEVEL(STACK) }, { STACKS_2, RM_TALLY_STACKS_2_AT }, { STACKS_3, RM_TALLY_STACKS_3_AT } },
};
static const struct table blocks = {
	RM_TALLY_BLOCK_BUCKETS,
	5,
	{
		{ FIRST, RM_TALLY_BLOCKS_AT },
		{ FIRST, SECOND_LEVEL(BLOCK) },
		{ BLOCKS_2, RM_TALLY_BLOCKS_2_AT },
		{ BLOCKS_3, RM_TALLY_BLOCKS_3_AT },
		{ BLOCKS_4, RM_TALLY_BLOCKS_4_AT },
	},
};

/*
 * Where the bucket of a key is in the segment. Neighbours stay neighbours: who walks through memory walks through the table, and not
 * all over it. Areas of 256 KiB are spread, so that blocks at equal distances do not all share a bucket. The larger a level, the
 * smaller the regions that share one: where small blocks lie so close that they fill a bucket, they find room further on.
 */
static inline __u32 bucket_at(const struct rm_tally *t, const struct table *table, __u32 level, __u64 key)
{
	__u32 size = table->buckets << level * RM_TALLY_LEVEL_SHIFT;
	__u64 index = key >> (t->region_shifts[level] & 63) ^ (key >> 18) * 0x9e3779b97f4a7c15ull >> 32;

	return table->levels[level].at + ((__u32)index & (size - 1)) * RM_TALLY_BUCKET_BYTES;
}

/* The place of a key, in *found; -1: it is not there. */
static inline int find(const struct rm_tally *t, const struct table *table, __u64 key, struct rm_tally_bucket **found)
{
	for (__u32 level = 0; level < table->depth; level++) {
		__u32 offset = bucket_at(t, table, level, key);
		struct rm_tally_bucket *bucket;

		if (unlikely(!is_touched(t, offset)))
			return -1;
		bucket = place(table->levels[level].part, offset);
		if (unlikely(!bucket))
			return -1;
		for (int i = 0; i < RM_TALLY_KEYS; i++) {
			if (__atomic_load_n(&bucket->keys[i], __ATOMIC_ACQUIRE) == key) {
				*found = bucket;
				return i;
			}
		}
		if (likely(!bucket->overflowed))
			return -1;
	}
	return -1;
}

/* Has the processor fetch where a key would be, while it does something else: in a table of many blocks it is seldom in its caches. */
static inline void foresee(const struct rm_tally *t, const struct table *table, __u64 key)
{
	for (__u32 level = 0; level < table->depth; level++) {
		__u32 offset = bucket_at(t, table, level, key);
		char *start = __atomic_load_n(&parts[table->levels[level].part], __ATOMIC_RELAXED);

		if (!start || !is_touched(t, offset))
			return;
		start += offset - part_at[table->levels[level].part];
		__builtin_prefetch(start, 1);
		__builtin_prefetch(start + RM_TALLY_BUCKET_BYTES / 2, 1);
	}
}

/* How a key got in. */
enum put { PUT, REPLACED, NO_ROOM };

/* Puts in a key that is not there, or that was missed when it went. */
static inline enum put put(struct rm_tally *t, const struct table *table, __u64 key, __u64 value)
{
	for (__u32 level = 0; level < table->depth; level++) {
		__u32 offset = bucket_at(t, table, level, key);
		struct rm_tally_bucket *bucket = place(table->levels[level].part, offset);
		int free = -1;

		if (unlikely(!bucket))
			return NO_ROOM;
		touch(t, offset);
again:
		for (int i = RM_TALLY_KEYS - 1; i >= 0; i--) {
			__u64 there = __atomic_load_n(&bucket->keys[i], __ATOMIC_RELAXED);

			if (unlikely(there == key)) {
				bucket->values[i] = value;
				return REPLACED;
			}
			if (!there)
				free = i;
		}
		if (likely(free >= 0)) {
			__u64 none = 0;

			if (unlikely(!__atomic_compare_exchange_n(&bucket->keys[free], &none, key, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))) {
				free = -1; /* another thread took it */
				goto again;
			}
			__atomic_store_n(&bucket->values[free], value, __ATOMIC_RELEASE);
			return PUT;
		}
		bucket->overflowed = 1;
	}
	return NO_ROOM;
}

#endif

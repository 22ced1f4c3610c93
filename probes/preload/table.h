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
	struct {
		enum part part;
		__u32 at; /* of the segment */
	} levels[RM_TALLY_LEVELS];
};

#define SECOND_LEVEL(table) (RM_TALLY_##table##S_AT + RM_TALLY_##table##_BUCKETS * RM_TALLY_BUCKET_BYTES)

static const struct table stacks = {
	RM_TALLY_STACK_BUCKETS,
	{ { FIRST, RM_TALLY_STACKS_AT }, { FIRST, SECOND_LEVEL(STACK) }, { STACKS_2, RM_TALLY_STACKS_2_AT }, { STACKS_3, RM_TALLY_STACKS_3_AT } },
};
static const struct table blocks = {
	RM_TALLY_BLOCK_BUCKETS,
	{ { FIRST, RM_TALLY_BLOCKS_AT }, { FIRST, SECOND_LEVEL(BLOCK) }, { BLOCKS_2, RM_TALLY_BLOCKS_2_AT }, { BLOCKS_3, RM_TALLY_BLOCKS_3_AT } },
};

static inline __u64 hash_of(__u64 key)
{
	return (key >> 4) * 0x9e3779b97f4a7c15ull;
}

/* Where the bucket of a hash is in the segment. */
static inline __u32 bucket_at(const struct table *table, __u32 level, __u64 hash)
{
	__u32 size = table->buckets << level * RM_TALLY_LEVEL_SHIFT;

	return table->levels[level].at + ((__u32)(hash >> 32) & (size - 1)) * RM_TALLY_BUCKET_BYTES;
}

/* The place of a key, in *found; -1: it is not there. */
static inline int find(const struct rm_tally *t, const struct table *table, __u64 key, struct rm_tally_bucket **found)
{
	__u64 hash = hash_of(key);

	for (__u32 level = 0; level < RM_TALLY_LEVELS; level++) {
		__u32 offset = bucket_at(table, level, hash);
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

/* Puts in a key that is not there. False: there is no room. */
static inline bool put(struct rm_tally *t, const struct table *table, __u64 key, __u64 value)
{
	__u64 hash = hash_of(key);

	for (__u32 level = 0; level < RM_TALLY_LEVELS; level++) {
		__u32 offset = bucket_at(table, level, hash);
		struct rm_tally_bucket *bucket = place(table->levels[level].part, offset);

		if (unlikely(!bucket))
			return false;
		touch(t, offset);
		for (int i = 0; i < RM_TALLY_KEYS; i++) {
			__u64 none = 0;

			if (!bucket->keys[i] &&
			    __atomic_compare_exchange_n(&bucket->keys[i], &none, key, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
				__atomic_store_n(&bucket->values[i], value, __ATOMIC_RELEASE);
				return true;
			}
		}
		bucket->overflowed = 1;
	}
	return false;
}

#endif

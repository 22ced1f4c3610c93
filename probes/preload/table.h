/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* Tables in the segment: from stacks to sites, from blocks to sizes and sites. */
#ifndef TABLE_H
#define TABLE_H

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

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
 * smaller the regions that share one: where small blocks lie so close that they fill a bucket, they find room further on. Beyond the last
 * level they are tried all over it: of areas that share its buckets some are full from end to end.
 */
static inline __u32 bucket_at(const struct rm_tally *t, const struct table *table, __u32 level, __u64 key)
{
	__u32 real = likely(level < table->depth) ? level : table->depth - 1;
	__u32 size = table->buckets << real * RM_TALLY_LEVEL_SHIFT;
	__u64 region = key >> (t->region_shifts[real] & 63), index = region ^ (key >> 18) * 0x9e3779b97f4a7c15ull >> 32;

	if (unlikely(level > real))
		index = (region ^ (__u64)level << 40) * 0x9e3779b97f4a7c15ull >> 32;
	return table->levels[real].at + ((__u32)index & (size - 1)) * RM_TALLY_BUCKET_BYTES;
}

static inline enum part part_of(const struct table *table, __u32 level)
{
	return table->levels[likely(level < table->depth) ? level : table->depth - 1].part;
}

/*
 * The buckets where a key may be, in the levels that there are for it: what is not touched is not looked at, since that would make it. Worked
 * out once for what is done with a key, and some time before: in a table of many blocks they are seldom in the processor's caches, and it
 * fetches them while it does something else.
 */
struct spots {
	__u32 levels;
	struct rm_tally_bucket *buckets[RM_TALLY_LEVELS + RM_TALLY_LAST_TRIES];
};

static inline void look_up(const struct rm_tally *t, const struct table *table, __u64 key, struct spots *spots)
{
	__u32 level;

	for (level = 0; level < table->depth + RM_TALLY_LAST_TRIES; level++) {
		__u32 offset = bucket_at(t, table, level, key);
		enum part part = part_of(table, level);
		/* The first part begins with the head. */
		const char *start = part == FIRST ? (const char *)t : __atomic_load_n(&parts[part], __ATOMIC_ACQUIRE);
		struct rm_tally_bucket *bucket = (struct rm_tally_bucket *)(start + (offset - part_at[part]));

		if (unlikely(!start || !is_touched(t, offset)))
			break;
		spots->buckets[level] = bucket;
		__builtin_prefetch(bucket->values, 1);
		if (likely(!bucket->overflowed)) {
			level++;
			break;
		}
	}
	spots->levels = level;
}

/*
 * In which places of a bucket a key stands: bit 2 * i for place i. All seven are compared, without a branch: which of them it is no
 * processor foresees.
 */
#define FIRST_PLACE(places) (__builtin_ctz(places) / 2)
static inline __u32 places_of(const struct rm_tally_bucket *bucket, __u64 key)
{
	__u32 places = 0;

#if defined(__x86_64__)
	/* As 32-bit halves, which the oldest of these processors can compare; packed into a bit each. */
	const __m128i *keys = (const __m128i *)bucket->keys, wanted = _mm_set1_epi64x((long long)key);

	__atomic_signal_fence(__ATOMIC_SEQ_CST); /* what was seen before is not what is there now */
	places = (__u32)_mm_movemask_epi8(_mm_packs_epi16(_mm_packs_epi32(_mm_cmpeq_epi32(keys[0], wanted), _mm_cmpeq_epi32(keys[1], wanted)),
							  _mm_packs_epi32(_mm_cmpeq_epi32(keys[2], wanted), _mm_cmpeq_epi32(keys[3], wanted))));
	places = places & places >> 1 & ((1u << 2 * RM_TALLY_KEYS) - 1) & 0x5555;
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
#else
	for (int i = 0; i < RM_TALLY_KEYS; i++)
		places |= (__u32)(__atomic_load_n(&bucket->keys[i], __ATOMIC_ACQUIRE) == key) << 2 * i;
#endif
	return places;
}

/* The place of a key, in *found; -1: it is not there. */
static inline int find(const struct spots *spots, __u64 key, struct rm_tally_bucket **found)
{
	for (__u32 level = 0; level < spots->levels; level++) {
		struct rm_tally_bucket *bucket = spots->buckets[level];
		__u32 places = places_of(bucket, key);

		if (places) {
			*found = bucket;
			return FIRST_PLACE(places);
		}
	}
	return -1;
}

/* How a key got in. */
enum put { PUT, REPLACED, NO_ROOM };

/* Puts in a key that is not there, or that was missed when it went. */
static inline enum put put(struct rm_tally *t, const struct table *table, const struct spots *spots, __u64 key, __u64 value)
{
	for (__u32 level = 0; level < table->depth + RM_TALLY_LAST_TRIES; level++) {
		struct rm_tally_bucket *bucket;
		__u32 places;

		if (likely(level < spots->levels)) {
			bucket = spots->buckets[level];
		} else {
			__u32 offset = bucket_at(t, table, level, key);

			bucket = place(part_of(table, level), offset);
			if (unlikely(!bucket))
				return NO_ROOM;
			touch(t, offset);
		}
		places = places_of(bucket, key);
		if (unlikely(places)) {
			bucket->values[FIRST_PLACE(places)] = value;
			return REPLACED;
		}
		while (likely(places = places_of(bucket, 0))) {
			__u32 free = FIRST_PLACE(places);
			__u64 none = 0;

			/* It may be another thread that takes it. */
			if (likely(__atomic_compare_exchange_n(&bucket->keys[free], &none, key, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))) {
				__atomic_store_n(&bucket->values[free], value, __ATOMIC_RELEASE);
				return PUT;
			}
		}
		bucket->overflowed = 1;
	}
	return NO_ROOM;
}

#endif

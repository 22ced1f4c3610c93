/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * Sampling: of each byte that is asked for the chance is the same, one in `sample_bytes`. The distance to the next byte is exponential,
 * so that what was before tells nothing of it; a block is sampled when such a byte is in it. It then stands for as many as its chance
 * is small (Horvitz and Thompson's estimator): of x bytes 1 / (1 - exp(-x / sample_bytes)). A large one is always sampled, and stands
 * for itself.
 */
#ifndef SAMPLE_H
#define SAMPLE_H

static __thread struct {
	struct rm_tally *in; /* what the rest is for: not for a fork's */
	__s64 left;          /* bytes up to the next one that is sampled, that one included */
	struct rm_tally_exact *exact;
	__u64 random;        /* the state of the generator */
	bool shares;         /* `exact` with other threads */
} sampler;

/* Sebastiano Vigna's splitmix64. */
static inline __u64 next_random(__u64 *state)
{
	__u64 mixed = *state += 0x9e3779b97f4a7c15ull;

	mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9ull;
	mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111ebull;
	return mixed ^ mixed >> 31;
}

/* -ln(random / 2^64), the fraction above 0: by the series of the inverse hyperbolic tangent of its mantissa. */
static double exponential(__u64 random)
{
	union {
		double number;
		__u64 bits;
	} mantissa;
	double whole = (double)(random >> 11) + 1, exponent, z, square, sum = 0;

	mantissa.number = whole;
	exponent = (double)(int)(mantissa.bits >> 52) - 1023 - 53;
	mantissa.bits = (mantissa.bits & ((1ull << 52) - 1)) | 1023ull << 52;
	z = (mantissa.number - 1) / (mantissa.number + 1);
	square = z * z;
	for (int power = 23; power > 0; power -= 2)
		sum = sum * square + 1.0 / power;
	return -(exponent * 0.693147180559945309417 + 2 * z * sum);
}

/* 1 - exp(-y): by its series near 0, and from there by doubling y. */
static double chance_within(double y)
{
	int doublings = 0;
	double chance;

	if (y > 45)
		return 1;
	for (; y > 0.125; doublings++)
		y /= 2;
	chance = y * (1 - y / 2 * (1 - y / 3 * (1 - y / 4 * (1 - y / 5 * (1 - y / 6 * (1 - y / 7 * (1 - y / 8)))))));
	for (; doublings; doublings--)
		chance *= 2 - chance;
	return chance;
}

/* What a block counts as. */
struct amounts {
	__u64 bytes;
	__u64 blocks;   /* RM_TALLY_COUNT_SHIFT where it was sampled */
	__u64 variance; /* RM_TALLY_VARIANCE_SHIFT */
};

static __attribute__((noinline)) struct amounts weigh(const struct rm_tally *t, __u64 bytes)
{
	double mean = (double)t->sample_bytes, chance = chance_within((double)(bytes ? bytes : 1) / mean);
	double weight = (double)bytes / chance, relative = weight / mean;

	return (struct amounts){
		(__u64)(weight + 0.5),
		(__u64)((1 << RM_TALLY_COUNT_SHIFT) / chance + 0.5),
		(__u64)((1 << RM_TALLY_VARIANCE_SHIFT) * (1 - chance) * relative * relative + 0.5),
	};
}

static inline struct amounts amounts_of(const struct rm_tally *t, __u64 bytes)
{
	return unlikely(t->sample_bytes) ? weigh(t, bytes) : (struct amounts){ bytes, 1, 0 };
}

static inline void draw_distance(const struct rm_tally *t)
{
	/* Rounded up: a whole number of bytes is then beyond it exactly as often as it is beyond the distance. */
	sampler.left = 1 + (__s64)(exponential(next_random(&sampler.random)) * (double)t->sample_bytes);
}

/* The thread's first event in this tally. */
static __attribute__((noinline)) void begin_to_sample(struct rm_tally *t)
{
	__u32 number = __atomic_fetch_add(&t->sample_threads, 1, __ATOMIC_RELAXED), offset;

	sampler.shares = number >= RM_TALLY_EXACT - 1;
	offset = RM_TALLY_EXACT_AT + (sampler.shares ? RM_TALLY_EXACT - 1 : number) * RM_TALLY_EXACT_BYTES;
	touch(t, offset);
	sampler.exact = (struct rm_tally_exact *)((char *)t + offset);
	sampler.random = t->sample_seed + number * 0xd1342543de82ef95ull;
	next_random(&sampler.random);
	draw_distance(t);
	sampler.in = t;
}

static inline void add_exact(__u64 *to, __u64 amount)
{
	if (likely(!sampler.shares))
		*to += amount;
	else
		__atomic_fetch_add(to, amount, __ATOMIC_RELAXED);
}

/* A block was asked for: is a byte of it sampled? One of no bytes counts as one here. */
static inline bool is_sampled(struct rm_tally *t, __u64 bytes)
{
	if (unlikely(sampler.in != t))
		begin_to_sample(t);
	add_exact(&sampler.exact->allocated_bytes, bytes);
	add_exact(&sampler.exact->allocations, 1);
	sampler.left -= bytes ? bytes : 1;
	if (likely(sampler.left > 0))
		return false;
	draw_distance(t);
	return true;
}

/* A block is released. */
static inline void count_release(struct rm_tally *t)
{
	if (unlikely(sampler.in != t))
		begin_to_sample(t);
	add_exact(&sampler.exact->releases, 1);
}

/*
 * The filter: most blocks were not sampled, and that is seen at one byte of 16 KiB, which stay in the processor's nearest cache. A byte
 * that has come to 255 stays there, and the table of blocks is looked at for nothing.
 */
static inline __u8 *filter_of(struct rm_tally *t, const void *address)
{
	return (__u8 *)t + RM_TALLY_FILTER_AT + ((__u64)address >> 4) * 0x9e3779b97f4a7c15ull % RM_TALLY_FILTER_BYTES;
}

static inline bool may_be_sampled(struct rm_tally *t, const void *address)
{
	return *(volatile __u8 *)filter_of(t, address);
}

static void change_filter(struct rm_tally *t, const void *address, int by)
{
	__u8 *at = filter_of(t, address), was = __atomic_load_n(at, __ATOMIC_RELAXED);

	while (was != 255 && (by > 0 || was) &&
	       !__atomic_compare_exchange_n(at, &was, (__u8)(was + by), false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
		;
}

/* To be called before a process counts in this tally: all of the filter is there from now on. */
static void make_filter(struct rm_tally *t)
{
	sampler.in = 0; /* of the parent's tally, where this is a fork: it may have been at the same address */
	if (!t->sample_bytes)
		return;
	for (__u32 offset = RM_TALLY_FILTER_AT; offset < RM_TALLY_FILTER_AT + RM_TALLY_FILTER_BYTES; offset += RM_PAGE)
		touch(t, offset);
}

/* Sites `owner` and `site`, plus one each: a block of one was released by the other. */
static void pair_up(struct rm_tally *t, __u32 owner, __u32 site, __u64 variance)
{
	__u64 key = (__u64)owner << 32 | site, first = key * 0x9e3779b97f4a7c15ull >> 32;

	for (__u32 step = 0; step < RM_TALLY_PAIR_STEPS; step++) {
		__u32 offset = RM_TALLY_PAIRS_AT + (__u32)(first + step) % RM_TALLY_PAIRS * RM_TALLY_PAIR_BYTES;
		struct rm_tally_pair *pair = (struct rm_tally_pair *)((char *)t + offset);
		__u64 there = 0;

		touch(t, offset);
		if (__atomic_compare_exchange_n(&pair->sites, &there, key, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED) || there == key) {
			__atomic_fetch_add(&pair->variance, variance, __ATOMIC_RELAXED);
			return;
		}
	}
	count(t, RM_COUNT_PAIRS_FULL);
}

#endif

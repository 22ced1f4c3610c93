/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* What is counted of a block: that it was asked for, moved, released. */
#ifndef EVENTS_H
#define EVENTS_H

static inline void net(__s64 bytes)
{
	thread.net += bytes;
	if (thread.net > thread.highest)
		thread.highest = thread.net;
}

static inline void draw(struct rm_tally *t, struct rm_tally_site *site)
{
	if (has_one_thread())
		site->last_event = ++t->sequence;
	else
		site->last_event = __atomic_add_fetch(&t->sequence, 1, __ATOMIC_RELAXED);
}

/* A block that was taken out of the table, or is not in it (`known` is 0). */
struct taken {
	__u64 value;
	bool known;
};

/* Takes a block out of the table: before the allocator may give its address to another thread. */
static inline struct taken take(const struct spots *spots, const void *address)
{
	struct rm_tally_bucket *bucket;
	int at = find(spots, (__u64)address, &bucket);
	struct taken taken = { 0, false };

	if (likely(at >= 0)) {
		taken.value = bucket->values[at];
		taken.known = true;
		__atomic_store_n(&bucket->keys[at], 0, __ATOMIC_RELEASE);
	}
	return taken;
}

static inline void released(struct rm_tally *t, struct rm_tally_site *site, __u32 by, const void *address, struct taken taken)
{
	struct amounts amounts = amounts_of(t, taken.value >> RM_TALLY_SITE_BITS);
	__u32 number = taken.value & ((1u << RM_TALLY_SITE_BITS) - 1);
	struct rm_tally_site *owner = number && number <= RM_TALLY_SITES ? site_at(number - 1) : 0;
	const bool single = has_one_thread();

	if (likely(site)) {
		add(single, &site->released_bytes, amounts.bytes);
		add(single, &site->releases, amounts.blocks);
	} else {
		add(single, &t->siteless[1], amounts.bytes);
	}
	if (likely(owner))
		add(single, &owner->dead_bytes, amounts.bytes);
	net(-(__s64)amounts.bytes);
	if (unlikely(t->sample_bytes)) {
		change_filter(t, address, -1);
		if (likely(site && owner))
			pair_up(t, number, by, amounts.variance);
	}
}

static inline void remember(struct rm_tally *t, const struct spots *spots, const void *address, __u64 bytes, __u32 site)
{
	__u64 value = bytes << RM_TALLY_SITE_BITS | site;
	enum put how = value >> RM_TALLY_SITE_BITS == bytes ? put(t, &blocks, spots, (__u64)address, value) : NO_ROOM;

	if (unlikely(how != PUT))
		count(t, how == NO_ROOM ? RM_COUNT_BLOCKS_FULL : RM_COUNT_BLOCK_REPLACED);
	if (unlikely(t->sample_bytes) && how == PUT)
		change_filter(t, address, 1);
}

/* A block was given out, counted or not. */
static inline void gave(const void *address)
{
	thread.blocks++;
	thread.latest = (__u64)address;
}

static inline void allocated(struct rm_tally *t, const struct spots *spots, struct rm_tally_site *site, __u32 number, const void *address,
			     __u64 bytes)
{
	struct amounts amounts = amounts_of(t, bytes);
	const bool single = has_one_thread();

	if (likely(site)) {
		add(single, &site->allocated_bytes, amounts.bytes);
		add(single, &site->allocations, amounts.blocks);
	} else {
		add(single, &t->siteless[0], amounts.bytes);
	}
	remember(t, spots, address, bytes, number);
	net(amounts.bytes);
	if (unlikely(t->sample_bytes)) {
		add(single, &t->samples, 1);
		if (likely(site))
			add(single, &site->variance, amounts.variance);
	}
}

static __attribute__((noinline)) void record_sampled(struct rm_tally *t, const void *address, __u64 bytes, const void *frame)
{
	struct rm_tally_site *site;
	struct spots spots;
	__u32 number;

	look_up(t, &blocks, (__u64)address, &spots);
	site = current_site(t, &number, frame);
	allocated(t, &spots, site, number, address, bytes);
	if (likely(site))
		draw(t, site);
}

/* A block was given out. */
static inline void record(struct rm_tally *t, const void *address, __u64 bytes, const void *frame)
{
	gave(address);
	if (!t->sample_bytes || unlikely(is_sampled(t, bytes)))
		record_sampled(t, address, bytes, frame);
}

/* Before the block is given back. Its event is over when that is done, so that what was resident afterwards is known of it. */
static __attribute__((noinline)) struct rm_tally_site *record_known_release(struct rm_tally *t, const void *address)
{
	struct rm_tally_site *site;
	struct spots spots;
	struct taken taken;
	__u32 number;

	look_up(t, &blocks, (__u64)address, &spots);
	if (unlikely(t->sample_bytes)) {
		/* The filter may have meant another block. */
		taken = take(&spots, address);
		if (!taken.known)
			return 0;
		site = current_site(t, &number, 0);
	} else {
		site = current_site(t, &number, 0);
		taken = take(&spots, address);
	}
	if (unlikely(!taken.known)) {
		count(t, RM_COUNT_FREE_FROM_BEFORE);
		return 0;
	}
	released(t, site, number, address, taken);
	return site;
}

static inline struct rm_tally_site *record_release(struct rm_tally *t, const void *address)
{
	if (t->sample_bytes) {
		count_release(t);
		if (likely(!may_be_sampled(t, address)))
			return 0;
	}
	return record_known_release(t, address);
}

/* A block is about to be reallocated: what is known of it. */
static inline struct taken take_before_move(struct rm_tally *t, const void *old)
{
	struct spots spots;

	if (!old || (t->sample_bytes && likely(!may_be_sampled(t, old))))
		return (struct taken){ 0, false };
	look_up(t, &blocks, (__u64)old, &spots);
	return take(&spots, old);
}

/* It has failed, and the block is what it was. */
static __attribute__((noinline)) void put_back(struct rm_tally *t, const void *old, struct taken taken)
{
	struct spots spots;

	look_up(t, &blocks, (__u64)old, &spots);
	if (put(t, &blocks, &spots, (__u64)old, taken.value) == NO_ROOM)
		count(t, RM_COUNT_BLOCKS_FULL);
}

/* A reallocation has succeeded: one event. `address` is 0 where the size was 0 and the block was given back. */
static __attribute__((noinline)) void record_move(struct rm_tally *t, const void *old, struct taken taken, const void *address, __u64 bytes,
						  const void *frame)
{
	bool counted = address;
	struct rm_tally_site *site;
	struct spots spots;
	__u32 number;

	if (address)
		gave(address);
	if (t->sample_bytes) {
		if (old)
			count_release(t);
		counted = address && is_sampled(t, bytes);
		if (likely(!counted && !taken.known))
			return;
	}
	if (counted)
		look_up(t, &blocks, (__u64)address, &spots);
	site = current_site(t, &number, frame);
	if (taken.known)
		released(t, site, number, old, taken);
	else if (old && !t->sample_bytes)
		count(t, RM_COUNT_FREE_FROM_BEFORE);
	if (counted)
		allocated(t, &spots, site, number, address, bytes);
	if (likely(site))
		draw(t, site);
}

#endif

/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* The Python stack that runs, told from others, and its site. */
#ifndef STACK_H
#define STACK_H

/* Reads a word of our own memory. */
static __attribute__((always_inline)) inline bool peek(__u64 *to, __u64 from, bool care)
{
	if (unlikely(care))
		return !read_with_care(to, sizeof(*to), from);
	*to = *(const __u64 *)from;
	return true;
}

static inline __u64 turned(__u64 word, int bits)
{
	return word << bits | word >> (64 - bits);
}

/*
 * A function that calls itself along two lines has as many stacks as there are ways to get there, and all that is reported of them is
 * which lines are on them. So of a stack's outer frames those that are there already tell nothing: only the first few, from the
 * innermost on, count each time.
 */
enum { NEAR_FRAMES = 8, SEEN_FRAMES = 64 };

struct seen {
	__u64 frames[SEEN_FRAMES];
};

/* Was this frame on the stack before? One that was forgotten for another is new, and the stack a site of its own. */
static inline bool is_seen(struct seen *seen, __u64 frame)
{
	__u64 *known = &seen->frames[frame % SEEN_FRAMES];

	if (*known == frame)
		return true;
	*known = frame;
	return false;
}

/* The innermost frame of a thread state. Returns a stack status. */
static inline __u32 first_frame(const struct rm_layout *layout, __u64 state, __u64 *frame, bool care)
{
	if (!peek(frame, state + layout->thread_head, care) ||
	    (layout->thread_head_hop != RM_ABSENT && *frame && !peek(frame, *frame + layout->thread_head_hop, care)))
		return RM_STACK_UNREADABLE;
	return *frame ? RM_STACK_COMPLETE : RM_STACK_NO_THREAD;
}

/*
 * Walks the frames of `state`. Returns a stack status, and in *hash what tells this stack from others: all that the kernel side
 * hashes of each frame (walk_step and fingerprint_of in python.bpf.h). In `stack`, where that is not 0, it is remembered.
 */
static __attribute__((always_inline)) inline __u32 walk(struct rm_tally *t, __u64 state, struct known_stack *stack, __u64 *hash, __u32 *depth,
							 bool care)
{
	const struct rm_layout *layout = &t->process.layout;
	__u64 frame = 0, at, code, position, owner, sum = 0, one, first, filename, name, table, version, type, executor = 0;
	struct known_frame *known;
	struct seen seen;
	__u32 near = 0, status = first_frame(layout, state, &frame, care), steps;
	bool shim;

	if (status != RM_STACK_COMPLETE)
		return status;
	for (steps = 0; frame; steps++) {
		if (steps == RM_MAX_FRAMES) {
			*hash = sum;
			return RM_STACK_TRUNCATED;
		}
		at = frame + layout->frame_base;
		owner = 0;
		shim = false;
		known = next_known(t, stack, steps);
		if (frame & 7 || !peek(&code, at + layout->frame_code, care) || !peek(&frame, at + layout->frame_back, care))
			return RM_STACK_UNREADABLE;
		if (layout->frame_owner != RM_ABSENT && layout->owner_skip != RM_ABSENT) {
			if (care && !peek(&owner, at + (layout->frame_owner & ~7u), care))
				return RM_STACK_UNREADABLE;
			owner = care ? owner >> (layout->frame_owner & 7) * 8 : *(const __u8 *)(at + layout->frame_owner);
			shim = (owner & 0x7f) >= layout->owner_skip;
		}
		if (known) {
			known->at = at - layout->frame_base;
			known->code = code;
			known->back = frame;
			known->owner = owner | (shim ? IS_SHIM : 0);
		}
		if (shim)
			continue;
		code &= ~(__u64)layout->frame_code_tags;
		if (!peek(&position, at + (layout->frame_position & ~7u), care) || code & 7 || code < RM_PAGE)
			return RM_STACK_UNREADABLE;
		if (layout->position_kind != RM_POSITION_POINTER)
			position = (__u32)(position >> (layout->frame_position & 7) * 8);
		if (care && (!peek(&type, code + layout->object_type, care) || (t->process.code_type && type != t->process.code_type)))
			return RM_STACK_UNREADABLE;
		code += layout->code_base;
		version = 0;
		if (!peek(&first, code + (layout->code_first_line & ~7u), care) || !peek(&filename, code + layout->code_filename, care) ||
		    !peek(&name, code + layout->code_name, care) || !peek(&table, code + layout->code_line_table, care) ||
		    (layout->code_version != RM_ABSENT && !peek(&version, code + (layout->code_version & ~7u), care)))
			return RM_STACK_UNREADABLE;
		if (known) {
			known->position = position;
			known->first_line = first;
			known->filename = filename;
			known->name = name;
			known->line_table = table;
			known->version = version;
		}
		first = (__u32)(first >> (layout->code_first_line & 7) * 8);
		version = (__u32)(version >> (layout->code_version & 7) * 8);
		one = (code ^ turned(position, 24)) * 0x9e3779b97f4a7c15ull;
		one ^= one >> 31;
		one = (one ^ turned(filename, 40) ^ turned(name, 20) ^ table ^ version << 32 ^ first << 12) * 0xc2b2ae3d27d4eb4full;
		one ^= one >> 29;
		for (int i = 0; near == NEAR_FRAMES && i < SEEN_FRAMES; i++)
			seen.frames[i] = 0;
		if (near++ >= NEAR_FRAMES && is_seen(&seen, one))
			continue;
		sum = (sum ^ one) * 0x9e3779b97f4a7c15ull;
		sum ^= sum >> 31;
	}
	if (layout->thread_executor != RM_ABSENT && !peek(&executor, state + layout->thread_executor, care))
		return RM_STACK_UNREADABLE;
	if (unlikely(executor)) {
		count(t, RM_COUNT_APPROXIMATE);
		sum ^= 0x85ebca77c2b2ae63ull;
	}
	*depth = near;
	*hash = sum;
	if (stack && !executor && steps <= KNOWN_FRAMES) {
		stack->hash = sum;
		stack->depth = near;
		stack->frames = steps;
	}
	return RM_STACK_COMPLETE;
}

static __attribute__((noinline)) __u32 walk_and_remember(struct rm_tally *t, __u64 state, struct known_stack **stack, __u64 *hash, __u32 *depth)
{
	__u32 status;

	if (*stack && !forget_known(t, last.known, *stack))
		*stack = 0;
	status = walk(t, state, *stack, hash, depth, false);
	if (*stack && !(*stack)->frames) {
		too_deep(last.known, *stack);
		*stack = 0;
	}
	return status;
}

/* The same where the stack may be one of the last: it is in *stack afterwards, unless that is 0. */
static inline __u32 walk_or_know(struct rm_tally *t, __u64 state, struct known_stack **stack, __u64 *hash, __u32 *depth)
{
	const struct rm_layout *layout = &t->process.layout;
	__u64 frame = 0;
	__u32 index;

	if (unlikely(last.known_in != t || last.known_of != last.of)) {
		last.known = find_known(t, last.of);
		last.known_in = t;
		last.known_of = last.of;
	}
	if (likely(last.known && first_frame(layout, state, &frame, false) == RM_STACK_COMPLETE && !(frame & 7))) {
		index = known_index(layout, frame);
		*stack = &last.known->stacks[index];
		if (likely(last.known->used >> index & 1) && likely(is_known(*stack, layout, frame)) &&
		    (layout->thread_executor == RM_ABSENT || !*(const __u64 *)(state + layout->thread_executor))) {
			*hash = (*stack)->hash;
			*depth = (*stack)->depth;
			return RM_STACK_COMPLETE;
		}
	}
	return walk_and_remember(t, state, stack, hash, depth);
}

/* By system calls, and each frame must have a code object. */
static __attribute__((noinline)) __u32 walk_with_care(struct rm_tally *t, __u64 state, __u64 *hash, __u32 *depth)
{
	return walk(t, state, 0, hash, depth, true);
}

/* The first walks are made with care: a Python that is not laid out as its version says is found out before a wrong pointer is followed. */
static __attribute__((noinline)) __u32 prove_walk(struct rm_tally *t, __u64 state, __u64 *hash, __u32 *depth)
{
	__u32 status = walk_with_care(t, state, hash, depth);
	__u64 interpreter, word;

	/* What is_collecting follows is looked at as well. */
	if (status == RM_STACK_COMPLETE && t->process.layout.interpreter_collecting != RM_ABSENT &&
	    (!peek(&interpreter, state + t->process.layout.thread_interpreter, true) ||
	     !peek(&word, (interpreter + t->process.layout.interpreter_collecting) & ~7ull, true) ||
	     !peek(&word, interpreter + t->process.layout.interpreter_threads_head, true) ||
	     !peek(&word, state + t->process.layout.thread_next, true)))
		status = RM_STACK_UNREADABLE;

	if (status == RM_STACK_UNREADABLE)
		t->refused = 1;
	else if (status == RM_STACK_COMPLETE)
		__atomic_fetch_sub(&t->careful, 1, __ATOMIC_RELAXED);
	return status;
}

/* Does this Python end, or has it, by another thread's doing? Thread states are then given back whose threads still run. */
static inline bool is_ending(const struct rm_process *process, __u64 state)
{
	__u64 ended_by = process->finalizing_address ? *(const volatile __u64 *)process->finalizing_address : 0;

	return ended_by && ended_by != state;
}

/* The stack that runs: a hash, never 0. `frame`: of the function that was called for memory; 0: memory is given back. In *known it is
 * remembered, unless that is 0. */
static inline __u64 current_stack(struct rm_tally *t, struct known_stack **known, const void *frame)
{
	struct rm_process *process = &t->process;
	__u64 pointer = thread_pointer(), own = 0, state = 0, hash = 0;
	__u32 status = RM_STACK_NO_THREAD, depth = 0;

	*known = 0;
	last.collector = false;

	if (!(process->flags & RM_PYTHON))
		goto done;
	/* Nothing in the slot is to be believed when the interpreter has ended. */
	if (process->key && !find_key(process)) {
		last.slot = 0;
		goto done;
	}
	if (!last.slot || last.of != pointer || process->key > KEYS_OF_BLOCK) {
		status = find_slot(process, pointer, &last.slot);
		last.of = pointer;
		if (status != RM_STACK_COMPLETE)
			goto done;
	}
	status = read_thread_state(0, last.slot, &own);
	if (status != RM_STACK_COMPLETE)
		goto done;
	state = running_state(process, 0, own, &last.other);
	if (unlikely(is_ending(process, own)))
		status = RM_STACK_NO_THREAD;
	else if (unlikely(t->refused))
		status = RM_STACK_UNREADABLE;
	else if (unlikely(t->careful))
		status = prove_walk(t, state, &hash, &depth);
	else if (unlikely(state != own && !holds_gil(process, state))) /* what was running last, as far as can be told */
		status = walk_with_care(t, state, &hash, &depth);
	else
		status = walk_or_know(t, state, known, &hash, &depth);
	last.collector = status == RM_STACK_COMPLETE && is_collectors(process, 0, &last.collection, state, hash, depth, !frame);
	if (unlikely(last.collector))
		hash ^= 0xa0761d6478bd642full;
	if (unlikely(status == RM_STACK_TRUNCATED))
		count(t, RM_COUNT_STACK_TRUNCATED);
	else if (unlikely(status == RM_STACK_UNREADABLE))
		count(t, RM_COUNT_STACK_UNREADABLE);
done:
	if (unlikely(status == RM_STACK_NO_THREAD && process->start_offset))
		hash ^= turned(*(const volatile __u64 *)(pointer + process->start_offset), 8);
	/* As the kernel side tells callers apart (mix_native in charge.bpf.h). */
	if (unlikely(frame && process->flags & RM_NATIVE))
		hash = (hash ^ turned(((const __u64 *)frame)[1], 12) ^ (pointer - (__u64)frame)) * 0xc2b2ae3d27d4eb4full;
	hash = (hash ^ status) * 0x9e3779b97f4a7c15ull;
	return hash ^ hash >> 32 ? hash ^ hash >> 32 : 1;
}

static inline __u32 site_offset(__u32 site)
{
	return site < RM_TALLY_FIRST_SITES ? RM_TALLY_SITES_AT + site * RM_TALLY_SITE_BYTES :
					     RM_TALLY_MORE_SITES_AT + (site - RM_TALLY_FIRST_SITES) * RM_TALLY_SITE_BYTES;
}

/* A site by its number; 0: there is no room for it. */
static inline struct rm_tally_site *site_at(__u32 site)
{
	return place(site < RM_TALLY_FIRST_SITES ? FIRST : MORE_SITES, site_offset(site));
}

/* A stack is met for the first time. Its site plus one, or 0: there are too many. */
static __attribute__((noinline)) __u32 new_site(struct rm_tally *t, const struct spots *spots, __u64 stack, const void *frame)
{
	struct rm_tally_site *site = 0;
	__u32 number;

	if (__atomic_load_n(&t->site_count, __ATOMIC_RELAXED) >= RM_TALLY_SITES)
		return 0;
	number = __atomic_fetch_add(&t->site_count, 1, __ATOMIC_RELAXED);
	if (number < RM_TALLY_SITES)
		site = site_at(number);
	if (!site)
		return 0;
	touch(t, site_offset(number));
	/* Two threads that meet it at once make two sites, which are summed where they are read. */
	if (put(t, &stacks, spots, stack, number + 1) == NO_ROOM)
		return 0;
	site->announced = t->announcements;
	rmprof_site_stack(number, frame, last.collector, last.other);
	return number + 1;
}

/* A stack's site plus one, or 0: there are too many. */
static __attribute__((noinline)) __u32 find_site(struct rm_tally *t, __u64 stack, const void *frame)
{
	struct rm_tally_bucket *bucket;
	struct spots spots;
	__u32 site = 0;
	int at;

	look_up(t, &stacks, stack, &spots);
	at = find(&spots, stack, &bucket);
	/* The value may still be on its way from another thread. */
	if (at >= 0)
		site = __atomic_load_n(&bucket->values[at], __ATOMIC_ACQUIRE);
	return likely(site && site <= RM_TALLY_SITES) ? site : new_site(t, &spots, stack, frame);
}

/* The site of the stack that runs. 0: none could be had, and it is counted. */
static inline struct rm_tally_site *current_site(struct rm_tally *t, __u32 *number, const void *frame)
{
	struct known_stack *known;
	__u64 stack = current_stack(t, &known, frame);
	struct rm_tally_site *site = 0;

	if (likely(known && known->stack == stack)) {
		*number = known->site;
	} else if (stack == last.stack && last.in == t) {
		*number = last.site;
	} else {
		*number = find_site(t, stack, frame);
		last.stack = stack;
		last.site = *number;
		last.in = *number ? t : 0;
		if (known) {
			known->stack = *number ? stack : 0;
			known->site = *number;
		}
	}
	if (likely(*number))
		site = site_at(*number - 1);
	if (unlikely(!site)) {
		count(t, RM_COUNT_SITES_FULL);
		return 0;
	}
	if (unlikely(site->announced != t->announcements)) {
		site->announced = t->announcements;
		rmprof_site_stack(*number - 1, frame, last.collector, last.other);
	}
	return site;
}

#endif

/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * The last stacks of a thread, word by word. Most events come at a stack that was met a moment ago, and to see that all its words are the
 * same takes less than to hash them and to look the hash up. Nothing less than all of them tells that it is the same stack: the innermost
 * frame does not say from which line of its caller it was called, nor does a code object's address say which code object is there.
 */
#ifndef KNOWN_H
#define KNOWN_H

enum {
	KNOWN_STACKS = 16,
	KNOWN_FRAMES = 24,
	KNOWN_STEPS = 4,
	KNOWN_PAUSE = 255, /* walks, before one is tried again that was too deep */
};

/* What walk() takes of a frame, as it stands in memory. Of one that the interpreter pushed for itself the first four. */
struct known_frame {
	__u64 at;
	__u64 back;
	__u64 owner; /* of it a byte; and IS_SHIM */
	__u64 code;
	__u64 position;
	__u64 first_line;
	__u64 filename;
	__u64 name;
	__u64 line_table;
	__u64 version;
};
#define IS_SHIM 0x100ull

struct known_stack {
	__u64 hash;
	__u64 stack;  /* with what current_stack() adds to the hash, when its site was looked up last; 0: it was not */
	__u32 site;   /* and the site plus one */
	__u32 depth;  /* as walk() has it */
	__u64 frames; /* 0: nothing is known */
	struct known_frame frame[KNOWN_FRAMES];
};

struct known {
	__u64 owner; /* the thread pointer of whom it is; 0: nobody's */
	__u64 used;  /* a bit for each of the stacks: its memory is there, or what is needed of it */
	__u8 pauses[KNOWN_STACKS]; /* walks that are still to be left out */
	struct known_stack stacks[KNOWN_STACKS];
};
_Static_assert(sizeof(struct known) <= RM_TALLY_KNOWN_BYTES, "RM_TALLY_KNOWN_BYTES");

/* The thread's own; 0: there is none left. Another thread that had this thread pointer has ended, and what it left is as good as anything:
 * nothing is believed that is not found again. */
static __attribute__((noinline)) struct known *find_known(struct rm_tally *t, __u64 pointer)
{
	__u64 first = pointer * 0x9e3779b97f4a7c15ull >> 32;

	for (__u32 step = 0; step < KNOWN_STEPS; step++) {
		__u32 offset = RM_TALLY_KNOWN_AT + (__u32)(first + step) % RM_TALLY_KNOWN * RM_TALLY_KNOWN_BYTES;
		struct known *known = (struct known *)((char *)t + offset);
		__u64 nobody = 0;

		touch(t, offset);
		if (__atomic_compare_exchange_n(&known->owner, &nobody, pointer, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED) || nobody == pointer)
			return known;
	}
	return 0;
}

static inline __u64 word_at(__u64 at, __u32 field)
{
	return *(const __u64 *)(at + (field & ~7u));
}

static inline __u64 position_word(const struct rm_layout *layout, __u64 at)
{
	__u64 word = word_at(at, layout->frame_position);

	return layout->position_kind != RM_POSITION_POINTER ? (__u32)(word >> (layout->frame_position & 7) * 8) : word;
}

/* Which of the stacks would be that with this innermost frame. */
static inline __u32 known_index(const struct rm_layout *layout, __u64 frame)
{
	__u64 key = frame ^ position_word(layout, frame + layout->frame_base) << 20;

	return key * 0x9e3779b97f4a7c15ull >> 60 & (KNOWN_STACKS - 1);
}

/* Is it the stack that runs, whose innermost frame is `frame`? A frame is looked into only when what led to it is as it was. */
static inline bool is_known(const struct known_stack *stack, const struct rm_layout *layout, __u64 frame)
{
	const struct known_frame *known = stack->frame, *end = known + stack->frames;
	const bool has_owner = layout->frame_owner != RM_ABSENT && layout->owner_skip != RM_ABSENT;
	const bool has_version = layout->code_version != RM_ABSENT;

	if (known == end || known->at != frame)
		return false;
	for (; known < end; known++) {
		__u64 at = known->at + layout->frame_base, code;

		if (*(const __u64 *)(at + layout->frame_code) != known->code || *(const __u64 *)(at + layout->frame_back) != known->back)
			return false;
		if (has_owner && *(const __u8 *)(at + layout->frame_owner) != (__u8)known->owner)
			return false;
		if (known->owner & IS_SHIM)
			continue;
		if (position_word(layout, at) != known->position)
			return false;
		code = (known->code & ~(__u64)layout->frame_code_tags) + layout->code_base;
		if (word_at(code, layout->code_first_line) != known->first_line || *(const __u64 *)(code + layout->code_filename) != known->filename ||
		    *(const __u64 *)(code + layout->code_name) != known->name || *(const __u64 *)(code + layout->code_line_table) != known->line_table ||
		    (has_version && word_at(code, layout->code_version) != known->version))
			return false;
	}
	return true;
}

/* A stack is to be remembered: nothing of it is known yet. False: the last ones here could not be. */
static inline bool forget_known(struct rm_tally *t, struct known *known, struct known_stack *stack)
{
	__u32 index = (__u32)(stack - known->stacks);

	if (known->pauses[index]) {
		known->pauses[index]--;
		return false;
	}
	touch(t, (__u32)((char *)stack - (char *)t));
	stack->frames = 0;
	stack->stack = 0;
	known->used |= 1ull << index;
	return true;
}

/* It has more frames than are remembered. */
static inline void too_deep(struct known *known, const struct known_stack *stack)
{
	known->pauses[stack - known->stacks] = KNOWN_PAUSE;
}

/* Its next frame; 0: it has too many. */
static inline struct known_frame *next_known(struct rm_tally *t, struct known_stack *stack, __u32 steps)
{
	if (!stack || steps >= KNOWN_FRAMES)
		return 0;
	touch(t, (__u32)((char *)&stack->frame[steps + 1] - 1 - (char *)t));
	return &stack->frame[steps];
}

#endif

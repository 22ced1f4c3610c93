/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* Is a line event that of leaving a `with` block, which the compiler puts on the line of the `with`? Told by the instructions. */
#ifndef CLEANUP_BPF_H
#define CLEANUP_BPF_H

enum { CLEAN_UP_UNITS = 6 };

static __always_inline bool is_opcode(const struct rm_clean_up *known, const __u16 *units, __u32 index, __u32 opcode)
{
	__u32 found = units[index] & 0xff;

	return found == opcode || (!index && found == known->line);
}

static __always_inline bool is_load(const struct rm_clean_up *known, const __u16 *units, __u32 index)
{
	return is_opcode(known, units, index, known->load[0]) || is_opcode(known, units, index, known->load[1]);
}

/* Only the first of a line may be hidden, and that is never the second load. */
static __always_inline bool is_load_again(const struct rm_clean_up *known, __u16 unit)
{
	return (unit & 0xff) == known->again[0] || (unit & 0xff) == known->again[1];
}

/* Does the clean-up begin at `index`, at most CLEAN_UP_UNITS - 4? Three loads of one constant, by argument: the interpreter may have
 * replaced some of them by a form of their own (LOAD_CONST_IMMORTAL), or they are one load and copies. */
static __always_inline bool clean_up_begins(const struct rm_clean_up *known, const __u16 *units, __u32 index)
{
	__u16 call = units[index + 3];

	if (is_load(known, units, index) && is_load_again(known, units[index + 1]) && is_load_again(known, units[index + 2]) &&
	    units[index + 1] >> 8 == units[index + 2] >> 8 && call >> 8 == known->argument &&
	    (known->again[0] != known->load[0] || units[index + 1] >> 8 == units[index] >> 8))
		return known->calls[call >> 5 & 7] >> (call & 31) & 1;
	/* The first instruction of a line may be hidden: this one would match anything. */
	return (units[index] & 0xff) == known->raised;
}

static __always_inline bool is_before(const struct rm_clean_up *known, const __u16 *units, __u32 index, __u32 before)
{
	return is_opcode(known, units, index, before & 0xff) && units[index] >> 8 == before >> 8;
}

static __always_inline bool may_stand_before(const struct rm_clean_up *known, const __u16 *units, __u32 index)
{
	return is_before(known, units, index, known->before[0]) || is_before(known, units, index, known->before[1]) ||
	       is_before(known, units, index, known->before[2]);
}

static __always_inline bool is_clean_up(const struct rm_clean_up *known, const __u16 *units)
{
	return clean_up_begins(known, units, 0) ||
	       (may_stand_before(known, units, 0) &&
		(clean_up_begins(known, units, 1) || (may_stand_before(known, units, 1) && clean_up_begins(known, units, 2))));
}

/* Is it a clean-up that `frame` is about to execute? What cannot be read is not. */
static __always_inline bool at_clean_up(const struct rm_layout *layout, const struct frame_words *frame, __u64 code)
{
	__u16 units[CLEAN_UP_UNITS] = {};
	__u64 at;

	if (layout->clean_up.load[0] == RM_ABSENT)
		return false;
	if (layout->position_kind == RM_POSITION_POINTER) {
		at = frame->position;
	} else {
		__s32 position = position_of(layout, frame, 0);

		if (position < 0 || READ_USER(&at, sizeof(at), code + layout->code_base + layout->code_code))
			return false;
		at += layout->bytes_data + position;
	}
	return !READ_USER(units, sizeof(units), at) && is_clean_up(&layout->clean_up, units);
}

#endif

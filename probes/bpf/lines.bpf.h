/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * Line events of the eval loop, of marked functions or of all of the user's own, seen at the site functions of the launch extension
 * (userspace/src/launch/line_events.c). A thread keeps the frames that give them, innermost last, each with the line that runs.
 */
#ifndef LINES_BPF_H
#define LINES_BPF_H

enum { WHAT_BEGIN = 0, WHAT_END = 1 };

static __always_inline struct rm_line *line_of(struct rm_process *process, __u32 number, __u32 line, __u32 position)
{
	struct rm_line_key key = { .number = number, .process = process->id, .line = line, .position = position };
	struct rm_line *found = bpf_map_lookup_elem(&lines, &key);

	if (!found) {
		struct rm_line fresh = {};

		bpf_map_update_elem(&lines, &key, &fresh, BPF_NOEXIST);
		found = bpf_map_lookup_elem(&lines, &key);
		if (!found)
			count(RM_COUNT_LINES_FULL);
	}
	return found;
}

/* The line of the frame at `index` is over: its peak and the resident memory are known; what it reached counts for the frame around it. */
static __always_inline void finish_line(struct rm_process *process, struct thread *thread, __u32 index)
{
	struct active *active = active_at(thread, index);
	struct rm_line *line = line_of(process, active->number, active->line, RM_ABSENT);
	__u64 peak = active->highest - active->start;

	if (line && !active->clean_up) {
		line->resident_bytes = resident_bytes(process);
		if (peak > line->peak_bytes)
			line->peak_bytes = peak;
	}
	if (index > 0) {
		struct active *outer = active_at(thread, index - 1);
		if (active->highest > outer->highest)
			outer->highest = active->highest;
	}
}

/* The two loops over active frames go through bpf_loop, which the verifier looks into once. */
struct active_loop {
	struct thread *thread;
	__u64 frame;
	__u32 place; /* one based; 0: not found */
};

static long find_step(__u32 step, struct active_loop *loop)
{
	__u32 index = loop->thread->active_count - 1 - step;

	if (step >= loop->thread->active_count)
		return 1;
	if (active_at(loop->thread, index)->frame != loop->frame)
		return 0;
	loop->place = index + 1;
	return 1;
}

/* Where `frame` stands among the active frames, one based; 0: it does not. */
static __always_inline __u32 find_active(struct thread *thread, __u64 frame)
{
	struct active_loop loop = { .thread = thread, .frame = frame };

	bpf_loop(RM_MAX_ACTIVE, find_step, &loop, 0);
	return loop.place;
}

static long drop_step(__u32 step, struct active_loop *loop)
{
	__u32 inner = loop->thread->active_count - 1;
	struct active *from, *to;

	(void)step;
	if (inner < loop->place || inner >= RM_MAX_ACTIVE)
		return 1;
	from = active_at(loop->thread, inner);
	to = active_at(loop->thread, inner - 1);
	if (from->highest > to->highest)
		to->highest = from->highest;
	loop->thread->active_count = inner;
	return 0;
}

/* Frames inside the one at `place` are gone, whatever way they went: what they reached counts for it. */
static __always_inline void drop_inner(struct thread *thread, __u32 place)
{
	struct active_loop loop = { .thread = thread, .place = place };

	bpf_loop(RM_MAX_ACTIVE, drop_step, &loop, 0);
}

static __always_inline void count_line(struct rm_process *process, __u32 number, __u32 line, __u32 position)
{
	struct rm_line *counts = line_of(process, number, line, position);

	if (counts)
		__sync_fetch_and_add(&counts->occurrences, 1);
}

static __always_inline void begin_line(struct rm_process *process, struct thread *thread, __u32 index, __u64 frame, __u32 number, __u32 line,
				       bool clean_up)
{
	struct active *active = active_at(thread, index);
	struct rm_line *counts;

	active->frame = frame;
	active->number = number;
	active->line = line;
	active->start = net_of(thread);
	active->highest = active->start;
	active->clean_up = clean_up;
	if (clean_up)
		return;
	counts = line_of(process, number, line, RM_ABSENT);
	if (counts && !counts->resident_bytes)
		counts->resident_bytes = resident_bytes(process);
}

static __always_inline void first_entry(struct rm_process *process, __u32 number)
{
	struct rm_mark_key key = { .number = number, .process = process->id };
	struct rm_mark *mark = bpf_map_lookup_elem(&marks, &key);

	if (mark && !mark->entry_resident_bytes)
		mark->entry_resident_bytes = resident_bytes(process);
}

/*
 * What the interpreter allocates between the two calls is our work, for the line events of one more code object: it is not in the peak of
 * the line that runs meanwhile.
 */
static __always_inline void own_work(struct rm_process *process, struct thread *thread, bool over)
{
	__u32 used = thread->active_count;
	struct active *top = used && used <= RM_MAX_ACTIVE ? active_at(thread, used - 1) : NULL;

	if (process->tally) {
		settle(process, thread);
		thread->tally_highest = thread->tally_net;
	}
	if (!top)
		return;
	if (over) {
		thread->net -= net_of(thread) - thread->net_before_work;
		top->highest = thread->highest_before_work;
	} else {
		thread->net_before_work = net_of(thread);
		thread->highest_before_work = top->highest;
	}
}

/* what: an enum above, in bit 0; the number of the code object above it. */
__noinline int line_event(struct rm_process *process, struct thread *thread, __u64 code, __u32 line, __u64 what_and_number)
{
	__u32 what = what_and_number & 1, number = what_and_number >> 1;
	__u32 place, position = RM_ABSENT;
	struct frame_words words = {};
	bool clean_up = false;
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	__u64 state, frame;

	if (!process || !thread)
		return 0;
	if (!code) {
		own_work(process, thread, line);
		return 0;
	}
	if (find_thread_state(process, thread, task, &state) != RM_STACK_COMPLETE ||
	    innermost_frame(&process->layout, &thread->near, state, &frame) != RM_STACK_COMPLETE) {
		count(RM_COUNT_STACK_UNREADABLE);
		return 0;
	}
	if (process->tally) {
		read_sequence(process); /* what is ours of the resident memory */
		settle(process, thread);
		thread->tally_highest = thread->tally_net; /* the library does the same when this probe returns */
	}
	if (what == WHAT_BEGIN && !copy_frame(&process->layout, &thread->near, &words, frame))
		position = position_of(&process->layout, &words, bytecode_of(&process->layout, &words, code));
	place = find_active(thread, frame);
	if (place) {
		const struct active *before = active_at(thread, place - 1);

		/* Never downwards: most lines need not be looked at. */
		if (what == WHAT_BEGIN && line <= before->line)
			clean_up = at_clean_up(&process->layout, &words, code);
		drop_inner(thread, place);
		finish_line(process, thread, place - 1);
		if (what == WHAT_END) {
			thread->active_count = place - 1;
			return 0;
		}
	} else {
		if (what == WHAT_END)
			return 0;
		if (thread->active_count >= RM_MAX_ACTIVE) {
			count(RM_COUNT_ACTIVE_FULL); /* its executions still count; its peak and end are not measured */
			count_line(process, number, line, position);
			return 0;
		}
		place = ++thread->active_count;
		first_entry(process, number);
	}
	if (!clean_up)
		count_line(process, number, line, position);
	begin_line(process, thread, place - 1, frame, number, line, clean_up);
	return 0;
}

/* Sends the bytes of a bytes object, if there is one: what is to come with a mark. */
static __always_inline void announce_bytes(struct rm_process *process, __u64 code, __u32 fingerprint, __u32 part, __u64 object)
{
	struct whole whole = { .code = code, .fingerprint = fingerprint, .part = part, .process = process->id };

	if (object && !find_bytes(&process->layout, &whole, object, 0))
		count(RM_COUNT_CODE_UNREADABLE);
}

/* Of the launch extension: number_and_asked has in bit 0 whether the program asked for it; `instructions` and `handlers` are bytes objects, or
 * NULL. */
__noinline int mark_event(struct rm_process *process, __u64 code, __u64 number_and_asked, __u64 instructions, __u64 handlers)
{
	__u32 number = number_and_asked >> 1, fingerprint = 0;
	struct rm_mark_key key = { .number = number };
	struct rm_mark fresh = {};
	struct thread *thread = current_thread();
	struct code_words words = {};
	struct rm_mark_event *record;

	if (!process)
		return 0;
	if (number >= RM_MAX_MARKS) {
		count(RM_COUNT_LINES_FULL);
		return 0;
	}
	key.process = process->id;
	if (!thread || copy_code(&process->layout, &thread->near, &words, code))
		count(RM_COUNT_CODE_UNREADABLE);
	else
		fingerprint = fingerprint_of(&process->layout, &words);
	/* Now, while the process lives: a function that moves no memory is on no stack. */
	announce_code(process, code, fingerprint);
	announce_bytes(process, code, fingerprint, RM_PART_INSTRUCTIONS, instructions);
	announce_bytes(process, code, fingerprint, RM_PART_HANDLERS, handlers);
	if (bpf_map_update_elem(&marks, &key, &fresh, BPF_NOEXIST) && !bpf_map_lookup_elem(&marks, &key))
		count(RM_COUNT_LINES_FULL);
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record) {
		count(RM_COUNT_RING_FULL_MARK);
		return 0;
	}
	record->event.kind = RM_EVENT_MARK;
	record->event.process = process->id;
	record->code = code;
	record->number = number;
	record->fingerprint = fingerprint;
	record->asked = number_and_asked & 1;
	record->pad = 0;
	bpf_ringbuf_submit(record, wakeup_flags());
	return 0;
}

#endif

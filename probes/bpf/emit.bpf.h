/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* First sights: what user space is told at once, while the thing it is told of still lives. */
#ifndef EMIT_BPF_H
#define EMIT_BPF_H

enum { SMALL_PART_RECORD = __builtin_offsetof(struct rm_part_event, data) + RM_SMALL_PART };

static __always_inline void fill_part(struct rm_part_event *record, const struct whole *whole, __u32 offset, __u32 bytes)
{
	record->event.kind = RM_EVENT_PART;
	record->event.process = whole->process;
	record->code = whole->code;
	record->fingerprint = whole->fingerprint;
	record->part = whole->part;
	record->kind = whole->kind;
	record->offset = offset;
	record->total = whole->total;
	record->bytes = bytes;
	if (bpf_probe_read_user(record->data, bytes, (void *)(whole->address + offset))) {
		record->bytes = 0; /* the whole is then not whole */
		count(RM_COUNT_CODE_UNREADABLE);
	}
	bpf_ringbuf_submit(record, wakeup_flags());
}

struct pieces {
	const struct whole *whole;
};

/* Sends one piece. Returns 1 after the last. */
static long announce_piece(__u32 index, const struct pieces *pieces)
{
	const struct whole *whole = pieces->whole;
	__u32 offset = index * RM_LARGE_PART, bytes;
	struct rm_part_event *record;

	if (offset >= whole->total)
		return 1;
	bytes = whole->total - offset;
	if (bytes <= RM_SMALL_PART) {
		record = bpf_ringbuf_reserve(&events, SMALL_PART_RECORD, 0);
		if (!record)
			goto full;
		fill_part(record, whole, offset, bytes);
		return 1;
	}
	if (bytes > RM_LARGE_PART)
		bytes = RM_LARGE_PART;
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record)
		goto full;
	fill_part(record, whole, offset, bytes);
	return 0;
full:
	count(RM_COUNT_RING_FULL_CODE);
	return 1;
}

/* Sends `whole` in pieces. A global function: verified once, by itself. */
__noinline int announce_whole(const struct whole *whole)
{
	struct pieces pieces = { .whole = whole }; /* the loop takes nothing but what stands on its own stack */

	if (!whole || whole->total > RM_LONGEST_PART)
		return 0;
	bpf_loop(RM_LONGEST_PART / RM_LARGE_PART, announce_piece, &pieces, 0);
	return 0;
}

/* Finds the data of a str and sends it ahead when it is longer than what the record has room for. */
static __always_inline void find_text(const struct rm_layout *layout, struct whole *text, __u64 object, __u32 limit)
{
	__u64 length = 0;
	__u32 state = 0, kind;

	text->kind = 0; /* until all is well: then there is none */
	text->total = 0;
	if (!object || bpf_probe_read_user(&length, sizeof(length), (void *)(object + layout->str_length)) ||
	    bpf_probe_read_user(&state, sizeof(state), (void *)(object + layout->str_state)))
		return;
	kind = state >> (layout->str_kind_shift & 31) & 7;
	if (!(state >> (layout->str_compact_bit & 31) & 1) || (kind != 1 && kind != 2 && kind != 4))
		return;
	text->address = object + (state >> (layout->str_ascii_bit & 31) & 1 ? layout->str_ascii_data : layout->str_compact_data);
	text->kind = kind;
	text->total = length > RM_LONGEST_NAME / kind ? RM_LONGEST_NAME : length * kind;
	if (text->total > limit)
		announce_whole(text);
}

/* Copies the data of a str into the record. False: it is not there. */
static __always_inline bool copy_text(const struct whole *text, struct rm_text *head, __u8 *data, __u32 limit)
{
	__u32 bytes = text->total;

	head->bytes = 0;
	head->kind = text->kind;
	if (!text->kind || bytes > limit || (bytes && bpf_probe_read_user(data, bytes, (void *)text->address)))
		return false;
	head->bytes = bytes;
	return true;
}

/* Finds a bytes object's data and sends it ahead when there is more than `room` for it. False: unreadable. */
static __always_inline bool find_bytes(const struct rm_layout *layout, struct whole *data, __u64 object, __u32 room)
{
	__u64 length = 0;

	data->kind = 1;
	if (bpf_probe_read_user(&length, sizeof(length), (void *)(object + layout->bytes_length)))
		return false;
	data->address = object + layout->bytes_data;
	data->total = length > RM_LONGEST_PART ? RM_ABSENT : length;
	if (data->total > room)
		announce_whole(data);
	return true;
}

static __always_inline void begin_part(struct whole *part, const struct code_key *key, __u32 which)
{
	part->code = key->code;
	part->address = 0;
	part->process = key->process;
	part->fingerprint = key->fingerprint;
	part->part = which;
	part->kind = 0;
	part->total = 0;
}

/* Sends a code object that has not been sent. What does not fit goes ahead of its record. A global function: verified once, by itself. */
__noinline int announce_code(struct rm_process *process, __u64 code, __u32 fingerprint)
{
	struct code_key key = { .code = code, .fingerprint = fingerprint };
	struct thread *thread = current_thread();
	struct announcement *parts;
	const struct rm_layout *layout;
	struct rm_code_event *record;
	union fields *fields;
	__u32 flags = 0, bytes;
	__u8 yes = 1;

	if (!process || !thread)
		return 0;
	layout = &process->layout;
	parts = &thread->announcement;
	fields = &thread->near.reading.fields;
	key.process = process->id;
	if (bpf_map_lookup_elem(&codes, &key))
		return 0;
	if (bpf_probe_read_user(fields, RM_CODE_READ, (void *)(code + layout->code_base)))
		goto unreadable;
	begin_part(&parts->table, &key, RM_PART_BYTECODE);
	if (layout->lines_mended && !find_bytes(layout, &parts->table, field64(fields, layout->code_code), 0))
		goto unreadable;
	begin_part(&parts->table, &key, RM_PART_TABLE);
	if (!find_bytes(layout, &parts->table, field64(fields, layout->code_line_table), RM_TABLE_BYTES))
		goto unreadable;
	begin_part(&parts->filename, &key, RM_PART_FILENAME);
	begin_part(&parts->name, &key, RM_PART_NAME);
	begin_part(&parts->qualname, &key, RM_PART_QUALNAME);
	find_text(layout, &parts->filename, field64(fields, layout->code_filename), RM_FILENAME_BYTES);
	find_text(layout, &parts->name, field64(fields, layout->code_name), RM_NAME_BYTES);
	if (layout->code_qualname != RM_ABSENT)
		find_text(layout, &parts->qualname, field64(fields, layout->code_qualname), RM_QUALNAME_BYTES);

	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record)
		goto full;
	record->event.kind = RM_EVENT_CODE;
	record->event.process = key.process;
	record->code = code;
	record->fingerprint = fingerprint;
	record->first_line = field32(fields, layout->code_first_line);
	if (!copy_text(&parts->filename, &record->filename, record->filename_data, RM_FILENAME_BYTES))
		flags |= RM_CODE_NO_FILENAME;
	if (!copy_text(&parts->name, &record->name, record->name_data, RM_NAME_BYTES))
		flags |= RM_CODE_NO_NAME;
	if (!copy_text(&parts->qualname, &record->qualname, record->qualname_data, RM_QUALNAME_BYTES))
		flags |= RM_CODE_NO_QUALNAME;
	record->table_bytes = 0;
	bytes = parts->table.total;
	if (bytes > RM_TABLE_BYTES || bpf_probe_read_user(record->table, bytes, (void *)parts->table.address))
		flags |= RM_CODE_NO_TABLE;
	else
		record->table_bytes = bytes;
	record->flags = flags;
	bpf_ringbuf_submit(record, wakeup_flags());
	bpf_map_update_elem(&codes, &key, &yes, BPF_ANY);
	return 0;
unreadable:
	count(RM_COUNT_CODE_UNREADABLE);
	return 0;
full:
	count(RM_COUNT_RING_FULL_CODE);
	return 0;
}

struct announcing {
	struct rm_process *process;
	struct thread *thread;
};

static long announce_frame(__u32 index, struct announcing *announcing)
{
	const struct rm_frame *frame = &announcing->thread->stack.frames[index & (RM_MAX_FRAMES - 1)];

	announce_code(announcing->process, frame->code, frame->fingerprint);
	return 0;
}

/* Copies the thread's own stack, all of it that is there of what travels. */
static __always_inline __u32 copy_stack(__u8 *data, __u64 from)
{
	if (!bpf_probe_read_user(data, RM_NATIVE_STACK, (void *)from))
		return RM_NATIVE_STACK;
	if (!bpf_probe_read_user(data, RM_NATIVE_STACK / 4, (void *)from))
		return RM_NATIVE_STACK / 4;
	return bpf_probe_read_user(data, RM_NATIVE_STACK / 16, (void *)from) ? 0 : RM_NATIVE_STACK / 16;
}

/* Sends where the thread's last walk was called from. Returns whether that reached its buffer. */
__noinline int announce_native(struct rm_process *process, struct thread *thread)
{
	struct rm_native_event *record;

	if (!process || !thread || !thread->native.instruction)
		return 0;
	record = bpf_ringbuf_reserve(&natives, sizeof(*record), 0);
	if (!record) {
		count(RM_COUNT_RING_FULL_NATIVE);
		return 0;
	}
	record->event.kind = RM_EVENT_NATIVE;
	record->event.process = process->id;
	record->stack = thread->stack.stack;
	record->instruction = thread->native.instruction;
	record->stack_pointer = thread->native.stack_pointer;
	record->frame_pointer = thread->native.frame_pointer;
	record->returns = thread->native.returns;
	record->bytes = copy_stack(record->data, thread->native.stack_pointer);
	bpf_ringbuf_submit(record, bpf_ringbuf_query(&natives, BPF_RB_AVAIL_DATA) > (1 << 21) ? 0 : BPF_RB_NO_WAKEUP);
	return 1;
}

/* Sends the thread's last walk and every code object on it. Returns whether the stack reached the buffer. */
__noinline int announce_stack(struct rm_process *process, struct thread *thread)
{
	struct announcing announcing;
	__u32 frames, size;

	if (!process || !thread)
		return 0;
	frames = thread->stack.frame_count;
	if (frames > RM_MAX_FRAMES)
		return 0;
	announcing.process = process;
	announcing.thread = thread;
	bpf_loop(frames, announce_frame, &announcing, 0);
	thread->stack.event.kind = RM_EVENT_STACK;
	thread->stack.event.process = process->id;
	size = __builtin_offsetof(struct rm_stack_event, frames) + frames * sizeof(struct rm_frame);
	if (size > sizeof(struct rm_stack_event))
		return 0;
	/* The function that a thread began with is looked up in the process, which may end at any moment: not on the clock. */
	if (bpf_ringbuf_output(&events, &thread->stack, size, thread->stack.thread_start ? 0 : wakeup_flags())) {
		count(RM_COUNT_RING_FULL_STACK);
		return 0;
	}
	return 1;
}

#endif

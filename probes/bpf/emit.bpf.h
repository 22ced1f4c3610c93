/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* First sights: what user space is told at once, while the thing it is told of still lives. */
#ifndef EMIT_BPF_H
#define EMIT_BPF_H

/* Copies the data of a str into the record. False: user space has to read it, or it stays unknown. */
static __always_inline bool read_text(const struct rm_layout *layout, __u64 object, struct rm_text *text, __u8 *data, __u32 limit)
{
	__u64 length = 0, start;
	__u32 state = 0, kind, bytes;

	text->bytes = 0;
	text->kind = 1;
	if (!object || bpf_probe_read_user(&length, sizeof(length), (void *)(object + layout->str_length)) ||
	    bpf_probe_read_user(&state, sizeof(state), (void *)(object + layout->str_state)))
		return false;
	kind = state >> (layout->str_kind_shift & 31) & 7;
	if (!(state >> (layout->str_compact_bit & 31) & 1) || (kind != 1 && kind != 2 && kind != 4))
		return false;
	start = object + (state >> (layout->str_ascii_bit & 31) & 1 ? layout->str_ascii_data : layout->str_compact_data);
	if (length > limit / kind)
		return false; /* longer than the record: user space reads it whole */
	bytes = length * kind;
	if (bytes > limit)
		return false;
	if (bytes && bpf_probe_read_user(data, bytes, (void *)start))
		return false;
	text->bytes = bytes;
	text->kind = kind;
	return true;
}

static __always_inline void fill_code(struct rm_process *process, struct rm_code_event *record, __u64 code, __u32 fingerprint,
				      const union fields *fields, __u64 table, __u64 table_bytes, __u32 table_limit)
{
	const struct rm_layout *layout = &process->layout;
	__u32 flags = 0;

	record->event.kind = RM_EVENT_CODE;
	record->event.process = process->id;
	record->code = code;
	record->fingerprint = fingerprint;
	record->first_line = field32(fields, layout->code_first_line);
	if (!read_text(layout, field64(fields, layout->code_filename), &record->filename, record->filename_data, RM_FILENAME_BYTES))
		flags |= RM_CODE_NO_FILENAME;
	if (!read_text(layout, field64(fields, layout->code_name), &record->name, record->name_data, RM_NAME_BYTES))
		flags |= RM_CODE_NO_NAME;
	if (layout->code_qualname == RM_ABSENT ||
	    !read_text(layout, field64(fields, layout->code_qualname), &record->qualname, record->qualname_data, RM_QUALNAME_BYTES))
		flags |= RM_CODE_NO_QUALNAME;
	record->table_bytes = 0;
	if (table_bytes > table_limit || bpf_probe_read_user(record->table, table_bytes, (void *)table))
		flags |= RM_CODE_NO_TABLE;
	else
		record->table_bytes = table_bytes;
	record->flags = flags;
}

enum { SMALL_CODE_RECORD = __builtin_offsetof(struct rm_code_event, table) + RM_SMALL_TABLE };

static __always_inline void announce_bytecode(struct rm_process *process, const struct code_key *key, __u64 object)
{
	struct rm_bytecode_event *record;
	__u64 bytes = 0;

	if (bpf_probe_read_user(&bytes, sizeof(bytes), (void *)(object + process->layout.bytes_length)) || bytes >= RM_BYTECODE_BYTES)
		return;
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record) {
		count(RM_COUNT_RING_FULL_CODE);
		return;
	}
	record->event.kind = RM_EVENT_BYTECODE;
	record->event.process = process->id;
	record->code = key->code;
	record->fingerprint = key->fingerprint;
	record->bytes = bytes;
	bytes &= RM_BYTECODE_BYTES - 1; /* so that the verifier sees what was checked above */
	if (bpf_probe_read_user(record->data, bytes, (void *)(object + process->layout.bytes_data)))
		record->bytes = 0;
	bpf_ringbuf_submit(record, wakeup_flags());
}

/* Sends a code object that has not been sent. A global function: verified once, by itself. */
__noinline int announce_code(struct rm_process *process, __u64 code, __u32 fingerprint)
{
	struct code_key key = { .code = code, .fingerprint = fingerprint };
	struct rm_code_event *record;
	__u64 table, table_bytes = 0;
	union fields fields = {};
	__u8 yes = 1;

	if (!process)
		return 0;
	key.process = process->id;
	if (bpf_map_lookup_elem(&codes, &key))
		return 0;
	if (bpf_probe_read_user(&fields, RM_CODE_READ, (void *)(key.code + process->layout.code_base)))
		goto unreadable;
	if (process->layout.code_code != RM_ABSENT)
		announce_bytecode(process, &key, field64(&fields, process->layout.code_code));
	table = field64(&fields, process->layout.code_line_table);
	if (bpf_probe_read_user(&table_bytes, sizeof(table_bytes), (void *)(table + process->layout.bytes_length)))
		goto unreadable;
	table += process->layout.bytes_data;
	if (table_bytes <= RM_SMALL_TABLE) {
		record = bpf_ringbuf_reserve(&events, SMALL_CODE_RECORD, 0);
		if (!record)
			goto full;
		fill_code(process, record, key.code, key.fingerprint, &fields, table, table_bytes, RM_SMALL_TABLE);
	} else {
		record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
		if (!record)
			goto full;
		fill_code(process, record, key.code, key.fingerprint, &fields, table, table_bytes, RM_LARGE_TABLE);
	}
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

/* Sends the thread's last walk and every code object on it. Returns whether the stack reached the buffer. */
__noinline int announce_stack(struct rm_process *process, struct thread *thread)
{
	__u32 frames, size;

	if (!process || !thread)
		return 0;
	frames = thread->stack.frame_count;
	if (frames > RM_MAX_FRAMES)
		return 0;
	for (int i = 0; i < RM_MAX_FRAMES; i++) {
		if ((__u32)i >= frames)
			break;
		announce_code(process, thread->stack.frames[i].code, thread->stack.frames[i].fingerprint);
	}
	thread->stack.event.kind = RM_EVENT_STACK;
	thread->stack.event.process = process->id;
	size = __builtin_offsetof(struct rm_stack_event, frames) + frames * sizeof(struct rm_frame);
	if (size > sizeof(struct rm_stack_event))
		return 0;
	if (bpf_ringbuf_output(&events, &thread->stack, size, wakeup_flags())) {
		count(RM_COUNT_RING_FULL_STACK);
		return 0;
	}
	return 1;
}

#endif

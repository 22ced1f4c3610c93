/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * Processes that count their blocks themselves (probes/preload/tally.c): what the kernel side reads of their tally, and what it adds
 * that they cannot know: whose stack it was, and how much was resident.
 */
#ifndef TALLY_BPF_H
#define TALLY_BPF_H

static __always_inline __u64 thread_pointer_of(struct task_struct *task)
{
#if defined(__TARGET_ARCH_x86)
	return task->thread.fsbase;
#else
	return task->thread.uw.tp_value;
#endif
}

static __always_inline __u64 thread_pointer(void)
{
	return thread_pointer_of((struct task_struct *)bpf_get_current_task_btf());
}

/* Reads the running thread's struct rm_tally_thread. False: there is none, or it cannot be read. */
static __always_inline bool read_tally_thread(const struct rm_process *process, struct rm_tally_thread *found)
{
	return process->tally && !bpf_probe_read_user(found, sizeof(*found), (void *)(thread_pointer() + process->tally_thread));
}

/* A fork has its tally at `address`. */
static __always_inline int find_tally(struct rm_process *process, __u64 address)
{
	__u32 magic = 0;

	if (!address)
		count(RM_COUNT_NO_TALLY);
	else if (!bpf_probe_read_user(&magic, sizeof(magic), (void *)address) && magic == RM_TALLY_MAGIC)
		process->tally = address;
	return 0;
}

/* How many events the tally has counted; what of the process's memory is its own is brought up to date. */
static __always_inline __u64 read_sequence(struct rm_process *process)
{
	struct {
		__u64 sequence;
		__s64 touched_bytes;
	} head;

	if (bpf_probe_read_user(&head, sizeof(head), (void *)(process->tally + __builtin_offsetof(struct rm_tally, sequence))))
		return process->order_major;
	process->own_bytes = head.touched_bytes;
	return head.sequence;
}

/* The place of an event of the kernel side among all events of the process. */
static __always_inline __u64 next_order(struct rm_process *process)
{
	__u64 major;

	if (!process->tally)
		return ++process->sequence;
	major = read_sequence(process);
	if (major != process->order_major) {
		process->order_major = major;
		process->order_minor = 0;
	}
	if (process->order_minor < (1 << RM_ORDER_SHIFT) - 1)
		process->order_minor++;
	return major << RM_ORDER_SHIFT | process->order_minor;
}

static __always_inline void tell_resident(const struct rm_process *process)
{
	struct rm_resident_event *record = bpf_ringbuf_reserve(&residents, sizeof(*record), 0);

	if (!record) {
		count(RM_COUNT_RING_FULL_RESIDENT);
		return;
	}
	record->event.kind = RM_EVENT_RESIDENT;
	record->event.process = process->id;
	record->sequence = process->history_sequence;
	record->bytes = process->history_bytes;
	/* The same clock drains both buffers, and this one too is watched when it fills. */
	bpf_ringbuf_submit(record, bpf_ringbuf_query(&residents, BPF_RB_AVAIL_DATA) > (1 << 20) ? 0 : BPF_RB_NO_WAKEUP);
}

/*
 * The memory of a process with a tally changed, by its own doing. The tally knows the order of its events and the kernel how much is
 * resident: the two meet here. A change is told when the next one comes after another event, so that only the last of many is.
 */
static __always_inline void note_resident(struct rm_process *process)
{
	__u64 sequence = read_sequence(process);

	if (sequence != process->history_sequence) {
		tell_resident(process);
		process->history_sequence = sequence;
	}
	process->history_bytes = resident_bytes(process);
}

#endif

/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * Limits of resident memory. Alarms (--on-limit): user space is told. The debugger's (--pdb-mmem): the thread that passes it is told by
 * a signal, whose handler is the launch extension's (userspace/src/launch/stop.h). A page fault of user mode is told at once: the handler
 * then runs before the instruction is tried again.
 * In a system call it would be cut short, or end with another result: there the signal waits for its end. Of a process that nobody holds
 * (attach) user space is told, which asks its interpreter (PEP 768).
 */
#ifndef LIMIT_BPF_H
#define LIMIT_BPF_H

static __always_inline bool tell_limit(struct rm_process *process, __u32 call, __u32 reason, __u64 measured, __u64 thread, bool in_call)
{
	struct rm_limit_event *record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);

	if (!record) {
		count(RM_COUNT_RING_FULL_LIMIT);
		return false;
	}
	record->event.kind = RM_EVENT_LIMIT;
	record->event.process = process->id;
	record->call = call;
	record->reason = reason;
	record->bytes = resident_bytes(process);
	record->measured = measured;
	record->thread = thread;
	record->in_call = in_call;
	record->pad = 0;
	/* The others are not woken for: by its own rule the ring would not wake for one behind them. */
	bpf_ringbuf_submit(record, BPF_RB_FORCE_WAKEUP);
	return true;
}

/*
 * How much more is resident than at the least within the last second. Between two changes it was what it was after the first. Threads that
 * change it at the same time may each overwrite what the other noted: then a part of the second has the least of one of them.
 */
static __always_inline __u64 growth_of(struct rm_process *process, __s64 resident)
{
	__u64 slot = bpf_ktime_get_ns() / (1000000000 / RM_GROWTH_SLOTS);
	__s64 last = process->growth_last, least = resident;
	bool anew = process->growth_of != process->id;
	__u32 index;

	if (anew) {
		process->growth_of = process->id;
		last = resident;
	}
	for (index = 0; index < RM_GROWTH_SLOTS; index++) {
		__u64 of = slot - index;

		/* Nothing changed in those since the last change. */
		if (anew || of > process->growth_slot)
			process->growth_floor[of % RM_GROWTH_SLOTS] = last;
	}
	if (resident < process->growth_floor[slot % RM_GROWTH_SLOTS])
		process->growth_floor[slot % RM_GROWTH_SLOTS] = resident;
	process->growth_slot = slot;
	process->growth_last = resident;
	for (index = 0; index < RM_GROWTH_SLOTS; index++) {
		if (process->growth_floor[index] < least)
			least = process->growth_floor[index];
	}
	return resident - least;
}

/* What all processes that are measured have resident together: the sum of their rm_process.in_total. */
static __s64 total_resident;
/* rm_process.alarm_passed of the alarms that are of it. */
static __u32 total_passed[RM_ALARMS];

/* A process has so much now. Who draws the sum after others have changed it has theirs in it: whoever passes a limit sees that. */
static __always_inline __s64 change_total(struct rm_process *process, __s64 resident)
{
	__s64 change = resident - (__s64)__sync_lock_test_and_set(&process->in_total, resident);

	return __sync_fetch_and_add(&total_resident, change) + change;
}

/* Is so little resident, or grown, that the alarm may be passed again? */
static __always_inline bool is_well_below(__u64 now, __u64 bytes)
{
	return now <= bytes - bytes / RM_ALARM_PART;
}

/* What user space is to do something about (--on-limit). */
__noinline int check_each_alarm(struct rm_process *process)
{
	__u64 resident, growth = 0, total = 0;
	__u32 index;

	if (!process)
		return 0;
	resident = resident_bytes(process);
	if (constants.alarms_of_growth)
		growth = growth_of(process, resident);
	if (constants.alarms_of_total)
		total = change_total(process, resident);
	for (index = 0; index < RM_ALARMS; index++) {
		__u64 bytes = constants.alarm_bytes[index], now = resident;
		__u32 *passed = &process->alarm_passed[index];

		if (!bytes)
			break;
		if (constants.alarms_of_growth & 1u << index)
			now = growth;
		if (constants.alarms_of_total & 1u << index) {
			now = total;
			passed = &total_passed[index];
		}
		if (now > bytes) {
			if (*passed || __sync_lock_test_and_set(passed, 1))
				continue;
			if (!tell_limit(process, RM_LIMIT_ALARM, index, now, 0, false))
				*passed = 0; /* the next event may find room */
		} else if (*passed && is_well_below(now, bytes)) {
			*passed = 0;
		}
	}
	return 0;
}

static __always_inline void check_alarms(struct rm_process *process)
{
	if (constants.alarm_bytes[0])
		check_each_alarm(process);
}

/* Its memory is gone, or is not measured any more. */
static __always_inline void leave_total(struct rm_process *process)
{
	__u32 index;
	__u64 total;

	if (!constants.alarms_of_total)
		return;
	total = change_total(process, 0);
	for (index = 0; index < RM_ALARMS; index++) {
		if (constants.alarms_of_total & 1u << index && is_well_below(total, constants.alarm_bytes[index]))
			total_passed[index] = 0;
	}
}

/* Run by user space: the process of this number is measured from now on, or (`leaves`) not any more. */
static __always_inline int look_at_alarms(__u32 pid, bool leaves)
{
	struct rm_process *process = bpf_map_lookup_elem(&processes, &pid);

	if (!process)
		return 0;
	if (leaves) {
		process->flags &= ~(RM_HEAP | RM_PAGES); /* what it does from here on counts nowhere */
		leave_total(process);
	} else {
		check_alarms(process);
	}
	return 0;
}

/* x86: the number of the system call, or negative for what else came from user mode (arch/x86/include/asm/ptrace.h, orig_ax). */
static __always_inline bool in_system_call(struct task_struct *task)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);

#if defined(__TARGET_ARCH_x86)
	return (long)BPF_CORE_READ(regs, orig_ax) >= 0;
#else
	return BPF_CORE_READ(regs, syscallno) >= 0;
#endif
}

/* The running thread of `process` gets the signal, unless it would not be our handler that runs. */
static __always_inline void signal_limit(struct rm_process *process, struct task_struct *task)
{
	__u32 signal = process->limit_signal;
	struct sighand_struct *sighand = BPF_CORE_READ(task, sighand);
	__u64 action = 0, blocked = BPF_CORE_READ(task, blocked.sig[0]);

	if (signal < 1 || signal > 64 || blocked & 1ull << (signal - 1))
		return; /* the next event may be in a thread that does not block it */
	bpf_probe_read_kernel(&action, sizeof(action),
			      (void *)sighand + bpf_core_field_offset(struct sighand_struct, action) +
				      (signal - 1) * bpf_core_type_size(struct k_sigaction) +
				      bpf_core_field_offset(struct k_sigaction, sa.sa_handler));
	if (__sync_lock_test_and_set(&process->limit_state, RM_LIMIT_PASSED) != RM_LIMIT_WAITING)
		return;
	if (action != process->limit_handler)
		tell_limit(process, RM_LIMIT_REFUSED, RM_REFUSED_SIGNAL, 0, 0, false);
	else if (bpf_send_signal_thread(signal))
		process->limit_state = RM_LIMIT_WAITING;
}

/* User space is told once. Where there is no room for the record, the next event tells it. */
static __always_inline void reach_limit(struct rm_process *process, __u64 thread, bool in_call)
{
	if (__sync_lock_test_and_set(&process->limit_state, RM_LIMIT_PASSED) != RM_LIMIT_WAITING)
		return;
	if (!tell_limit(process, RM_LIMIT_REACHED, bpf_get_current_pid_tgid(), 0, thread, in_call))
		process->limit_state = RM_LIMIT_WAITING;
}

__noinline int limit_passed(struct rm_process *process)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	struct thread *thread;
	__u64 state;

	if (!process)
		return 0;
	thread = current_thread();
	/* No line did it where no Python runs: the next event of a thread that does stands for it. */
	if (!thread || find_thread_state(process, thread, task, &state) != RM_STACK_COMPLETE || !state)
		return 0;
	if (process->flags & RM_FOLLOW)
		reach_limit(process, state, in_system_call(task));
	else if (in_system_call(task))
		thread->limit_due = 1;
	else
		signal_limit(process, task);
	return 0;
}

/* A process that nobody holds has passed its limit, and went on: user space says what the next one is. */
static __always_inline void take_next_limit(struct rm_process *process)
{
	__u32 id = process->id;
	__u64 *next = bpf_map_lookup_elem(&next_limits, &id);

	if (!next)
		return;
	process->limit_bytes = *next;
	process->limit_state = RM_LIMIT_WAITING;
	bpf_map_delete_elem(&next_limits, &id);
}

static __always_inline void check_limit(struct rm_process *process, __s64 resident)
{
	__u32 followed = process->flags & RM_FOLLOW;

	if (!process->limit_bytes || !(process->limit_handler || followed))
		return;
	if (followed && process->limit_step && process->limit_state == RM_LIMIT_PASSED)
		take_next_limit(process);
	if (resident > (__s64)process->limit_bytes && process->limit_state == RM_LIMIT_WAITING)
		limit_passed(process);
}

/* At the end of each system call, where a limit was asked for. */
static __always_inline int limit_exit(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	struct rm_process *process = current_process();
	struct thread *thread;

	if (!process || !process->limit_bytes || !process->limit_handler)
		return 0;
	thread = bpf_task_storage_get(&threads, task, 0, 0);
	if (!thread || !thread->limit_due)
		return 0;
	thread->limit_due = 0;
	if (process->limit_state == RM_LIMIT_WAITING)
		signal_limit(process, task);
	return 0;
}

/* The launch extension tells of itself. */
static __always_inline int limit_site(struct rm_process *process, __u32 call, __u64 value, __u64 handler)
{
	__s64 resident = resident_bytes(process);

	tell_limit(process, call, value, 0, 0, false);
	switch (call) {
	case RM_LIMIT_READY:
		process->limit_signal = value;
		process->limit_handler = handler;
		check_limit(process, resident);
		break;
	case RM_LIMIT_CONTINUED:
		if (!process->limit_step)
			break;
		process->limit_bytes = (resident > 0 ? resident : 0) + process->limit_step;
		process->limit_state = RM_LIMIT_WAITING;
	}
	return 0;
}

#endif

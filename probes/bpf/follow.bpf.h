/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * Processes that nobody holds (`attach`, `system`): their forks, execs and ends as the kernel does them. A fork counts from its first
 * instruction; of an exec and an end user space is told, and what comes after is not the old image's. For `system` the execs of all
 * others are told too, unless user space knows the program's file to be no Python: one look-up then. Of those that are held (`run`) it is
 * noted alone when their memory goes, where a limit is of all together: user space hears of it when others may have gone on.
 */
#ifndef FOLLOW_BPF_H
#define FOLLOW_BPF_H

/* Numbers of images that begin here; user space's own are below. */
static __u32 next_image = RM_FIRST_FORK;

/* All zero: what is known of a process that has just executed something. */
static struct rm_process unknown;

static __always_inline struct rm_follow_event *begin_telling(const struct rm_process *process, __u32 change, __u32 pid,
							     const __u64 bytes)
{
	struct rm_follow_event *record = bpf_ringbuf_reserve(&events, bytes, 0);

	if (!record) {
		count(RM_COUNT_RING_FULL_FOLLOW);
		return 0;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->event.kind = RM_EVENT_FOLLOW;
	record->event.process = process->id;
	record->change = change;
	record->pid = pid;
	record->resident_bytes = resident_bytes((struct rm_process *)process);
	record->resident_peak = process->resident_peak;
	record->victim = !!(process->flags & RM_VICTIM);
	return record;
}

static __always_inline void tell(const struct rm_process *process, __u32 change, __u32 pid, __u32 parent, __s32 exit_code)
{
	struct rm_follow_event *record = begin_telling(process, change, pid, sizeof(*record));

	if (!record)
		return;
	record->parent = parent;
	record->exit_code = exit_code;
	/* At once: it may be short-lived. Where records wait that woke nobody, nobody is woken by this one either but by force
	 * (kernel/bpf/ringbuf.c, bpf_ringbuf_commit). */
	bpf_ringbuf_submit(record, BPF_RB_FORCE_WAKEUP);
}

/* The kernel has copied its parent's memory by now, not all of it as resident. */
static __always_inline void read_resident(struct rm_process *process, struct mm_struct *mm)
{
	__u32 member;

	for (member = 0; member < MEMBERS; member++)
		process->resident[member] = member_bytes(mm, member);
}

static __always_inline int process_forked(struct task_struct *parent, struct task_struct *child)
{
	__u32 maker = BPF_CORE_READ(parent, tgid), made = BPF_CORE_READ(child, tgid);
	struct rm_process *of = bpf_map_lookup_elem(&processes, &maker), *own;
	__u32 parent_id, counted;

	if (!of || !(of->flags & RM_FOLLOW) || made == maker)
		return 0;
	parent_id = of->id;
	if (bpf_map_update_elem(&processes, &made, of, BPF_ANY)) {
		count(RM_COUNT_PROCESSES_FULL);
		return 0;
	}
	own = bpf_map_lookup_elem(&processes, &made);
	if (!own)
		return 0;
	own->id = __sync_fetch_and_add(&next_image, 1);
	own->memory = 0;
	own->in_total = 0;
	/* It borrows its parent's memory until its exec (vfork): what it does to it is its parent's. */
	if (BPF_CORE_READ(parent, mm) == BPF_CORE_READ(child, mm)) {
		own->resident_peak = resident_bytes(own);
		own->flags &= ~(RM_HEAP | RM_PAGES);
		tell(own, RM_FOLLOW_VFORK, made, parent_id, 0);
		return 0;
	}
	/*
	 * Against a limit stands what it has. Else it keeps its parent's pages of files, which it has not mapped yet: when it touches them
	 * they are nobody's growth.
	 */
	if (constants.alarm_bytes[0])
		read_resident(own, BPF_CORE_READ(child, mm));
	own->resident_peak = resident_bytes(own);
	counted = own->flags & (RM_HEAP | RM_PAGES);
	tell(own, counted ? RM_FOLLOW_FORK : RM_FOLLOW_YOUNG, made, parent_id, 0);
	if (counted)
		check_alarms(own);
	return 0;
}

static __always_inline void executable_of(struct task_struct *task, struct rm_executable *executable)
{
	struct inode *inode = BPF_CORE_READ(task, mm, exe_file, f_inode);

	executable->inode = BPF_CORE_READ(inode, i_ino);
	executable->bytes = BPF_CORE_READ(inode, i_size);
	executable->device = BPF_CORE_READ(inode, i_sb, s_dev);
	executable->generation = BPF_CORE_READ(inode, i_generation);
}

/* In the process itself: its arguments are where the kernel has just put them (fs/binfmt_elf.c, create_elf_tables). */
static __always_inline void tell_exec(struct task_struct *task, const struct rm_process *process, __u32 pid,
				      const struct rm_executable *executable)
{
	__u64 start = BPF_CORE_READ(task, mm, arg_start), end = BPF_CORE_READ(task, mm, arg_end);
	struct rm_exec_event *record;
	__u32 bytes;

	record = (struct rm_exec_event *)begin_telling(process, RM_FOLLOW_EXEC, pid, sizeof(*record));
	if (!record)
		return;
	record->follow.executable = *executable;
	record->command_bytes = end - start;
	bytes = record->command_bytes < RM_COMMAND ? record->command_bytes : RM_COMMAND;
	if (end < start || bpf_probe_read_user(record->command, bytes, (void *)start))
		record->command_bytes = 0;
	bpf_ringbuf_submit(record, BPF_RB_FORCE_WAKEUP); /* as above */
}

/* A process that is not watched has executed a program. */
static __always_inline int stranger_executed(struct task_struct *task)
{
	__u32 pid = BPF_CORE_READ(task, tgid);
	struct rm_executable executable = {};
	struct rm_process *process;

	executable_of(task, &executable);
	if (bpf_map_lookup_elem(&other_programs, &executable))
		return 0;
	if (bpf_map_update_elem(&processes, &pid, &unknown, BPF_ANY)) {
		count(RM_COUNT_PROCESSES_FULL);
		return 0;
	}
	process = bpf_map_lookup_elem(&processes, &pid);
	if (!process)
		return 0;
	process->id = __sync_fetch_and_add(&next_image, 1);
	process->flags = RM_FOLLOW; /* until user space knows what it is */
	tell_exec(task, process, pid, &executable);
	return 0;
}

static __always_inline int process_executed(struct task_struct *task, bool everybody)
{
	__u32 pid = BPF_CORE_READ(task, tgid);
	struct rm_process *process = bpf_map_lookup_elem(&processes, &pid);
	struct rm_executable executable = {};
	__u64 memory;

	if (!process && everybody)
		return stranger_executed(task);
	if (!process)
		return 0;
	leave_total(process);
	if (!(process->flags & RM_FOLLOW))
		return 0;
	memory = process->memory;
	executable_of(task, &executable);
	bpf_task_storage_delete(&threads, task); /* it was of the old image: where the stack and the thread's memory were */
	process->flags = RM_FOLLOW; /* until user space knows what it is now */
	process->id = __sync_fetch_and_add(&next_image, 1);
	tell_exec(task, process, pid, &executable);
	bpf_map_delete_elem(&memories, &memory);
	return 0;
}

static __always_inline int process_exited(struct task_struct *task)
{
	__u32 pid = BPF_CORE_READ(task, tgid);
	struct rm_process *process = bpf_map_lookup_elem(&processes, &pid);
	__u64 memory;
	__s32 code;

	if (!process || BPF_CORE_READ(task, signal, live.counter) > 0)
		return 0;
	leave_total(process);
	if (!(process->flags & RM_FOLLOW))
		return 0;
	/* kernel/exit.c, do_group_exit: the code of the whole, unless its last thread just ended by itself. */
	code = BPF_CORE_READ(task, signal, group_exit_code);
	if (!code)
		code = BPF_CORE_READ(task, exit_code);
	memory = process->memory;
	tell(process, RM_FOLLOW_EXIT, pid, 0, code);
	bpf_map_delete_elem(&memories, &memory);
	bpf_map_delete_elem(&processes, &pid);
	return 0;
}

/*
 * The loader changes its list of libraries. New code may be an allocator's: user space is to look at it before it runs. Where a
 * supervisor holds the process, a signal makes it stop: one that nobody gets (the supervisor takes it away), and that does nothing
 * should the supervisor be gone. Where nobody does, user space is told, and is some milliseconds late.
 */
static __always_inline int libraries_changed(struct rm_process *process, struct thread *thread, __u64 stack_pointer)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();

	/* Called before and after, by one call of dlopen. */
	if (!process->loader_end && thread)
		thread->loading = thread->loading == stack_pointer ? 0 : stack_pointer;
	if (!process->new_code || !has(process, RM_HEAP))
		return 0;
	process->new_code = 0;
	if (process->flags & RM_FOLLOW) {
		tell(process, RM_FOLLOW_LOADED, bpf_get_current_pid_tgid() >> 32, 0, 0);
		return 0;
	}
	/* A blocked signal would wait, and be there for the program to take. */
	if ((BPF_CORE_READ(task, blocked.sig[0]) >> (RM_SIGCHLD - 1) & 1) || bpf_send_signal_thread(RM_SIGCHLD))
		count(RM_COUNT_NOT_HELD);
	return 0;
}

/* The kernel will end a process for want of memory. */
static __always_inline int process_chosen(__u32 pid)
{
	struct rm_process *process = bpf_map_lookup_elem(&processes, &pid);

	if (process)
		__sync_fetch_and_or(&process->flags, RM_VICTIM);
	return 0;
}

#endif

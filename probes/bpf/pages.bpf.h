/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * The kernel's own ledger of resident memory (kmem:rss_stat, include/trace/events/kmem.h): its size after every change, by kind.
 * Differences of sizes are charged, never events: kernels differ in how often they fire, but the sum of differences is the change.
 */
#ifndef PAGES_BPF_H
#define PAGES_BPF_H

enum { MEMBER_ANONYMOUS = 1, MEMBER_SWAP = 2, MEMBERS = 4 };

static __always_inline bool exiting(struct task_struct *task)
{
	return task->flags & PF_EXITING;
}

/* Has everybody let go of it (kernel/fork.c, mmput)? Whoever reads the memory of a process that ends holds it the longest. */
static __always_inline bool torn_down(struct mm_struct *mm)
{
	return kernel_half((void *)mm + bpf_core_field_offset(struct mm_struct, mm_users.counter)) == 0;
}

/* A global function, for the verifier. `thread` is the running one's. */
__noinline int charge_pages(struct rm_process *process, struct thread *thread, __s64 change, __u32 own)
{
	struct native native;

	if (!process)
		return 0;
	if (!thread) {
		siteless_bytes(change < 0, change < 0 ? -change : change);
		return 0;
	}
	count(RM_COUNT_EVENTS);
	if (own) {
		if (change < 0) {
			walk(process, thread, 0, DEED_RELEASES);
		} else if (!goes_on_filling(process, &thread->filling)) {
			native = user_registers(process);
			walk(process, thread, &native, DEED_TAKES);
			begin_filling(process, &thread->filling, &thread->stack);
		}
	} else {
		thread->filling.end = 0;
		thread->stack.frame_count = 0;
		thread->stack.status = RM_STACK_FOREIGN;
		thread->stack.collector = 0;
		thread->native.instruction = 0;
		thread->stack.stack = mix(mix(0x726d70726f66ull, process->id), RM_STACK_FOREIGN);
	}
	if (change > 0)
		charge_allocation(process, thread, change, change / RM_PAGE);
	else
		charge_release(process, thread, -change, -change / RM_PAGE);
	if (own)
		add_net(process, thread, change);
	return 0;
}

/*
 * Where blocks are sampled, resident memory is followed as the kernel itself tells it (VmRSS of /proc/PID/status): a change is looked at
 * when it is folded into the counter of all CPUs, some 32 pages at a time. For a process that grows each page by page that is most
 * of what it would pay.
 */
static __always_inline bool is_unfolded(struct rm_process *process, struct mm_struct *mm, __u32 member)
{
	__s64 count;

	if (!process->page_sample || process->limit_bytes || constants.alarm_bytes[0] || process->memory != (__u64)mm || member >= MEMBERS)
		return false;
	barrier_var(member); /* the compiler is not to leave out the mask, by which the verifier knows that it is small */
	member &= MEMBERS - 1;
	count = member_folded(mm, member);
	if (count == process->folded[member])
		return true;
	process->folded[member] = count;
	return false;
}

/* Is the running thread in the kernel because of a fault, rather than a system call? */
static __always_inline bool is_in_fault(struct task_struct *task)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);

#if defined(__TARGET_ARCH_x86)
	return (__s64)regs->orig_ax == -1; /* arch/x86/entry/entry_64.S, idtentry_body */
#else
	return regs->syscallno == -1; /* NO_SYSCALL, arch/arm64/include/asm/ptrace.h */
#endif
}

/* What was last seen of the running CPU's part of a process's counters. */
struct part {
	__u32 process; /* its id; 0: nobody's */
	__u32 known;   /* a bit for each member */
	__s32 pages[MEMBERS];
};

/* index: 0. value: of the process with several threads that was met last. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct part);
} own_parts SEC(".maps");

static __always_inline bool has_threads(struct task_struct *task)
{
	__u64 signal = kernel_word((void *)task + bpf_core_field_offset(struct task_struct, signal));

	return kernel_half((void *)signal + bpf_core_field_offset(struct signal_struct, live.counter)) > 1;
}

/*
 * How many pages of a part's change, from `before` to `now`, are in the change of the folded counter: a CPU folds its part when that has come
 * to a batch, and `folded` is what all have folded that is not accounted for. A fault takes single pages as a rule: of theirs the batch is
 * known, whatever others have folded or released at the same time. Two batches are another's too.
 */
static __always_inline __s64 folded_of_part(__s64 before, __s64 now, __s64 folded)
{
	__s64 batch = constants.counter_batch;

	if (now)
		return 0;
	if (before >= batch - 1)
		return folded >= batch && folded != 2 * batch ? folded : batch;
	if (before <= 1 - batch)
		return folded <= -batch && folded != -2 * batch ? folded : -batch;
	return folded >= batch ? folded : 0;
}

#define NOT_TOLD_APART (1ll << 62)

/*
 * What a thread beside others has done itself, in bytes: the change of its CPU's part of the counter. By the sum of all parts it would be
 * charged with what others have counted and not yet told, one page in some of theirs, which adds up to hundreds. Told apart are faults, of
 * a process that was the last on this CPU too. A global function, for the verifier.
 */
__noinline __s64 change_of_part(struct rm_process *process, struct part *part, __u32 member)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	struct mm_struct *mm = (struct mm_struct *)memory_of(task);
	__s64 now, before, folded, change;
	bool known;

	if (!process || !part || !has_parts())
		return NOT_TOLD_APART;
	barrier_var(member); /* as in is_unfolded */
	member &= MEMBERS - 1;
	now = member_part(mm, member);
	folded = member_folded(mm, member);
	known = part->process == process->id && part->known >> member & 1;
	before = part->pages[member];
	if (part->process != process->id) {
		part->process = process->id;
		part->known = 0;
	}
	part->known |= 1 << member;
	part->pages[member] = now;
	if (!known || !is_in_fault(task))
		return NOT_TOLD_APART;
	change = folded_of_part(before, now, folded - process->folded[member]);
	if (change)
		__sync_fetch_and_add(&process->folded[member], change);
	change = (change + now - before) * RM_PAGE;
	__sync_fetch_and_add(&process->resident[member], change);
	return change;
}

/* So often in a row it is another's. After that it is charged to who sees it: memory that a fault itself takes away to make room (direct
 * reclaim) is no other thread's. */
enum { OTHERS_RELEASES = 64 };

/*
 * What is to be charged of a counter of the process that has changed; `own`: to the running thread, which is of that process. A thread
 * counts, and then comes the tracepoint: who looks in between sees what another one has released and not yet told, hundreds of pages at a
 * time. A fault releases nothing: it is left to that other one. A global function, for the stack.
 */
__noinline __s64 change_to(struct rm_process *process, __u32 own, __u32 member)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	__s64 *resident, before, taken = member == MEMBER_ANONYMOUS ? RM_PAGE : 0, size;
	struct mm_struct *mm;
	bool charged, beside;
	struct part *part;
	__u32 zero = 0;

	if (!process)
		return 0;
	mm = (struct mm_struct *)process->memory;
	resident = &process->resident[member & 3];
	charged = has(process, RM_PAGES);
	beside = own && charged && has_threads(task);
	part = own && charged ? bpf_map_lookup_elem(&own_parts, &zero) : 0;
	if (part && beside) {
		size = change_of_part(process, part, member);
		if (size != NOT_TOLD_APART)
			return size;
	} else if (part && part->process) {
		part->process = 0; /* what a thread does alone is not followed */
	}
	size = member_bytes(mm, member);
	before = *resident;
	if (charged)
		process->folded[member & 3] = member_folded(mm, member);
	if (own && charged) {
		if (size >= before - RM_PAGE || !beside || !is_in_fault(task)) {
			if (process->others_releases)
				process->others_releases = 0;
		} else if (process->others_releases < OTHERS_RELEASES &&
			   __sync_val_compare_and_swap(resident, before, before + taken) == before) {
			process->others_releases++;
			return taken;
		}
	}
	return size - (__s64)__sync_lock_test_and_set(resident, size);
}

static __always_inline int resident_changed(struct mm_struct *mm, __u32 member)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32, *owner;
	struct rm_process *process = bpf_map_lookup_elem(&processes, &tgid);
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	__u64 memory = (__u64)mm;
	bool counted = process && has(process, RM_HEAP | RM_PAGES);
	bool own;
	__s64 change, sum;

	if (process && is_unfolded(process, mm, member))
		return 0;
	barrier_var(member); /* as above */
	own = counted && memory_of(task) == memory;
	if (own) {
		if (process->memory && process->memory != memory)
			return 0; /* of the image that is about to take its place (exec) */
		if (!process->memory) {
			process->memory = memory;
			bpf_map_update_elem(&memories, &memory, &tgid, BPF_NOEXIST); /* a child of vfork has its parent's */
		}
	} else {
		owner = bpf_map_lookup_elem(&memories, &memory);
		if (!owner)
			return 0; /* nobody's we watch */
		if (torn_down(mm)) {
			/* An image that has ended, torn down by its own exec or exit or by who looked at it last. Its address may be another's soon. */
			bpf_map_delete_elem(&memories, &memory);
			return 0;
		}
		if (*owner == tgid || exiting(task))
			return 0;
		process = bpf_map_lookup_elem(&processes, owner);
		if (!process || process->memory != memory)
			return 0;
	}
	if (member >= MEMBERS)
		return 0;
	change = change_to(process, own, member);
	if (own && process->tally)
		note_resident(process);
	if (has(process, RM_PAGES) && change < 0)
		__sync_fetch_and_add(&process->releases, 1);
	sum = resident_bytes(process);
	if (sum > process->resident_peak)
		process->resident_peak = sum;
	if (own)
		check_limit(process, sum);
	check_alarms(process);
	if (!has(process, RM_PAGES) || member == MEMBER_SWAP || !change)
		return 0;
	return charge_pages(process, thread_of(task), change, own);
}

#endif

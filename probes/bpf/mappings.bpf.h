/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * Mappings the program makes itself. The allocator's own are told by the call of the malloc family that is under way, the
 * loader's by its address, thread stacks by their flag, and the arenas of Python's object allocator by the one place that asks
 * for them: the return address of the first mmap of an arena's size, kept for the life of the image.
 * Ranges are joined and split in user space; arenas are counted here, page by page, where they are touched.
 */
#ifndef MAPPINGS_BPF_H
#define MAPPINGS_BPF_H

enum { MAP_ARENA = 2, MAP_RESERVE = 3, ARENA_GRANULES = 64, DROP_GRANULES = 1 << 15 };

static __always_inline __u64 whole_pages(__u64 bytes)
{
	return (bytes + RM_PAGE - 1) & ~(__u64)(RM_PAGE - 1);
}

/* The bits of [start, end) in the granule, which may be far from it. A global function: its branches are the verifier's once, not in each
 * round of the loops it is called in. */
__noinline __u64 granule_bits(__u64 granule, __u64 start, __u64 end)
{
	__u64 base = granule * RM_ARENA_GRANULE;
	__u64 first = start > base ? (start - base) / RM_PAGE : 0;
	__u64 last = end < base + RM_ARENA_GRANULE ? (end - base) / RM_PAGE : 64; /* one past */

	if (end <= base || first >= last || first > 63)
		return 0;
	return (last >= 64 ? ~0ull : (1ull << (last & 63)) - 1) & ~((1ull << (first & 63)) - 1);
}

/*
 * mimalloc, the allocator of free-threaded Pythons, reserves a gibibyte at a time. Its granules come into the map as they are touched:
 * until then the range alone is known. Threads reserve side by side: a place is taken by its start. These loops too go through bpf_loop:
 * inlined into one another they were some 80,000 instructions of the verifier at each start.
 */
struct reserved_loop {
	struct rm_process *process;
	__u64 start;
	__u64 end;
	__u64 bits; /* of the granule `start` */
	__u32 done;
	__u32 pad;
};

static __always_inline struct rm_range *reserved_range(__u32 index, const struct reserved_loop *loop)
{
	return index < RM_RESERVED ? &loop->process->reserved[index] : 0;
}

static long add_step_reserved(__u32 index, struct reserved_loop *loop)
{
	struct rm_range *range = reserved_range(index, loop);

	if (!range)
		return 1;
	if (range->start || __sync_val_compare_and_swap(&range->start, 0, loop->start))
		return 0;
	range->end = loop->end;
	loop->done = 1;
	return 1;
}

__noinline int add_reserved(struct rm_process *process, __u64 start, __u64 end)
{
	struct reserved_loop loop = { .process = process, .start = start, .end = end };

	if (!process)
		return 0;
	bpf_loop(RM_RESERVED, add_step_reserved, &loop, 0);
	if (!loop.done)
		count(RM_COUNT_ARENAS_FULL);
	return 0;
}

static long bits_step_reserved(__u32 index, struct reserved_loop *loop)
{
	struct rm_range *range = reserved_range(index, loop);

	if (!range)
		return 1;
	if (range->start)
		loop->bits |= granule_bits(loop->start, range->start, range->end);
	return 0;
}

/* The bits of a granule that are in reserved ranges. */
__noinline __u64 reserved_bits(struct rm_process *process, __u64 granule)
{
	struct reserved_loop loop = { .process = process, .start = granule };

	if (!process)
		return 0;
	bpf_loop(RM_RESERVED, bits_step_reserved, &loop, 0);
	return loop.bits;
}

static long trim_step_reserved(__u32 index, struct reserved_loop *loop)
{
	struct rm_range *range = reserved_range(index, loop);
	__u64 range_end;

	if (!range)
		return 1;
	range_end = range->end;
	if (!range->start || loop->end <= range->start || loop->start >= range_end)
		return 0;
	loop->done = 1;
	if (loop->start > range->start) {
		range->end = loop->start;
		if (loop->end < range_end)
			add_reserved(loop->process, loop->end, range_end);
	} else if (loop->end < range_end) {
		range->start = loop->end;
	} else {
		range->end = 0;
		range->start = 0;
	}
	return 0;
}

/* Addresses are given back. Returns whether some were of a reserved range. */
__noinline int trim_reserved(struct rm_process *process, __u64 start, __u64 end)
{
	struct reserved_loop loop = { .process = process, .start = start, .end = end };

	if (!process)
		return 0;
	bpf_loop(RM_RESERVED, trim_step_reserved, &loop, 0);
	return loop.done;
}

/* A range of an arena, granule by granule; the loops go through bpf_loop, which the verifier looks into once. */
struct arena_loop {
	struct rm_process *process;
	__u64 start;
	__u64 end;
	__u64 granule;
	__u64 bits;
	__u32 ours;
	__u32 pages;
	__u32 keep; /* the addresses stay the allocator's: only what is in the pages goes */
	__u32 pages_each; /* what a page that was counted stands for */
};

static long add_step(__u32 step, struct arena_loop *loop)
{
	struct arena_key key = { .granule = loop->start / RM_ARENA_GRANULE + step, .process = loop->process->id };
	struct arena fresh = { .pages = granule_bits(key.granule, loop->start, loop->end) };
	struct arena *found;

	if (key.granule * RM_ARENA_GRANULE >= loop->end)
		return 1;
	found = bpf_map_lookup_elem(&arenas, &key);
	if (found)
		__sync_fetch_and_or(&found->pages, fresh.pages);
	else if (bpf_map_update_elem(&arenas, &key, &fresh, BPF_NOEXIST))
		count(RM_COUNT_ARENAS_FULL);
	return 0;
}

__noinline int add_arena(struct rm_process *process, __u64 start, __u64 bytes)
{
	struct arena_loop loop = { .process = process, .start = start, .end = start + bytes };

	if (!process)
		return 0;
	if (bytes > (__u64)(ARENA_GRANULES - 1) * RM_ARENA_GRANULE)
		count(RM_COUNT_ARENA_TOO_LARGE);
	bpf_loop(ARENA_GRANULES, add_step, &loop, 0);
	return 0;
}

/*
 * What a page of an arena that is counted stands for. Where blocks are sampled, so are pages, by the same rule in whole numbers: one of
 * so many by chance, which then counts as all of them. It saves the walk and the sums, and the looking for owners at the end.
 */
static __always_inline __u32 pages_each(const struct rm_process *process)
{
	return process->page_sample ? process->page_sample : 1;
}

/* The page at `address` goes from its owner. */
__noinline int forget_page(struct rm_process *process, __u64 address, __u64 bytes)
{
	struct block page = {};

	if (process && forget_block(process, address, &page))
		owner_lost(process, page.stack, bytes);
	return 0;
}

static long page_step(__u32 step, struct arena_loop *loop)
{
	if (!(loop->bits >> (step & 63) & 1))
		return 0;
	loop->pages++;
	forget_page(loop->process, loop->granule * RM_ARENA_GRANULE + (__u64)step * RM_PAGE, (__u64)loop->pages_each * RM_PAGE);
	return 0;
}

/* One granule: its touched pages go from their owners. */
static long drop_step_arena(__u32 step, struct arena_loop *loop)
{
	struct arena_key key = { .granule = loop->start / RM_ARENA_GRANULE + step, .process = loop->process->id };
	__u64 bits = granule_bits(key.granule, loop->start, loop->end);
	struct arena *found;

	if (key.granule * RM_ARENA_GRANULE >= loop->end)
		return 1;
	found = bpf_map_lookup_elem(&arenas, &key);
	if (!found || !(found->pages & bits))
		return !loop->ours; /* a range that begins outside of arenas is none */
	loop->ours = 1;
	loop->granule = key.granule;
	loop->bits = found->pages & bits & (loop->pages_each > 1 ? found->counted : found->touched);
	if (!loop->keep)
		__sync_fetch_and_and(&found->pages, ~bits);
	__sync_fetch_and_and(&found->touched, ~bits);
	__sync_fetch_and_and(&found->counted, ~bits);
	if (!found->pages)
		bpf_map_delete_elem(&arenas, &key);
	if (loop->bits)
		bpf_loop(64, page_step, loop, 0);
	return 0;
}

/*
 * Takes the touched pages of an unmapped arena from their owners; with `keep`, of one whose pages alone are given back. Returns how many
 * there were, and in bit 0 whether the range began in an arena.
 */
__noinline int drop_arena(struct rm_process *process, __u64 start, __u64 bytes, __u32 keep)
{
	struct arena_loop loop = { .process = process, .start = start, .keep = keep };

	if (!process)
		return 0;
	loop.end = start + whole_pages(bytes);
	loop.pages_each = pages_each(process);
	if (process->layout.reserve_flags != RM_ABSENT)
		loop.ours = keep ? reserved_bits(process, start / RM_ARENA_GRANULE) != 0 : trim_reserved(process, start, loop.end);
	if (loop.ours && bytes > (__u64)(DROP_GRANULES - 1) * RM_ARENA_GRANULE)
		count(RM_COUNT_ARENA_TOO_LARGE);
	bpf_loop(DROP_GRANULES, drop_step_arena, &loop, 0);
	return loop.pages << 1 | !!loop.ours;
}

/* Pages of arenas were given back by the running stack. A global function, for the stack of ours. */
__noinline int credit_pages(struct rm_process *process, struct thread *thread, __u64 pages)
{
	if (!process || !thread)
		return 0;
	walk(process, thread, 0, DEED_RELEASES);
	charge_release(process, thread, pages * RM_PAGE, pages);
	add_net(process, thread, -(__s64)pages * RM_PAGE);
	return 0;
}

/* Credits the running stack with what drop_arena() takes. True: the range began in an arena. */
static __always_inline bool give_back(struct rm_process *process, struct thread *thread, __u64 start, __u64 bytes, __u32 keep)
{
	__u32 dropped = drop_arena(process, start, bytes, keep);

	if (dropped >> 1)
		credit_pages(process, thread, (__u64)(dropped >> 1) * pages_each(process));
	return dropped & 1;
}

/* A page of user memory is about to be there. Counts it if it is an arena's and new. */
__noinline int touch_page(struct rm_process *process, __u64 address)
{
	struct arena_key key = { .granule = address / RM_ARENA_GRANULE };
	__u64 bit = 1ull << (address / RM_PAGE & 63);
	struct arena *arena;
	struct thread *thread;
	struct native native;
	__u64 each;

	if (!process)
		return 0;
	key.process = process->id;
	arena = bpf_map_lookup_elem(&arenas, &key);
	if (process->layout.reserve_flags != RM_ABSENT && (!arena || !(arena->pages & bit))) {
		struct arena fresh = { .pages = reserved_bits(process, key.granule) };

		if (!(fresh.pages & bit))
			return 0;
		if (arena)
			__sync_fetch_and_or(&arena->pages, fresh.pages);
		else if (bpf_map_update_elem(&arenas, &key, &fresh, BPF_NOEXIST) && !bpf_map_lookup_elem(&arenas, &key))
			count(RM_COUNT_ARENAS_FULL);
		arena = bpf_map_lookup_elem(&arenas, &key);
	}
	if (!arena || !(arena->pages & bit) || (arena->touched & bit))
		return 0;
	if (__sync_fetch_and_or(&arena->touched, bit) & bit)
		return 0; /* another thread was first */
	each = pages_each(process);
	if (each > 1 && bpf_get_prandom_u32() % each)
		return 0;
	__sync_fetch_and_or(&arena->counted, bit);
	thread = current_thread();
	if (!thread)
		return 0;
	native = user_registers(process);
	walk(process, thread, &native, DEED_TAKES);
	charge_allocation(process, thread, each * RM_PAGE, each);
	remember_block(process, thread, address & ~(__u64)(RM_PAGE - 1), each * RM_PAGE);
	add_net(process, thread, each * RM_PAGE);
	return 0;
}

/* The words above the stack pointer at a mmap: one of them is where it returns to. */
struct caller_loop {
	struct rm_process *process;
	const union fields *words;
	__u32 first;
	__u32 found;
};

static __always_inline bool has_caller_words(struct thread *thread, __u64 stack_pointer)
{
	union fields *words = &thread->near.reading.fields;

	return !bpf_probe_read_user(words->words, sizeof(words->words), (void *)stack_pointer);
}

static long arena_step_caller(__u32 index, struct caller_loop *loop)
{
	__u64 word, *known;

	if (index >= RM_CALLER_WORDS)
		return 1;
	word = loop->words->words[index];
	known = &loop->process->arena_callers[index];
	if (loop->first)
		*known = is_text(loop->process, word) ? word : 0;
	loop->found |= *known && *known == word;
	return 0;
}

static long forget_step_caller(__u32 index, struct caller_loop *loop)
{
	if (index >= RM_CALLER_WORDS)
		return 1;
	if (loop->process->arena_callers[index] != loop->words->words[index])
		loop->process->arena_callers[index] = 0;
	return 0;
}

static long text_step_caller(__u32 index, struct caller_loop *loop)
{
	if (index >= RM_CALLER_WORDS)
		return 1;
	loop->found |= is_text(loop->process, loop->words->words[index]);
	return 0;
}

/*
 * Is this mmap pymalloc asking for an arena? Learns the caller at the first one: what is above the stack pointer and may be a return
 * address in the interpreter. Between it and the system call may be an mmap of the allocator's (tcmalloc's), with old words in its
 * frame: what is not there again at the next arena is none.
 */
static __always_inline bool is_arena_call(struct rm_process *process, struct thread *thread, __u64 stack_pointer)
{
	struct caller_loop loop = { .process = process, .words = &thread->near.reading.fields, .first = !process->arena_caller };
	const __u64 *arguments = thread->map_arguments;

	if (arguments[0] || arguments[2] != RM_PROT_READ_WRITE || arguments[3] != RM_MAP_PRIVATE_ANONYMOUS)
		return false;
	if (loop.first && arguments[1] != process->layout.arena_bytes)
		return false;
	if (!has_caller_words(thread, stack_pointer))
		return false;
	bpf_loop(RM_CALLER_WORDS, arena_step_caller, &loop, 0);
	if (!loop.found)
		return false;
	process->arena_caller = 1;
	bpf_loop(RM_CALLER_WORDS, forget_step_caller, &loop, 0);
	return true;
}

/* Is this mmap mimalloc reserving address space, to be used page by page? Its flags are nobody else's of the interpreter. */
static __always_inline bool is_reserve_call(struct rm_process *process, struct thread *thread, __u64 stack_pointer)
{
	struct caller_loop loop = { .process = process, .words = &thread->near.reading.fields };

	if (thread->map_arguments[3] != process->layout.reserve_flags || !has_caller_words(thread, stack_pointer))
		return false;
	bpf_loop(RM_CALLER_WORDS, text_step_caller, &loop, 0);
	return loop.found;
}

static __always_inline struct thread *mapping_thread(struct rm_process *process)
{
	struct thread *thread = current_thread();
	struct rm_tally_thread tally;

	if (!thread || thread->depth || (read_tally_thread(process, &tally) && tally.depth))
		return 0; /* the allocator's own */
	return thread;
}

/* The number of the call that returns (arch/x86/include/asm/syscall.h, arch/arm64: regs[8] is kept). */
static __always_inline long syscall_number(struct pt_regs *regs)
{
#if defined(__TARGET_ARCH_x86)
	return BPF_CORE_READ(regs, orig_ax);
#else
	return BPF_CORE_READ(regs, user_regs.regs[8]);
#endif
}

/* Which change a system call makes; 0: none. */
static __always_inline __u32 change_of(long call)
{
	switch (call) {
	case SYSCALL_MMAP:
		return RM_MAP_MMAP;
	case SYSCALL_MUNMAP:
		return RM_MAP_MUNMAP;
	case SYSCALL_MREMAP:
		return RM_MAP_MREMAP;
	case SYSCALL_BRK:
		return RM_MAP_BRK;
	}
	return 0;
}

/* madvise(MADV_DONTNEED): what was touched is no more, and counts when it is touched again. */
static __always_inline int discard_enter(struct pt_regs *regs)
{
	struct rm_process *process = current_process();
	struct thread *thread;

	if (!process || !has(process, RM_HEAP) || !(process->flags & RM_PYTHON) || process->layout.reserve_flags == RM_ABSENT ||
	    PT_REGS_PARM3_CORE_SYSCALL(regs) != RM_MADV_DONTNEED)
		return 0;
	thread = mapping_thread(process);
	if (thread)
		give_back(process, thread, PT_REGS_PARM1_CORE_SYSCALL(regs), PT_REGS_PARM2_CORE_SYSCALL(regs), 1);
	return 0;
}

static __always_inline int mapping_enter(struct pt_regs *regs, long call)
{
	__u32 change = change_of(call);
	struct rm_process *process;
	struct thread *thread;
	__u64 instruction;

	if (call == SYSCALL_MADVISE)
		return discard_enter(regs);
	if (!change)
		return 0;
	process = current_process();
	if (!process || !has(process, RM_HEAP))
		return 0;
	if (change == RM_MAP_MMAP && (PT_REGS_PARM3_CORE_SYSCALL(regs) & RM_PROT_EXEC) &&
	    !(PT_REGS_PARM4_CORE_SYSCALL(regs) & RM_MAP_ANONYMOUS))
		process->new_code = 1;
	thread = mapping_thread(process);
	if (!thread)
		return 0;
	thread->map_call = 0;
	instruction = PT_REGS_IP_CORE(regs);
	if (instruction >= process->loader_start && instruction < process->loader_end)
		return 0;
	if (thread->loading) {
		if (PT_REGS_SP_CORE(regs) < thread->loading)
			return 0;
		thread->loading = 0; /* its end was not seen */
	}
	if (instruction >= process->library_start && instruction < process->library_end)
		return 0;
	thread->map_arguments[0] = PT_REGS_PARM1_CORE_SYSCALL(regs);
	thread->map_arguments[1] = PT_REGS_PARM2_CORE_SYSCALL(regs);
	thread->map_arguments[2] = PT_REGS_PARM3_CORE_SYSCALL(regs);
	thread->map_arguments[3] = PT_REGS_PARM4_CORE_SYSCALL(regs);
	if (change == RM_MAP_MMAP) {
		if ((process->flags & RM_PYTHON) && is_reserve_call(process, thread, PT_REGS_SP_CORE(regs))) {
			thread->map_call = MAP_RESERVE;
			return 0;
		}
		/* A thread's stack, or address space reserved and not usable (glibc's heaps of threads, made inside free too). */
		if ((thread->map_arguments[3] & RM_MAP_STACK) || thread->map_arguments[2] == RM_PROT_NONE)
			return 0;
		if ((process->flags & RM_PYTHON) && is_arena_call(process, thread, PT_REGS_SP_CORE(regs))) {
			thread->map_call = MAP_ARENA;
			return 0;
		}
	}
	if (change == RM_MAP_BRK) {
		struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();

		thread->map_arguments[1] = BPF_CORE_READ(task, mm, brk);
	}
	/* A thread of musl's ends by unmapping its stack, and with it what its Python frames are found by. */
	if (change == RM_MAP_MUNMAP && thread_pointer() - thread->map_arguments[0] < thread->map_arguments[1])
		return 0;
	/* Released before the range can be mapped again by another thread. */
	if (change == RM_MAP_MUNMAP && give_back(process, thread, thread->map_arguments[0], thread->map_arguments[1], 0))
		return 0;
	if (change == RM_MAP_MUNMAP && !process->own_mappings)
		return 0;
	thread->map_call = 1;
	return 0;
}

/* A mapping call of the program's own is over, and has changed something. A global function, for the verifier. */
__noinline int mapping_changed(struct rm_process *process, struct thread *thread, __u32 change, __u64 result)
{
	struct rm_map_event *record;
	struct native native;

	if (!process || !thread)
		return 0;
	count(RM_COUNT_EVENTS);
	process->own_mappings = 1;
	native = user_registers(process);
	walk(process, thread, change == RM_MAP_MUNMAP ? 0 : &native, change == RM_MAP_MUNMAP ? DEED_RELEASES : DEED_TAKES);
	site_of(process, thread);
	record = bpf_ringbuf_reserve(&events, sizeof(*record), 0);
	if (!record) {
		count(RM_COUNT_RING_FULL_MAP);
		return 0;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->event.kind = RM_EVENT_MAP;
	record->event.process = process->id;
	record->stack = thread->stack.stack;
	record->change = change;
	record->resident_bytes = resident_bytes(process);
	switch (change) {
	case RM_MAP_MMAP:
		record->to = result;
		record->to_bytes = thread->map_arguments[1];
		break;
	case RM_MAP_MUNMAP:
		record->from = thread->map_arguments[0];
		record->from_bytes = thread->map_arguments[1];
		break;
	case RM_MAP_MREMAP:
		record->from = thread->map_arguments[0];
		record->from_bytes = thread->map_arguments[1];
		record->to = result;
		record->to_bytes = thread->map_arguments[2];
		break;
	case RM_MAP_BRK:
		record->from = thread->map_arguments[1];
		record->to = result; /* the old end again when it failed */
	}
	bpf_ringbuf_submit(record, wakeup_flags());
	return 0;
}

static __always_inline int mapping_exit(long ended, long result)
{
	__u32 change = change_of(ended);
	struct rm_process *process;
	struct thread *thread;
	__u32 call;

	if (!change)
		return 0;
	process = current_process();
	if (!process || !has(process, RM_HEAP))
		return 0;
	thread = mapping_thread(process);
	if (!thread)
		return 0;
	call = thread->map_call;
	thread->map_call = 0;
	if (!call || (result < 0 && result > -RM_PAGE))
		return 0;
	if (call == MAP_RESERVE) {
		add_reserved(process, result, result + whole_pages(thread->map_arguments[1]));
		return 0;
	}
	if (call == MAP_ARENA)
		return add_arena(process, result, thread->map_arguments[1]);
	return mapping_changed(process, thread, change, result);
}

#endif

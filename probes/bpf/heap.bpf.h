/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * The malloc family. One pair of handlers for every function and every allocator: the role in the attach cookie says which
 * arguments to read. Only the outermost call of a thread counts (glibc's realloc(NULL, n) is a call of malloc).
 */
#ifndef HEAP_BPF_H
#define HEAP_BPF_H

/* Is it code of the interpreter's? */
static __always_inline bool is_text(const struct rm_process *process, __u64 address)
{
	return address >= process->text_start && address < process->text_end;
}

/* Where the function that begins returns to: the word at the stack pointer (x86-64), or in its register. 0: it cannot be read. */
static __always_inline __u64 return_address(struct pt_regs *ctx)
{
#if defined(__TARGET_ARCH_x86)
	__u64 address = 0;

	return READ_USER(&address, sizeof(address), PT_REGS_SP(ctx)) ? 0 : address;
#else
	return PT_REGS_RET(ctx);
#endif
}

/*
 * The return of the outermost call was never seen: the thread's stack pointer stands above its entry (at it: a tail call, as glibc's
 * realloc(NULL, n) makes of malloc), or the interpreter asks, which no allocator calls. Not where the allocator is in one file with the
 * interpreter. All that a thread does further in would be taken for the allocator's own otherwise.
 */
static __always_inline void heal_depth(struct rm_process *process, struct thread *thread, struct pt_regs *ctx)
{
	if (!thread->depth)
		return;
	if (PT_REGS_SP(ctx) > thread->stack_pointer || (!is_text(process, PT_REGS_IP(ctx)) && is_text(process, return_address(ctx)))) {
		count(RM_COUNT_RETURN_WITHOUT_ENTRY);
		thread->depth = 0;
	}
}

__noinline int release_block(struct rm_process *process, struct thread *thread, __u64 address)
{
	struct block block = {};

	if (!process || !thread)
		return 0;
	if (!forget_block(process, address, &block)) {
		/* operator delete hands on to free, and free of one allocator to that of the next: one release. */
		if (address != thread->freed)
			count(RM_COUNT_FREE_FROM_BEFORE);
		thread->freed = address;
		return 0;
	}
	thread->freed = address;
	walk(process, thread, 0, DEED_RELEASES);
	charge_block(process, thread, &block);
	return 0;
}

__noinline int record_block(struct rm_process *process, struct thread *thread, __u64 address)
{
	__u64 bytes;

	if (!process || !thread)
		return 0;
	bytes = thread->bytes;
	walk(process, thread, &thread->caller, DEED_TAKES);
	if (thread->old_address && !thread->old_known)
		count(RM_COUNT_FREE_FROM_BEFORE);
	if (thread->old_known)
		charge_block(process, thread, &thread->old);
	if (!address) /* realloc(pointer, 0): glibc releases it and returns NULL */
		return 0;
	charge_allocation(process, thread, bytes, 1);
	remember_block(process, thread, address, bytes);
	add_net(process, thread, bytes);
	return 0;
}

/*
 * What malloc is going to return: glibc gives a small block from the thread's own cache whenever that has one of its size, and the
 * cache can be read before (malloc/malloc.c, __libc_malloc and tcache_get; struct tcache_perthread_struct since 2.30: 64 counts of
 * 16 bits, then 64 lists). Then the return need not be trapped, which is half of an allocation's cost. It is believed only after
 * it came true TCACHE_PROOF times in a row in this process, is checked again every TCACHE_CHECK-th time in each thread, and given
 * up in the process when it fails once.
 */
enum { TCACHE_PROOF = 256, TCACHE_CHECK = 64, TCACHE_BINS = 64, TCACHE_LARGEST = 1032 };

static __always_inline __u64 foretell(struct rm_process *process, struct thread *thread, __u64 bytes)
{
	__u64 tcache = thread->tcache, block = 0;
	__u16 blocks_ = 0;
	__u32 bin;

	if (!process->tcache_offset || process->tcache_trust == RM_TCACHE_OFF || bytes > TCACHE_LARGEST)
		return 0;
	if (!tcache) {
		if (READ_USER(&tcache, sizeof(tcache), thread_pointer() + process->tcache_offset) || !tcache)
			return 0;
		thread->tcache = tcache;
	}
	bin = bytes <= 24 ? 0 : (bytes + 8 + 15 - 32) / 16; /* csize2tidx(request2size(bytes)) */
	if (bin >= TCACHE_BINS)
		return 0;
	if (READ_USER(&blocks_, sizeof(blocks_), tcache + 2 * bin) || !blocks_)
		return 0;
	if (READ_USER(&block, sizeof(block), tcache + 2 * TCACHE_BINS + 8 * bin))
		return 0;
	return block;
}

/* The outermost call was foretold and has returned: was it right? */
static __always_inline void prove(struct rm_process *process, struct thread *thread, __u64 address)
{
	if (thread->foretold == address) {
		if (process->tcache_trust < TCACHE_PROOF)
			process->tcache_trust++;
	} else if (process->tcache_trust != RM_TCACHE_OFF) {
		process->tcache_trust = RM_TCACHE_OFF;
		count(RM_COUNT_PREDICTION_WRONG);
	}
}

/*
 * Where the process counts the C library's blocks itself, probes are on the allocators beside it (built into a library under a prefix,
 * or loaded later). A call inside one of the C library's is counted there. False: it is such a call.
 */
static __always_inline bool begin_beside_tally(struct rm_process *process, struct thread *thread)
{
	struct rm_tally_thread tally;

	if (!read_tally_thread(process, &tally))
		return true;
	thread->tally_blocks = tally.blocks;
	return !tally.depth;
}

/* Did the call that returns `address` hand on to the C library's allocator? Then the tally has counted it: its block begins there, or
 * after what the allocator keeps before it. */
static __always_inline bool was_tallied(struct rm_process *process, struct thread *thread, __u64 address)
{
	struct rm_tally_thread tally;

	return read_tally_thread(process, &tally) && tally.blocks != thread->tally_blocks && address - tally.latest <= RM_PAGE;
}

/* Who calls the function that begins. */
static __always_inline struct native caller_at_entry(const struct rm_process *process, struct pt_regs *ctx)
{
	struct native native = { .stack_pointer = PT_REGS_SP(ctx), .frame_pointer = PT_REGS_FP(ctx), .returns = 1 };

	if (!has(process, RM_NATIVE))
		return native;
	native.instruction = return_address(ctx);
#if defined(__TARGET_ARCH_x86)
	native.stack_pointer += 8;
#endif
	return native;
}

/* Entry. Returns 1 when the return need not be seen. */
static __always_inline int heap_enter(struct pt_regs *ctx, __u64 role, bool may_skip)
{
	struct rm_process *process = current_process();
	struct thread *thread;
	__u64 first = PT_REGS_PARM1(ctx), second = PT_REGS_PARM2(ctx), third = PT_REGS_PARM3(ctx);

	if (!process || !has(process, RM_HEAP))
		return 1;
	if (role == RM_ROLE_FREE && !first)
		return 1;
	thread = current_thread();
	if (!thread)
		return 1;
	heal_depth(process, thread, ctx);
	if (!thread->depth && !begin_beside_tally(process, thread))
		return 1;
	if (role == RM_ROLE_FREE) {
		if (!thread->depth)
			release_block(process, thread, first);
		return 1;
	}
	if (thread->depth)
		goto nested;
	thread->caller = caller_at_entry(process, ctx);
	thread->foretold = 0;
	if (may_skip && role == RM_ROLE_GLIBC_MALLOC) {
		thread->foretold = foretell(process, thread, first);
		if (thread->foretold && process->tcache_trust == TCACHE_PROOF && ++thread->foretelling % TCACHE_CHECK) {
			thread->bytes = first;
			thread->old_known = 0;
			thread->old_address = 0;
			record_block(process, thread, thread->foretold);
			return 1;
		}
	}
	thread->role = role;
	thread->stack_pointer = PT_REGS_SP(ctx);
	if (thread->stack_pointer > thread->outermost)
		thread->outermost = thread->stack_pointer;
	thread->old_known = 0;
	thread->old_address = 0;
	thread->out_pointer = 0;
	switch (role) {
	case RM_ROLE_CALLOC:
		thread->bytes = first * second;
		break;
	case RM_ROLE_REALLOC:
		thread->old_address = first;
		thread->bytes = second;
		break;
	case RM_ROLE_REALLOCARRAY:
		thread->old_address = first;
		thread->bytes = second * third;
		break;
	case RM_ROLE_POSIX_MEMALIGN:
		thread->out_pointer = first;
		thread->bytes = third;
		break;
	case RM_ROLE_ALIGNED:
		thread->bytes = second;
		break;
	default: /* malloc, valloc */
		thread->bytes = first;
	}
	/* Out of the table before the allocator may give its address to another thread; put back when the call fails. */
	if (thread->old_address)
		thread->old_known = forget_block(process, thread->old_address, &thread->old);
nested:
	thread->depth++;
	return 0;
}

/*
 * A return without an entry: of a call that began before the process was watched, which is none of ours? Where nobody holds the process,
 * returns are probed first, then entries (userspace/src/kernel/attach.rs), and then it is watched: a call that began meanwhile is told of
 * by its return alone. All entries seen of the thread by then are inside that call, so below it on the stack. At a return the stack
 * pointer is where it was at the entry, or one word above (x86-64, which has taken the return address off).
 */
static __always_inline bool began_before(const struct thread *thread, __u64 stack_pointer)
{
	return stack_pointer > thread->outermost + sizeof(__u64);
}

static __always_inline int heap_return(struct pt_regs *ctx)
{
	struct rm_process *process = current_process();
	struct thread *thread;
	__u64 address = PT_REGS_RC(ctx);

	if (!process || !has(process, RM_HEAP))
		return 0;
	thread = current_thread();
	if (!thread)
		return 0;
	if (!thread->depth) {
		if (!began_before(thread, PT_REGS_SP(ctx)))
			count(RM_COUNT_RETURN_WITHOUT_ENTRY);
		return 0;
	}
	if (--thread->depth)
		return 0;
	if (thread->foretold)
		prove(process, thread, address);
	if (thread->role == RM_ROLE_POSIX_MEMALIGN) {
		__u64 out = 0;

		if (address) /* an error number */
			return 0;
		if (bpf_probe_read_user(&out, sizeof(out), (void *)thread->out_pointer)) {
			count(RM_COUNT_OUT_POINTER_UNREADABLE);
			return 0;
		}
		address = out;
	}
	if ((!address && !(thread->old_address && !thread->bytes)) || was_tallied(process, thread, address)) {
		if (thread->old_known) { /* a failed reallocation changes nothing */
			struct block_key key = { .address = thread->old_address, .process = process->id };
			bpf_map_update_elem(&blocks, &key, &thread->old, BPF_ANY);
		}
		return 0;
	}
	return record_block(process, thread, address);
}

#endif

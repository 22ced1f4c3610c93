/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * A large block is filled, and on many processors copied, by one string instruction: rep stosb, rep movsb (memset and memmove of glibc).
 * It is interrupted at each page that it touches first, and goes on where it was. While it does, nothing of Python runs in its thread: the
 * stack that was walked at one page is that of the next, and need not be walked again.
 *
 * That it is the same instruction at the same place does not say so: a helper may be called from several lines. But one execution of it
 * has one end, the destination plus what is left, and has touched all pages before its destination. Another one with that end touches
 * none of these for the first time unless they were released meanwhile, and what is released is seen (rm_process.releases).
 */
#ifndef FILLING_BPF_H
#define FILLING_BPF_H

/* Of the last walk, where such an instruction may have led to it. One writer: the thread. */
struct filling {
	__u64 end; /* 0: there is none */
	__u64 destination;
	__u64 instruction;
	__u64 stack_pointer;
	__u64 releases; /* rm_process.releases at that time */
	__u32 process;	/* rm_process.id */
	__u32 proved;	/* that it is one of these instructions */
};

#if defined(__TARGET_ARCH_x86)

enum {
	FLAG_DIRECTION = 1 << 10, /* EFLAGS.DF: it goes downwards */
	REP_STOSB = 0xaaf3,	  /* as it stands in memory, little-endian */
	REP_MOVSB = 0xa4f3,
};

/* A walk was made for a page that the thread has touched. */
static __always_inline void begin_filling(const struct rm_process *process, struct filling *filling, const struct rm_stack_event *stack)
{
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());

	/* What is not whole is counted each time. */
	if (stack->status != RM_STACK_COMPLETE || stack->approximate || regs->flags & FLAG_DIRECTION)
		return;
	filling->end = regs->di + regs->cx;
	filling->destination = regs->di;
	filling->instruction = regs->ip;
	filling->stack_pointer = regs->sp;
	filling->releases = process->releases;
	filling->process = process->id;
	filling->proved = 0;
}

static __always_inline bool is_string_instruction(__u64 at)
{
	__u16 bytes = 0;

	return !bpf_probe_read_user(&bytes, sizeof(bytes), (void *)at) && (bytes == REP_STOSB || bytes == REP_MOVSB);
}

/* Has the thread touched another page by the instruction that it was at? */
static __always_inline bool goes_on_filling(const struct rm_process *process, struct filling *filling)
{
	struct pt_regs *regs;

	if (!filling->end || filling->process != process->id || filling->releases != process->releases)
		return false;
	regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
	if (regs->ip != filling->instruction || regs->sp != filling->stack_pointer || regs->flags & FLAG_DIRECTION ||
	    regs->di <= filling->destination || regs->di + regs->cx != filling->end)
		return false;
	if (!filling->proved && !is_string_instruction(filling->instruction))
		return false;
	filling->proved = 1;
	filling->destination = regs->di;
	return true;
}

#else

static __always_inline void begin_filling(const struct rm_process *process, struct filling *filling, const struct rm_stack_event *stack)
{
	(void)process, (void)filling, (void)stack;
}

static __always_inline bool goes_on_filling(const struct rm_process *process, struct filling *filling)
{
	(void)process, (void)filling;
	return false;
}

#endif

#endif

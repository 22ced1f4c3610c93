// SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0
/* The entry points: who is called by what. Each is a few lines; the work is in the headers, one concern a file. */
#include "core.h"
#include "rmprof.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

#include "direct.bpf.h"
#include "compat.bpf.h"
#include "python.bpf.h"
#include "filling.bpf.h"
#include "maps.bpf.h"
#include "tally.bpf.h"
#include "emit.bpf.h"
#include "charge.bpf.h"
#include "heap.bpf.h"
#include "mappings.bpf.h"
#include "limit.bpf.h"
#include "pages.bpf.h"
#include "follow.bpf.h"
#include "cleanup.bpf.h"
#include "lines.bpf.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/*
 * The malloc family: one rung of the attach ladder is loaded (userspace/src/kernel/attach.rs). Compiled with RM_SINGLE the object has
 * the last alone, for a loader that refuses an object with sections or functions of the kernel that it does not know.
 */

#ifndef RM_SINGLE
ON_ITS_OWN_STACK(heap_session);

SEC("uprobe.session")
int heap_session(struct pt_regs *ctx)
{
	HAVE_OWN_STACK(ctx, heap_session);
	if (session_is_return(ctx))
		return heap_return(ctx);
	return heap_enter(ctx, bpf_get_attach_cookie(ctx), true);
}

ON_ITS_OWN_STACK(heap_enter_multi);

SEC("uprobe.multi")
int heap_enter_multi(struct pt_regs *ctx)
{
	HAVE_OWN_STACK(ctx, heap_enter_multi);
	heap_enter(ctx, bpf_get_attach_cookie(ctx), false);
	return 0;
}

ON_ITS_OWN_STACK(heap_return_multi);

SEC("uretprobe.multi")
int heap_return_multi(struct pt_regs *ctx)
{
	HAVE_OWN_STACK(ctx, heap_return_multi);
	return heap_return(ctx);
}
#endif

ON_ITS_OWN_STACK(heap_enter_single);

SEC("uprobe")
int heap_enter_single(struct pt_regs *ctx)
{
	HAVE_OWN_STACK(ctx, heap_enter_single);
	heap_enter(ctx, bpf_get_attach_cookie(ctx), false);
	return 0;
}

ON_ITS_OWN_STACK(heap_return_single);

SEC("uretprobe")
int heap_return_single(struct pt_regs *ctx)
{
	HAVE_OWN_STACK(ctx, heap_return_single);
	return heap_return(ctx);
}

/* The launch extension's site functions. */

static __always_inline int launch_site(struct pt_regs *ctx)
{
	struct rm_process *process = current_process();
	struct rm_hello_event *hello;
	struct thread *thread;

	if (!process)
		return 0;
	switch (bpf_get_attach_cookie(ctx)) {
	case RM_LAUNCH_TALLY:
		return has(process, RM_HEAP) ? find_tally(process, PT_REGS_PARM1(ctx)) : 0;
	case RM_LAUNCH_LOADED:
		return libraries_changed(process, current_thread(), PT_REGS_SP(ctx));
	case RM_LAUNCH_STACK:
		thread = has(process, RM_HEAP) ? current_thread() : 0;
		if (!thread)
			return 0;
		thread->other = PT_REGS_PARM4(ctx);
		return tally_stack(process, thread, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
	case RM_LAUNCH_LINE:
		thread = current_thread();
		count(RM_COUNT_LINE_EVENTS);
		return thread ? line_event(process, thread, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx)) : 0;
	case RM_LAUNCH_MARK:
		return mark_event(process, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx), PT_REGS_PARM4(ctx));
	case RM_LAUNCH_LIMIT:
		return limit_site(process, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
	case RM_LAUNCH_HELLO:
		hello = bpf_ringbuf_reserve(&events, sizeof(*hello), 0);
		if (!hello) {
			count(RM_COUNT_RING_FULL_MARK);
			return 0;
		}
		hello->event.kind = RM_EVENT_HELLO;
		hello->event.process = process->id;
		hello->hexversion = PT_REGS_PARM1(ctx);
		bpf_ringbuf_submit(hello, wakeup_flags());
	}
	return 0;
}

#ifndef RM_SINGLE
ON_ITS_OWN_STACK(launch_multi);

SEC("uprobe.multi")
int launch_multi(struct pt_regs *ctx)
{
	HAVE_OWN_STACK(ctx, launch_multi);
	return launch_site(ctx);
}
#endif

ON_ITS_OWN_STACK(launch_single);

SEC("uprobe")
int launch_single(struct pt_regs *ctx)
{
	HAVE_OWN_STACK(ctx, launch_single);
	return launch_site(ctx);
}

/* Resident memory. */

SEC("tp_btf/rss_stat")
int rss_stat(__u64 *ctx)
{
	return resident_changed((struct mm_struct *)ctx[0], ctx[1]);
}

/* Run by user space (look_at_alarms). */
SEC("raw_tp")
int alarms(__u64 *ctx)
{
	return look_at_alarms(ctx[0], ctx[1]);
}

/* Processes that nobody holds (include/trace/events/sched.h). */

SEC("tp_btf/sched_process_fork")
int sched_process_fork(__u64 *ctx)
{
	return process_forked((struct task_struct *)ctx[0], (struct task_struct *)ctx[1]);
}

SEC("tp_btf/sched_process_exec")
int sched_process_exec(__u64 *ctx)
{
	return process_executed((struct task_struct *)ctx[0], false);
}

/* The same of the whole machine. */
SEC("tp_btf/sched_process_exec")
int machine_exec(__u64 *ctx)
{
	return process_executed((struct task_struct *)ctx[0], true);
}

/* include/trace/events/oom.h */
SEC("tp_btf/mark_victim")
int mark_victim(__u64 *ctx)
{
	return process_chosen(victim_of(ctx[0]));
}

SEC("tp_btf/sched_process_exit")
int sched_process_exit(__u64 *ctx)
{
	return process_exited((struct task_struct *)ctx[0]);
}

/* Pages of arenas, where they are touched (arch/x86/include/asm/trace/exceptions.h). */

/* One program for both: only those that are not typed by the kernel's BTF can be attached to more than one tracepoint. */
SEC("raw_tp")
int fault(__u64 *ctx)
{
	struct rm_process *process = current_process();

	return process && has(process, RM_HEAP) ? touch_page(process, ctx[0]) : 0;
}

/* The program's own mappings (include/trace/events/syscalls.h). */

SEC("tp_btf/sys_enter")
int sys_enter(__u64 *ctx)
{
	return mapping_enter((struct pt_regs *)ctx[0], ctx[1]);
}

SEC("tp_btf/sys_exit")
int sys_exit(__u64 *ctx)
{
	return mapping_exit(syscall_number((struct pt_regs *)ctx[0]), ctx[1]);
}

/*
 * The three that heap mode has for all that the process does to its memory, in one program where the kernel tells it which tracepoint it is
 * at (Linux 6.10): what they call is verified once, and not in each. Page faults have a program of their own, since it runs inside this
 * one: what it reads of the process may fault, and the kernel runs no program within itself.
 */
#ifndef RM_SINGLE
SEC("raw_tp")
int memory_changes(__u64 *ctx)
{
	switch (bpf_get_attach_cookie(ctx)) {
	case RM_TRACEPOINT_RSS_STAT:
		return resident_changed((struct mm_struct *)ctx[0], ctx[1]);
	case RM_TRACEPOINT_SYS_ENTER:
		return mapping_enter((struct pt_regs *)ctx[0], ctx[1]);
	case RM_TRACEPOINT_SYS_EXIT:
		return mapping_exit(syscall_number((struct pt_regs *)ctx[0]), ctx[1]);
	}
	return 0;
}
#endif

/*
 * The same at the functions of those system calls, which are told apart by their cookies: on kernels that preempt the programs of
 * tracepoints (userspace/src/kernel/preempted.rs). 1: the end is nothing to be seen.
 */
#ifndef RM_SINGLE
SEC("kprobe.session")
int mapping_calls(struct pt_regs *ctx)
{
	long call = bpf_get_attach_cookie(ctx);
	struct rm_process *process;

	if (session_is_return(ctx))
		return mapping_exit(call, PT_REGS_RC(ctx));
	process = current_process();
	if (!process || !has(process, RM_HEAP))
		return 1;
	mapping_enter((struct pt_regs *)PT_REGS_PARM1(ctx), call);
	return call == SYSCALL_MADVISE;
}
#endif

/* The limit of resident memory. */

SEC("tp_btf/sys_exit")
int limit_sys_exit(__u64 *ctx)
{
	(void)ctx;
	return limit_exit();
}

#ifdef RM_PIECES
#include "pieces.bpf.h"
#endif

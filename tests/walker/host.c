/*
 * The BPF walker (probes/bpf/python.bpf.h) for the host: the same source, its reads handed to the test, its loop a plain one.
 */
#include "../../probes/preload/host.h"

/* Fills `to` with `size` bytes from `address` of the process that is looked at; 0 when every byte could be read. */
typedef int host_reader(void *context, void *to, __u32 size, __u64 address);

static _Thread_local host_reader *reader;
static _Thread_local void *reader_context;

#define READ_USER(to, size, from) reader(reader_context, to, size, (__u64)(from))

#define WALK_LOOP(steps, step, context)                             \
	do {                                                        \
		for (__u32 i_ = 0; i_ < (__u32)(steps); i_++)       \
			if (step(i_, context))                      \
				break;                              \
	} while (0)

#include "rmprof.h"
#include "python.bpf.h"

__u32 host_find_thread_state(host_reader *read, void *context, struct rm_process *process, __u64 fsbase, __u64 *thread_state)
{
	__u64 slot;
	__u32 status;

	reader = read;
	reader_context = context;
	*thread_state = 0;
	status = find_slot(process, fsbase, &slot);
	return status == RM_STACK_COMPLETE ? read_thread_state(0, slot, thread_state) : status;
}

/* The thread state whose code runs, where the slot has `own`. */
__u64 host_running_state(host_reader *read, void *context, const struct rm_process *process, __u64 own, __u64 *other)
{
	reader = read;
	reader_context = context;
	return running_state(process, 0, own, other);
}

__u32 host_walk_frames(host_reader *read, void *context, const struct rm_process *process, __u64 thread_state,
		       struct rm_stack_event *stack)
{
	reader = read;
	reader_context = context;
	return walk_frames(process, 0, thread_state, stack);
}

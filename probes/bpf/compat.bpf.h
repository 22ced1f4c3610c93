/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* Where kernels differ: one accessor a difference, with the commit or release it came with. */
#ifndef COMPAT_BPF_H
#define COMPAT_BPF_H

#ifndef RM_SINGLE
/*
 * Session probes came with 6.13 (kernel/trace/bpf_trace.c, bpf_session_is_return); 7.x gave the kfunc an argument.
 * One object carries both; the absent one is a weak symbol of address 0 and its branch is dead to the verifier.
 */
extern bool bpf_session_is_return(void) __ksym __weak;
extern bool bpf_session_is_return___ctx(void *ctx) __ksym __weak;

static __always_inline bool session_is_return(void *ctx)
{
	if (bpf_ksym_exists(bpf_session_is_return___ctx))
		return bpf_session_is_return___ctx(ctx);
	return bpf_session_is_return();
}
#endif

/*
 * One of a memory's resident counters, in bytes. Since 6.2 (f1a7941243c1, "mm: convert mm's rss stats into percpu_counter") it is a
 * count and what each CPU has not folded into it yet; before, one number, folded by each thread every 64 faults.
 */
const volatile struct rm_constants constants = { .cpus = 1, .flags = ~0u }; /* set by user space before loading */

/*
 * From Linux 6.13 on (a76ab5731e32, "bpf: Find eligible subprogs for private stack support", and what follows it) functions of programs for
 * kprobes have their stack in memory of the CPU: the kernel runs none of them within itself. Those of user probes it does, since they may
 * be preempted, and then the one thread finds another's words on its stack: wrong bytes, and a NULL that the verifier knew not to be one (an oops
 * of the kernel, seen on 7.2). A program with a tail call has the thread's own stack (check_max_stack_depth in kernel/bpf/verifier.c). So
 * each program for user probes has one, in a branch that the verifier drops after it was looked for. A map each: it is for one kind of program.
 */
#define ON_ITS_OWN_STACK(program)                    \
	struct {                                     \
		__uint(type, BPF_MAP_TYPE_PROG_ARRAY); \
		__uint(max_entries, 1);              \
		__type(key, __u32);                  \
		__type(value, __u32);                \
	} program##_s SEC(".maps")
#define HAVE_OWN_STACK(ctx, program)                          \
	do {                                                  \
		if (!constants.cpus)                          \
			bpf_tail_call(ctx, &program##_s, 0);  \
	} while (0)

struct mm_rss_stat___old {
	struct {
		long counter;
	} count[4];
} __attribute__((preserve_access_index));

struct mm_struct___old {
	struct mm_rss_stat___old rss_stat;
} __attribute__((preserve_access_index));

/* include/linux/bpf.h: where an array of which every CPU has its own keeps the addresses of its elements. */
struct bpf_array {
	void *pptrs[1];
} __attribute__((preserve_access_index));

/* index: CPU. value: what its copy of a per-CPU variable is away from the variable's address. Written once, by measure_cpus. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} cpu_offsets SEC(".maps");

/* Its element 0 has an address on every CPU and one that stands for all: the difference is the CPU's offset. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} cpu_probe SEC(".maps");

/* A pointer as a number, which the verifier does not let us have by a cast. */
static __always_inline __u64 number_of(const void *pointer)
{
	const void *slot = pointer;
	__u64 number = 0;

	bpf_probe_read_kernel(&number, sizeof(number), &slot);
	return number;
}

static long measure_cpu(__u32 cpu, __u64 *base)
{
	__u32 zero = 0;
	void *element = bpf_map_lookup_percpu_elem(&cpu_probe, &zero, cpu);
	__u64 offset;

	if (!element)
		return 0;
	offset = number_of(element) - *base;
	bpf_map_update_elem(&cpu_offsets, &cpu, &offset, BPF_ANY);
	return 0;
}

/*
 * Run once by user space. The kernel's own table of these offsets (__per_cpu_offset) is a symbol that a kernel without
 * CONFIG_KALLSYMS_ALL does not give to BPF.
 */
SEC("raw_tp")
int measure_cpus(void *ctx)
{
	__u64 array = number_of(&cpu_probe), base = 0;

	(void)ctx;
	if (bpf_probe_read_kernel(&base, sizeof(base), (void *)(array + bpf_core_field_offset(struct bpf_array, pptrs))))
		return 1;
	bpf_loop(constants.cpus, measure_cpu, &base, 0);
	find_direct();
	return 0;
}

/*
 * Whom oom:mark_victim is about. Since 6.9 (72ba14deb40a, "mm: update mark_victim tracepoints fields") it has the task, and the user in
 * its record; before, the task's number.
 */
struct trace_event_raw_mark_victim {
	__u32 uid;
} __attribute__((preserve_access_index));

static __always_inline __u32 victim_of(__u64 argument)
{
	struct trace_event_raw_mark_victim *record = 0;

	if (bpf_core_field_exists(record->uid))
		return BPF_CORE_READ((struct task_struct *)argument, tgid);
	return argument;
}

struct member_loop {
	__u64 counters;
	__s64 sum;
};

/* What a CPU keeps for itself of a counter. */
static __always_inline __s32 part_of_cpu(__u64 counters, __u32 cpu)
{
	__u64 *offset = bpf_map_lookup_elem(&cpu_offsets, &cpu);

	return offset && *offset ? kernel_half((void *)(counters + *offset)) : 0;
}

static long member_step(__u32 cpu, struct member_loop *loop)
{
	loop->sum += part_of_cpu(loop->counters, cpu);
	return 0;
}

static __always_inline void *member_counter(struct mm_struct *mm, __u32 member)
{
	return (void *)mm + bpf_core_field_offset(mm->rss_stat) + member * bpf_core_type_size(struct percpu_counter);
}

/* Pages, as far as they are folded: all but what fits into a CPU's batch (lib/percpu_counter.c). Before, all. */
static __always_inline __s64 member_folded(struct mm_struct *mm, __u32 member)
{
	struct mm_struct___old *old = (void *)mm;
	void *at;

	if (bpf_core_field_exists(old->rss_stat.count))
		at = (void *)mm + bpf_core_field_offset(old->rss_stat) + member * sizeof(long);
	else
		at = member_counter(mm, member) + bpf_core_field_offset(struct percpu_counter, count);
	return kernel_word(at);
}

/* Does each CPU keep a part of the counters for itself (Linux 6.2, f1a7941243c1, "mm: convert mm's rss stats into percpu_counter")? */
static __always_inline bool has_parts(void)
{
	struct mm_struct___old *old = 0;

	return !bpf_core_field_exists(old->rss_stat.count);
}

static __always_inline __u64 member_parts(struct mm_struct *mm, __u32 member)
{
	return kernel_word(member_counter(mm, member) + bpf_core_field_offset(struct percpu_counter, counters));
}

/* Pages, the part that the running CPU keeps. */
static __always_inline __s32 member_part(struct mm_struct *mm, __u32 member)
{
	return part_of_cpu(member_parts(mm, member), bpf_get_smp_processor_id());
}

static __always_inline __s64 member_bytes(struct mm_struct *mm, __u32 member)
{
	__s64 folded = member_folded(mm, member), before;
	struct member_loop loop = { .sum = folded };
	__u32 turn;

	if (has_parts()) {
		loop.counters = member_parts(mm, member);
		/* What another CPU folds meanwhile would be in neither: up to a batch of pages. */
		for (turn = 0; turn < 3; turn++) {
			bpf_loop(constants.cpus, member_step, &loop, 0);
			before = folded;
			folded = member_folded(mm, member);
			if (folded == before)
				break;
			loop.sum = folded;
		}
	}
	return loop.sum < 0 ? 0 : loop.sum * RM_PAGE;
}

#endif

/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * Every map: key, value, who writes, how long an entry lives, what happens when it is full. Sizes marked (sized) are set by
 * user space before loading, by the memory of the machine.
 */
#ifndef MAPS_BPF_H
#define MAPS_BPF_H

/* A block of the C allocator, or one touched page of a Python arena. */
struct block_key {
	__u64 address;
	__u32 process;
	__u32 pad;
};

struct block {
	__u64 bytes;
	__u64 stack; /* of the site that asked for it */
};

struct arena_key {
	__u64 granule; /* address / RM_ARENA_GRANULE */
	__u32 process;
	__u32 pad;
};

/* 64 pages: which belong to an arena, which of those were touched, and which of them were counted. */
struct arena {
	__u64 pages;
	__u64 touched;
	__u64 counted;
};

struct code_key {
	__u64 code;
	__u32 process;
	__u32 fingerprint;
};

/* A frame that gives line events, whose line runs. */
struct active {
	__u64 frame;
	__s64 start; /* the thread's net when the line began */
	__s64 highest; /* and the highest since */
	__u32 number; /* of its code object */
	__u32 line;
	__u64 clean_up; /* it is leaving a with block: no execution of its line */
};

/* Where native code called from: the registers it has when the call is over. */
struct native {
	__u64 instruction; /* 0: nothing is to be known of it */
	__u64 stack_pointer;
	__u64 frame_pointer;
	__u64 returns; /* struct rm_native_event */
};

/* What pieces are of that travel by themselves. */
struct whole {
	__u64 code;
	__u64 address;
	__u32 process;
	__u32 fingerprint;
	__u32 part;
	__u32 kind;
	__u32 total;
	__u32 pad;
};

/* The parts of a code object that is being sent. */
struct announcement {
	struct whole filename;
	struct whole name;
	struct whole qualname;
	struct whole table;
};

/* What we keep of a thread. One writer: the thread itself. */
struct thread {
	__u32 depth; /* calls of the malloc family that have not returned */
	__u32 role; /* of the outermost of them */
	__u64 stack_pointer; /* at its entry */
	__u64 outermost; /* the highest that it was at any such entry */
	__u64 bytes;
	__u64 out_pointer;
	struct block old; /* realloc: the block taken out of the table, bytes and owner */
	__u64 old_address;
	__u32 old_known;
	__u32 map_call; /* a mapping call of the program's own is under way; 2: of an arena */
	__u64 map_arguments[4];
	__u64 tcache; /* the thread's struct tcache_perthread_struct, once it has one */
	__u64 foretold; /* what the call under way is expected to return; 0: nothing is */
	__u32 foretelling; /* how often it was */
	__u32 tally_blocks; /* struct rm_tally_thread's, at the entry of the call under way */
	__u64 freed; /* the last block whose release was seen */
	__u64 loading; /* stack pointer of the loader at work, where the loader is the C library; 0: it is not at work */
	__u64 slot; /* where the thread's PyThreadState stands in its thread-specific data; 0: not found yet */
	__u64 slot_of; /* the thread pointer it was found for */
	__u64 other; /* as running_state has it */
	__s64 net; /* bytes the thread took less those it released */
	__s64 tally_net; /* the same of what the tally counts, as last read */
	__s64 tally_highest; /* struct rm_tally_thread's, as last read */
	__u32 active_count;
	__u32 limit_due; /* the process passed its limit in a system call of this thread: it is told at the end of that */
	struct collection collection;
	struct filling filling;
	struct near near; /* for the rest of a walk */
	struct announcement announcement; /* and of what it found */
	struct native caller; /* of the outermost call of the malloc family under way */
	struct native native; /* of the last walk */
	__s64 net_before_work; /* of ours (own_work) */
	__s64 highest_before_work;
	struct active active[RM_MAX_ACTIVE];
	struct rm_stack_event stack; /* the last walk; also the record that announces it */
};

/* key: thread group number. value: what to do with its events. Written by user space while the process is held (resident, arena
 * fields: by the probes). Lives from the start of the image to its end. Full: the process is refused by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct rm_process);
} processes SEC(".maps");

/* key: address of a struct mm_struct. value: thread group that owns the memory. Written at its first event. Deleted by user space at the
 * image's end. Full: changes made by others to that process's memory are not seen. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u32);
} memories SEC(".maps");

/* key: thread. value: its state. Written by the thread's own probes. Lives as long as the thread, where nobody holds the process until its
 * exec. No memory: counted, event lost. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads SEC(".maps");

/* key: a program's file. value: user space has looked at it, and it is no Python. Written by user space. Full: what was executed longest
 * ago is forgotten, and looked at again at its next exec. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct rm_executable);
	__type(value, __u8);
} other_programs SEC(".maps");

/* key: rm_process.id. value: the limit of resident memory that follows the one it has passed. Written by user space where the debugger has
 * let a process go on that nobody holds, deleted where it is taken. Full: the debugger does not open in that process again, which is said. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u64);
} next_limits SEC(".maps");

/* key: address and process. value: size and owner. Written by allocation, deleted by release. (sized) Full: counted; the block's
 * release will be one "from before". */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct block_key);
	__type(value, struct block);
} blocks SEC(".maps");

/* key: granule and process. value: page bits. Written by arena mmap and first touches, deleted by munmap. Full: counted; that
 * memory is not seen. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 17);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct arena_key);
	__type(value, struct arena);
} arenas SEC(".maps");

/* key: stack and process. value: sums. Written by every event; read by user space; lives as long as the session. Full: counted,
 * with the bytes in user space's "unattributed". */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 18);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rm_site_key);
	__type(value, struct rm_site);
} sites SEC(".maps");

/* key: code object, fingerprint, process. value: announced. Full: the code object is announced again and again, which is harmless. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 17);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct code_key);
	__type(value, __u8);
} codes SEC(".maps");

/* key: code object that gives line events, line, and where it began. value: what they measured. Full: counted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 18);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rm_line_key);
	__type(value, struct rm_line);
} lines SEC(".maps");

/* key: code object that gives line events. value: its first entry. Full: counted. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, RM_MAX_MARKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rm_mark_key);
	__type(value, struct rm_mark);
} marks SEC(".maps");

/* First sights: records of rmprof.h. (sized) Full: a counter a kind. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 23);
} events SEC(".maps");

/* Copies of stacks at the first sight of a caller (struct rm_native_event). Full: counted, and tried again at the site's next event.
 * (sized): next to nothing where native functions are not asked for. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 24);
} natives SEC(".maps");

/* key: process and site of its tally. value: stack. Written when the preloaded library meets a stack; read by user space; lives as long
 * as the session. Full: counted; the site's bytes are "stack lost". */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 18);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct rm_tally_key);
	__type(value, __u64);
} tally_stacks SEC(".maps");

/* Changes of resident memory of processes that have a tally (struct rm_resident_event). Full: counted; Mem usage of lines that are not
 * marked is then from an earlier moment. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
} residents SEC(".maps");

/* index: enum rm_counter. Per CPU, summed by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, RM_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* Bytes of events whose site could not be had (sites full), by direction: 0 allocated, 1 released. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} siteless SEC(".maps");

static __always_inline void count(enum rm_counter counter)
{
	__u32 index = counter;
	__u64 *value = bpf_map_lookup_elem(&counters, &index);
	if (value)
		__sync_fetch_and_add(value, 1);
}

/* The watched process of the running thread, or NULL: the one lookup everybody else pays. */
static __always_inline struct rm_process *current_process(void)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	return bpf_map_lookup_elem(&processes, &tgid);
}

/* Has it one of these bits of rm_process.flags? Where no process can, the verifier drops what depends on it. */
static __always_inline bool has(const struct rm_process *process, __u32 flags)
{
	return (constants.flags & flags) && (process->flags & flags);
}

static __always_inline struct thread *thread_of(struct task_struct *task)
{
	struct thread *thread = bpf_task_storage_get(&threads, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!thread)
		count(RM_COUNT_NO_THREAD_MEMORY);
	return thread;
}

static __always_inline struct thread *current_thread(void)
{
	return thread_of((struct task_struct *)bpf_get_current_task_btf());
}

static __always_inline __s64 resident_bytes(struct rm_process *process)
{
	__s64 sum = process->resident[0] + process->resident[1] + process->resident[3] - process->own_bytes;

	return sum < 0 ? 0 : sum;
}

/* User space drains on a clock; it is woken early only when the buffer is a quarter full. */
static __always_inline __u64 wakeup_flags(void)
{
	return bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) > (1 << 21) ? 0 : BPF_RB_NO_WAKEUP;
}

#endif

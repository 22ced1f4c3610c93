/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * THE ABI between the probes and user space: every struct, enum and limit that crosses the boundary, and nothing else.
 * The Rust side is generated from this file by bindgen (probes/build.rs); no struct here has implicit padding, which
 * probes/src/lib.rs asserts by the sizes bindgen computes.
 *
 * The walker that reads these layouts is also compiled for the host by the tests, so this file needs only stdint-like types.
 */
#ifndef RMPROF_H
#define RMPROF_H

typedef unsigned char rm_u8;
typedef unsigned short rm_u16;
typedef unsigned int rm_u32;
typedef int rm_s32;
typedef unsigned long long rm_u64;
typedef long long rm_s64;

enum rm_limits {
	RM_ALARMS = 4,            /* limits of resident memory that are told to user space */
	RM_GROWTH_SLOTS = 8,      /* parts of a second in which the growth of resident memory is followed */
	RM_PIECE_TIMES = 1 << 16, /* how often a piece of an event is run to measure it (pieces.bpf.h) */
	RM_MAX_FRAMES = 128,      /* frames of a stack; deeper ones are cut at the outer end and counted */
	RM_FRAME_READ = 104,      /* at most so many bytes are read of each frame, from rm_layout.frame_base on */
	RM_CODE_READ = 96,        /* bytes read of each code object, from rm_layout.code_base on */
	RM_MAX_ACTIVE = 64,       /* marked frames of one thread whose running line is known */
	RM_MAX_MARKS = 1 << 16,   /* code objects of a process that give line events */
	RM_FILENAME_BYTES = 1024, /* of co_filename, in its own encoding, in a code object's record; longer ones travel as parts */
	RM_NAME_BYTES = 256,      /* of co_name */
	RM_QUALNAME_BYTES = 512,  /* of co_qualname */
	RM_TABLE_BYTES = 1024,    /* of the line table */
	RM_SMALL_PART = 2048,     /* bytes of a part in a small record */
	RM_LARGE_PART = 16384,    /* and in a large one; what is longer travels in several, in order */
	RM_LONGEST_NAME = 4096,   /* of the longest str that travels; longer ones are cut */
	RM_LONGEST_PART = 1 << 20, /* longer line tables and bytecodes do not travel: user space reads them */
	RM_ARENA_GRANULE = 1 << 18, /* bytes of address space in one entry of the arenas map: 64 pages of 4 KiB, a bit each */
	RM_PAGE = 4096,
	RM_CALLER_WORDS = 16,     /* above the stack pointer at an mmap: how far pymalloc's return address may be */
	RM_RESERVED = 16,         /* ranges of address space that mimalloc has reserved and hands out page by page */
	RM_DIRECT_KNOWN = 4,      /* pages by which it is tried where the kernel has all memory */
	RM_NATIVE_STACK = 4096, /* bytes of a thread's own stack that travel with the first sight of a call */
};

#define RM_TCACHE_OFF 0xffffffffu
#define RM_ABSENT 0xffffffffu /* a field that this Python does not have */

/* How a frame tells the instruction it executes (shared/facts: CPython's Python/ceval.c and Include/internal/pycore_frame.h). */
enum rm_position_kind {
	RM_POSITION_BYTES = 0,   /* <= 3.9: i32, byte offset in co_code */
	RM_POSITION_UNITS = 1,   /* 3.10: i32, in code units of two bytes */
	RM_POSITION_POINTER = 2, /* >= 3.11: pointer into the bytecode that stands inside the code object */
};

/*
 * Where things stand in one minor version of CPython: offsets in bytes from the start of the object named, unless said.
 * Made by `cargo xtask layouts` (userspace/layouts/); RM_ABSENT where there is no such field.
 */
/*
 * How the compiler writes the clean-up of a `with` block, the call of __exit__, which stands on the line of the block (3.10+), or on
 * that of its last statement (3.9).
 * Instructions are units of two bytes: opcode, argument.
 */
struct rm_clean_up {
	rm_u32 calls[8];  /* a set of opcodes: the call, and what the interpreter makes of it */
	rm_u32 load[2];   /* opcodes that load the first None, or RM_ABSENT; the first absent: no clean-up is told */
	rm_u32 again[2];  /* opcodes of the second and the third, or RM_ABSENT */
	rm_u32 argument;  /* of the call */
	rm_u32 raised;    /* opcode of the call after an exception */
	rm_u32 before[3]; /* what may stand before either, opcode | argument << 8, or RM_ABSENT */
	rm_u32 line;      /* opcode that hides the first of a line (INSTRUMENTED_LINE, 3.12+), or RM_ABSENT */
};

struct rm_layout {
	rm_u32 thread_head;        /* PyThreadState -> the frame, or the _PyCFrame when thread_head_hop is there */
	rm_u32 thread_head_hop;    /* 3.11, 3.12: _PyCFrame.current_frame; otherwise RM_ABSENT */
	rm_u32 thread_thread_id;   /* PyThreadState.thread_id: pthread_self() of its thread */
	rm_u32 thread_executor;    /* PyThreadState.current_executor: not NULL while code of the JIT runs (3.14+), or RM_ABSENT */
	rm_u32 frame_base;         /* where the read of RM_FRAME_READ bytes of a frame starts */
	rm_u32 frame_bytes;        /* length of that read: to the last field wanted; what follows may be on a page that is not there yet */
	rm_u32 frame_back;         /* within that read: the caller's frame, u64 */
	rm_u32 frame_code;         /* within that read: the code object, u64 */
	rm_u32 frame_code_tags;    /* bits of that word which are a tag and no part of the address (3.14+: 3), else 0 */
	rm_u32 frame_position;     /* within that read: i32 or u64 by position_kind */
	rm_u32 frame_owner;        /* within that read: i8, or RM_ABSENT */
	rm_u32 frame_bytecode_index; /* within that read: i32, or RM_ABSENT: the executing copy of the bytecode (free-threaded, 3.14+) */
	rm_u32 owner_skip;         /* frames with this owner or more are the interpreter's own shims; RM_ABSENT: none are */
	rm_u32 position_kind;      /* enum rm_position_kind */
	rm_u32 code_base;          /* where the read of RM_CODE_READ bytes of a code object starts */
	rm_u32 code_first_line;    /* within that read: i32 co_firstlineno */
	rm_u32 code_filename;      /* within that read: str co_filename */
	rm_u32 code_name;          /* within that read: str co_name */
	rm_u32 code_qualname;      /* within that read: str co_qualname, or RM_ABSENT */
	rm_u32 code_line_table;    /* within that read: bytes co_lnotab or co_linetable */
	rm_u32 code_version;       /* within that read: u32 co_version (3.12+), or RM_ABSENT */
	rm_u32 code_code;          /* within that read: bytes co_code (to 3.10), or RM_ABSENT */
	rm_u32 lines_mended;       /* whether co_code is announced: lines of up to 3.9 are mended by it */
	rm_u32 code_bytecode;      /* from the start of the code object: first instruction (3.11+), or RM_ABSENT */
	rm_u32 code_thread_bytecode; /* from the start of the code object: pointer to those copies, or RM_ABSENT */
	rm_u32 thread_bytecode_entries; /* and from there to the first copy's address */
	rm_u32 object_type;        /* PyObject.ob_type */
	rm_u32 str_length;         /* characters, i64 */
	rm_u32 str_state;          /* u32 */
	rm_u32 str_ascii_data;     /* data of a compact ASCII str */
	rm_u32 str_compact_data;   /* data of another compact str */
	rm_u32 str_kind_shift;     /* state >> shift & 7: bytes a character */
	rm_u32 str_compact_bit;
	rm_u32 str_ascii_bit;
	rm_u32 bytes_length;       /* i64 */
	rm_u32 bytes_data;
	rm_u32 arena_bytes;        /* what pymalloc asks of mmap at a time */
	rm_u32 reserve_flags;      /* flags of the mmap of mimalloc, which takes its place in free-threaded builds, or RM_ABSENT */
	rm_u32 thread_interpreter; /* PyThreadState.interp */
	rm_u32 interpreter_collecting; /* PyInterpreterState.gc.collecting, i32 (3.9+), or RM_ABSENT */
	rm_u32 interpreter_threads_head; /* PyInterpreterState's first thread state */
	rm_u32 thread_next;        /* PyThreadState.next */
	rm_u32 interpreter_next;   /* PyInterpreterState.next: the one made before it */
	rm_u32 thread_attached;    /* PyThreadState -> the u32 that tells whether it holds the GIL (3.12+), or RM_ABSENT, where there is none too */
	rm_u32 attached_mask;      /* of that word */
	rm_u32 attached_value;     /* what is there under the mask while it does */
	struct rm_clean_up clean_up;
};

/* Where a thread keeps its PyThreadState while it does not hold the GIL either. */
enum rm_slot_kind {
	RM_SLOT_TSS_KEY = 0, /* 3.7 to 3.14: a Py_tss_t: an i32 that tells whether the key is made, and the pthread key */
	RM_SLOT_KEY = 1,     /* 3.6: the pthread key, an i32 that is negative before it is made */
	RM_SLOT_VARIABLE = 2, /* 3.15: a variable of the thread, in its static block or in that of its module */
	RM_SLOT_DISTANCE = 3, /* the same, where the loader puts the way to it into a word of the interpreter's file */
};

/* How a C library keeps a thread's data under pthread keys. */
enum rm_specific_kind {
	RM_SPECIFIC_GLIBC = 0, /* pointers to blocks of 32 pairs, a count and the value (nptl/descr.h, struct pthread.specific) */
	RM_SPECIFIC_MUSL = 1,  /* a pointer to an array of the values (src/internal/pthread_impl.h, struct pthread.tsd) */
};

/* Bits of rm_process.flags. */
enum rm_process_flags {
	RM_HEAP = 1 << 0,   /* malloc family and mappings are counted */
	RM_PAGES = 1 << 1,  /* resident pages are counted */
	RM_PYTHON = 1 << 2, /* layout and addresses below are set */
	RM_FOLLOW = 1 << 3, /* nobody holds it: its forks, execs and its end are told, and its forks counted */
	RM_NATIVE = 1 << 4, /* calls are told apart by the native function they come from as well, which is told at first sight */
	RM_VICTIM = 1 << 5, /* the kernel chose to end it for want of memory */
};

/*
 * What is known before the probes are loaded. The verifier leaves out what the constants say cannot be, which is a good part of the time
 * that loading takes.
 */
struct rm_constants {
	rm_u32 cpus;  /* possible CPUs */
	rm_u32 flags; /* bits of rm_process.flags that some process may have */
	rm_u64 counter_batch; /* what a CPU keeps of a counter for itself is less (compute_batch_value in lib/percpu_counter.c) */
	rm_u64 alarm_bytes[RM_ALARMS]; /* resident memory above which user space is told (--on-limit); 0: no alarm, nor after it */
	rm_u32 alarms_of_growth; /* a bit an alarm: its bytes are what resident memory may grow by within a second */
	rm_u32 alarms_of_total;  /* a bit an alarm: they are what all processes together may have resident */
};

/* Where the kernel has all memory mapped for itself, and how it is looked for. */
struct rm_direct {
	rm_u64 base;     /* 0: not known */
	rm_u64 from;     /* it is this, or some gibibytes below; 0: below a table of pages of the process that looks for it */
	rm_u64 words[2]; /* what stands there ... */
	rm_u64 known[RM_DIRECT_KNOWN]; /* ... at these addresses of that process, each in a page of its own */
	rm_u32 levels;    /* of tables of pages */
	rm_u32 gibibytes; /* how many are tried; 0: it is not looked for */
};

/* Addresses from `start` up to `end`; start 0: none. */
struct rm_range {
	rm_u64 start;
	rm_u64 end;
};

/* One watched process image, by thread group number. User space writes it only while the process is held. */
struct rm_process {
	rm_u32 id;                 /* what every record and site calls it; never reused */
	rm_u32 flags;              /* enum rm_process_flags */
	rm_u64 key_address;        /* of the pthread key; RM_SLOT_VARIABLE, RM_SLOT_DISTANCE: of the interpreter's list, empty before there are thread states */
	rm_u64 slot_module;        /* RM_SLOT_VARIABLE: address of the tls_index of its module; 0: it is at an offset from the thread pointer;
				      RM_SLOT_DISTANCE: of a word that holds a distance from the thread pointer, or the address of a tls_index */
	rm_s64 slot_offset;        /* RM_SLOT_VARIABLE: from the thread pointer, or within the module's block; RM_SLOT_DISTANCE: what to add */
	rm_u32 slot_kind;          /* enum rm_slot_kind */
	rm_u32 tcache_trust;       /* predictions that came true in a row; RM_TCACHE_OFF: one did not */
	rm_u64 text_start;         /* where the module with the interpreter is executable */
	rm_u64 text_end;
	rm_u64 loader_start;       /* where the dynamic loader is executable: its mmaps are not the program's */
	rm_u64 loader_end;
	rm_u64 library_start;      /* where the preloaded library is executable, whose mappings are not the program's either */
	rm_u64 library_end;
	rm_u64 arena_caller;       /* 1: pymalloc has asked for an arena, and arena_callers are learned */
	rm_u64 arena_callers[RM_CALLER_WORDS]; /* words above the stack pointer: 0, or what may be the return address of its call of mmap */
	rm_s64 resident[4];        /* bytes by kind: 0 file, 1 anonymous, 2 swap entries, 3 shared (include/linux/mm_types_task.h) */
	rm_s64 resident_peak;      /* highest sum of file, anonymous and shared */
	rm_u64 others_releases;    /* how often in a row a thread has left to another what that one has released and not yet told */
	rm_u64 releases;           /* how often resident memory has become less, of any kind */
	rm_u64 sequence;           /* counts events, for their order; threads may draw the same number */
	rm_u64 memory;             /* its struct mm_struct, once seen; 0 before */
	struct rm_range reserved[RM_RESERVED]; /* by its mimalloc (layout.reserve_flags) */
	struct rm_layout layout;
	rm_u32 own_mappings;       /* it has mapped memory itself: only then its munmaps are told */
	rm_u32 key;                /* the pthread key plus one, once it is made; 0 before */
	rm_u64 tcache_offset;      /* from the thread pointer to where glibc keeps the thread's tcache; 0: not known */
	rm_u32 order_minor;        /* events drawn since order_major */
	rm_u32 specific_offset;    /* from the thread pointer to the libc's table of thread-specific data, as specific_kind says */
	rm_u64 finalizing_address; /* where _PyRuntime has the thread state that ends the interpreter; 0: not known */
	rm_u64 collecting_address; /* of the i32 that tells whether garbage is collected (to 3.8); 0: as layout.interpreter_collecting says */
	rm_u64 holder_address;     /* of the thread state that holds the GIL (to 3.11); 0: as layout.thread_attached says, and the slot has the thread's
				      state of whatever interpreter it runs */
	rm_u64 interpreters_address; /* of its list of interpreters, the newest first */
	rm_u64 collector;          /* the thread state that collects garbage, as far as it can be told; 0: none is known to */
	rm_u64 collected;          /* the interpreter it does that in; 0: all (to 3.8) */
	rm_u64 code_type;          /* address of PyCode_Type, the type of every code object; 0: not known */
	rm_u64 tally;              /* address of its struct rm_tally in the process; 0: its blocks are counted by probes */
	rm_s64 tally_thread;       /* from the thread pointer to the thread's struct rm_tally_thread */
	rm_u64 order_major;        /* rm_tally.sequence at the last event that was not the tally's */
	rm_s64 own_bytes;          /* resident memory that is the tally's and so ours, as last read */
	rm_u64 history_sequence;   /* rm_tally.sequence at the last change of resident memory, told when the next one has another */
	rm_s64 history_bytes;      /* resident memory then, ours left out */
	rm_u64 limit_bytes;        /* resident memory above which the debugger is asked for; 0: never */
	rm_u64 limit_step;         /* how much more until it is asked for again; 0: once. Of a process that nobody holds: whether */
	rm_u64 limit_handler;      /* of the process, for limit_signal; 0: it has not said yet that it is ready */
	rm_u32 new_code;           /* a file was mapped as code since user space last heard of one */
	rm_u32 specific_kind;      /* enum rm_specific_kind */
	rm_u32 start_offset;       /* from the thread pointer to where the libc keeps the function its thread began with; 0: not known */
	rm_u32 native_threads;     /* a thread was told of that began outside the interpreter: its function is to be named */
	rm_u32 limit_signal;
	rm_u32 limit_state;        /* enum rm_limit_state */
	rm_u32 page_sample;        /* of so many pages of its arenas one is counted, for all; 0: each is */
	rm_u32 growth_of;          /* the id of whose growth growth_slot and the rest is; another's, or 0: it begins anew */
	rm_s64 folded[4];          /* its resident counters without what CPUs keep for themselves, as far as it is accounted for: where pages
				      are sampled, and in pages mode */
	rm_s64 in_total;           /* its part of what all processes together have resident; 0 where no alarm is of that */
	rm_u32 alarm_passed[RM_ALARMS]; /* 1: it was told, and resident memory has not been well below it since */
	rm_u64 growth_slot;        /* RM_GROWTH_SLOTS of them are a second; the one of the last change of resident memory */
	rm_s64 growth_last;        /* resident memory at that change */
	rm_s64 growth_floor[RM_GROWTH_SLOTS]; /* by slot, modulo their number: the least resident memory in it */
};

/* An alarm is passed again only after resident memory was a part of it below: 1 / RM_ALARM_PART. */
enum rm_alarm_part {
	RM_ALARM_PART = 16,
};

enum rm_limit_state {
	RM_LIMIT_WAITING = 0,
	RM_LIMIT_PASSED = 1, /* and the process was told, or cannot be */
};

/* What the launch extension says at rmprof_site_limit. */
enum rm_limit_call {
	RM_LIMIT_READY = 0,     /* (signal, handler) */
	RM_LIMIT_STOPPED = 1,   /* the debugger is about to open */
	RM_LIMIT_CONTINUED = 2, /* and has let the program go on */
	RM_LIMIT_REFUSED = 3,   /* (enum rm_limit_refusal) */
	RM_LIMIT_ALARM = 4,     /* the kernel side itself: the alarm of this number was passed */
	RM_LIMIT_REACHED = 5,   /* the same: user space is to open the debugger in the thread that passed the limit (attach) */
};

enum rm_limit_refusal {
	RM_REFUSED_TRACED = 1,      /* the thread has a trace function that is not ours */
	RM_REFUSED_NO_TERMINAL = 2,
	RM_REFUSED_UNKNOWN = 3,     /* the interpreter's memory is not laid out as known */
	RM_REFUSED_SIGNAL = 4,      /* no signal is free, or the program has taken it since */
	RM_REFUSED_NO_PDB = 5,      /* pdb could not be imported */
	RM_REFUSED_BUSY = 6,        /* the interpreter's list of pending calls is full or locked */
};

/* A frame as it travels: 16 bytes. */
struct rm_frame {
	rm_u64 code;
	rm_u32 fingerprint;
	rm_s32 position; /* byte offset of the executing instruction; negative: not begun */
};

enum rm_stack_status {
	RM_STACK_COMPLETE = 0,
	RM_STACK_TRUNCATED = 1,
	RM_STACK_NO_THREAD = 2,  /* the thread has no Python thread state, or no frame */
	RM_STACK_UNREADABLE = 3, /* a read failed */
	RM_STACK_START_UP = 4,   /* the interpreter has no thread state yet */
	RM_STACK_FOREIGN = 5,    /* not the process's own doing: the kernel or another process changed its memory */
};

/* Key of the sites map. */
struct rm_site_key {
	rm_u64 stack; /* hash of process and frames, never 0 */
	rm_u32 process;
	rm_u32 pad;
};

/* Key of the tally_stacks map. */
struct rm_tally_key {
	rm_u32 process;
	rm_u32 site;
};

/* What of a stack has reached its ring buffer. */
enum rm_announced {
	RM_ANNOUNCED_STACK = 1 << 0,
	RM_ANNOUNCED_NATIVE = 1 << 1,
};

/* Value of the sites map: see ledger::SiteCounts for the meaning. */
struct rm_site {
	rm_u64 allocated_bytes;
	rm_u64 allocations;
	rm_u64 released_bytes;
	rm_u64 releases;
	rm_u64 dead_bytes;
	rm_u64 resident_bytes;
	rm_u64 last_event; /* its place among the process's events: rm_process.sequence, or as RM_ORDER_SHIFT says */
	rm_u32 announced; /* enum rm_announced */
	rm_u32 status;    /* enum rm_stack_status */
};

/*
 * Key and value of the lines map: one line of a code object that gives line events, begun at one instruction; occurrences alone, since
 * user space decides which of them go on with an execution. What was measured of the line, wherever it began, is under RM_ABSENT.
 */
struct rm_line_key {
	rm_u32 number; /* of the code object: its address may be another's later */
	rm_u32 process;
	rm_u32 line;
	rm_u32 position; /* byte of the bytecode; one that cannot be read is RM_ABSENT too */
};

struct rm_line {
	rm_u64 occurrences;
	rm_u64 resident_bytes; /* when it last finished; when it last began, until then */
	rm_u64 peak_bytes;
};

/* Key and value of the marks map: one code object that gives line events. */
struct rm_mark_key {
	rm_u32 number;
	rm_u32 process;
};

struct rm_mark {
	rm_u64 entry_resident_bytes; /* at the first line event, 0 before */
};

/* Attach cookie of the probes on the malloc family: which arguments to read. An allocator is rows of these in user space. */
enum rm_role {
	RM_ROLE_MALLOC = 1,         /* (size) -> pointer */
	RM_ROLE_CALLOC = 2,         /* (count, size) -> pointer */
	RM_ROLE_REALLOC = 3,        /* (pointer, size) -> pointer */
	RM_ROLE_REALLOCARRAY = 4,   /* (pointer, count, size) -> pointer */
	RM_ROLE_POSIX_MEMALIGN = 5, /* (&pointer, alignment, size) -> errno */
	RM_ROLE_ALIGNED = 6,        /* (alignment, size) -> pointer: aligned_alloc, memalign */
	RM_ROLE_FREE = 7,           /* (pointer) */
	RM_ROLE_VALLOC = 8,         /* (size) -> pointer, page-aligned: valloc; pvalloc rounds up, its request is what counts */
	RM_ROLE_GLIBC_MALLOC = 9,   /* as RM_ROLE_MALLOC, of the library whose caches rm_process.tcache_offset tells of */
};

/* Attach cookie of the probes on the launch extension. */
enum rm_launch_role {
	RM_LAUNCH_LINE = 1,  /* (code, line, what) */
	RM_LAUNCH_MARK = 2,  /* (code, order) */
	RM_LAUNCH_HELLO = 3, /* (hexversion, pid) */
	RM_LAUNCH_STACK = 4, /* (site, frame, collector, other): of the preloaded library, a stack its tally has not met before, the frame of the
			      * call (0: of none), whether the garbage collector is at work, and the thread's state of another interpreter */
	RM_LAUNCH_TALLY = 5, /* (address): of the preloaded library, where a fork has its tally */
	RM_LAUNCH_LOADED = 6, /* (): of the dynamic loader, it is about to change its list of libraries, or has */
	RM_LAUNCH_LIMIT = 7, /* (enum rm_limit_call, value, handler) */
};

/* Attach cookie of the program that is at several tracepoints (Linux 6.10). */
enum rm_tracepoint {
	RM_TRACEPOINT_RSS_STAT = 1,
	RM_TRACEPOINT_SYS_ENTER = 2,
	RM_TRACEPOINT_SYS_EXIT = 3,
};

enum rm_event_kind {
	RM_EVENT_STACK = 1,
	RM_EVENT_CODE = 2,
	RM_EVENT_MARK = 3,
	RM_EVENT_HELLO = 4,
	RM_EVENT_MAP = 5,
	RM_EVENT_PART = 6,
	RM_EVENT_RESIDENT = 7,
	RM_EVENT_FOLLOW = 8,
	RM_EVENT_NATIVE = 9,
	RM_EVENT_LIMIT = 10,
};

struct rm_event {
	rm_u32 kind; /* enum rm_event_kind */
	rm_u32 process;
};

/* First sight of a stack. `frames` innermost first, `frame_count` of them are sent. */
struct rm_stack_event {
	struct rm_event event;
	rm_u64 stack;
	rm_u32 status; /* enum rm_stack_status */
	rm_u32 frame_count;
	rm_u32 approximate; /* code of the JIT ran: the innermost frame may have been further on */
	rm_u32 collector;   /* the garbage collector did it, which the innermost frame happened to start */
	rm_u64 thread_state; /* address of the PyThreadState, for the check by user space */
	rm_u64 fsbase;
	rm_u64 thread_start; /* RM_STACK_NO_THREAD: the function its thread began with; 0: the first thread, or not known */
	struct rm_frame frames[RM_MAX_FRAMES];
};

/*
 * The thread's own stack at the first sight of rm_stack_event.stack: what is needed to find the native functions on it. The registers
 * are those of the code that called the allocator (or the kernel), the call being over. After `bytes` of data the record is padding.
 */
struct rm_native_event {
	struct rm_event event;
	rm_u64 stack;
	rm_u64 instruction;
	rm_u64 stack_pointer;
	rm_u64 frame_pointer;
	rm_u32 bytes; /* from the stack pointer on */
	rm_u32 returns; /* `instruction` is where the call returns to, and not one that was executing */
	rm_u8 data[RM_NATIVE_STACK];
};

/* Bits of rm_code_event.flags: what is not in the record. Its parts went before it, or user space reads it while the process lives. */
enum rm_code_flags {
	RM_CODE_NO_FILENAME = 1 << 0,
	RM_CODE_NO_NAME = 1 << 1,
	RM_CODE_NO_QUALNAME = 1 << 2,
	RM_CODE_NO_TABLE = 1 << 3,
};

/* A str as it travels: `bytes` of its data in `kind` bytes a character (1 is Latin-1). */
struct rm_text {
	rm_u32 bytes;
	rm_u32 kind;
};

/* First sight of a code object. */
struct rm_code_event {
	struct rm_event event;
	rm_u64 code;
	rm_u32 fingerprint;
	rm_u32 first_line;
	rm_u32 flags; /* enum rm_code_flags */
	rm_u32 table_bytes;
	struct rm_text filename;
	struct rm_text name;
	struct rm_text qualname;
	rm_u8 filename_data[RM_FILENAME_BYTES];
	rm_u8 name_data[RM_NAME_BYTES];
	rm_u8 qualname_data[RM_QUALNAME_BYTES];
	rm_u8 table[RM_TABLE_BYTES];
};

enum rm_part {
	RM_PART_FILENAME = 0,
	RM_PART_NAME = 1,
	RM_PART_QUALNAME = 2,
	RM_PART_TABLE = 3,
	RM_PART_BYTECODE = 4, /* where the layout has code_code */
	RM_PART_INSTRUCTIONS = 5, /* of one that gives line events, as the compiler made them: goes before the rm_mark_event */
	RM_PART_HANDLERS = 6,     /* so does co_exceptiontable, where there is one (3.11+) */
};

/*
 * A piece of something that has no room in the rm_code_event of the same code object, which it goes before. The small record ends
 * after RM_SMALL_PART bytes of data.
 */
struct rm_part_event {
	struct rm_event event;
	rm_u64 code;
	rm_u32 fingerprint;
	rm_u32 part;   /* enum rm_part */
	rm_u32 kind;   /* of a str: bytes a character */
	rm_u32 offset; /* of this piece */
	rm_u32 total;  /* bytes of all pieces */
	rm_u32 bytes;  /* of this piece */
	rm_u8 data[RM_LARGE_PART];
};

struct rm_mark_event {
	struct rm_event event;
	rm_u64 code;
	rm_u32 number;
	rm_u32 fingerprint;
	rm_u32 asked; /* by the program, with a mark */
	rm_u32 pad;
};

struct rm_hello_event {
	struct rm_event event;
	rm_u64 hexversion;
};

/* What became of a limit of resident memory. */
struct rm_limit_event {
	struct rm_event event;
	rm_u32 call;   /* enum rm_limit_call */
	rm_u32 reason; /* enum rm_limit_refusal, the alarm, or the number of the thread that reached it */
	rm_u64 bytes;  /* resident at that moment */
	rm_u64 measured; /* RM_LIMIT_ALARM: what was compared with the alarm's bytes */
	rm_u64 thread; /* RM_LIMIT_REACHED: the PyThreadState of the thread */
	rm_u32 in_call; /* the same: it was in a system call */
	rm_u32 pad;
};

enum rm_map_change {
	RM_MAP_MMAP = 1,
	RM_MAP_MUNMAP = 2,
	RM_MAP_MREMAP = 3,
	RM_MAP_BRK = 4,
};

/* A mapping system call of the program's own that succeeded. */
struct rm_map_event {
	struct rm_event event;
	rm_u64 stack;
	rm_u32 change; /* enum rm_map_change */
	rm_u32 pad;
	rm_u64 from; /* munmap, mremap: the old range; brk: the old end */
	rm_u64 from_bytes;
	rm_u64 to; /* mmap, mremap: the new range; brk: the new end */
	rm_u64 to_bytes;
	rm_u64 resident_bytes;
};

enum rm_follow_change {
	RM_FOLLOW_FORK = 1,  /* it is a fork of `parent`, and counted */
	RM_FOLLOW_VFORK = 2, /* it borrows the memory of `parent`, and is not */
	RM_FOLLOW_EXEC = 3,  /* its image was replaced, and is not counted until user space has looked at it */
	RM_FOLLOW_EXIT = 4,  /* it has ended */
	RM_FOLLOW_LOADED = 5, /* it has mapped further code */
	RM_FOLLOW_YOUNG = 6, /* it is a fork of a process that user space has not looked at yet, and is not counted either */
};

/* A program's file. Size and generation tell two files apart that had the same inode one after the other. */
struct rm_executable {
	rm_u64 inode;
	rm_u64 bytes;
	rm_u32 device;
	rm_u32 generation;
};

/* First number of the images that begin on the kernel side. */
#define RM_FIRST_FORK (1u << 24)

/* Something became of a process that nobody holds. */
struct rm_follow_event {
	struct rm_event event;
	rm_u32 change;    /* enum rm_follow_change */
	rm_u32 pid;
	rm_u32 parent;    /* the image it is a fork of */
	rm_s32 exit_code; /* as wait(2) has it */
	rm_s64 resident_bytes;
	rm_s64 resident_peak;
	struct rm_executable executable; /* of an exec: what it executes now */
	rm_u32 victim;    /* of an end: the kernel chose to end it for want of memory */
	rm_u32 pad;
};

/* Bytes of a command line that are told of an exec. */
#define RM_COMMAND 4000

/* Record of RM_FOLLOW_EXEC: it may have ended before anybody can look at it. */
struct rm_exec_event {
	struct rm_follow_event follow;
	rm_u32 command_bytes; /* of the whole command line; its first RM_COMMAND are here. 0: not read */
	rm_u32 pad;
	char command[RM_COMMAND]; /* words, each with a NUL after it */
};

/* Resident memory of a process that has a tally: what it was from event `sequence` of the tally on, until the next such record. */
struct rm_resident_event {
	struct rm_event event;
	rm_u64 sequence;
	rm_u64 bytes; /* file, anonymous and shared, the tally's own left out */
};

/*
 * Everything that is counted rather than shown. One sentence each in userspace/src/kernel/counters.rs, which the compiler
 * holds complete. RM_COUNT_EVENTS is work done; all others are something missing from the numbers or a sign of it.
 */
enum rm_counter {
	RM_COUNT_EVENTS = 0, /* of pages and mappings; those of the allocator are the sites' own counts */
	RM_COUNT_LINE_EVENTS,
	RM_COUNT_NO_THREAD_MEMORY, /* task storage could not be had: the event is lost */
	RM_COUNT_SITES_FULL,
	RM_COUNT_BLOCKS_FULL,
	RM_COUNT_LINES_FULL,
	RM_COUNT_ARENAS_FULL,
	RM_COUNT_RING_FULL_STACK,
	RM_COUNT_RING_FULL_CODE,
	RM_COUNT_RING_FULL_MAP,
	RM_COUNT_RING_FULL_MARK,
	RM_COUNT_STACK_TRUNCATED,
	RM_COUNT_STACK_UNREADABLE,
	RM_COUNT_CODE_UNREADABLE,
	RM_COUNT_ACTIVE_FULL,
	RM_COUNT_FREE_FROM_BEFORE, /* a release of a block that was not seen allocated */
	RM_COUNT_RETURN_WITHOUT_ENTRY,
	RM_COUNT_OUT_POINTER_UNREADABLE,
	RM_COUNT_ARENA_TOO_LARGE,
	RM_COUNT_PREDICTION_WRONG, /* malloc did not return what its cache foretold: it is asked at every return from now on */
	RM_COUNT_BLOCK_REPLACED, /* an allocation returned an address believed live: its release was missed */
	RM_COUNT_RING_FULL_RESIDENT,
	RM_COUNT_TALLY_STACKS_FULL,
	RM_COUNT_RING_FULL_FOLLOW,
	RM_COUNT_PROCESSES_FULL,
	RM_COUNT_APPROXIMATE, /* an event in code of the JIT, whose line may be an earlier one of its function */
	RM_COUNT_RING_FULL_NATIVE,
	RM_COUNT_NO_TALLY, /* a fork could not map its tally: its blocks are not counted */
	RM_COUNT_NOT_HELD, /* a library was mapped, and the process could not be held to look at it first */
	RM_COUNT_PAIRS_FULL, /* a sampled block is missing in the standard errors, in no other number */
	RM_COUNT_RING_FULL_LIMIT, /* that a limit was passed could not be told */
	RM_COUNTERS,
};

/*
 * THE TALLY: what the preloaded library (probes/preload/tally.c) counts of a process inside the process, in memory that it shares
 * with us and that outlives it. One segment an image: a head, the sites, a table from stacks to sites, a table from blocks to sizes
 * and sites. Everything is made of pages that are not there until they are written to.
 */
enum rm_tally_limits {
	RM_TALLY_SITES = 1 << 17, /* different stacks of one image */
	RM_TALLY_SITE_BITS = 18,  /* of a block's value: its site plus one, below its size */
	RM_TALLY_KEYS = 7,        /* of a bucket */
	RM_TALLY_LEVELS = 5,      /* of a table, at most; each has 1 << RM_TALLY_LEVEL_SHIFT times the buckets of the one before */
	RM_TALLY_LEVEL_SHIFT = 3,
	RM_TALLY_LAST_TRIES = 8, /* other buckets of the last level, for keys that lie closer together than was thought */
	RM_TALLY_STACK_BUCKETS = 1 << 8,  /* in the first level of the table of stacks, which has four */
	RM_TALLY_BLOCK_BUCKETS = 1 << 10, /* and of that of blocks, which has five: room for some thirty million */
	RM_TALLY_BUCKET_BYTES = 128,
	RM_TALLY_SITE_BYTES = 64,
	RM_TALLY_FIRST_SITES = 1 << 13, /* in the first part */
	RM_TALLY_HEAD_BYTES = 6 * RM_PAGE,

	/* Only where blocks are sampled. */
	RM_TALLY_PAIRS = 1 << 16, /* of a stack that asked for blocks and one that released them */
	RM_TALLY_PAIR_BYTES = 16,
	RM_TALLY_PAIR_STEPS = 64, /* places where a pair may be */
	RM_TALLY_FILTER_BYTES = 1 << 14, /* how many sampled blocks are alive whose address has this hash, up to 255 */
	RM_TALLY_EXACT = 1 << 10, /* sums of a thread's own; those that begin later share the last */
	RM_TALLY_EXACT_BYTES = 64,
	RM_TALLY_COUNT_SHIFT = 16, /* numbers of blocks have so many binary places: one that was sampled stands for no whole number */
	RM_TALLY_VARIANCE_SHIFT = 24, /* and variances as many, in squares of the mean interval */

	/* What the library remembers of a thread's last stacks, for itself alone (probes/preload/known.h). */
	RM_TALLY_KNOWN = 64, /* threads of which it does, at one time */
	RM_TALLY_KNOWN_BYTES = 1 << 15,

	/* Where things are in a segment. The first part, up to the third levels, is there from the start, the others when they are needed:
	 * a program's address space may be limited. */
	RM_TALLY_SITES_AT = RM_TALLY_HEAD_BYTES,
	RM_TALLY_STACKS_AT = RM_TALLY_SITES_AT + RM_TALLY_FIRST_SITES * RM_TALLY_SITE_BYTES,
	RM_TALLY_BLOCKS_AT = RM_TALLY_STACKS_AT + RM_TALLY_STACK_BUCKETS * (1 + 8) * RM_TALLY_BUCKET_BYTES,
	RM_TALLY_PAIRS_AT = RM_TALLY_BLOCKS_AT + RM_TALLY_BLOCK_BUCKETS * (1 + 8) * RM_TALLY_BUCKET_BYTES,
	RM_TALLY_FILTER_AT = RM_TALLY_PAIRS_AT + RM_TALLY_PAIRS * RM_TALLY_PAIR_BYTES,
	RM_TALLY_EXACT_AT = RM_TALLY_FILTER_AT + RM_TALLY_FILTER_BYTES,
	RM_TALLY_KNOWN_AT = RM_TALLY_EXACT_AT + RM_TALLY_EXACT * RM_TALLY_EXACT_BYTES,
	RM_TALLY_MORE_SITES_AT = RM_TALLY_KNOWN_AT + RM_TALLY_KNOWN * RM_TALLY_KNOWN_BYTES,
	RM_TALLY_STACKS_2_AT = RM_TALLY_MORE_SITES_AT + (RM_TALLY_SITES - RM_TALLY_FIRST_SITES) * RM_TALLY_SITE_BYTES,
	RM_TALLY_STACKS_3_AT = RM_TALLY_STACKS_2_AT + RM_TALLY_STACK_BUCKETS * 64 * RM_TALLY_BUCKET_BYTES,
	RM_TALLY_BLOCKS_2_AT = RM_TALLY_STACKS_3_AT + RM_TALLY_STACK_BUCKETS * 512 * RM_TALLY_BUCKET_BYTES,
	RM_TALLY_BLOCKS_3_AT = RM_TALLY_BLOCKS_2_AT + RM_TALLY_BLOCK_BUCKETS * 64 * RM_TALLY_BUCKET_BYTES,
	RM_TALLY_BLOCKS_4_AT = RM_TALLY_BLOCKS_3_AT + RM_TALLY_BLOCK_BUCKETS * 512 * RM_TALLY_BUCKET_BYTES,
	RM_TALLY_BYTES = RM_TALLY_BLOCKS_4_AT + RM_TALLY_BLOCK_BUCKETS * 4096 * RM_TALLY_BUCKET_BYTES,
	RM_TALLY_PAGES = RM_TALLY_BYTES / RM_PAGE,

	RM_TALLY_SEGMENTS = 64, /* of one image: its own, and those of its forks that are alive; a page stands before the first */
	RM_TALLY_ANNOUNCE = 0x7a4c0f1b, /* the descriptor that the library closes to say that the tally is there: none has such a number */
	RM_TALLY_MAGIC = 0x7a111e5,
	/* Events of the tally count in the upper bits, those of the kernel side between two of them in the lower. */
	RM_ORDER_SHIFT = 16,
};

/* What a process of the library does at its next event. In a fork's memory we write it from outside. */
enum rm_tally_order {
	RM_TALLY_BEGIN = 0,
	RM_TALLY_GO_ON = 1,
	RM_TALLY_NOWHERE = 2, /* count nothing */
	RM_TALLY_MOVE = 3,    /* plus a number: count in that segment */
};

/* Name of the preloaded library's file, which is how it knows itself in its environment. */
#define RM_TALLY_FILE "_rmprof_tally.so"

/*
 * One stack's sums: see struct rm_site. Written by the process alone. Where blocks are sampled they are estimates, and numbers of
 * blocks are in units of 1 >> RM_TALLY_COUNT_SHIFT.
 */
struct rm_tally_site {
	rm_u64 allocated_bytes;
	rm_u64 allocations;
	rm_u64 released_bytes;
	rm_u64 releases;
	rm_u64 dead_bytes;
	rm_u64 last_event; /* rm_tally.sequence at it */
	rm_u64 announced;  /* rm_tally.announcements when the kernel side last heard of it */
	rm_u64 variance;   /* of allocated_bytes, where they are an estimate (RM_TALLY_VARIANCE_SHIFT) */
};

/* What two stacks have to do with each other: sampled blocks that one asked for and the other released. */
struct rm_tally_pair {
	rm_u64 sites; /* that of the first plus one in the upper half, and of the second; 0: free */
	rm_u64 variance; /* what these blocks add to the variance of either (RM_TALLY_VARIANCE_SHIFT) */
};

/* Where blocks are sampled: what is counted of all of them. */
struct rm_tally_exact {
	rm_u64 allocated_bytes;
	rm_u64 allocations;
	rm_u64 releases;
	rm_u64 pad[5];
};

/* Seven keys and their values; a key of 0 is free. */
struct rm_tally_bucket {
	rm_u64 keys[RM_TALLY_KEYS];
	rm_u64 overflowed; /* it was full once: what is not here may be in the next level */
	rm_u64 values[RM_TALLY_KEYS];
	rm_u64 pad;
};

/* The head of a segment. */
struct rm_tally {
	rm_u32 magic;
	rm_u32 enabled;      /* 1: count. Written by user space */
	rm_u64 sequence;     /* events counted */
	rm_u64 touched_bytes; /* of this segment, resident in the process */
	rm_u32 site_count;   /* sites handed out */
	rm_u32 careful;      /* walks still to be made with reads that cannot fault */
	rm_u32 refused;      /* such a walk met something that is no frame: no stack is read any more */
	rm_u32 announcements; /* user space counts it up when stacks may not have been heard of: sites tell them again */
	rm_u8 region_shifts[8]; /* of each level: keys that differ only in so many low bits share a bucket */
	rm_u64 siteless[2];  /* bytes of events without a site, allocated and released */
	rm_u64 sample_bytes; /* mean distance of two bytes that are sampled; 0: every block is counted. Written by user space */
	rm_u64 sample_seed;  /* of the distances: each thread has its own from it. Written by user space */
	rm_u32 sample_threads; /* that have begun to count */
	rm_u32 pad;
	rm_u64 samples;      /* blocks that were sampled */
	rm_u64 counters[RM_COUNTERS]; /* by enum rm_counter */
	struct rm_process process;    /* how to find the frames. Written by user space before `enabled` */
	rm_u64 touched[RM_TALLY_PAGES / 64 + 1]; /* a bit for each page of the segment */
};

/* What the library keeps of a thread, in its thread-local memory. */
struct rm_tally_thread {
	rm_s64 net;     /* bytes the thread took less those it released */
	rm_s64 highest; /* of `net`, since the last line event */
	rm_u32 depth;   /* calls of the allocator that have not returned */
	rm_u32 blocks;  /* counts those that were given out */
	rm_u64 latest;  /* address of the last of them */
};

#endif

/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * The walker: from a thread to its Python frames, by offsets and shape codes alone. It names no version of CPython.
 *
 * Also compiled for the host by the tests (with READ_USER over /proc/PID/mem), so it calls no BPF helper.
 * Everything read is the target's word: offsets into our buffers are masked, loops are bounded, a failed read ends the walk.
 */
#ifndef PYTHON_BPF_H
#define PYTHON_BPF_H

#ifndef READ_USER
#define READ_USER(to, size, from) bpf_probe_read_user(to, size, (const void *)(from))
#endif
/* Of what may be another thread's, and gone: where a read of the thread's own memory cannot fail this one may. */
#ifndef READ_OTHERS
#define READ_OTHERS READ_USER
#endif

#include "frame.bpf.h"

struct near; /* what the reads of a walk know of each other (direct.bpf.h) */
#ifndef READING_OF
#define READING_OF(near) ((void)(near), &(struct reading){})
#define CAN_READ(near) ((void)(near), true)
#endif

/*
 * What every walk reads. Where a word is read for less than a block is, of a block those that are wanted: its place for `bytes`, or 0,
 * and the word at an offset from there. What was taken so counts if it holds afterwards.
 */
#ifndef READ_NEAR
#define READ_NEAR(near, to, from) ((void)(near), READ_USER(to, sizeof(*(to)), from))
#define WORDS_NEAR(near, from, bytes) ((void)(near), (void)(from), (void)(bytes), 0ull)
#define WORD_OF(at, offset) ((void)(at), (void)(offset), 0ull)
#define WORDS_HOLD(near) ((void)(near), false)
#endif
/* A function that the verifier looks into by itself, and not for each way there is to it. */
#ifndef VERIFIED_ONCE
#define VERIFIED_ONCE static __always_inline
#endif

enum {
	KEY_LIMIT = 1024,    /* PTHREAD_KEYS_MAX of glibc */
	KEYS_OF_BLOCK = 32,  /* PTHREAD_KEY_2NDLEVEL_SIZE of glibc, nptl/descr.h */
	STATIC_BLOCK_LIMIT = 1 << 24, /* what the static variables of a thread take; more is not believed */
	MODULE_LIMIT = 1 << 16, /* modules with variables of threads; more are not believed */
};

#define TLS_DTV_UNALLOCATED 0xffffffffffffffffull /* glibc, sysdeps/generic/dl-dtv.h */

/* A field's word that stands at the place. Near whatever the layout says. */
static __always_inline __u64 word_near(__u64 at, __u32 offset)
{
	return WORD_OF(at, offset & 0x78);
}

static __always_inline __u64 mix(__u64 hash, __u64 value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15ull;
	return hash ^ (hash >> 29);
}

/* The pthread key under which the interpreter keeps thread states, plus one; 1 where it needs none. 0: it has not begun to keep any. */
static __always_inline __u32 find_key(const struct rm_process *process)
{
	struct {
		__u32 initialized;
		__u32 key;
	} tss = {};
	__u64 head = 0;

	/* A read fails before the loader has relocated the interpreter. */
	if (!process->key_address)
		return 0;
	if (process->slot_kind == RM_SLOT_VARIABLE || process->slot_kind == RM_SLOT_DISTANCE)
		return !READ_USER(&head, sizeof(head), process->key_address) && head;
	if (process->slot_kind == RM_SLOT_KEY) {
		if (READ_USER(&tss.key, sizeof(tss.key), process->key_address) || tss.key >= KEY_LIMIT)
			return 0;
		return tss.key + 1;
	}
	if (READ_USER(&tss, sizeof(tss), process->key_address - sizeof(tss.initialized)) || !tss.initialized || tss.key >= KEY_LIMIT)
		return 0;
	return tss.key + 1;
}

/*
 * Where a thread has its copy of a variable that is `offset` into the block of a module: glibc's dynamic thread vector, whose address
 * follows the thread pointer (sysdeps/x86_64/nptl/tls.h, tcbhead_t; elf/dl-tls.c). Returns a stack status.
 */
static __always_inline __u32 find_in_module(__u64 module_index, __s64 offset, __u64 fsbase, __u64 *slot)
{
	struct {
		__u64 module;
		__u64 offset;
	} index = {};
	__u64 vector = 0, block = 0;

	if (READ_USER(&index, sizeof(index), module_index) || READ_USER(&vector, sizeof(vector), fsbase + sizeof(vector)))
		return RM_STACK_UNREADABLE;
	if (!index.module || index.module > MODULE_LIMIT)
		return RM_STACK_UNREADABLE;
	if (READ_USER(&block, sizeof(block), vector + 16 * index.module))
		return RM_STACK_UNREADABLE;
	if (!block || block == TLS_DTV_UNALLOCATED)
		return RM_STACK_NO_THREAD; /* the thread has not touched any variable of the module yet */
	*slot = block + index.offset + offset;
	return RM_STACK_COMPLETE;
}

/*
 * The same for a variable whose distance from the thread pointer the loader has put into a word: an entry of the global offset table, or
 * the argument of a TLS descriptor, which is the address of a tls_index where the variable is in no thread's static block (glibc,
 * sysdeps/x86_64/dl-tlsdesc.S, tlsdesc_dynamic_arg). Static blocks stand below the thread pointer. Returns a stack status.
 */
static __always_inline __u32 find_by_distance(__u64 word, __s64 offset, __u64 fsbase, __u64 *slot)
{
	__s64 distance = 0;

	if (READ_USER(&distance, sizeof(distance), word))
		return RM_STACK_UNREADABLE;
	if (distance > 0)
		return find_in_module(distance, offset, fsbase, slot);
	if (!distance || distance < -STATIC_BLOCK_LIMIT)
		return RM_STACK_UNREADABLE;
	*slot = fsbase + distance + offset;
	return RM_STACK_COMPLETE;
}

/*
 * Where the thread with thread pointer `fsbase` keeps its PyThreadState (Python/pystate.c, gilstate): under a pthread key, or in a
 * variable of its own, where it stays while the GIL is released. The place is the thread's for life: callers keep it. Returns a
 * stack status.
 */
static __always_inline __u32 find_slot(struct rm_process *process, __u64 fsbase, __u64 *slot)
{
	__u64 block = 0;
	__u32 key;

	*slot = 0;
	if (!process->key)
		process->key = find_key(process);
	if (!process->key)
		return RM_STACK_START_UP;
	if (process->slot_kind == RM_SLOT_VARIABLE) {
		if (process->slot_module)
			return find_in_module(process->slot_module, process->slot_offset, fsbase, slot);
		*slot = fsbase + process->slot_offset;
		return RM_STACK_COMPLETE;
	}
	if (process->slot_kind == RM_SLOT_DISTANCE)
		return find_by_distance(process->slot_module, process->slot_offset, fsbase, slot);
	key = process->key - 1;
	if (process->specific_kind == RM_SPECIFIC_MUSL) {
		if (READ_USER(&block, sizeof(block), fsbase + process->specific_offset))
			return RM_STACK_UNREADABLE;
		*slot = block + 8 * key;
		return block ? RM_STACK_COMPLETE : RM_STACK_NO_THREAD;
	}
	if (READ_USER(&block, sizeof(block), fsbase + process->specific_offset + 8 * (key / KEYS_OF_BLOCK)))
		return RM_STACK_UNREADABLE;
	if (!block)
		return RM_STACK_NO_THREAD;
	*slot = block + 16 * (key % KEYS_OF_BLOCK) + 8;
	return RM_STACK_COMPLETE;
}

/* The PyThreadState in a slot. Returns a stack status. */
static __always_inline __u32 read_thread_state(struct near *near, __u64 slot, __u64 *thread_state)
{
	*thread_state = 0;
	if (READ_NEAR(near, thread_state, slot))
		return RM_STACK_UNREADABLE;
	return *thread_state ? RM_STACK_COMPLETE : RM_STACK_NO_THREAD;
}

/* The innermost frame's address in *frame. Returns a stack status. */
static __always_inline __u32 innermost_frame(const struct rm_layout *layout, struct near *near, __u64 thread_state, __u64 *frame)
{
	__u64 at = 0;

	*frame = 0;
	if (READ_NEAR(near, &at, thread_state + layout->thread_head))
		return RM_STACK_UNREADABLE;
	if (layout->thread_head_hop != RM_ABSENT && at && READ_NEAR(near, &at, at + layout->thread_head_hop))
		return RM_STACK_UNREADABLE;
	*frame = at;
	return at ? RM_STACK_COMPLETE : RM_STACK_NO_THREAD;
}

/* Is there one interpreter alone, that of this thread state? The list has the newest first. */
static __always_inline bool is_only_interpreter(const struct rm_process *process, __u64 thread_state)
{
	__u64 newest = 0, interpreter = 0, before = 1;

	return !READ_USER(&newest, sizeof(newest), process->interpreters_address) &&
	       !READ_USER(&interpreter, sizeof(interpreter), thread_state + process->layout.thread_interpreter) &&
	       newest && newest == interpreter && !READ_USER(&before, sizeof(before), interpreter + process->layout.interpreter_next) && !before;
}

/* Was this thread state made by the thread that made the other, which is the one that runs? `known`: it was the last time that it held the
 * GIL, as it does. */
static __always_inline bool is_of_thread(const struct rm_layout *layout, __u64 own, __u64 thread_state, bool known)
{
	__u64 thread = 0, other = 0;

	if (READ_USER(&thread, sizeof(thread), own + layout->thread_thread_id) || !thread)
		return false;
	thread_state += layout->thread_thread_id;
	return !(known ? READ_USER(&other, sizeof(other), thread_state) : READ_OTHERS(&other, sizeof(other), thread_state)) && other == thread;
}

/* Has this thread state a frame? */
static __always_inline bool has_frame(const struct rm_layout *layout, __u64 thread_state)
{
	__u64 at = 0;

	if (READ_OTHERS(&at, sizeof(at), thread_state + layout->thread_head))
		return false;
	if (layout->thread_head_hop != RM_ABSENT && at && READ_OTHERS(&at, sizeof(at), at + layout->thread_head_hop))
		return false;
	return at;
}

/* What running_state says where another thread state holds the GIL, or none. A function of its own: it is seldom so. */
VERIFIED_ONCE __u64 other_state(const struct rm_process *process, struct near *near, __u64 own, __u64 holder, __u64 *other)
{
	const struct rm_layout *layout;
	__u64 frame;

	if (!process || !CAN_READ(near) || !other || is_only_interpreter(process, own))
		return own;
	layout = &process->layout;
	if (holder && is_of_thread(layout, own, holder, holder == *other)) {
		*other = holder;
		return innermost_frame(layout, near, holder, &frame) == RM_STACK_COMPLETE ? holder : own;
	}
	return *other && is_of_thread(layout, own, *other, false) && has_frame(layout, *other) ? *other : own;
}

/*
 * The thread state whose code the thread executes, of which the slot has `own`. Up to 3.11 the slot keeps the first that the thread had,
 * that of the interpreter it began in, while it executes code of another (PyThreadState_Swap in Python/pystate.c sets
 * gilstate.tstate_current alone). What holds the GIL is then the other one, if this thread made it; without a frame its interpreter is
 * being made or ended, by the frame that the slot leads to. When the thread has let go of the GIL, nothing tells which of the two did so:
 * the other is kept in `other` and taken for as long as it has frames, which it has not between one call into its interpreter and the
 * next, nor when it is given back. One that another thread made, as _xxsubinterpreters takes where an interpreter is entered by another
 * thread than has made it, cannot be told from that thread's own work: the thread then is where it entered. From 3.12 on the slot is right.
 */
static __always_inline __u64 running_state(const struct rm_process *process, struct near *near, __u64 own, __u64 *other)
{
	__u64 holder = 0;

	if (!process->holder_address || READ_NEAR(near, &holder, process->holder_address))
		return own;
	if (holder != own)
		return other_state(process, near, own, holder, other);
	*other = 0;
	return own;
}

/* Two code objects at one address differ in this: their version where Python counts them, and where their line table and their names
 * stand (code.replace() gives new names to an old table). */
static __always_inline __u32 fingerprint_of(const struct rm_layout *layout, const struct code_words *code)
{
	__u32 table = code->line_table >> 4;
	__u32 filename = code->filename >> 4;
	__u32 name = code->name >> 4;
	__u32 version = layout->code_version != RM_ABSENT ? half_of(code->version, layout->code_version) : 0;

	return (table ^ filename * 0x85ebca6bu ^ name * 0xc2b2ae35u ^ version * 0x9e3779b1u ^
		half_of(code->first_line, layout->code_first_line) << 20) | 1;
}

/*
 * Where the bytecode begins that a frame executes: in the code object, or a copy of it that the thread has for itself. 0: it cannot be
 * read.
 */
static __always_inline __u64 bytecode_of(const struct rm_layout *layout, const struct frame_words *frame, __u64 code)
{
	__u64 copies = 0, start = 0;

	if (layout->code_thread_bytecode == RM_ABSENT)
		return code + layout->code_bytecode;
	if (READ_USER(&copies, sizeof(copies), code + layout->code_thread_bytecode) ||
	    READ_USER(&start, sizeof(start), copies + layout->thread_bytecode_entries +
					     8 * (__u64)half_of(frame->bytecode_index, layout->frame_bytecode_index)))
		return 0;
	return start;
}

static __always_inline __s32 position_of(const struct rm_layout *layout, const struct frame_words *frame, __u64 bytecode)
{
	__s64 distance;

	if (layout->position_kind == RM_POSITION_BYTES)
		return half_of(frame->position, layout->frame_position);
	if (layout->position_kind == RM_POSITION_UNITS) {
		__s32 unit = half_of(frame->position, layout->frame_position);
		return unit < 0 ? -1 : unit * 2;
	}
	distance = frame->position - bytecode;
	return distance < 0 || distance > (1 << 28) ? -1 : (__s32)distance;
}

/* Does the thread run code of the JIT? It does not keep the position of its innermost frame up to date at every instruction. */
static __always_inline bool is_jitted(const struct rm_layout *layout, __u64 thread_state)
{
	__u64 executor = 0;

	return layout->thread_executor != RM_ABSENT &&
	       !READ_USER(&executor, sizeof(executor), thread_state + layout->thread_executor) && executor;
}

/* Is this frame one that the interpreter pushed for itself? */
static __always_inline bool is_shim(const struct rm_layout *layout, const struct frame_words *frame)
{
	return layout->frame_owner != RM_ABSENT && layout->owner_skip != RM_ABSENT &&
	       (byte_of(frame->owner, layout->frame_owner) & 0x7f) >= layout->owner_skip;
}

/* Does the interpreter of this thread state collect garbage? Which one that is: 0 where all do at one time. */
static __always_inline bool is_collecting(const struct rm_process *process, struct near *near, __u64 thread_state, __u64 *interpreter)
{
	const struct rm_layout *layout = &process->layout;
	__u64 at = process->collecting_address;
	__u32 collecting = 0;

	*interpreter = 0;
	if (layout->interpreter_collecting != RM_ABSENT) {
		if (READ_NEAR(near, interpreter, thread_state + layout->thread_interpreter) || !*interpreter)
			return false;
		at = *interpreter + layout->interpreter_collecting;
	}
	return at && !READ_NEAR(near, &collecting, at) && collecting;
}

/* Is this thread state the only one of its interpreter? */
static __always_inline bool is_alone(const struct rm_layout *layout, __u64 thread_state)
{
	__u64 interpreter = 0, first = 0, next = 1;

	return !READ_USER(&interpreter, sizeof(interpreter), thread_state + layout->thread_interpreter) && interpreter &&
	       !READ_USER(&first, sizeof(first), interpreter + layout->interpreter_threads_head) && first == thread_state &&
	       !READ_USER(&next, sizeof(next), thread_state + layout->thread_next) && !next;
}

/* Does this thread state hold the GIL, as that of the collector does? */
static __always_inline bool holds_gil(const struct rm_process *process, __u64 thread_state)
{
	const struct rm_layout *layout = &process->layout;
	__u64 holder = 0;
	__u32 attached = 0;

	if (process->holder_address)
		return !READ_USER(&holder, sizeof(holder), process->holder_address) && holder == thread_state;
	return layout->thread_attached != RM_ABSENT &&
	       !READ_USER(&attached, sizeof(attached), thread_state + layout->thread_attached) &&
	       (attached & layout->attached_mask) == layout->attached_value;
}

/* What a thread was doing when a collection of garbage was met in it. */
struct collection {
	__u64 stack; /* a hash; 0: that stack has moved on */
	__u32 depth; /* its frames; 0: no collection runs */
	__u32 pad;
};

/*
 * Is this event the garbage collector's own? No word of the interpreter's tells which thread collects, and in which frame it was begun.
 * The thread in which the collection is met first is taken to be its, if it has the GIL: others run only while a finalizer, or what is
 * released (a mapping), has let go of that. Without a GIL others run beside a collection: there it is known where there is no other. The
 * collector releases and asks for nothing, and its frame stands still meanwhile: what it calls, finalizers and callbacks, runs in deeper
 * frames, and is theirs. Where one of those releases first, the collector is known when the stack is less deep again. A stack that moves
 * on is not the one. `stack` is a hash of `depth` frames.
 */
static __always_inline bool is_collectors(struct rm_process *process, struct near *near, struct collection *met, __u64 thread_state, __u64 stack, __u32 depth,
					  bool releases)
{
	__u64 interpreter;
	bool known;

	if (!is_collecting(process, near, thread_state, &interpreter)) {
		met->depth = 0;
		if (process->collector && process->collected == interpreter)
			process->collector = 0;
		return false;
	}
	/* Interpreters with a GIL of their own may collect beside each other: the last that was met is known. */
	known = process->collector && process->collected == interpreter;
	if (known ? process->collector != thread_state : !holds_gil(process, thread_state) && !is_alone(&process->layout, thread_state))
		return false;
	process->collector = thread_state;
	process->collected = interpreter;
	if (!releases)
		return false;
	if (!met->depth || depth < met->depth) {
		met->depth = depth;
		met->stack = stack;
		return true;
	}
	if (depth == met->depth && stack != met->stack)
		met->stack = 0;
	return depth == met->depth && met->stack;
}

/* Reads what is wanted of a frame, by one call. 0: it is read. */
VERIFIED_ONCE int copy_frame(const struct rm_layout *layout, struct near *near, struct frame_words *frame, __u64 from)
{
	union fields *fields;
	__u32 bytes;

	if (!layout || !CAN_READ(near) || !frame)
		return 1;
	fields = &READING_OF(near)->fields;
	bytes = layout->frame_bytes;
	if (bytes > RM_FRAME_READ)
		bytes = RM_FRAME_READ;
	if (READ_USER(fields, bytes, from + layout->frame_base))
		return 1;
	frame->back = field64(fields, layout->frame_back);
	frame->code = field64(fields, layout->frame_code);
	frame->position = field64(fields, layout->frame_position);
	frame->owner = field64(fields, layout->frame_owner);
	frame->bytecode_index = field64(fields, layout->frame_bytecode_index);
	return 0;
}

/* And of a code object, to tell it from another. */
VERIFIED_ONCE int copy_code(const struct rm_layout *layout, struct near *near, struct code_words *code, __u64 from)
{
	union fields *fields;

	if (!layout || !CAN_READ(near) || !code)
		return 1;
	fields = &READING_OF(near)->fields;
	if (READ_USER(fields, RM_CODE_READ, from + layout->code_base))
		return 1;
	code->line_table = field64(fields, layout->code_line_table);
	code->filename = field64(fields, layout->code_filename);
	code->name = field64(fields, layout->code_name);
	code->first_line = field64(fields, layout->code_first_line);
	code->version = field64(fields, layout->code_version);
	return 0;
}

/* Where single words are had for less, by these. False: it cannot be read. */
static __always_inline bool read_frame(const struct rm_layout *layout, struct near *near, struct frame_words *frame, __u64 from)
{
	__u64 at = WORDS_NEAR(near, from + layout->frame_base, layout->frame_bytes);

	if (at) {
		frame->back = word_near(at, layout->frame_back);
		frame->code = word_near(at, layout->frame_code);
		frame->position = word_near(at, layout->frame_position);
		frame->owner = word_near(at, layout->frame_owner);
		frame->bytecode_index = word_near(at, layout->frame_bytecode_index);
		if (WORDS_HOLD(near))
			return true;
	}
	return !copy_frame(layout, near, frame, from);
}

static __always_inline bool read_code(const struct rm_layout *layout, struct near *near, struct code_words *code, __u64 from)
{
	__u64 at = WORDS_NEAR(near, from + layout->code_base, RM_CODE_READ);

	if (at) {
		code->line_table = word_near(at, layout->code_line_table);
		code->filename = word_near(at, layout->code_filename);
		code->name = word_near(at, layout->code_name);
		code->first_line = word_near(at, layout->code_first_line);
		code->version = word_near(at, layout->code_version);
		if (WORDS_HOLD(near))
			return true;
	}
	return !copy_code(layout, near, code, from);
}

/* Reads the frame at `from`. 0: it is read. */
VERIFIED_ONCE int read_frame_and_code(const struct rm_layout *layout, struct near *near, struct frame_read *read, __u64 from)
{
	if (!layout || !read || !read_frame(layout, near, &read->frame, from))
		return 1;
	read->address = read->frame.code & ~(__u64)layout->frame_code_tags;
	read->has_code = read_code(layout, near, &read->code, read->address);
	return 0;
}

/* A walk under way. */
struct walk {
	const struct rm_process *process;
	struct near *near;
	struct rm_stack_event *stack;
	__u64 frame;
	__u64 hash;
	__u32 used;
	__u32 status;
};

/* One frame. Returns 1 to end the walk. */
static long walk_step(__u32 index, struct walk *walk)
{
	const struct rm_layout *layout = &walk->process->layout;
	struct rm_frame *out = &walk->stack->frames[walk->used & (RM_MAX_FRAMES - 1)];
	struct frame_read *read = &READING_OF(walk->near)->read;
	__u64 bytecode;

	(void)index;
	if (read_frame_and_code(layout, walk->near, read, walk->frame)) {
		walk->status = RM_STACK_UNREADABLE;
		return 1;
	}
	if (!is_shim(layout, &read->frame)) {
		bytecode = bytecode_of(layout, &read->frame, read->address);
		if (!bytecode) {
			walk->status = RM_STACK_UNREADABLE;
			return 1;
		}
		out->code = read->address;
		out->fingerprint = read->has_code ? fingerprint_of(layout, &read->code) : 0; /* 0: not readable now */
		out->position = position_of(layout, &read->frame, bytecode);
		walk->hash = mix(walk->hash, read->address);
		walk->hash = mix(walk->hash, (__u64)out->fingerprint << 32 | (__u32)out->position);
		walk->used++;
	}
	walk->frame = read->frame.back;
	return !walk->frame;
}

/* How the loop is made: bpf_loop (Linux 5.17) lets the verifier see the step once; the host just loops. */
#ifndef WALK_LOOP
#define WALK_LOOP(steps, step, context) bpf_loop(steps, step, context, 0)
#endif

/* Walks the frames of `thread_state` into stack->frames, innermost first, and hashes them into stack->stack. */
static __always_inline __u32 walk_frames(const struct rm_process *process, struct near *near, __u64 thread_state, struct rm_stack_event *stack)
{
	struct walk walk = {
		.process = process,
		.near = near,
		.stack = stack,
		.hash = mix(0x726d70726f66ull, process->id),
	};

	walk.status = innermost_frame(&process->layout, near, thread_state, &walk.frame);
	if (walk.status == RM_STACK_COMPLETE)
		WALK_LOOP(RM_MAX_FRAMES, walk_step, &walk);
	if (walk.status == RM_STACK_COMPLETE && walk.frame)
		walk.status = RM_STACK_TRUNCATED;
	if (walk.status == RM_STACK_COMPLETE && !walk.used)
		walk.status = RM_STACK_NO_THREAD;
	stack->frame_count = walk.used;
	stack->status = walk.status;
	stack->approximate = walk.used && is_jitted(&process->layout, thread_state);
	walk.hash = mix(walk.hash, (__u64)stack->approximate << 32 | walk.status);
	stack->stack = walk.hash ? walk.hash : 1;
	return walk.status;
}

#endif

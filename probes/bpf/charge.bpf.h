/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* From an event to sums: whose stack, and how many bytes in which direction. */
#ifndef CHARGE_BPF_H
#define CHARGE_BPF_H

/* The PyThreadState whose code the running thread executes. Returns a stack status. */
static __always_inline __u32 find_thread_state(struct rm_process *process, struct thread *thread, struct task_struct *task,
						__u64 *state)
{
	__u64 fsbase = thread_pointer_of(task);
	__u32 status;

	*state = 0;
	begin_near(&thread->near, task);
	/* Later blocks of keys are of the heap, and gone before the thread is: looked for each time. */
	if (!thread->slot || thread->slot_of != fsbase || process->key > KEYS_OF_BLOCK) {
		status = find_slot(process, fsbase, &thread->slot);
		thread->slot_of = fsbase;
		if (status != RM_STACK_COMPLETE)
			return status;
	}
	status = read_thread_state(&thread->near, thread->slot, state);
	if (status == RM_STACK_COMPLETE)
		*state = running_state(process, &thread->near, *state, &thread->other);
	return status;
}

/* The registers with which the thread came into the kernel; nothing where nobody asks for them. */
static __always_inline struct native user_registers(const struct rm_process *process)
{
	struct native native = {};
	struct pt_regs *regs;

	if (has(process, RM_NATIVE)) {
		regs = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
		native.instruction = PT_REGS_IP_CORE(regs);
		native.stack_pointer = PT_REGS_SP_CORE(regs);
		native.frame_pointer = PT_REGS_FP_CORE(regs);
	}
	return native;
}

/*
 * Calls from different native functions are different stacks. How deep the thread's own stack is tells more of them apart, those that
 * come through a wrapper of the allocator; counted from the thread pointer it is the same in all threads of a kind.
 */
static __always_inline void mix_native(struct thread *thread, __u64 fsbase)
{
	__u64 hash = mix(thread->stack.stack, thread->native.instruction);

	hash = mix(hash, fsbase - thread->native.stack_pointer);
	thread->stack.stack = hash ? hash : 1;
}

/* What is done, and where the preloaded library has found it out, by whom. */
enum deed { DEED_TAKES, DEED_RELEASES, DEED_OF_LINE, DEED_OF_COLLECTOR };

/* What the garbage collector does is a stack of its own. A global function, as walk is. */
__noinline int tell_collector(struct rm_process *process, struct thread *thread, enum deed deed)
{
	struct rm_stack_event *stack;

	if (!process || !thread)
		return 0;
	stack = &thread->stack;
	stack->collector = deed == DEED_OF_COLLECTOR;
	if (deed == DEED_TAKES || deed == DEED_RELEASES)
		stack->collector = stack->status == RM_STACK_COMPLETE &&
				   is_collectors(process, &thread->near, &thread->collection, stack->thread_state, stack->stack, stack->frame_count,
						 deed == DEED_RELEASES);
	if (stack->collector)
		stack->stack = mix(stack->stack, 0x67617262616765ull);
	return 0;
}

/*
 * Walks the running thread's stack into thread->stack. `native`: by whom memory is asked for, where that is done. A global function:
 * the verifier looks into it once in a program, whatever is known where it is called.
 */
__noinline int walk(struct rm_process *process, struct thread *thread, const struct native *native, enum deed deed)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	__u64 state = 0, fsbase = thread_pointer_of(task);
	__u32 status = RM_STACK_NO_THREAD;

	if (!process || !thread)
		return 0;
	thread->filling.end = 0;
	if (process->flags & RM_PYTHON)
		status = find_thread_state(process, thread, task, &state);
	thread->stack.thread_state = state;
	thread->stack.fsbase = fsbase;
	if (status == RM_STACK_COMPLETE) {
		status = walk_frames(process, &thread->near, state, &thread->stack);
	} else {
		thread->stack.frame_count = 0;
		thread->stack.approximate = 0;
		thread->stack.status = status;
		thread->stack.stack = mix(mix(0x726d70726f66ull, process->id), status);
	}
	if (thread->stack.approximate)
		count(RM_COUNT_APPROXIMATE);
	tell_collector(process, thread, deed);
	thread->stack.thread_start = 0;
	if (status == RM_STACK_NO_THREAD && process->start_offset &&
	    !READ_USER(&thread->stack.thread_start, sizeof(thread->stack.thread_start), fsbase + process->start_offset))
		thread->stack.stack = mix(thread->stack.stack, thread->stack.thread_start);
	thread->native.instruction = 0;
	if (native && has(process, RM_NATIVE) && native->instruction) {
		thread->native = *native;
		mix_native(thread, fsbase);
	}
	if (status == RM_STACK_TRUNCATED)
		count(RM_COUNT_STACK_TRUNCATED);
	else if (status == RM_STACK_UNREADABLE)
		count(RM_COUNT_STACK_UNREADABLE);
	return 0;
}

static __always_inline void siteless_bytes(__u32 direction, __u64 bytes)
{
	__u64 *value = bpf_map_lookup_elem(&siteless, &direction);
	if (value)
		__sync_fetch_and_add(value, bytes);
}

/* A function of its own for its stack, which is not on that of all who look for a site. */
__noinline int make_site(struct thread *thread, __u32 process)
{
	struct rm_site_key key = { .process = process };
	struct rm_site fresh = {};

	if (!thread)
		return 0;
	key.stack = thread->stack.stack;
	fresh.status = thread->stack.status;
	bpf_map_update_elem(&sites, &key, &fresh, BPF_NOEXIST);
	return 0;
}

/* The site of thread->stack, made and announced at first sight. NULL: full, and counted. */
static __always_inline struct rm_site *site_of(struct rm_process *process, struct thread *thread)
{
	struct rm_site_key key = { .stack = thread->stack.stack, .process = process->id };
	struct rm_site *site = bpf_map_lookup_elem(&sites, &key);

	if (!site) {
		make_site(thread, process->id);
		site = bpf_map_lookup_elem(&sites, &key);
		if (!site) {
			count(RM_COUNT_SITES_FULL);
			return 0;
		}
	}
	if (!(site->announced & RM_ANNOUNCED_STACK) && announce_stack(process, thread)) {
		site->announced |= RM_ANNOUNCED_STACK;
		if (thread->stack.thread_start < process->text_start || thread->stack.thread_start >= process->text_end)
			process->native_threads |= thread->stack.thread_start != 0;
	}
	if (has(process, RM_NATIVE) && thread->native.instruction && !(site->announced & RM_ANNOUNCED_NATIVE) && announce_native(process, thread))
		site->announced |= RM_ANNOUNCED_NATIVE;
	site->last_event = next_order(process);
	site->resident_bytes = resident_bytes(process);
	return site;
}

/* Whom a function of the preloaded library returns to, by its frame: the caller's frame pointer, then the return address. */
static __always_inline struct native caller_of_frame(const struct rm_process *process, __u64 frame)
{
	struct native native = { .stack_pointer = frame + 16, .returns = 1 };
	__u64 words[2] = {};

	if (has(process, RM_NATIVE) && !bpf_probe_read_user(words, sizeof(words), (void *)frame)) {
		native.frame_pointer = words[0];
		native.instruction = words[1];
	}
	return native;
}

/* The tally met a stack: whose its site is. Told again now and then, should the announcement not have reached the buffer. */
__noinline int tally_stack(struct rm_process *process, struct thread *thread, __u64 site, __u64 frame, __u64 collector)
{
	struct rm_tally_key key = { .site = site };
	struct native native = {};
	__u64 stack;

	if (!process || !thread || site >= RM_TALLY_SITES)
		return 0;
	key.process = process->id;
	if (frame)
		native = caller_of_frame(process, frame);
	walk(process, thread, &native, collector ? DEED_OF_COLLECTOR : DEED_OF_LINE);
	site_of(process, thread);
	stack = thread->stack.stack; /* Linux 6.1 takes no value that is an argument's */
	if (bpf_map_update_elem(&tally_stacks, &key, &stack, BPF_ANY))
		count(RM_COUNT_TALLY_STACKS_FULL);
	return 0;
}

/* An active frame by its place. Masked where the verifier sees it, whatever the compiler has worked out before. */
static __always_inline struct active *active_at(struct thread *thread, __u32 index)
{
	barrier_var(index);
	index &= RM_MAX_ACTIVE - 1;
	return &thread->active[index];
}

/* The thread's net, whoever counts it. */
static __always_inline __s64 net_of(const struct thread *thread)
{
	return thread->net + thread->tally_net;
}

/* The thread's net was `net`: the highest point of the line that runs in its innermost marked frame may move. */
static __always_inline void raise_top(struct thread *thread, __s64 net)
{
	__u32 used = thread->active_count;

	if (used && used <= RM_MAX_ACTIVE) {
		struct active *top = active_at(thread, used - 1);
		if (net > top->highest)
			top->highest = net;
	}
}

/*
 * Brings up to date what the tally counts of the thread. Its highest point since the line began stands on what the kernel side had
 * counted then: when it is no higher than at the last look, it may be from before that and says nothing new.
 */
static __always_inline void settle(struct rm_process *process, struct thread *thread)
{
	struct rm_tally_thread now;

	if (!read_tally_thread(process, &now))
		return;
	if (now.highest > thread->tally_highest)
		raise_top(thread, thread->net + now.highest);
	thread->tally_highest = now.highest;
	thread->tally_net = now.net;
	raise_top(thread, net_of(thread));
}

/* The thread took (or gave back) bytes that the kernel side counts. */
static __always_inline void add_net(struct rm_process *process, struct thread *thread, __s64 bytes)
{
	settle(process, thread);
	thread->net += bytes;
	raise_top(thread, net_of(thread));
}

/* Charges allocated bytes to the stack of the last walk. */
static __always_inline void charge_allocation(struct rm_process *process, struct thread *thread, __u64 bytes, __u64 blocks_)
{
	struct rm_site *site = site_of(process, thread);

	if (!site) {
		siteless_bytes(0, bytes);
		return;
	}
	__sync_fetch_and_add(&site->allocated_bytes, bytes);
	__sync_fetch_and_add(&site->allocations, blocks_);
}

static __always_inline void owner_lost(struct rm_process *process, __u64 stack, __u64 bytes)
{
	struct rm_site_key key = { .stack = stack, .process = process->id };
	struct rm_site *owner = bpf_map_lookup_elem(&sites, &key);

	if (owner)
		__sync_fetch_and_add(&owner->dead_bytes, bytes);
}

/* Charges released bytes to the stack of the last walk. */
static __always_inline struct rm_site *charge_release(struct rm_process *process, struct thread *thread, __u64 bytes, __u64 blocks_)
{
	struct rm_site *site = site_of(process, thread);

	if (!site) {
		siteless_bytes(1, bytes);
		return 0;
	}
	__sync_fetch_and_add(&site->released_bytes, bytes);
	__sync_fetch_and_add(&site->releases, blocks_);
	return site;
}

/* A block is released: to the stack of the last walk, and from what its owner has alive. */
static __always_inline void charge_block(struct rm_process *process, struct thread *thread, const struct block *block)
{
	struct rm_site *site = charge_release(process, thread, block->bytes, 1);

	if (site && block->stack == thread->stack.stack)
		__sync_fetch_and_add(&site->dead_bytes, block->bytes);
	else
		owner_lost(process, block->stack, block->bytes);
	add_net(process, thread, -(__s64)block->bytes);
}

/* Records a block of thread->stack's site. An entry already there belonged to a block whose release was missed. */
static __always_inline void remember_block(struct rm_process *process, struct thread *thread, __u64 address, __u64 bytes)
{
	struct block_key key = { .address = address, .process = process->id };
	struct block value = { .bytes = bytes, .stack = thread->stack.stack };

	if (!bpf_map_update_elem(&blocks, &key, &value, BPF_NOEXIST))
		return;
	if (bpf_map_lookup_elem(&blocks, &key)) {
		count(RM_COUNT_BLOCK_REPLACED);
		bpf_map_update_elem(&blocks, &key, &value, BPF_ANY);
		return;
	}
	count(RM_COUNT_BLOCKS_FULL);
}

/* Takes a block out of the table. False: it was not there. */
static __always_inline bool forget_block(struct rm_process *process, __u64 address, struct block *value)
{
	struct block_key key = { .address = address, .process = process->id };
	struct block *found = bpf_map_lookup_elem(&blocks, &key);

	if (!found)
		return false;
	*value = *found;
	return !bpf_map_delete_elem(&blocks, &key);
}

#endif

/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * What an event is made of, each piece by itself and many times over: for `cargo xtask cost`, which runs these programs once each in a
 * process that it has put into the map of processes. They are the functions of the probes themselves. No session loads them.
 */
#ifndef PIECES_BPF_H
#define PIECES_BPF_H

struct piece {
	struct rm_process *process;
	struct thread *thread;
};

static long piece_step_loop(__u32 step, struct piece *piece)
{
	(void)step, (void)piece;
	return 0;
}

static long piece_step_process(__u32 step, struct piece *piece)
{
	(void)step, (void)piece;
	return !current_process();
}

static long piece_step_thread(__u32 step, struct piece *piece)
{
	(void)step, (void)piece;
	return !current_thread();
}

static long piece_step_site(__u32 step, struct piece *piece)
{
	(void)step;
	charge_allocation(piece->process, piece->thread, 1, 1);
	return 0;
}

static long piece_step_block(__u32 step, struct piece *piece)
{
	struct block block = {};

	remember_block(piece->process, piece->thread, RM_PAGE + step * 64ull, 64);
	return !forget_block(piece->process, RM_PAGE + step * 64ull, &block);
}

static long piece_step_count(__u32 step, struct piece *piece)
{
	(void)step, (void)piece;
	count(RM_COUNT_EVENTS);
	return 0;
}

/* The program's result: nanoseconds of all times. 0: it could not run. */
#define PIECE(name)                                                                      \
	SEC("raw_tp")                                                                    \
	int piece_##name(void *ctx)                                                      \
	{                                                                                \
		struct piece piece = { current_process(), current_thread() };            \
		__u64 begin;                                                             \
                                                                                         \
		(void)ctx;                                                               \
		if (!piece.process || !piece.thread)                                     \
			return 0;                                                        \
		piece.thread->stack.stack = 1;                                           \
		site_of(piece.process, piece.thread);                                    \
		begin = bpf_ktime_get_ns();                                              \
		if (bpf_loop(RM_PIECE_TIMES, piece_step_##name, &piece, 0) != RM_PIECE_TIMES)  \
			return 0;                                                        \
		return bpf_ktime_get_ns() - begin;                                       \
	}

PIECE(loop)
PIECE(process)
PIECE(thread)
PIECE(site)
PIECE(block)
PIECE(count)

#endif

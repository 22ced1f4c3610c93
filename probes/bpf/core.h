/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * All that the probes know of the kernel: the fields they read, relocated by CO-RE when the object is loaded, and the few
 * constants of its user API. Stands in for vmlinux.h, which would be 130,000 lines for these.
 */
#ifndef CORE_H
#define CORE_H
#define __VMLINUX_H__ /* tells bpf_tracing.h to use the kernel's names of registers */

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef _Bool bool;
enum { false = 0, true = 1 };

/* include/uapi/linux/bpf.h */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_F_NO_PREALLOC = 1,
	BPF_LOCAL_STORAGE_GET_F_CREATE = 1,
	BPF_RB_NO_WAKEUP = 1,
	BPF_RB_FORCE_WAKEUP = 2,
	BPF_RB_AVAIL_DATA = 0,
};

/* include/uapi/asm-generic/mman-common.h, mman.h */
enum {
	RM_PROT_NONE = 0,
	RM_PROT_READ_WRITE = 3,
	RM_PROT_EXEC = 4,
	RM_MAP_ANONYMOUS = 0x20,
	RM_MAP_PRIVATE_ANONYMOUS = 0x22,
	RM_MAP_STACK = 0x20000,
	RM_MADV_DONTNEED = 4,
};

enum { RM_SIGCHLD = 17 }; /* include/uapi/asm-generic/signal.h */

/* System call numbers: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h */
#if defined(__TARGET_ARCH_x86)
enum { SYSCALL_MMAP = 9, SYSCALL_MUNMAP = 11, SYSCALL_BRK = 12, SYSCALL_MREMAP = 25, SYSCALL_MADVISE = 28 };
#else
enum { SYSCALL_MMAP = 222, SYSCALL_MUNMAP = 215, SYSCALL_BRK = 214, SYSCALL_MREMAP = 216, SYSCALL_MADVISE = 233 };
#endif

enum { PF_EXITING = 0x4 }; /* include/linux/sched.h */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
struct thread_struct {
	unsigned long fsbase;
};
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
	__u64 regs[31], sp, pc, pstate;
};
struct pt_regs {
	struct user_pt_regs user_regs;
	__s32 syscallno;
};
struct thread_struct {
	struct {
		unsigned long tp_value;
	} uw;
};
#endif

struct percpu_counter {
	__s64 count;
	__s32 *counters; /* one for every CPU, at this address plus the CPU's offset */
};

struct super_block {
	__u32 s_dev;
};

struct inode {
	unsigned long i_ino;
	__u64 i_size;
	__u32 i_generation;
	struct super_block *i_sb;
};

struct file {
	struct inode *f_inode;
};

typedef struct {
	int counter;
} atomic_t;

struct mm_struct {
	atomic_t mm_users;
	struct file *exe_file;
	unsigned long brk, arg_start, arg_end;
	void *pgd;
	struct percpu_counter rss_stat[4]; /* NR_MM_COUNTERS; percpu since 6.2 */
};

struct sigaction {
	void *sa_handler;
};

struct k_sigaction {
	struct sigaction sa;
};

struct sighand_struct {
	struct k_sigaction action[64];
};

struct signal_struct {
	atomic_t live; /* threads that have not begun to end */
	int group_exit_code;
};

typedef struct {
	unsigned long sig[1];
} sigset_t;

struct task_struct {
	unsigned int flags;
	int tgid;
	int exit_code;
	struct mm_struct *mm;
	struct signal_struct *signal;
	struct sighand_struct *sighand;
	sigset_t blocked;
	struct thread_struct thread;
};

#pragma clang attribute pop

#endif

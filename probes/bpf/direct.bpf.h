/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * Words of the running thread's own memory, read where the kernel has all memory mapped for itself (Documentation/arch/x86/x86_64/mm.rst,
 * "direct mapping") in place of bpf_probe_read_user, which takes 30 to 60 ns each time, whatever its size: most of what a walk took. The
 * page is looked up as the processor would. What cannot be found so (not there, of a device, across two pages) the helper reads, or fails
 * to. Nothing of it is believed before it has found words that user space knows (find_direct).
 *
 * Nothing keeps another thread of the process, or the kernel, from taking the page away between the look and the load: interrupts come, and
 * a probe may be preempted. So what led to a page is looked at again after the load (is_still_there), and where it has changed the helper
 * reads instead. A page is taken out of its table before it is anybody else's, and a table out of the one above it before it is anything
 * else (mm/memory.c, free_pte_range), so a word that another reads there would have been told by one of the two.
 */
#ifndef DIRECT_BPF_H
#define DIRECT_BPF_H

#if !defined(RM_SINGLE)
extern void *bpf_rdonly_cast(const void *object, __u32 type) __ksym __weak; /* Linux 6.2 */
#endif

#include "frame.bpf.h"

enum { NEAR_REGIONS = 8 };

/*
 * What is known of a thread's memory for as long as one walk takes: what a walk reads stands in few regions, those of one table of pages.
 */
struct near {
	__u64 base;   /* where the kernel has all memory; 0: not known */
	__u64 top;    /* its table of tables */
	__u64 levels; /* of tables */
	struct region {
		__u64 number; /* address >> REGION_BITS */
		__u64 place;  /* of the entry that leads to its table of pages, or to itself where it is one large page */
		__u64 entry;  /* what stood there */
	} regions[NEAR_REGIONS];
	/* What led to the page that was looked up last: two entries, and what stood there. */
	__u64 region_place;
	__u64 region_entry;
	__u64 page_place;
	__u64 page_entry;
	struct reading reading;
};
#define READING_OF(near) (&(near)->reading)
#define CAN_READ(near) ((near) != 0)
#define NO_REGION (~0ull)

/* The first field of these is what is read by a cast: an address that cannot be read gives 0. */
struct timespec64 {
	__s64 tv_sec;
} __attribute__((preserve_access_index));

struct refcount_struct {
	atomic_t refs;
} __attribute__((preserve_access_index));

/* index: 0. value: where the kernel has all memory. Written once, before anything is attached. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rm_direct);
} direct_map SEC(".maps");

/* Can memory of the kernel be read by its address, without a call? */
static __always_inline bool can_cast(void)
{
#if defined(RM_SINGLE)
	return false;
#else
	return bpf_ksym_exists(bpf_rdonly_cast);
#endif
}

/* A word of the kernel's memory; 0 where there is none. */
static __always_inline __u64 kernel_word(const void *at)
{
	__u64 word = 0;

#if !defined(RM_SINGLE)
	if (can_cast())
		return ((struct timespec64 *)bpf_rdonly_cast(at, bpf_core_type_id_kernel(struct timespec64)))->tv_sec;
#endif
	bpf_probe_read_kernel(&word, sizeof(word), at);
	return word;
}

static __always_inline __s32 kernel_half(const void *at)
{
	__s32 half = 0;

#if !defined(RM_SINGLE)
	if (can_cast())
		return ((struct refcount_struct *)bpf_rdonly_cast(at, bpf_core_type_id_kernel(struct refcount_struct)))->refs.counter;
#endif
	bpf_probe_read_kernel(&half, sizeof(half), at);
	return half;
}

/*
 * The address of a thread's struct mm_struct. As a number: for a pointer that is loaded from a typed one the verifier looks through all
 * types of the kernel, by name and twice, whether what it leads to may be trusted (btf_nested_type_is_trusted in kernel/bpf/btf.c), some
 * milliseconds for each such load that it comes by.
 */
static __always_inline __u64 memory_of(struct task_struct *task)
{
	return kernel_word((void *)task + bpf_core_field_offset(struct task_struct, mm));
}

#if defined(__TARGET_ARCH_x86) && !defined(RM_SINGLE)

/* An entry of a table of pages (arch/x86/include/asm/pgtable_types.h). */
enum { ENTRY_PRESENT = 1 << 0, ENTRY_USER = 1 << 2, ENTRY_LARGE = 1 << 7, ENTRY_SPECIAL = 1 << 9, TABLE_BITS = 9, PAGE_BITS = 12,
       REGION_BITS = PAGE_BITS + TABLE_BITS };
#define ENTRY_ADDRESS 0x000ffffffffff000ull

static __always_inline __u64 entry_place(__u64 table, __u64 address, __u32 shift)
{
	return table + (address >> shift & ((1 << TABLE_BITS) - 1)) * sizeof(__u64);
}

/* 0: none that the program could use. */
static __always_inline __u64 entry_at(__u64 place)
{
	__u64 entry = kernel_word((void *)place);

	return (entry & (ENTRY_PRESENT | ENTRY_USER)) == (ENTRY_PRESENT | ENTRY_USER) ? entry : 0;
}

static __always_inline __u64 entry_of(__u64 table, __u64 address, __u32 shift)
{
	return entry_at(entry_place(table, address, shift));
}

/* A walk of the running thread begins. */
static __always_inline void begin_near(struct near *near, struct task_struct *task)
{
	__u32 zero = 0, index;
	struct rm_direct *direct;

	if (!can_cast())
		return;
	direct = bpf_map_lookup_elem(&direct_map, &zero);
	near->base = direct ? direct->base : 0;
	near->levels = direct ? direct->levels : 0;
	near->top = kernel_word((void *)memory_of(task) + bpf_core_field_offset(struct mm_struct, pgd));
	for (index = 0; index < NEAR_REGIONS; index++)
		near->regions[index].number = NO_REGION;
}

/*
 * The place of the entry that leads to the region of an address. 0: it cannot be told. A global function: verified once, and called once
 * for a region of a walk.
 */
__noinline __u64 find_region(const struct near *near, __u64 address)
{
	__u64 entry, table;

	if (!near || address >> 47)
		return 0;
	table = near->top;
	if (near->levels == 5) {
		entry = entry_of(table, address, PAGE_BITS + 4 * TABLE_BITS);
		if (!entry)
			return 0;
		table = near->base + (entry & ENTRY_ADDRESS);
	}
	entry = entry_of(table, address, PAGE_BITS + 3 * TABLE_BITS);
	if (!entry)
		return 0;
	entry = entry_of(near->base + (entry & ENTRY_ADDRESS), address, PAGE_BITS + 2 * TABLE_BITS);
	if (!entry || entry & ENTRY_LARGE)
		return 0;
	return entry_place(near->base + (entry & ENTRY_ADDRESS), address, PAGE_BITS + TABLE_BITS);
}

/* Where the kernel has `bytes` of the running thread's memory. 0: it cannot be told. */
static __always_inline __u64 near_address(struct near *near, __u64 address, __u32 bytes)
{
	__u64 number = address >> REGION_BITS, place, entry;
	struct region *region;

	if (!near || !can_cast() || !near->base || address & 7 || (address & (RM_PAGE - 1)) + bytes > RM_PAGE)
		return 0;
	region = &near->regions[number & (NEAR_REGIONS - 1)];
	if (region->number != number) {
		place = find_region(near, address);
		if (!place)
			return 0;
		region->place = place;
		region->entry = entry_at(place);
		region->number = number;
	}
	entry = region->entry;
	near->region_place = near->page_place = region->place;
	near->region_entry = near->page_entry = entry;
	if (entry & ENTRY_LARGE)
		return entry & ENTRY_SPECIAL ? 0 : near->base + (entry & ENTRY_ADDRESS & ~((1ull << REGION_BITS) - 1)) +
							   (address & ((1ull << REGION_BITS) - 1));
	if (!entry)
		return 0;
	near->page_place = entry_place(near->base + (entry & ENTRY_ADDRESS), address, PAGE_BITS);
	near->page_entry = entry = entry_at(near->page_place);
	if (!entry || entry & ENTRY_SPECIAL)
		return 0;
	return near->base + (entry & ENTRY_ADDRESS) + (address & (RM_PAGE - 1));
}

/* Was what has been loaded since near_address() that page's, all the time? */
static __always_inline bool is_still_there(const struct near *near)
{
	return entry_at(near->page_place) == near->page_entry && entry_at(near->region_place) == near->region_entry;
}

/* A word of the running thread's memory. 0: it is read. */
__noinline int read_word(struct near *near, __u64 *to, __u64 from)
{
	__u64 at, word;

	if (!near || !to)
		return 1;
	at = near_address(near, from, sizeof(*to));
	if (at) {
		word = kernel_word((void *)at);
		if (is_still_there(near)) {
			*to = word;
			return 0;
		}
	}
	return bpf_probe_read_user(to, sizeof(*to), (void *)from) != 0;
}

/* Reads four or eight bytes, as the compiler knows. 0: they are read. */
#define READ_NEAR(near, to, from) read_near(near, to, sizeof(*(to)), from)
static __always_inline long read_near(struct near *near, void *to, __u32 size, __u64 from)
{
	__u64 word = 0;

	if (size == sizeof(__u64))
		return read_word(near, to, from);
	if (read_word(near, &word, from & ~4ull))
		return 1;
	*(__u32 *)to = word >> (from & 4) * 8;
	return 0;
}

/* Of a block single words are wanted. */
#define VERIFIED_ONCE __noinline
#define WORDS_NEAR(near, from, bytes) near_address(near, from, bytes)
#define WORD_OF(at, offset) kernel_word((void *)((at) + (offset)))
#define WORDS_HOLD(near) is_still_there(near)

/* index: 0. value: what is known of the memory of the process that looks. Used once, as direct_map. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct near);
} search_near SEC(".maps");

struct direct_search {
	struct rm_direct *direct;
	struct near *near;
	__u64 top; /* table of tables */
	__u64 from;
};

static __always_inline bool is_direct(const struct rm_direct *direct, struct near *near)
{
	__u32 index;
	__u64 at;

	begin_near(near, (struct task_struct *)bpf_get_current_task_btf());
	for (index = 0; index < RM_DIRECT_KNOWN; index++) {
		at = near_address(near, direct->known[index], sizeof(direct->words));
		if (!at || kernel_word((void *)at) != direct->words[0] || kernel_word((void *)(at + 8)) != direct->words[1])
			return false;
	}
	return true;
}

static long search_step(__u32 index, struct direct_search *search)
{
	struct rm_direct *direct = search->direct;
	__u64 entry;

	direct->levels = index & 1 ? 5 : 4;
	entry = entry_of(search->top, direct->known[0], PAGE_BITS + (direct->levels - 1) * TABLE_BITS);
	/* Where memory is encrypted (AMD SEV) a high bit says so; other guests of such a machine may not look where they please. */
	if (!search->direct->from && (entry & ENTRY_ADDRESS) >> 30 >= direct->gibibytes)
		return 0;
	direct->base = search->from - ((__u64)(index >> 1) << 30);
	if (is_direct(direct, search->near))
		return 1;
	direct->base = 0;
	return 0;
}

/*
 * Where is it? Where user space says, or else tried: it begins at a gibibyte (arch/x86/mm/kaslr.c), below any table of pages. The kernel's
 * own variable (page_offset_base) is a symbol that a kernel without CONFIG_KALLSYMS_ALL does not give to BPF. Either way the words that
 * user space has put into pages of its own have to be found through it.
 */
static __always_inline void find_direct(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	struct direct_search search = {};
	__u32 zero = 0;

	search.direct = bpf_map_lookup_elem(&direct_map, &zero);
	search.near = bpf_map_lookup_elem(&search_near, &zero);
	if (!can_cast() || !search.direct || !search.near)
		return;
	search.top = kernel_word((void *)memory_of(task) + bpf_core_field_offset(struct mm_struct, pgd));
	search.from = search.direct->from ? search.direct->from : search.top & ~((1ull << 30) - 1);
	bpf_loop(2 * search.direct->gibibytes, search_step, &search, 0);
}

#else

static __always_inline void begin_near(struct near *near, struct task_struct *task)
{
	(void)near, (void)task;
}

static __always_inline void find_direct(void)
{
}

#endif

#endif

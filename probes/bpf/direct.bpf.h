/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/*
 * Words of the running thread's own memory, read where the kernel has all memory mapped for itself (Documentation/arch/x86/x86_64/mm.rst,
 * "direct mapping") in place of bpf_probe_read_user, which takes some 60 ns each time, whatever its size: most of what a walk took. The
 * page is looked up as the processor would. What cannot be found so (not there, of a device, across two pages) the helper reads, or fails
 * to. Nothing of it is believed before it has found a word that user space knows (find_direct). A page that another processor takes away
 * between the look and the load is told to this one before it is used for anything else, by an interrupt, and is as it was by then.
 */
#ifndef DIRECT_BPF_H
#define DIRECT_BPF_H

#if !defined(RM_SINGLE)
extern void *bpf_rdonly_cast(const void *object, __u32 type) __ksym __weak; /* Linux 6.2 */
#endif

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
		__u64 place;  /* of its table; of the region itself, plus one, where it is one large page */
	} regions[NEAR_REGIONS];
};
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

#if defined(__TARGET_ARCH_x86) && !defined(RM_SINGLE)

/* An entry of a table of pages (arch/x86/include/asm/pgtable_types.h). */
enum { ENTRY_PRESENT = 1 << 0, ENTRY_USER = 1 << 2, ENTRY_LARGE = 1 << 7, ENTRY_SPECIAL = 1 << 9, TABLE_BITS = 9, PAGE_BITS = 12,
       REGION_BITS = PAGE_BITS + TABLE_BITS };
#define ENTRY_ADDRESS 0x000ffffffffff000ull

static __always_inline __u64 entry_of(__u64 table, __u64 address, __u32 shift)
{
	__u64 entry = kernel_word((void *)(table + (address >> shift & ((1 << TABLE_BITS) - 1)) * sizeof(entry)));

	return (entry & (ENTRY_PRESENT | ENTRY_USER)) == (ENTRY_PRESENT | ENTRY_USER) ? entry : 0;
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
	near->top = kernel_word((void *)task->mm + bpf_core_field_offset(struct mm_struct, pgd));
	for (index = 0; index < NEAR_REGIONS; index++)
		near->regions[index].number = NO_REGION;
}

/* The place of the region of an address, as struct region has it. 0: it cannot be told. A global function: verified once, seldom called. */
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
	entry = entry_of(near->base + (entry & ENTRY_ADDRESS), address, PAGE_BITS + TABLE_BITS);
	if (!entry)
		return 0;
	if (!(entry & ENTRY_LARGE))
		return near->base + (entry & ENTRY_ADDRESS);
	return entry & ENTRY_SPECIAL ? 0 : near->base + (entry & ENTRY_ADDRESS & ~((1ull << REGION_BITS) - 1)) + 1;
}

/* Where the kernel has `bytes` of the running thread's memory. 0: it cannot be told. */
static __always_inline __u64 near_address(struct near *near, __u64 address, __u32 bytes)
{
	__u64 number = address >> REGION_BITS, place, entry;
	struct region *region;

	if (!near || !can_cast() || !near->base || address & 7 || (address & (RM_PAGE - 1)) + bytes > RM_PAGE)
		return 0;
	region = &near->regions[number & (NEAR_REGIONS - 1)];
	place = region->place;
	if (region->number != number) {
		place = find_region(near, address);
		if (!place)
			return 0;
		region->place = place;
		region->number = number;
	}
	if (place & 1)
		return place - 1 + (address & ((1ull << REGION_BITS) - 1));
	entry = entry_of(place, address, PAGE_BITS);
	if (!entry || entry & ENTRY_SPECIAL)
		return 0;
	return near->base + (entry & ENTRY_ADDRESS) + (address & (RM_PAGE - 1));
}

/* A word of the running thread's memory. 0: it is read. */
__noinline int read_word(struct near *near, __u64 *to, __u64 from)
{
	__u64 at;

	if (!near || !to)
		return 1;
	at = near_address(near, from, sizeof(*to));
	if (!at)
		return bpf_probe_read_user(to, sizeof(*to), (void *)from) != 0;
	*to = kernel_word((void *)at);
	return 0;
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

struct direct_search {
	struct rm_direct *direct;
	__u64 top;
};

static __always_inline bool is_direct(const struct rm_direct *direct)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	struct near near = {};
	__u64 at;

	begin_near(&near, task);
	at = near_address(&near, direct->known, sizeof(direct->words));
	return at && kernel_word((void *)at) == direct->words[0] && kernel_word((void *)(at + 8)) == direct->words[1];
}

/* It begins at a gibibyte (arch/x86/mm/kaslr.c), below any table of pages. */
static long search_step(__u32 index, struct direct_search *search)
{
	struct rm_direct *direct = search->direct;

	direct->levels = index & 1 ? 5 : 4;
	direct->base = search->top - ((__u64)(index >> 1) << 30);
	if (is_direct(direct))
		return 1;
	direct->base = 0;
	return 0;
}

/*
 * Where is it? Tried until the words that user space has put at a known address of its own are found through it. The kernel's own variable
 * (page_offset_base) is a symbol that a kernel without CONFIG_KALLSYMS_ALL does not give to BPF.
 */
static __always_inline void find_direct(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
	struct direct_search search = {};
	__u32 zero = 0;

	search.direct = bpf_map_lookup_elem(&direct_map, &zero);
	if (!can_cast() || !search.direct || !search.direct->known)
		return;
	search.top = kernel_word((void *)task->mm + bpf_core_field_offset(struct mm_struct, pgd)) & ~((1ull << 30) - 1);
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

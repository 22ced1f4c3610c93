/* The set of code objects that give line events, of line_events.c. */
/* Open addressing, grows by doubling, never shrinks. Readers take no lock (free-threaded builds): a table is published whole, slots
 * only ever go from 0 to a code object to GONE, and old tables are left as they are (together less than the new). */
struct entry {
	void *code;
	unsigned number;       /* from 0, in the order of their first sight; a code object that comes back has another */
	unsigned short running; /* frames of it, where `once` */
	unsigned char asked;   /* by a mark of the program's own */
	unsigned char once;    /* no function: given up when no frame of it runs any more */
};
#define GONE ((void *)1)
struct table {
	unsigned long mask;
	struct entry *slots;
};
static struct entry first_slots[64];
static struct table first_table = { 63, first_slots };
static struct table *marked = &first_table;
static unsigned long used_slots, next_number;
static int marked_lock;

static void lock_marked(void)
{
	while (__atomic_exchange_n(&marked_lock, 1, __ATOMIC_ACQUIRE))
		;
}

static void unlock_marked(void)
{
	__atomic_store_n(&marked_lock, 0, __ATOMIC_RELEASE);
}

/* Its slot, or the free one where it belongs. */
static struct entry *slot_of(const struct table *table, const void *code)
{
	/* Code objects are 16-byte aligned; Fibonacci hashing spreads what is left. */
	unsigned long i = (((unsigned long)code >> 4) * 0x9e3779b97f4a7c15ul >> 32) & table->mask;
	void *seen;
	while ((seen = __atomic_load_n(&table->slots[i].code, __ATOMIC_ACQUIRE)) && seen != code)
		i = (i + 1) & table->mask;
	return &table->slots[i];
}

/* 0: it gives no line events. */
static struct entry *entry_of(const void *code)
{
	struct entry *entry = slot_of(__atomic_load_n(&marked, __ATOMIC_ACQUIRE), code);
	return entry->code ? entry : 0;
}

/* A table of twice as many slots as `size`, in memory of its own: what malloc gives would count on the line that runs. Stacks of threads
 * count on none (MAP_STACK). 0 when there is no memory. */
static struct table *new_table(unsigned long size)
{
	enum { PROT_READ_WRITE = 3, PRIVATE_ANONYMOUS_STACK = 0x20022 }; /* include/uapi/asm-generic/mman.h */
	long got = system_call(SYS_MMAP, 0, sizeof(struct table) + 2 * size * sizeof(struct entry), PROT_READ_WRITE,
			       PRIVATE_ANONYMOUS_STACK);
	if (got < 0 && got > -4096)
		return 0;
	struct table *table = (struct table *)got;
	table->mask = 2 * size - 1;
	table->slots = (struct entry *)(table + 1);
	return table;
}

/* Under the lock. 0 when there is no memory. */
static int make_room(void)
{
	struct table *old = marked;
	if (2 * (used_slots + 1) <= old->mask + 1)
		return 1;
	struct table *table = new_table(old->mask + 1);
	if (!table)
		return 0;
	used_slots = 0;
	for (unsigned long i = 0; i <= old->mask; i++)
		if (old->slots[i].code && old->slots[i].code != GONE) {
			*slot_of(table, old->slots[i].code) = old->slots[i];
			used_slots++;
		}
	__atomic_store_n(&marked, table, __ATOMIC_RELEASE);
	return 1;
}

/* 1: it is new, or the program had not asked for it and does now; 0: nothing changed; -1: there is no memory. */
static int add_mark(PyObject *code, int asked, int once, unsigned *number, int *is_new)
{
	int added = -1;
	lock_marked();
	struct entry *entry = entry_of(code);
	*is_new = !entry;
	if (entry) {
		added = asked && !entry->asked;
		entry->asked |= asked;
		entry->once &= !asked;
		*number = entry->number;
	} else if (make_room()) {
		entry = slot_of(marked, code);
		entry->number = *number = (unsigned)next_number++;
		entry->asked = (unsigned char)asked;
		entry->once = (unsigned char)once;
		__atomic_store_n(&entry->code, (void *)code, __ATOMIC_RELEASE);
		used_slots++;
		added = 1;
	}
	unlock_marked();
	return added;
}

/* A frame of what runs but once begins (1) or has ended (-1). True when the reference that the set has to it is to be given back. */
static int count_frame(const void *code, int change)
{
	int gone = 0;
	lock_marked();
	struct entry *entry = entry_of(code);
	if (entry && entry->once && entry->running + change >= 0) {
		entry->running += change;
		gone = change < 0 && !entry->running;
		if (gone)
			__atomic_store_n(&entry->code, GONE, __ATOMIC_RELEASE);
	}
	unlock_marked();
	return gone;
}

/* The same, if it does run but once. */
static void count_frame_of(const struct entry *entry, PyObject *code, int change)
{
	if (__builtin_expect(entry->once, 0) && count_frame(code, change))
		Py_DecRef(code);
}

/* The set of marked code objects of line_events.c. */
/* Open addressing, grows by doubling, never shrinks. Readers take no lock (free-threaded builds): a table is published
 * whole, slots only ever go from 0 to a code object, and old tables are left as they are (together less than the new). */
struct table {
	unsigned long mask;
	void **slots;
};
static void *first_slots[64];
static struct table first_table = { 63, first_slots };
static struct table *marked = &first_table;
static unsigned long marked_count;
static int marked_lock;

static unsigned long slot_of(const struct table *table, const void *code)
{
	/* Code objects are 16-byte aligned; Fibonacci hashing spreads what is left. */
	unsigned long i = (((unsigned long)code >> 4) * 0x9e3779b97f4a7c15ul >> 32) & table->mask;
	void *seen;
	while ((seen = __atomic_load_n(&table->slots[i], __ATOMIC_RELAXED)) && seen != code)
		i = (i + 1) & table->mask;
	return i;
}

static int is_marked(const void *code)
{
	const struct table *table = __atomic_load_n(&marked, __ATOMIC_ACQUIRE);
	return table->slots[slot_of(table, code)] == code;
}

/* Under marked_lock. 0 when there is no memory. */
static int make_room(void)
{
	struct table *old = marked;
	if (2 * (marked_count + 1) <= old->mask + 1)
		return 1;
	unsigned long size = 2 * (old->mask + 1);
	struct table *table = PyMem_RawCalloc(1, sizeof(struct table) + size * sizeof(void *));
	if (!table)
		return 0;
	table->mask = size - 1;
	table->slots = (void **)(table + 1);
	for (unsigned long i = 0; i <= old->mask; i++)
		if (old->slots[i])
			table->slots[slot_of(table, old->slots[i])] = old->slots[i];
	__atomic_store_n(&marked, table, __ATOMIC_RELEASE);
	return 1;
}

static int add_mark(PyObject *code, unsigned long *order)
{
	int added = -1;
	while (__atomic_exchange_n(&marked_lock, 1, __ATOMIC_ACQUIRE))
		;
	if (is_marked(code)) {
		added = 0;
	} else if (make_room()) {
		__atomic_store_n(&marked->slots[slot_of(marked, code)], (void *)code, __ATOMIC_RELEASE);
		*order = marked_count++;
		added = 1;
	}
	__atomic_store_n(&marked_lock, 0, __ATOMIC_RELEASE);
	return added;
}

/* The test build of line_events.c (-DRMPROF_TEST) keeps what rmprof_site_line was given; events(None) takes it out. */
extern PyObject *PyList_New(Py_ssize_t);
extern int PyList_Append(PyObject *, PyObject *);
extern PyObject *Py_BuildValue(const char *, ...);
extern unsigned long PyThread_get_thread_ident(void);
static struct { void *code; long line, what; unsigned long thread; } test_events[1 << 20];
static unsigned test_count;
static void site_line(void *code, long line, long what)
{
	if (!code)
		return;
	unsigned i = __atomic_fetch_add(&test_count, 1, __ATOMIC_RELAXED);
	if (i < sizeof test_events / sizeof *test_events) {
		Py_IncRef(code); /* it may be gone when it is asked for */
		test_events[i].code = code;
		test_events[i].line = line;
		test_events[i].what = what & 1;
		test_events[i].thread = PyThread_get_thread_ident();
	}
	rmprof_site_line(code, line, what);
}
static PyObject *test_take(UNUSED PyObject *self, UNUSED PyObject *arg)
{
	unsigned count = test_count;
	PyObject *list = PyList_New(0);
	for (unsigned i = 0; list && i < count; i++) {
		PyObject *item = Py_BuildValue("Ollk", test_events[i].code, test_events[i].line, test_events[i].what,
					       test_events[i].thread);
		if (!item || PyList_Append(list, item))
			return 0;
		Py_DecRef(item);
		Py_DecRef(test_events[i].code);
	}
	test_count = 0;
	return list;
}

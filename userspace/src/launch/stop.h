/*
 * The limit of resident memory (--pdb-mmem): how the thread that passed it comes to the debugger at the next line.
 *
 * The kernel side (limit.bpf.h) sends that very thread a signal, in user mode or at the end of a system call. The handler runs in the
 * middle of anything: it makes system calls, and stores.
 *
 * 3.6-3.11 It switches tracing on for the thread, by the stores of set_trace(): the next line event is ours, exactly.
 * 3.12+    Tracing is more than a few stores. The handler queues a pending call, as Py_AddPendingCall does, whose lock it may not wait
 *          for: the interpreter makes it at its next look at the eval breaker (calls, loops, entries of functions), and it calls
 *          PyEval_SetTrace. In a marked function line events are on already: the next one stops.
 */

/* 3.12+, in bytes, from debugger.py. Of the thread state: trace_func, and eval_breaker from 3.13 on. Of the interpreter state: the rest
 * (Include/internal/pycore_ceval_state.h, struct _pending_calls). */
static struct {
	Py_ssize_t trace_func, breaker;
	Py_ssize_t lock;  /* 3.12: the address of a lock; later a byte, PyMutex */
	Py_ssize_t count; /* 3.12: calls_to_do; later npending */
	Py_ssize_t calls, call_bytes, call_count, first, next;
} pending;

static struct {
	void *thread; /* thread state of the thread that is to stop; 0: none */
	long bytes;   /* resident when the limit was passed */
	int early;    /* passed before any line of the program */
	int signal, proved;
	void *interpreter;
	PyObject *at_line;
} stop;

/* What a handler returns to: rt_sigreturn. */
#if defined(__x86_64__)
__attribute__((naked, noinline, used)) static void handler_return(void) { __asm__("mov $15, %eax\n\tsyscall"); }
#else
__attribute__((naked, noinline, used)) static void handler_return(void) { __asm__("mov x8, #139\n\tsvc 0"); }
#endif

/* Include/uapi/asm/signal.h: struct sigaction of the system call. */
struct action {
	void *handler;
	unsigned long flags;
	void *restorer;
	unsigned long mask;
};
enum { SA_ONSTACK = 0x08000000, SA_RESTART = 0x10000000, SA_RESTORER = 0x04000000, AT_FDCWD = -100, O_CLOEXEC = 02000000 };

/* The number in kB after the last character of `name` in a file of /proc; -1: it is not there. */
static long proc_number(const char *path, const char *name)
{
	char text[512];
	long file = system_call(SYS_OPENAT, AT_FDCWD, (long)path, O_CLOEXEC, 0);
	if (file < 0)
		return -1;
	long got = system_call(SYS_READ, file, (long)text, sizeof(text) - 1, 0);
	system_call(SYS_CLOSE, file, 0, 0, 0);
	text[got > 0 ? got : 0] = 0;
	for (const char *line = text; *line; line++) {
		long i = 0, number = 0;
		while (name[i] && line[i] == name[i])
			i++;
		if (name[i])
			continue;
		while (line[i] == ' ')
			i++;
		for (; line[i] >= '0' && line[i] <= '9'; i++)
			number = 10 * number + line[i] - '0';
		return number;
	}
	return -1;
}

/* Exactly, where the kernel counts it (4.14): what it gives quickly may lack some pages of each CPU. */
static long resident_now(void)
{
	long kilobytes = proc_number("/proc/self/smaps_rollup", "\nRss:");
	return kilobytes < 0 ? 4096 * proc_number("/proc/self/statm", " ") : 1024 * kilobytes;
}

/* ---- the handler --------------------------------------------------------------------------------------------------- */

static int stop_trace(PyObject *self, PyObject *frame, int what, PyObject *arg);
static int arm(void *thread);

static void refuse(long reason)
{
	__atomic_store_n(&stop.thread, (void *)0, __ATOMIC_RELEASE);
	rmprof_site_limit(RM_LIMIT_REFUSED, reason, 0);
}

static Py_tracefunc traced_by(void *thread)
{
	return FIELD(Py_tracefunc, thread, layout_proved ? at.trace_func : pending.trace_func);
}

static void put_call(char *interpreter, void *thread)
{
	int next = FIELD(int, interpreter, pending.next);
	char *call = interpreter + pending.calls + next * pending.call_bytes;
	FIELD(void *, call, 0) = (void *)arm;
	FIELD(void *, call, 8) = thread;
	if (pending.call_bytes > 16)
		FIELD(int, call, 16) = 0;
	FIELD(int, interpreter, pending.next) = (next + 1) % (int)pending.call_count;
}

/* 3.12: the queue and the eval breaker are the interpreter's. */
static int queue_3_12(char *interpreter)
{
	void *lock = FIELD(void *, interpreter, pending.lock);
	int next = FIELD(int, interpreter, pending.next), first = FIELD(int, interpreter, pending.first);
	if (!PyThread_acquire_lock(lock, 0))
		return 0;
	int room = (next + 1) % (int)pending.call_count != first;
	if (room) {
		put_call(interpreter, stop.thread);
		__atomic_store_n(&FIELD(int, interpreter, pending.count), 1, __ATOMIC_SEQ_CST);
		__atomic_store_n(&FIELD(int, interpreter, pending.breaker), 1, __ATOMIC_SEQ_CST);
	}
	PyThread_release_lock(lock);
	return room;
}

/* 3.13+: the eval breaker is the thread's. PyMutex: 0 free, 1 locked, 3 locked and waited for. */
static int queue_3_13(char *interpreter, void *thread)
{
	unsigned char *mutex = &FIELD(unsigned char, interpreter, pending.lock), open = 0, locked = 1;
	if (!__atomic_compare_exchange_n(mutex, &open, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return 0;
	int room = FIELD(int, interpreter, pending.count) < (int)pending.call_count;
	if (room) {
		put_call(interpreter, stop.thread);
		__atomic_add_fetch(&FIELD(int, interpreter, pending.count), 1, __ATOMIC_SEQ_CST);
		__atomic_or_fetch(&FIELD(unsigned long, thread, pending.breaker), 1ul << 2, __ATOMIC_SEQ_CST); /* _PY_CALLS_TO_DO_BIT */
	}
	if (!__atomic_compare_exchange_n(mutex, &locked, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		PyMutex_Unlock(mutex);
	return room;
}

static int queue(void *thread)
{
	int tries = 1000; /* another thread holds the lock for some instructions; this one may have been interrupted in them */
	while (tries--)
		if (pending.call_bytes == 16 ? queue_3_12(stop.interpreter) : queue_3_13(stop.interpreter, thread))
			return 1;
	return 0;
}

static void *interpreter_of(void *thread)
{
	return PyThreadState_GetInterpreter ? PyThreadState_GetInterpreter(thread) : FIELD(void *, thread, at.interp);
}

static void passed(UNUSED int signal)
{
	void *thread = PyGILState_GetThisThreadState();
	if (!thread || interpreter_of(thread) != stop.interpreter)
		return refuse(RM_REFUSED_UNKNOWN); /* a sub-interpreter */
	Py_tracefunc current = traced_by(thread);
	if (current && current != trace)
		return refuse(RM_REFUSED_TRACED);
	stop.bytes = resident_now();
	__atomic_store_n(&stop.thread, thread, __ATOMIC_RELEASE);
	if (layout_proved)
		set_trace(thread, stop_trace);
	else if (!queue(thread))
		refuse(RM_REFUSED_BUSY);
}

/* ---- with the GIL -------------------------------------------------------------------------------------------------- */

/* The pending call. Any thread of the interpreter may be the one that makes it. */
static int arm(void *thread)
{
	stop.proved = 1;
	if (!thread || stop.thread != thread || traced_by(thread))
		return 0;
	if (thread == PyGILState_GetThisThreadState())
		PyEval_SetTrace(stop_trace, 0);
	else if (_PyEval_SetTrace)
		_PyEval_SetTrace(thread, stop_trace, 0);
	else
		queue(thread);
	return 0;
}

/* Is it this thread that is to stop, and nobody else's turn to do it? */
static int stop_is_due(void)
{
	void *thread = __atomic_load_n(&stop.thread, __ATOMIC_ACQUIRE);
	return thread && thread == PyGILState_GetThisThreadState() && traced_by(thread) != stop_trace;
}

static int stop_here(void)
{
	PyObject *result = PyObject_CallFunction(stop.at_line, "li", stop.bytes, stop.early);
	if (!result)
		return -1;
	Py_DecRef(result);
	return 0;
}

static int stop_trace(PyObject *self, PyObject *frame, int what, PyObject *arg)
{
	if (layout_proved)
		trace(self, frame, what, arg);
	return what == TRACE_LINE && stop.thread == PyGILState_GetThisThreadState() ? stop_here() : 0;
}

/* disarm(keep): no more tracing of ours in this thread; keep: but stop at the next line of a marked function. */
static PyObject *disarm(UNUSED PyObject *self, PyObject *keep)
{
	void *thread = stop.thread;
	if (thread && traced_by(thread) == stop_trace) {
		if (layout_proved)
			set_trace(thread, 0);
		else
			PyEval_SetTrace(0, 0);
	}
	if (!PyLong_AsLong(keep)) {
		stop.thread = 0;
		stop.early = 0;
	}
	return none();
}

/* limit(call, reason) */
static PyObject *limit(UNUSED PyObject *self, PyObject *args)
{
	long call, reason;
	if (!PyArg_ParseTuple(args, "ll", &call, &reason))
		return 0;
	if (call == RM_LIMIT_REFUSED)
		refuse(reason);
	else
		rmprof_site_limit(call, reason, 0);
	return none();
}

/* resume(code): the debugger has gone. In a marked frame line events come again. */
static PyObject *resume(UNUSED PyObject *self, PyObject *code)
{
	void *thread = PyGILState_GetThisThreadState();
	if (layout_proved && entry_of(code) && !trace_func(thread))
		set_trace(thread, trace);
	rmprof_site_limit(RM_LIMIT_CONTINUED, 0, 0);
	return none();
}

/* line(code, line, what): a line event that the debugger's trace function had instead of ours (up to 3.11). */
static PyObject *line(UNUSED PyObject *self, PyObject *args)
{
	PyObject *code;
	long number, what;
	if (!PyArg_ParseTuple(args, "Oll", &code, &number, &what))
		return 0;
	if (layout_proved)
		line_event(entry_of(code), code, number, what);
	return none();
}

static PyObject *resident(UNUSED PyObject *self, UNUSED PyObject *args)
{
	return PyLong_FromLong(resident_now());
}

/* variable(): the address of a variable of the interpreter's own (3.6). */
static PyObject *variable(UNUSED PyObject *self, UNUSED PyObject *args)
{
	return PyLong_FromLong((long)&_PyThreadState_Current);
}

/* 3.6: the counter of traced threads is a static variable. It is one that PyEval_SetTrace refers to, between `from` and `to`, and the only
 * one of those that counts up and down with it. */
static void find_possible_3_6(char *from, char *to)
{
	const unsigned char *code = (const unsigned char *)PyEval_SetTrace;
	int *found[64], before[64], during[64], count = 0, matches = 0;
	for (int i = 0; i < 256 && count < 60; i++)
		for (int immediate = 0; immediate <= 4; immediate += immediate ? 3 : 1) {
			char *place = (char *)code + i + 4 + immediate + *(const int *)(code + i);
			if (place >= from && place + 4 <= to && !((unsigned long)place & 3))
				found[count++] = (int *)place;
		}
	for (int i = 0; i < count; i++)
		before[i] = *found[i];
	PyEval_SetTrace(stop_trace, 0);
	for (int i = 0; i < count; i++)
		during[i] = *found[i];
	PyEval_SetTrace(0, 0);
	int *match = 0;
	for (int i = 0; i < count; i++)
		if (during[i] == before[i] + 1 && *found[i] == before[i] && match != found[i]) {
			match = found[i];
			matches++;
		}
	possible_3_6 = matches == 1 ? match : 0;
}

/* Are the fields of `pending` what they should be in an interpreter that has just begun? */
static int pending_is_plausible(char *interpreter)
{
	int first = FIELD(int, interpreter, pending.first), next = FIELD(int, interpreter, pending.next);
	if (first < 0 || next < 0 || first >= pending.call_count || next >= pending.call_count || traced_by(PyThreadState_Get()))
		return 0;
	if (pending.call_bytes == 16)
		return FIELD(void *, interpreter, pending.lock) && PyThread_acquire_lock && PyThread_release_lock &&
		       !(FIELD(int, interpreter, pending.count) & ~1);
	/* max follows npending (pycore_runtime_init.h: MAXPENDINGCALLS). */
	return PyMutex_Unlock && !FIELD(unsigned char, interpreter, pending.lock) &&
	       FIELD(int, interpreter, pending.count + 4) == (int)pending.call_count;
}

/* prepare(at_line, layout or (from, to) of 3.6's data or ()) -> True; the caller then lets the interpreter look at its eval breaker. */
static PyObject *prepare(UNUSED PyObject *self, PyObject *args)
{
	PyObject *at_line;
	Py_ssize_t from = 0, to = 0;
	if (!PyArg_ParseTuple(args, "Onnnnnnnnn", &at_line, &pending.trace_func, &pending.breaker, &pending.lock, &pending.count,
			      &pending.calls, &pending.call_bytes, &pending.call_count, &pending.first, &pending.next))
		return 0;
	if (stop.at_line) /* another interpreter of this process */
		return PyBool_FromLong(0);
	stop.interpreter = interpreter_of(PyThreadState_Get());
	if (layout_proved) {
		from = pending.first;
		to = pending.next;
		if (at.possible_base == 3 && from)
			find_possible_3_6((char *)from, (char *)to);
		stop.proved = at.possible_base != 3 || possible_3_6;
	} else if (!pending_is_plausible(stop.interpreter) || !queue(PyThreadState_Get())) {
		return PyBool_FromLong(0);
	}
	Py_IncRef(at_line);
	stop.at_line = at_line;
	return PyBool_FromLong(1);
}

/* ready(): from here on the thread that passes the limit is told. */
static PyObject *ready(UNUSED PyObject *self, UNUSED PyObject *args)
{
	if (!stop.proved) {
		refuse(RM_REFUSED_UNKNOWN);
		return none();
	}
	struct action mine = { (void *)passed, SA_ONSTACK | SA_RESTART | SA_RESTORER, (void *)handler_return, ~0ul }, was;
	for (stop.signal = 64; stop.signal > 48; stop.signal--) {
		was.handler = 0;
		if (!system_call(SYS_SIGACTION, stop.signal, 0, (long)&was, 8) && !was.handler &&
		    !system_call(SYS_SIGACTION, stop.signal, (long)&mine, 0, 8)) {
			stop.early = 1;
			rmprof_site_limit(RM_LIMIT_READY, stop.signal, (void *)passed);
			stop.early = stop.thread != 0;
			return none();
		}
	}
	refuse(RM_REFUSED_SIGNAL);
	return none();
}

#define STOP_METHODS \
	{ "prepare", prepare, METH_VARARGS, 0 }, { "ready", ready, METH_NOARGS, 0 }, { "resident", resident, METH_NOARGS, 0 }, \
	{ "disarm", disarm, METH_O, 0 }, { "limit", limit, METH_VARARGS, 0 }, { "resume", resume, METH_O, 0 }, \
	{ "line", line, METH_VARARGS, 0 }, { "variable", variable, METH_NOARGS, 0 },

/*
 * The native half of the launch shim: `_rmprof_launch.so`.
 *
 * Marks code objects and turns the interpreter's line events of marked code into calls of three *sites*: exported
 * functions that do nothing, where the kernel side's uprobes sit: a nop of one byte, which every kernel emulates, and a
 * ret. Not a nop of five bytes: under a probe Linux 6.18 makes that a call of a trampoline, which a fork copies without
 * the trampoline; a child forked while we are killed then jumps into nothing.
 * Without a tracer a site costs a call and a return.
 *
 * Freestanding on purpose: no libc, no Python.h. One file loads in CPython 3.6 to 3.15, release, debug, trace-refs and
 * free-threaded builds, on glibc and musl. Everything used is declared below by hand and is either in the stable ABI or
 * in the dynamic symbol table of every build looked at; what is missing in some versions is weak.
 *
 * 3.12+    sys.monitoring calls on_line / on_end / on_unwind (marks.py registers them).
 * 3.6-3.11 a frame evaluation function (PEP 523) switches C-level tracing on for marked frames and off around unmarked
 *          callees, so that only marked frames pay. The switch is a few stores into the thread state instead of
 *          PyEval_SetTrace, which would raise an audit event (`sys.settrace`) a frame and may be vetoed by a hook.
 *          The offsets come from marks.py and are proved against PyEval_SetTrace once, before anything relies on them.
 */

typedef long Py_ssize_t; /* LP64: x86_64 and aarch64 */
typedef struct object PyObject;
typedef PyObject *(*PyCFunction)(PyObject *, PyObject *);
typedef int (*Py_tracefunc)(PyObject *, PyObject *, int, PyObject *);
typedef PyObject *(*frame_eval_3_8)(void *frame, int throwing);
typedef PyObject *(*frame_eval_3_9)(void *tstate, void *frame, int throwing);

struct PyMethodDef {
	const char *ml_name;
	PyCFunction ml_meth;
	int ml_flags;
	const char *ml_doc;
};
enum { METH_VARARGS = 1, METH_NOARGS = 4, METH_O = 8, METH_FASTCALL = 0x80 };

struct PyModuleDef_Slot {
	int slot;
	void *value;
};
enum { Py_mod_multiple_interpreters = 3, Py_mod_gil = 4 };

/* Include/cpython/pystate.h: PyTrace_LINE, PyTrace_RETURN (also when a frame yields and when an exception leaves it). */
enum { TRACE_LINE = 2, TRACE_RETURN = 3 };

extern PyObject _Py_NoneStruct, PyCode_Type, PyType_Type, *PyExc_RuntimeError, *PyExc_TypeError;
extern PyObject *PyModuleDef_Init(void *);
extern PyObject *PyObject_Type(PyObject *);
extern PyObject *PyObject_GetAttr(PyObject *, PyObject *);
extern PyObject *PyUnicode_InternFromString(const char *);
extern PyObject *PyBool_FromLong(long);
extern long PyLong_AsLong(PyObject *);
extern void PyErr_SetString(PyObject *, const char *);
extern void PyErr_Clear(void);
extern PyObject *PyErr_Occurred(void);
extern void Py_IncRef(PyObject *), Py_DecRef(PyObject *);
extern PyObject *PyObject_CallFunction(PyObject *, const char *, ...);
extern PyObject *PyLong_FromLong(long);
extern void *PyGILState_GetThisThreadState(void);
extern int PyArg_ParseTuple(PyObject *, const char *, ...);
extern const char *Py_GetVersion(void);
extern void *PyMem_RawCalloc(unsigned long, unsigned long);
extern int PyCode_Addr2Line(PyObject *, int);
extern int PyFrame_GetLineNumber(PyObject *);
extern void PyEval_SetTrace(Py_tracefunc, PyObject *);
extern void *PyThreadState_Get(void);
extern PyObject *_PyEval_EvalFrameDefault();
#define WEAK __attribute__((weak))
extern WEAK char _PyRuntime[];
extern WEAK PyObject *PyFrame_GetCode(PyObject *);                              /* 3.9+ */
extern WEAK void *_PyThreadState_Current;                                       /* 3.6 */
extern WEAK void *PyThreadState_GetInterpreter(void *);                         /* 3.9+ */
extern WEAK int _PyEval_SetTrace(void *, Py_tracefunc, PyObject *);             /* 3.9 to 3.12 */
extern WEAK int PyThread_acquire_lock(void *, int);
extern WEAK void PyThread_release_lock(void *);
extern WEAK void PyMutex_Unlock(void *);                                        /* 3.13+ */
extern WEAK void *_PyThreadState_UncheckedGet(void);                            /* to 3.12 */
extern WEAK frame_eval_3_9 _PyInterpreterState_GetEvalFrameFunc(void *);        /* 3.9+ */
extern WEAK void _PyInterpreterState_SetEvalFrameFunc(void *, frame_eval_3_9);  /* 3.9+ */
/* Of the preloaded library (probes/preload/tally.c), where that is. */
extern WEAK void rmprof_tally_line(long told);

/* ---- the sites ------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#define SITE_BODY "nop\n\tret"
#elif defined(__aarch64__)
#define SITE_BODY "nop\n\tret"
#else
#error "x86_64 and aarch64 are known"
#endif
#define UNUSED __attribute__((unused))
#define SITE __attribute__((naked, noinline, used, aligned(16), visibility("default")))

/* what: bit 0: 0 a line begins; 1 the frame's current line ended and no other began in this frame (return, yield, unwind); above it
 * the number of the code object. line: of what = 1, the line that ended. Without a code object: memory is our own work from here on
 * (line = 0) to there (1). */
SITE void rmprof_site_line(UNUSED void *code, UNUSED long line, UNUSED long what) { __asm__(SITE_BODY); }
/* Of each code object that gives line events, before it can. number_and_asked: bit 0 whether the program marked it, which comes a second time
 * where it has run before; above it the number, which counts from 0. RM_MAX_MARKS: there are no numbers any more. `instructions`,
 * `handlers`: co_code and co_exceptiontable, or NULL. */
SITE void rmprof_site_mark(UNUSED void *code, UNUSED long number_and_asked, UNUSED void *instructions, UNUSED void *handlers)
{
	__asm__(SITE_BODY);
}
/* Once, when the shim has loaded: marks are available in this process. */
SITE void rmprof_site_hello(UNUSED long hexversion, UNUSED long pid) { __asm__(SITE_BODY); }
/* Of the limit of resident memory: enum rm_limit_call. */
SITE void rmprof_site_limit(UNUSED long call, UNUSED long value, UNUSED void *handler) { __asm__(SITE_BODY); }

#ifdef RMPROF_TEST
#include "check/recorder.h"
#else
static inline void site_line(void *code, long line, long what)
{
	if (rmprof_tally_line)
		rmprof_tally_line(0);
	rmprof_site_line(code, line, what);
	if (rmprof_tally_line)
		rmprof_tally_line(1);
}
#endif

static PyObject *none(void)
{
	Py_IncRef(&_Py_NoneStruct);
	return &_Py_NoneStruct;
}

#define FIELD(type, base, offset) (*(type *)((char *)(base) + (offset)))

#include "../../../probes/bpf/rmprof.h" /* RM_MAX_MARKS, enum rm_limit_call, enum rm_limit_refusal */
#include "system_call.h"
#include "marked.h"

static void line_event(const struct entry *entry, void *code, long line, long what)
{
	if (entry)
		site_line(code, line, what | (long)entry->number << 1);
}

static int layout_proved, hook_installed;
static void install_hook(void);

/* Names of attributes, made once: where a code object is met, on a line of the program, nothing is to be allocated. */
static PyObject *name_of_instructions, *name_of_handlers;

static PyObject *part_of(PyObject *code, PyObject *name)
{
	PyObject *part = name ? PyObject_GetAttr(code, name) : 0;
	if (name && !part)
		PyErr_Clear();
	return part;
}

/* The bytecode goes along as the compiler made it: what stands in the code object changes while it runs (3.11+). From 3.11 on it is made
 * when it is asked for, and kept: 3.12 and later ask in a frame of ours, 3.11 where the program marks, and not elsewhere. */
static void tell_mark(PyObject *code, unsigned long number, int asked)
{
	PyObject *handlers = part_of(code, name_of_handlers);
	PyObject *instructions = handlers && layout_proved && !asked ? 0 : part_of(code, name_of_instructions);
	rmprof_site_mark(code, (long)(number << 1 | (asked != 0)), instructions, handlers);
	if (instructions)
		Py_DecRef(instructions);
	if (handlers)
		Py_DecRef(handlers);
}

#include "every.h"

static long hello_pid;
static int stop_is_due(void), stop_here(void); /* stop.h */

/* ---- 3.12+: callbacks of sys.monitoring ------------------------------------------------------------------------- */

static PyObject *on_line(UNUSED PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	if (count == 2)
		line_event(entry_of(args[0]), args[0], PyLong_AsLong(args[1]), 0);
	return stop_is_due() && stop_here() ? 0 : none();
}

static PyObject *on_end(UNUSED PyObject *self, PyObject *const *args, Py_ssize_t count)
{
	struct entry *entry = count == 3 ? entry_of(args[0]) : 0;
	if (entry) {
		line_event(entry, args[0], PyCode_Addr2Line(args[0], (int)PyLong_AsLong(args[1])), 1);
		count_frame_of(entry, args[0], -1);
	}
	return none();
}

/* ---- 3.6-3.11: PEP 523 and C-level tracing ----------------------------------------------------------------------- */

/* Offsets in bytes, from marks.py; -1: this version has no such field. */
static struct {
	Py_ssize_t tracing;       /* PyThreadState: int, depth of running trace functions */
	Py_ssize_t profile_func;  /* PyThreadState.c_profilefunc */
	Py_ssize_t trace_func;    /* PyThreadState.c_tracefunc */
	Py_ssize_t cframe;        /* PyThreadState.cframe (3.10+), which then holds use_tracing at its start */
	Py_ssize_t use_tracing;   /* in the thread state or in *cframe */
	Py_ssize_t use_bytes;     /* width of use_tracing: 4 or 1 */
	Py_ssize_t possible_base; /* counter tracing_possible: 0 none, 1 in _PyRuntime, 2 in the interpreter state, 3 a static variable (3.6) */
	Py_ssize_t possible;
	Py_ssize_t interp;        /* PyThreadState.interp */
	Py_ssize_t eval_frame;    /* PyInterpreterState.eval_frame where there is no function to set it (to 3.8) */
	Py_ssize_t frame_code;    /* f_code of what the evaluation function is given */
	Py_ssize_t frame_line;    /* PyFrameObject.f_lineno where it is up to date in a trace function and the API is slow */
} at;
static int use_value; /* what this CPython writes into use_tracing for "on": 1 or 255 */
static int *possible_3_6; /* that of 3.6, once found (stop.h) */
static frame_eval_3_8 next_3_8 = (frame_eval_3_8)_PyEval_EvalFrameDefault;
static frame_eval_3_9 next_3_9 = (frame_eval_3_9)_PyEval_EvalFrameDefault;

static PyObject *code_of(PyObject *frame)
{
	PyObject *code;
	if (PyFrame_GetCode) {
		code = PyFrame_GetCode(frame);
		Py_DecRef(code); /* the frame holds it */
	} else {
		code = FIELD(PyObject *, frame, at.frame_code);
	}
	return code;
}

static int trace(UNUSED PyObject *self, PyObject *frame, int what, UNUSED PyObject *arg)
{
	PyObject *code;
	struct entry *entry;
	if ((what != TRACE_LINE && what != TRACE_RETURN) || !(entry = entry_of(code = code_of(frame))))
		return 0;
	int line = at.frame_line >= 0 ? FIELD(int, frame, at.frame_line) : 0;
	line_event(entry, code, line > 0 ? line : PyFrame_GetLineNumber(frame), what == TRACE_RETURN);
	return what == TRACE_LINE && stop_is_due() ? stop_here() : 0;
}

static Py_tracefunc trace_func(void *tstate)
{
	return FIELD(Py_tracefunc, tstate, at.trace_func);
}

static int use_tracing(void *tstate)
{
	void *base = at.cframe >= 0 ? FIELD(void *, tstate, at.cframe) : tstate;
	return at.use_bytes == 1 ? FIELD(unsigned char, base, at.use_tracing) : FIELD(int, base, at.use_tracing);
}

static int *tracing_possible(void *tstate)
{
	if (at.possible_base == 1)
		return &FIELD(int, _PyRuntime, at.possible);
	if (at.possible_base == 2)
		return &FIELD(int, FIELD(void *, tstate, at.interp), at.possible);
	return possible_3_6;
}

/* What PyEval_SetTrace(func, NULL) does, without its audit event; c_traceobj is NULL whenever this is called. */
static void set_trace(void *tstate, Py_tracefunc func)
{
	int *possible = tracing_possible(tstate);
	if (at.possible_base == 3 && !possible) {
		PyEval_SetTrace(func, 0); /* there are no audit events in 3.6 */
		return;
	}
	if (possible)
		__atomic_add_fetch(possible, (func != 0) - (trace_func(tstate) != 0), __ATOMIC_RELAXED);
	FIELD(Py_tracefunc, tstate, at.trace_func) = func;
	int on = func || FIELD(void *, tstate, at.profile_func) ? use_value : 0;
	void *base = at.cframe >= 0 ? FIELD(void *, tstate, at.cframe) : tstate;
	if (at.use_bytes == 1)
		FIELD(unsigned char, base, at.use_tracing) = (unsigned char)on;
	else
		FIELD(int, base, at.use_tracing) = on;
}

/* What has to be put back when the frame is left. */
enum undo { NOTHING, SWITCH_OFF, SWITCH_ON };

/* A frame of `code` is about to run: what is to be done? A trace function that is not ours (debugger, coverage) is never
 * touched: no line events then. Inside somebody's trace or profile function (tracing > 0) CPython traces nothing, nor do
 * we. */
static inline enum undo wanted(void *tstate, const struct entry *entry)
{
	Py_tracefunc current = trace_func(tstate);
	int be_on = entry != 0;
	if ((current == trace) == be_on || (current && current != trace) || FIELD(int, tstate, at.tracing))
		return NOTHING;
	return be_on ? SWITCH_OFF : SWITCH_ON;
}

static enum undo enter(void *tstate, PyObject *code)
{
	struct entry *entry = entry_of(code);
	enum undo undo = wanted(tstate, entry);
	if (entry)
		count_frame_of(entry, code, 1);
	if (undo != NOTHING)
		set_trace(tstate, undo == SWITCH_OFF ? trace : 0);
	return undo;
}

/* The program may have called sys.settrace meanwhile: then what it set stays. The code object is there as long as it is in the set. */
static void leave(void *tstate, enum undo undo, PyObject *code)
{
	Py_tracefunc current = trace_func(tstate);
	if (undo == SWITCH_OFF && current == trace)
		set_trace(tstate, 0);
	else if (undo == SWITCH_ON && !current)
		set_trace(tstate, trace);
	struct entry *entry = entry_of(code);
	if (entry)
		count_frame_of(entry, code, -1);
}

static __attribute__((noinline)) PyObject *switched_3_9(void *tstate, void *frame, int throwing)
{
	PyObject *code = FIELD(PyObject *, frame, at.frame_code);
	enum undo undo = enter(tstate, code);
	PyObject *result = next_3_9(tstate, frame, throwing);
	leave(tstate, undo, code);
	return result;
}

static __attribute__((noinline)) PyObject *switched_3_8(void *frame, int throwing)
{
	void *tstate = _PyThreadState_UncheckedGet();
	PyObject *code = FIELD(PyObject *, frame, at.frame_code);
	enum undo undo = enter(tstate, code);
	PyObject *result = next_3_8(frame, throwing);
	leave(tstate, undo, code);
	return result;
}

/* Is nothing to be done for a frame of `code`, neither before nor after it? */
static inline int runs_as_is(void *tstate, PyObject *code)
{
	const struct entry *entry = entry_at_call(code);
	return __builtin_expect(wanted(tstate, entry) == NOTHING && !(entry && entry->once), 1);
}

/* The evaluation functions. Tail calls: a frame for which nothing is to be done costs no C stack of ours. */
static PyObject *eval_3_9(void *tstate, void *frame, int throwing)
{
	if (runs_as_is(tstate, FIELD(PyObject *, frame, at.frame_code)))
		__attribute__((musttail)) return next_3_9(tstate, frame, throwing);
	__attribute__((musttail)) return switched_3_9(tstate, frame, throwing);
}

static PyObject *eval_3_8(void *frame, int throwing)
{
	void *tstate = _PyThreadState_UncheckedGet();
	if (runs_as_is(tstate, FIELD(PyObject *, frame, at.frame_code)))
		__attribute__((musttail)) return next_3_8(frame, throwing);
	__attribute__((musttail)) return switched_3_8(frame, throwing);
}

/* At the first mark of an interpreter. Another evaluation function that is already there is called in place of the
 * default; one that is put over ours later is left alone, even when it hides us. */
static void install_hook(void)
{
	void *interp = FIELD(void *, PyThreadState_Get(), at.interp);
	if (at.eval_frame >= 0) {
		frame_eval_3_8 *slot = &FIELD(frame_eval_3_8, interp, at.eval_frame);
		if (*slot == (frame_eval_3_8)_PyEval_EvalFrameDefault || !hook_installed) {
			next_3_8 = *slot;
			*slot = eval_3_8;
		}
	} else {
		frame_eval_3_9 current = _PyInterpreterState_GetEvalFrameFunc(interp);
		if (current == (frame_eval_3_9)_PyEval_EvalFrameDefault || !hook_installed) {
			next_3_9 = current;
			_PyInterpreterState_SetEvalFrameFunc(interp, eval_3_9);
		}
	}
	hook_installed = 1;
}

/* Sets a trace function the documented way and looks whether every field of `at` moved as expected, then back. */
static int prove_layout(void)
{
	void *tstate = PyThreadState_Get();
	void *interp = FIELD(void *, tstate, at.interp);
	if (trace_func(tstate) || FIELD(void *, tstate, at.profile_func) || FIELD(int, tstate, at.tracing) || use_tracing(tstate))
		return 0;
	if (at.eval_frame >= 0) {
		/* Before any other PEP 523 user can exist: the shim is loaded by site. */
		if (FIELD(void *, interp, at.eval_frame) != (void *)_PyEval_EvalFrameDefault || !_PyThreadState_UncheckedGet)
			return 0;
	} else if (!_PyInterpreterState_GetEvalFrameFunc || !_PyInterpreterState_SetEvalFrameFunc || !PyFrame_GetCode) {
		return 0;
	}
	if (at.possible_base == 1 && !_PyRuntime)
		return 0;
	int *possible = tracing_possible(tstate);
	int before = possible ? *possible : 0;
	PyEval_SetTrace(trace, 0);
	use_value = use_tracing(tstate);
	int on = trace_func(tstate) == trace && (use_value == 1 || use_value == 255) && (!possible || *possible == before + 1);
	PyEval_SetTrace(0, 0);
	return on && !trace_func(tstate) && !use_tracing(tstate) && (!possible || *possible == before) && !PyErr_Occurred();
}

#include "stop.h"

/* ---- the module --------------------------------------------------------------------------------------------------- */

/* use_layout(tuple): offsets for 3.6-3.11. RuntimeError when the interpreter is not laid out like that. */
static PyObject *use_layout(UNUSED PyObject *self, PyObject *args)
{
	if (layout_proved) /* another interpreter of this process */
		return none();
	if (!PyArg_ParseTuple(args, "nnnnnnnnnnnn", &at.tracing, &at.profile_func, &at.trace_func, &at.cframe,
			      &at.use_tracing, &at.use_bytes, &at.possible_base, &at.possible, &at.interp, &at.eval_frame,
			      &at.frame_code, &at.frame_line))
		return 0;
	if (!prove_layout()) {
		PyErr_Clear();
		PyErr_SetString(PyExc_RuntimeError, "unknown layout of the thread state");
		return 0;
	}
	layout_proved = 1;
	return none();
}

/* mark(code) -> True when it was not marked before. */
static PyObject *mark(UNUSED PyObject *self, PyObject *code)
{
	PyObject *type = PyObject_Type(code);
	Py_DecRef(type); /* the object holds it */
	if (type != &PyCode_Type) {
		PyErr_SetString(PyExc_TypeError, "not a code object");
		return 0;
	}
	int added = mark_code(code, 1);
	if (layout_proved)
		install_hook();
	return PyBool_FromLong(added);
}

static PyObject *hello(UNUSED PyObject *self, PyObject *args)
{
	long hexversion, pid;
	if (!PyArg_ParseTuple(args, "ll", &hexversion, &pid))
		return 0;
	if (hello_pid != pid) { /* else a sub-interpreter loaded the shim again */
		hello_pid = pid;
		rmprof_site_hello(hexversion, pid);
	}
	return none();
}

static struct PyMethodDef methods[] = {
	{ "use_layout", use_layout, METH_VARARGS, 0 },
	{ "mark", mark, METH_O, 0 },
	{ "hello", hello, METH_VARARGS, 0 },
	STOP_METHODS
	EVERY_METHODS
	{ "on_line", (PyCFunction)(void *)on_line, METH_FASTCALL, 0 },
	{ "on_end", (PyCFunction)(void *)on_end, METH_FASTCALL, 0 },
#ifdef RMPROF_TEST
	{ "events", test_take, METH_O, 0 },
#endif
	{ 0, 0, 0, 0 },
};

/* From 3.12 a module says that it may be loaded in interpreters with a GIL of their own, from 3.13 that it needs none;
 * older versions refuse slots they do not know. 2: Py_MOD_PER_INTERPRETER_GIL_SUPPORTED; 1: Py_MOD_GIL_NOT_USED. */
static struct PyModuleDef_Slot slots[3];

/* PyModuleDef after its object header, which is 16 bytes, or 32 in trace-refs and free-threaded builds. */
struct definition {
	void *m_init;
	Py_ssize_t m_index;
	void *m_copy;
	const char *m_name, *m_doc;
	Py_ssize_t m_size;
	struct PyMethodDef *m_methods;
	struct PyModuleDef_Slot *m_slots;
	void *m_traverse, *m_clear, *m_free;
};
static union {
	long align;
	char bytes[32 + sizeof(struct definition)];
} definition;

/* The object header of free-threaded builds up to what is set (Include/object.h; refcount.h has the values). */
struct free_threaded_head {
	unsigned long ob_tid;
	unsigned short ob_flags; /* 3.13: padding */
	unsigned char ob_mutex, ob_gc_bits;
	unsigned int ob_ref_local;
};
enum { STATICALLY_ALLOCATED = 1 << 2 };
#define IMMORTAL 0xffffffffu

__attribute__((visibility("default"))) PyObject *PyInit__rmprof_launch(void)
{
	/* `type` is its own type: that tells where ob_type is, hence how long the header is. */
	const void *const *type = (const void *const *)&PyType_Type;
	unsigned long header = type[1] == type ? 16 : type[3] == type ? 32 : 0;
	const char *version = Py_GetVersion(); /* "3.N.P ..." */
	int minor = version[2] - '0';
	if (version[3] >= '0' && version[3] <= '9')
		minor = minor * 10 + version[3] - '0';
	if (!header || version[0] != '3' || version[1] != '.' || minor < 6 || minor > 15) {
		PyErr_SetString(PyExc_RuntimeError, "unknown version of Python");
		return 0;
	}
	if (minor >= 12) {
		slots[0].slot = Py_mod_multiple_interpreters;
		slots[0].value = (void *)2;
	}
	if (minor >= 13) {
		slots[1].slot = Py_mod_gil;
		slots[1].value = (void *)1;
	}
	/* From 3.12 on an interned string is every interpreter's. */
	name_of_instructions = PyUnicode_InternFromString("co_code");
	if (minor >= 11) /* Objects/codeobject.c: there is none before */
		name_of_handlers = PyUnicode_InternFromString("co_exceptiontable");
	PyErr_Clear();
	/* As PyObject_HEAD_INIT has it: 3.15 looks at the flags (Objects/moduleobject.c, PyModuleDef_Init). With the references of a trace-refs
	 * build there are none. */
	if (header == 32 && minor >= 13) {
		struct free_threaded_head *head = (struct free_threaded_head *)definition.bytes;

		head->ob_flags = STATICALLY_ALLOCATED;
		head->ob_ref_local = IMMORTAL;
	}
	struct definition *def = (struct definition *)(definition.bytes + header);
	def->m_name = "_rmprof_launch";
	def->m_methods = methods;
	def->m_slots = slots;
	return PyModuleDef_Init(definition.bytes);
}

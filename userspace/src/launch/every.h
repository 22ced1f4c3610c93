/*
 * Every function of the user's own code gives line events (`every.py`): which code that is, of line_events.c. The report chooses among it
 * (report/select.rs); here is decided what is measured, which is never less.
 */

extern Py_ssize_t PyUnicode_GetLength(PyObject *);
extern unsigned PyUnicode_ReadChar(PyObject *, Py_ssize_t);
extern Py_ssize_t PyUnicode_Tailmatch(PyObject *, PyObject *, Py_ssize_t, Py_ssize_t, int);
extern Py_ssize_t PyTuple_Size(PyObject *);
extern PyObject *PyTuple_GetItem(PyObject *, Py_ssize_t);
extern PyObject *PyCFunction_NewEx(struct PyMethodDef *, PyObject *, PyObject *);

static struct {
	int on;
	int all;             /* files of others too */
	int command;         /* what is named <string> was given with -c */
	PyObject *directory; /* of our help: no program's */
	PyObject *globs;     /* tuple: what the names asked for begin with, and end with, and so on */
	Py_ssize_t filename_at, flags_at; /* in a code object */
} every;

/* ---- whose a file is: as report/own_file.rs ------------------------------------------------------------------------- */

/* Does `word`, which is ASCII, stand there? */
static int stands(PyObject *name, Py_ssize_t at, Py_ssize_t end, const char *word)
{
	for (; *word; word++, at++)
		if (at >= end || PyUnicode_ReadChar(name, at) != (unsigned char)*word)
			return 0;
	return 1;
}

static int is(PyObject *name, Py_ssize_t at, Py_ssize_t end, const char *word)
{
	Py_ssize_t length = 0;
	while (word[length])
		length++;
	return end - at == length && stands(name, at, end, word);
}

/* python3, python3.11, python3.13t, python311.zip */
static int is_python_folder(PyObject *name, Py_ssize_t at, Py_ssize_t end)
{
	if (!stands(name, at, end, "python3"))
		return 0;
	at += 7;
	if (end - at >= 4 && is(name, end - 4, end, ".zip"))
		end -= 4;
	while (end > at && (PyUnicode_ReadChar(name, end - 1) == 't' || PyUnicode_ReadChar(name, end - 1) == 'd'))
		end--;
	for (; at < end; at++) {
		unsigned one = PyUnicode_ReadChar(name, at);
		if (one != '.' && (one < '0' || one > '9'))
			return 0;
	}
	return 1;
}

static int is_users_file(PyObject *name, Py_ssize_t length)
{
	int in_library = 0; /* the folder before was lib or lib64 */
	if (length > 1 && PyUnicode_ReadChar(name, 0) == '<' && PyUnicode_ReadChar(name, length - 1) == '>')
		return is(name, 0, length, "<stdin>") || (every.command && is(name, 0, length, "<string>"));
	for (Py_ssize_t at = 0, end; at < length; at = end + 1) {
		for (end = at; end < length && PyUnicode_ReadChar(name, end) != '/'; end++)
			;
		if (end == at)
			continue;
		if ((in_library && is_python_folder(name, at, end)) || is(name, at, end, "site-packages") ||
		    is(name, at, end, "dist-packages"))
			return 0;
		in_library = is(name, at, end, "lib") || is(name, at, end, "lib64");
	}
	return length > 0;
}

/* Can a glob match the name, or its last part? Only its ends are looked at. */
static int can_match(PyObject *name, Py_ssize_t length)
{
	Py_ssize_t base = length, count = PyTuple_Size(every.globs);
	while (base > 0 && PyUnicode_ReadChar(name, base - 1) != '/')
		base--;
	for (Py_ssize_t i = 0; i + 1 < count; i += 2) {
		PyObject *begin = PyTuple_GetItem(every.globs, i), *end = PyTuple_GetItem(every.globs, i + 1);
		if (PyUnicode_Tailmatch(name, end, 0, length, 1) == 1 &&
		    (PyUnicode_Tailmatch(name, begin, 0, length, -1) == 1 || PyUnicode_Tailmatch(name, begin, base, length, -1) == 1))
			return 1;
	}
	return 0;
}

static int is_asked_for(PyObject *name)
{
	Py_ssize_t length = PyUnicode_GetLength(name);
	if (length < 0) {
		PyErr_Clear();
		return 0;
	}
	if (stands(name, 0, length, "<rmprof-bpf") || PyUnicode_Tailmatch(name, every.directory, 0, length, -1) == 1)
		return 0;
	return every.all || (PyTuple_Size(every.globs) ? can_match(name, length) : is_users_file(name, length));
}

/* ---- what is known of file names (3.6 to 3.11, where every call asks) ----------------------------------------------------- */

/* By the str of co_filename, which the code of a file shares. A name that stands here is kept, so that its address stays its own; of
 * what has no file each code object may have a name of its own, and none of these does. */
enum { MOST_FILES = 1 << 12 };
static struct {
	PyObject *name;
	long asked_for;
} files[MOST_FILES];
static int files_count;

static int file_is_asked_for(PyObject *name)
{
	unsigned long i = ((unsigned long)name >> 4) * 0x9e3779b97f4a7c15ul >> 52;
	for (; files[i].name; i = (i + 1) % MOST_FILES)
		if (files[i].name == name)
			return (int)files[i].asked_for;
	int found = is_asked_for(name);
	if (files_count < MOST_FILES * 3 / 4 && PyUnicode_GetLength(name) > 0 && PyUnicode_ReadChar(name, 0) != '<') {
		files_count++;
		files[i].asked_for = found;
		files[i].name = name;
		Py_IncRef(name);
	}
	return found;
}

/* ---- code that is met ----------------------------------------------------------------------------------------------------- */

static int is_code_of_every(PyObject *code)
{
	PyObject *name = FIELD(PyObject *, code, every.filename_at);
	return layout_proved ? file_is_asked_for(name) : is_asked_for(name);
}

/* Is it new, or newly asked for by the program? The reference that is taken is never given back, but of code that runs once, so that the
 * memory of a marked code object stays what it is. */
static int mark_code(PyObject *code, int asked)
{
	enum { CO_OPTIMIZED = 1 }; /* Include/code.h: of functions */
	int once = !asked && !(FIELD(int, code, every.flags_at) & CO_OPTIMIZED), is_new;
	unsigned number;
	if (next_number >= RM_MAX_MARKS && !entry_of(code)) {
		if (next_number++ == RM_MAX_MARKS)
			rmprof_site_mark(code, (long)RM_MAX_MARKS << 1, 0, 0); /* where it is counted */
		return 0;
	}
	int added = add_mark(code, asked, once, &number, &is_new);
	if (added > 0) {
		if (is_new)
			Py_IncRef(code);
		tell_mark(code, number, asked);
	}
	return added > 0;
}

/* 3.6-3.11: a frame of `code` is about to run. */
static inline struct entry *entry_at_call(PyObject *code)
{
	struct entry *entry = entry_of(code);
	if (__builtin_expect(entry || !every.on, 1))
		return entry;
	return is_code_of_every(code) && mark_code(code, 0) ? entry_of(code) : 0;
}

/* 3.12+: PY_START. `begin`: what sets the events of one code object (every.py), whose frame's name says whose the memory is that this
 * takes. */
static PyObject *on_start(PyObject *begin, PyObject *const *args, Py_ssize_t count)
{
	if (count != 2)
		return none();
	struct entry *entry = entry_of(args[0]);
	if (entry) {
		count_frame_of(entry, args[0], 1);
		return none();
	}
	if (!is_code_of_every(args[0])) {
		PyObject *disable = PyTuple_GetItem(begin, 1);
		Py_IncRef(disable);
		return disable;
	}
	site_line(0, 0, 0);
	PyObject *done = PyObject_CallFunction(PyTuple_GetItem(begin, 0), "O", args[0]);
	site_line(0, 1, 0);
	if (!done)
		PyErr_Clear();
	else
		Py_DecRef(done);
	entry = entry_of(args[0]);
	if (entry)
		count_frame_of(entry, args[0], 1);
	return none();
}

static struct PyMethodDef on_start_method = { "on_start", (PyCFunction)(void *)on_start, METH_FASTCALL, 0 };

/* Where in a code object what is known of it stands: the only place that has it, of those before `end`. */
static Py_ssize_t place_of(const void *code, const void *value, Py_ssize_t size, Py_ssize_t end)
{
	Py_ssize_t found = -1;
	for (Py_ssize_t at = 16; at < end; at += size)
		if (size == sizeof(int) ? FIELD(int, code, at) == *(const int *)value : FIELD(const void *, code, at) == value) {
			if (found >= 0)
				return -1;
			found = at;
		}
	return found;
}

/* every(code, its file name, its flags, all, command, directory, globs, begin or None) -> the callback of PY_START from 3.12 on. */
static PyObject *start_every(UNUSED PyObject *self, PyObject *args)
{
	PyObject *code, *name, *directory, *globs, *begin;
	int flags, all, command;
	if (!PyArg_ParseTuple(args, "OOiiiOOO", &code, &name, &flags, &all, &command, &directory, &globs, &begin))
		return 0;
	if (!every.on) {
		/* The smallest code object is 3.6's, of 144 bytes; with another header of 16 bytes no field stands after these places. */
		every.filename_at = place_of(code, name, sizeof(void *), 144);
		every.flags_at = place_of(code, &flags, sizeof(int), 72);
		if (every.filename_at < 0 || every.flags_at < 0) {
			PyErr_SetString(PyExc_RuntimeError, "unknown layout of code objects");
			return 0;
		}
		Py_IncRef(directory);
		Py_IncRef(globs);
		every.all = all;
		every.command = command;
		every.directory = directory;
		every.globs = globs;
		every.on = 1;
	}
	if (layout_proved)
		install_hook();
	return begin == &_Py_NoneStruct ? none() : PyCFunction_NewEx(&on_start_method, begin, 0);
}

/* measure(code) -> True when it is to give line events from here on, and did not. */
static PyObject *measure(UNUSED PyObject *self, PyObject *code)
{
	return PyBool_FromLong(mark_code(code, 0));
}

#define EVERY_METHODS { "every", start_every, METH_VARARGS, 0 }, { "measure", measure, METH_O, 0 },

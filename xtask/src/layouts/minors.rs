//! The minor versions: which headers their structs are in, and which fields of the layout they give.

/// Name of a field of the layout, and the C expression that gives it.
pub type Fields = &'static [(&'static str, &'static str)];

/// One minor: what to include and which fields its structs have.
pub struct Minor {
    pub number: u32,
    pub headers: &'static [&'static str],
    pub fields: &'static [Fields],
    /// What the structs of its free-threaded builds have beside, where there are such builds.
    pub free_threaded: Option<&'static [Fields]>,
}

const COMMON: Fields = &[
    ("thread_next", "offsetof(PyThreadState, next)"),
    ("thread_thread_id", "offsetof(PyThreadState, thread_id)"),
    ("thread_interpreter", "offsetof(PyThreadState, interp)"),
    ("interpreter_next", "offsetof(PyInterpreterState, next)"),
    ("code_first_line", "offsetof(PyCodeObject, co_firstlineno)"),
    ("code_filename", "offsetof(PyCodeObject, co_filename)"),
    ("code_name", "offsetof(PyCodeObject, co_name)"),
    ("object_type", "offsetof(PyObject, ob_type)"),
    ("str_length", "offsetof(PyASCIIObject, length)"),
    ("str_state", "offsetof(PyASCIIObject, state)"),
    ("str_ascii_data", "sizeof(PyASCIIObject)"),
    ("str_compact_data", "sizeof(PyCompactUnicodeObject)"),
    ("str_kind_shift", "STATE_BIT(kind)"),
    ("str_compact_bit", "STATE_BIT(compact)"),
    ("str_ascii_bit", "STATE_BIT(ascii)"),
    ("bytes_length", "offsetof(PyVarObject, ob_size)"),
    ("bytes_data", "offsetof(PyBytesObject, ob_sval)"),
];

const RUNTIME: Fields = &[("runtime_interpreters_head", "offsetof(_PyRuntimeState, interpreters.head)")];

const FRAME_OBJECT: Fields = &[
    ("thread_head", "offsetof(PyThreadState, frame)"),
    ("frame_back", "offsetof(PyFrameObject, f_back)"),
    ("frame_code", "offsetof(PyFrameObject, f_code)"),
    ("frame_position", "offsetof(PyFrameObject, f_lasti)"),
    ("code_code", "offsetof(PyCodeObject, co_code)"),
    ("interpreter_threads_head", "offsetof(PyInterpreterState, tstate_head)"),
];

const FRAME_LINKS: Fields = &[
    ("frame_back", "offsetof(_PyInterpreterFrame, previous)"),
    ("frame_owner", "offsetof(_PyInterpreterFrame, owner)"),
    ("native_thread_id", "offsetof(PyThreadState, native_thread_id)"),
    ("interpreter_threads_head", "offsetof(PyInterpreterState, threads.head)"),
    ("code_qualname", "offsetof(PyCodeObject, co_qualname)"),
    ("code_line_table", "offsetof(PyCodeObject, co_linetable)"),
    ("code_bytecode", "offsetof(PyCodeObject, co_code_adaptive)"),
];

const C_FRAME: Fields = &[
    ("thread_head", "offsetof(PyThreadState, cframe)"),
    ("thread_head_hop", "offsetof(_PyCFrame, current_frame)"),
    ("frame_position", "offsetof(_PyInterpreterFrame, prev_instr)"),
];

const FRAME_CODE: Fields = &[("frame_code", "offsetof(_PyInterpreterFrame, f_code)")];
const LNOTAB: Fields = &[("code_line_table", "offsetof(PyCodeObject, co_lnotab)")];
const LINE_TABLE: Fields = &[("code_line_table", "offsetof(PyCodeObject, co_linetable)")];
const KEY_OF_GILSTATE: Fields = &[("runtime_key", "offsetof(_PyRuntimeState, gilstate.autoTSSkey._key)")];
const KEY_OF_RUNTIME: Fields = &[("runtime_key", "offsetof(_PyRuntimeState, autoTSSkey._key)")];
const FINALIZING: Fields = &[("runtime_finalizing", "offsetof(_PyRuntimeState, _finalizing)")];
const FINALIZING_TO_3_8: Fields = &[("runtime_finalizing", "offsetof(_PyRuntimeState, finalizing)")];

const COLLECTING_OF_RUNTIME: Fields = &[("runtime_collecting", "offsetof(_PyRuntimeState, gc.collecting)")];
const COLLECTING: Fields = &[("interpreter_collecting", "offsetof(PyInterpreterState, gc.collecting)")];
const HOLDER: Fields = &[("runtime_holder", "offsetof(_PyRuntimeState, gilstate.tstate_current)")];
const ATTACHED_3_12: Fields = &[
    ("thread_attached", "offsetof(PyThreadState, _status)"),
    ("attached_mask", "STATUS_BIT(active)"),
    ("attached_value", "STATUS_BIT(active)"),
];
const ATTACHED: Fields = &[
    ("thread_attached", "offsetof(PyThreadState, state)"),
    ("attached_mask", "(unsigned)-1"),
    ("attached_value", "_Py_THREAD_ATTACHED"),
];
const EVAL_FRAME: Fields = &[("interpreter_eval_frame", "offsetof(PyInterpreterState, eval_frame)")];

const SINCE_3_12: Fields = &[("code_version", "offsetof(PyCodeObject, co_version)"), ("arena_bytes", "ARENA_SIZE")];

const OWNED_BY_C_STACK: Fields = &[("owner_skip", "FRAME_OWNED_BY_CSTACK")];
const SINCE_3_14: Fields = &[
    ("owner_skip", "FRAME_OWNED_BY_INTERPRETER"),
    ("frame_code_tags", "Py_TAG_BITS"),
    ("thread_executor", "offsetof(PyThreadState, current_executor)"),
];

const THREAD_BYTECODE: Fields = &[
    ("frame_bytecode_index", "offsetof(_PyInterpreterFrame, tlbc_index)"),
    ("code_thread_bytecode", "offsetof(PyCodeObject, co_tlbc)"),
    ("thread_bytecode_entries", "offsetof(_PyCodeArray, entries)"),
];

const FRAME_SINCE_3_13: Fields = &[
    ("thread_head", "offsetof(PyThreadState, current_frame)"),
    ("frame_code", "offsetof(_PyInterpreterFrame, f_executable)"),
    ("frame_position", "offsetof(_PyInterpreterFrame, instr_ptr)"),
];

const FRAME_OBJECT_HEADERS: &[&str] = &["frameobject.h", "internal/pycore_interp.h", "internal/pycore_runtime.h"];
const FRAME_HEADERS: &[&str] = &["internal/pycore_interp.h", "internal/pycore_runtime.h", "internal/pycore_frame.h"];
const SINCE_3_12_HEADERS: &[&str] = &[
    "internal/pycore_interp.h",
    "internal/pycore_runtime.h",
    "internal/pycore_frame.h",
    "internal/pycore_obmalloc.h",
    "internal/pycore_pystate.h",
];

const SINCE_3_14_HEADERS: &[&str] = &[
    "internal/pycore_interp.h",
    "internal/pycore_runtime.h",
    "internal/pycore_interpframe.h",
    "internal/pycore_stackref.h",
    "internal/pycore_obmalloc.h",
];

pub const MINORS: &[Minor] = &[
    Minor {
        number: 6,
        headers: &["frameobject.h"],
        fields: &[COMMON, FRAME_OBJECT, LNOTAB, EVAL_FRAME],
        free_threaded: None,
    },
    Minor {
        number: 7,
        headers: &["frameobject.h", "internal/pystate.h"],
        fields: &[
            COMMON,
            RUNTIME,
            FRAME_OBJECT,
            LNOTAB,
            KEY_OF_GILSTATE,
            EVAL_FRAME,
            FINALIZING_TO_3_8,
            COLLECTING_OF_RUNTIME,
            HOLDER,
        ],
        free_threaded: None,
    },
    Minor {
        number: 8,
        headers: &["frameobject.h", "internal/pycore_pystate.h"],
        fields: &[
            COMMON,
            RUNTIME,
            FRAME_OBJECT,
            LNOTAB,
            KEY_OF_GILSTATE,
            EVAL_FRAME,
            FINALIZING_TO_3_8,
            COLLECTING_OF_RUNTIME,
            HOLDER,
        ],
        free_threaded: None,
    },
    Minor {
        number: 9,
        headers: FRAME_OBJECT_HEADERS,
        fields: &[COMMON, RUNTIME, FRAME_OBJECT, LNOTAB, KEY_OF_GILSTATE, FINALIZING, COLLECTING, HOLDER],
        free_threaded: None,
    },
    Minor {
        number: 10,
        headers: FRAME_OBJECT_HEADERS,
        fields: &[COMMON, RUNTIME, FRAME_OBJECT, LINE_TABLE, KEY_OF_GILSTATE, FINALIZING, COLLECTING, HOLDER],
        free_threaded: None,
    },
    Minor {
        number: 11,
        headers: FRAME_HEADERS,
        fields: &[COMMON, RUNTIME, FRAME_LINKS, C_FRAME, FRAME_CODE, KEY_OF_GILSTATE, FINALIZING, COLLECTING, HOLDER],
        free_threaded: None,
    },
    Minor {
        number: 12,
        headers: SINCE_3_12_HEADERS,
        fields: &[
            COMMON,
            RUNTIME,
            FRAME_LINKS,
            C_FRAME,
            FRAME_CODE,
            KEY_OF_RUNTIME,
            FINALIZING,
            SINCE_3_12,
            OWNED_BY_C_STACK,
            COLLECTING,
            ATTACHED_3_12,
        ],
        free_threaded: None,
    },
    Minor {
        number: 13,
        headers: SINCE_3_12_HEADERS,
        fields: &[
            COMMON,
            RUNTIME,
            FRAME_LINKS,
            FRAME_SINCE_3_13,
            KEY_OF_RUNTIME,
            FINALIZING,
            SINCE_3_12,
            OWNED_BY_C_STACK,
            COLLECTING,
            ATTACHED,
        ],
        free_threaded: Some(&[]),
    },
    Minor {
        number: 14,
        headers: SINCE_3_14_HEADERS,
        fields: &[
            COMMON,
            RUNTIME,
            FRAME_LINKS,
            FRAME_SINCE_3_13,
            KEY_OF_RUNTIME,
            FINALIZING,
            SINCE_3_12,
            SINCE_3_14,
            COLLECTING,
            ATTACHED,
        ],
        free_threaded: Some(&[THREAD_BYTECODE]),
    },
    Minor {
        number: 15,
        headers: SINCE_3_14_HEADERS,
        fields: &[
            COMMON,
            RUNTIME,
            FRAME_LINKS,
            FRAME_SINCE_3_13,
            FINALIZING,
            SINCE_3_12,
            SINCE_3_14,
            COLLECTING,
            ATTACHED,
        ],
        free_threaded: Some(&[THREAD_BYTECODE]),
    },
];

/// Fields that a minor may lack: written as [`ABSENT`]. Any other field without a value is an error.
pub const OPTIONAL: &[&str] = &[
    "runtime_key",
    "runtime_finalizing",
    "thread_head_hop",
    "frame_owner",
    "owner_skip",
    "code_qualname",
    "code_code",
    "code_version",
    "code_bytecode",
    "native_thread_id",
    "interpreter_eval_frame",
    "interpreter_collecting",
    "runtime_collecting",
    "runtime_holder",
    "thread_attached",
    "attached_mask",
    "attached_value",
    "thread_executor",
    "frame_bytecode_index",
    "code_thread_bytecode",
    "thread_bytecode_entries",
    "reserve_flags",
];

/// Fields of `_Py_DebugOffsets` (3.13 and later) that are compared with the layout while a process runs.
pub const DEBUG_FIELDS: &[&str] = &[
    "cookie",
    "version",
    "free_threaded",
    "runtime_state.interpreters_head",
    "interpreter_state.next",
    "interpreter_state.threads_head",
    "thread_state.next",
    "thread_state.current_frame",
    "thread_state.thread_id",
    "thread_state.native_thread_id",
    "thread_state.interp",
    "interpreter_state.gc",
    "gc.collecting",
    "interpreter_frame.previous",
    "interpreter_frame.executable",
    "interpreter_frame.instr_ptr",
    "interpreter_frame.owner",
    "code_object.filename",
    "code_object.name",
    "code_object.qualname",
    "code_object.linetable",
    "code_object.firstlineno",
    "code_object.co_code_adaptive",
    "pyobject.ob_type",
    "bytes_object.ob_size",
    "bytes_object.ob_sval",
    "unicode_object.state",
    "unicode_object.length",
    "unicode_object.asciiobject_size",
];

/// And from 3.14 on; those of PEP 768, by which a debugger is let in, among them.
pub const DEBUG_FIELDS_SINCE_3_14: &[&str] = &[
    "interpreter_frame.tlbc_index",
    "code_object.co_tlbc",
    "interpreter_state.size",
    "thread_state.size",
    "debugger_support.eval_breaker",
    "debugger_support.remote_debugger_support",
    "debugger_support.remote_debugging_enabled",
    "debugger_support.debugger_pending_call",
    "debugger_support.debugger_script_path",
    "debugger_support.debugger_script_path_size",
];

//! What no header says of CPython's layout, each with the file of its source that it was read in.

/// What a header does not say.
pub struct Rule {
    pub minors: std::ops::RangeInclusive<u32>,
    pub field: &'static str,
    /// `None`: the value comes from a header, and the rule says only how the field is to be used.
    pub value: Option<RuleValue>,
    /// The file of CPython's source it was read in, and what it says there.
    pub source: &'static str,
}

#[derive(Clone, Copy)]
pub enum RuleValue {
    Number(u32),
    Name(&'static str),
}
pub use RuleValue::{Name, Number};

pub const RULES: &[Rule] = &[
    Rule {
        minors: 6..=9,
        field: "position_kind",
        value: Some(Number(0)),
        source: "Python/ceval.c: f_lasti is set to INSTR_OFFSET(), bytes in co_code, before each instruction; -1 before the first",
    },
    Rule {
        minors: 10..=10,
        field: "position_kind",
        value: Some(Number(1)),
        source: "Python/ceval.c: f_lasti is set to INSTR_OFFSET(), code units of two bytes, before each instruction; -1 before the first",
    },
    Rule {
        minors: 11..=12,
        field: "position_kind",
        value: Some(Number(2)),
        source: "Python/ceval.c: frame->prev_instr = next_instr++ at the start of each instruction; one unit before the code at first",
    },
    Rule {
        minors: 13..=15,
        field: "position_kind",
        value: Some(Number(2)),
        source: "Python/generated_cases.c.h: frame->instr_ptr = next_instr at the start of each instruction",
    },
    Rule {
        minors: 6..=9,
        field: "line_table_kind",
        value: Some(Name("lnotab")),
        source: "Objects/codeobject.c, PyCode_Addr2Line; Objects/lnotab_notes.txt",
    },
    Rule {
        minors: 10..=10,
        field: "line_table_kind",
        value: Some(Name("pep626")),
        source: "Objects/codeobject.c, PyLineTable_NextAddressRange; Objects/lnotab_notes.txt",
    },
    Rule {
        minors: 11..=15,
        field: "line_table_kind",
        value: Some(Name("pep657")),
        source: "Objects/codeobject.c, get_line_delta and advance_with_locations; Include/internal/pycore_code.h",
    },
    Rule {
        minors: 11..=12,
        field: "thread_head_hop",
        value: None,
        source: "Include/cpython/pystate.h: the frame is PyThreadState.cframe->current_frame",
    },
    Rule {
        minors: 12..=13,
        field: "owner_skip",
        value: None,
        source: "Python/ceval.c, _PyEval_EvalFrameDefault: entry_frame.owner = FRAME_OWNED_BY_CSTACK marks its own frame on the C stack",
    },
    Rule {
        minors: 14..=15,
        field: "owner_skip",
        value: None,
        source: "Include/internal/pycore_interpframe.h, _PyFrame_IsIncomplete: owner >= FRAME_OWNED_BY_INTERPRETER are the interpreter's own",
    },
    Rule {
        minors: 7..=7,
        field: "since_micro",
        value: Some(Number(4)),
        source: "Include/internal/pystate.h: _PyRuntimeState has fields before gilstate that it had not up to 3.7.3",
    },
    Rule {
        minors: 6..=6,
        field: "since_micro",
        value: Some(Number(5)),
        source: "Python/pystate.c: autoTLSkey is -1 before the key is made; earlier releases than 3.6.5 have not been looked at",
    },
    Rule {
        minors: 6..=6,
        field: "runtime",
        value: Some(Name("function")),
        source: "Python/pystate.c: interp_head is a static variable, which PyInterpreterState_Head returns",
    },
    Rule {
        minors: 6..=6,
        field: "runtime_interpreters_head",
        value: Some(Number(0)),
        source: "Python/pystate.c: interp_head",
    },
    Rule { minors: 7..=15, field: "runtime", value: Some(Name("symbol")), source: "Python/pylifecycle.c: _PyRuntime" },
    Rule {
        minors: 6..=6,
        field: "thread_slot",
        value: Some(Name("key")),
        source: "Python/pystate.c, PyGILState_GetThisThreadState: PyThread_get_key_value(autoTLSkey), a static variable",
    },
    Rule {
        minors: 7..=14,
        field: "thread_slot",
        value: Some(Name("tss_key")),
        source: "Python/pystate.c, PyGILState_GetThisThreadState: PyThread_tss_get(&_PyRuntime.autoTSSkey)",
    },
    Rule {
        minors: 15..=15,
        field: "thread_slot",
        value: Some(Name("variable")),
        source: "Include/internal/pycore_pystate.h: _Py_tss_gilstate, a variable of the thread, takes the place of autoTSSkey",
    },
    Rule {
        minors: 7..=11,
        field: "runtime_holder",
        value: None,
        source: "Python/pystate.c, _PyThreadState_Swap: sets gilstate.tstate_current alone, so that in another interpreter the slot keeps the thread's first state; from 3.12 on tstate_activate sets the slot",
    },
    Rule {
        minors: 6..=13,
        field: "frame_code_tags",
        value: Some(Number(0)),
        source: "Include/frameobject.h, Include/internal/pycore_frame.h: f_code and f_executable are plain pointers",
    },
    Rule {
        minors: 14..=15,
        field: "frame_code_tags",
        value: None,
        source: "Include/internal/pycore_stackref.h: f_executable is a _PyStackRef, a pointer with tag bits",
    },
    Rule {
        minors: 7..=8,
        field: "runtime_collecting",
        value: None,
        source: "Modules/gcmodule.c, collect_generations and gc_collect_impl: set before and cleared after all that a collection does",
    },
    Rule {
        minors: 9..=15,
        field: "interpreter_collecting",
        value: None,
        source: "Modules/gcmodule.c, from 3.13 on Python/gc.c: set before and cleared after all that a collection does",
    },
    Rule {
        minors: 6..=9,
        field: "arena_bytes",
        value: Some(Number(256 << 10)),
        source: "Objects/obmalloc.c: ARENA_SIZE",
    },
    Rule {
        minors: 10..=11,
        field: "arena_bytes",
        value: Some(Number(1 << 20)),
        source: "Objects/obmalloc.c: ARENA_BITS 20 where WITH_PYMALLOC_RADIX_TREE (the default)",
    },
];

/// What holds for free-threaded builds beside, and in place of what is said above.
pub const FREE_THREADED: &[Rule] = &[
    Rule {
        minors: 13..=15,
        field: "thread_attached",
        value: Some(Number(u32::MAX)),
        source: "Include/internal/pycore_pystate.h, _Py_THREAD_ATTACHED: several thread states are at one time",
    },
    Rule {
        minors: 13..=15,
        field: "interpreter_collecting",
        value: None,
        source: "Python/gc_free_threading.c, gc_collect_main: set before and cleared after all that a collection does; other threads run beside its finalizers and releases, and nothing tells which of them collects",
    },
    Rule {
        minors: 13..=15,
        field: "reserve_flags",
        value: Some(Number(0x4022)),
        source: "Objects/mimalloc/prim/unix/prim.c, unix_mmap: MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE",
    },
    Rule {
        minors: 13..=15,
        field: "arena_bytes",
        value: Some(Number(16 << 10)),
        source: "Python/pystate.c: DATA_STACK_CHUNK_SIZE, all that is asked of the allocator of arenas: mimalloc is used in place of pymalloc",
    },
    Rule {
        minors: 14..=15,
        field: "code_thread_bytecode",
        value: None,
        source: "Include/internal/pycore_frame.h, _PyFrame_GetBytecode: co_tlbc->entries[tlbc_index], a copy of the bytecode for each thread",
    },
];

//! What differs between CPythons, as data.

use super::program::Kind;

/// The rules of one CPython.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Comprehensions of lists, sets and dicts have no frame of their own (PEP 709).
    pub inlined_comprehensions: bool,
    /// A Python function that is called by Python code takes over its arguments; before, the caller kept a reference to each until the
    /// function had returned (Python/ceval.c, 3.11: `_PyEvalFramePushAndInit`). Calls by C code, and all calls while a frame
    /// evaluation function is set, which is how lines are told up to 3.11, keep the references.
    pub arguments_move: bool,
    /// A `with` block calls `__exit__` on its own line. Up to 3.9 CPython does on the last line of the block (Python/compile.c,
    /// `compiler_with`), and the report mends it (`userspace/src/python/with_cleanup.rs`).
    pub with_line_at_exit: bool,
    /// A handler `except … as name` that is left by `return`, `break` or `continue` forgets its exception on the line of that; in 3.8 on
    /// the last line of the handler, whose end is called (Python/compile.c, `compiler_unwind_fblock`).
    pub handler_left_in_place: bool,
    /// And where it has done that, what is left further out, as by `break` the exception of an outer handler, is forgotten on that
    /// last line too: up to 3.7 the unwinding goes on where it is (Python/ceval.c, `fast_block_end`).
    pub unwinds_on_at_the_end: bool,
    /// `break` and `return` through a `finally` go on on their own line when it is done, where a loop's iterator is released; up to 3.7
    /// and from 3.10 on that is on its last line. Seen by what the interpreters tell of themselves.
    pub back_after_finally: bool,
    /// What a `bytearray` asks for beside its bytes: a NUL, or a `bytes` object.
    bytearray_head: u64,
    /// What an ASCII string asks for beside its characters (`PyASCIIObject` and a NUL).
    text_head: u64,
}

/// The minor versions whose rules these are.
pub const MODELLED: std::ops::RangeInclusive<u32> = 6..=15;

impl Rules {
    /// Of a minor version of Python 3 in a report, with functions marked or not.
    pub fn of(minor: u32, marked: bool) -> Self {
        Self {
            inlined_comprehensions: minor >= 12,
            arguments_move: minor >= 12 || (minor == 11 && !marked),
            with_line_at_exit: true,
            unwinds_on_at_the_end: minor <= 7,
            back_after_finally: matches!(minor, 8 | 9),
            handler_left_in_place: minor >= 9,
            bytearray_head: if minor >= 15 { 33 } else { 1 },
            text_head: if minor >= 12 { 41 } else { 49 },
        }
    }

    /// As the interpreter itself tells its lines, without marks.
    pub fn bare(minor: u32) -> Self {
        Self { with_line_at_exit: minor >= 10, ..Self::of(minor, false) }
    }

    /// What a block that was cleared has: a `bytes` object of no length is nobody's.
    pub fn cleared(&self, kind: Kind) -> u64 {
        if kind == Kind::Bytearray && self.bytearray_head > 1 { 0 } else { self.bytes(kind, 0) }
    }

    /// What a block of this length asks the C allocator for.
    pub fn bytes(&self, kind: Kind, length: u64) -> u64 {
        match kind {
            Kind::Bytearray => length + self.bytearray_head,
            Kind::Bytes => length + 33,
            Kind::Text => length + self.text_head,
            Kind::Nones => 8 * length,
            // With the collector's head.
            Kind::Tuple => 8 * length + 40,
        }
    }
}

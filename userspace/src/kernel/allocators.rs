//! The allocators, as a table: a function's symbol, what it does, and which of its arguments the probe reads.
//!
//! A library is an allocator when it defines both `malloc` and `free`, under these names or with one of the prefixes that are known;
//! every such library that a process maps is probed, and only the outermost call of a thread counts, so one that hands on to another
//! is counted once.

use rmprof_probes::abi;

/// A function of a malloc family.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// Its symbol, after the prefix.
    pub symbol: &'static str,
    /// `enum rm_role`.
    pub role: u32,
    /// How many of its leading arguments the probe reads.
    pub arguments: usize,
    /// Is the pointer known only at the return?
    pub returns: bool,
}

const fn row(symbol: &'static str, role: u32, arguments: usize, returns: bool) -> Function {
    Function { symbol, role, arguments, returns }
}

const fn malloc(symbol: &'static str) -> Function {
    row(symbol, abi::RM_ROLE_MALLOC, 1, true)
}

const fn calloc(symbol: &'static str) -> Function {
    row(symbol, abi::RM_ROLE_CALLOC, 2, true)
}

const fn realloc(symbol: &'static str) -> Function {
    row(symbol, abi::RM_ROLE_REALLOC, 2, true)
}

const fn reallocarray(symbol: &'static str) -> Function {
    row(symbol, abi::RM_ROLE_REALLOCARRAY, 3, true)
}

const fn aligned(symbol: &'static str) -> Function {
    row(symbol, abi::RM_ROLE_ALIGNED, 2, true)
}

const fn free(symbol: &'static str) -> Function {
    row(symbol, abi::RM_ROLE_FREE, 1, false)
}

/// C's functions (malloc(3), posix_memalign(3)). `free_sized` and `free_aligned_sized` are C23's.
pub const FAMILY: &[Function] = &[
    malloc("malloc"),
    calloc("calloc"),
    realloc("realloc"),
    reallocarray("reallocarray"),
    row("posix_memalign", abi::RM_ROLE_POSIX_MEMALIGN, 3, true),
    aligned("aligned_alloc"),
    aligned("memalign"),
    row("valloc", abi::RM_ROLE_VALLOC, 1, true),
    row("pvalloc", abi::RM_ROLE_VALLOC, 1, true),
    free("free"),
    free("cfree"),
    free("free_sized"),
    free("free_aligned_sized"),
];

/// C++'s operators new and delete: sized, aligned, of arrays and nothrow, as the Itanium ABI names them. Where a library that is no
/// allocator has them (libstdc++), they call malloc, which is counted.
const OPERATORS: &[Function] = &[
    malloc("_Znwm"),
    malloc("_Znam"),
    malloc("_ZnwmRKSt9nothrow_t"),
    malloc("_ZnamRKSt9nothrow_t"),
    malloc("_ZnwmSt11align_val_t"),
    malloc("_ZnamSt11align_val_t"),
    malloc("_ZnwmSt11align_val_tRKSt9nothrow_t"),
    malloc("_ZnamSt11align_val_tRKSt9nothrow_t"),
    free("_ZdlPv"),
    free("_ZdaPv"),
    free("_ZdlPvm"),
    free("_ZdaPvm"),
    free("_ZdlPvRKSt9nothrow_t"),
    free("_ZdaPvRKSt9nothrow_t"),
    free("_ZdlPvSt11align_val_t"),
    free("_ZdaPvSt11align_val_t"),
    free("_ZdlPvmSt11align_val_t"),
    free("_ZdaPvmSt11align_val_t"),
    free("_ZdlPvSt11align_val_tRKSt9nothrow_t"),
    free("_ZdaPvSt11align_val_tRKSt9nothrow_t"),
];

/// jemalloc's own (jemalloc(3)). `xallocx`, which resizes in place and may fail to, is not among them.
const JEMALLOC: &[Function] = &[malloc("mallocx"), realloc("rallocx"), free("dallocx"), free("sdallocx")];

/// mimalloc's own (include/mimalloc.h). Of its functions on heaps those whose second argument is the size.
const MIMALLOC: &[Function] = &[
    malloc("malloc_small"),
    malloc("zalloc"),
    malloc("zalloc_small"),
    malloc("malloc_aligned"),
    malloc("malloc_aligned_at"),
    malloc("zalloc_aligned"),
    malloc("zalloc_aligned_at"),
    malloc("new"),
    malloc("new_nothrow"),
    malloc("new_aligned"),
    malloc("new_aligned_nothrow"),
    calloc("mallocn"),
    calloc("new_n"),
    calloc("calloc_aligned"),
    calloc("calloc_aligned_at"),
    realloc("reallocf"),
    realloc("rezalloc"),
    realloc("new_realloc"),
    realloc("realloc_aligned"),
    realloc("realloc_aligned_at"),
    realloc("rezalloc_aligned"),
    realloc("rezalloc_aligned_at"),
    reallocarray("reallocn"),
    reallocarray("recalloc"),
    reallocarray("new_reallocn"),
    reallocarray("recalloc_aligned"),
    reallocarray("recalloc_aligned_at"),
    aligned("heap_malloc"),
    aligned("heap_malloc_small"),
    aligned("heap_malloc_aligned"),
    aligned("heap_zalloc"),
    aligned("heap_zalloc_aligned"),
    free("free_size"),
    free("free_small"),
    free("free_aligned"),
    free("free_size_aligned"),
];

/// tcmalloc's own (gperftools/tcmalloc.h).
const TCMALLOC: &[Function] = &[
    malloc("malloc_skip_new_handler"),
    malloc("new"),
    malloc("new_nothrow"),
    malloc("newarray"),
    malloc("newarray_nothrow"),
    malloc("new_aligned"),
    malloc("new_aligned_nothrow"),
    malloc("newarray_aligned"),
    malloc("newarray_aligned_nothrow"),
    free("delete"),
    free("delete_sized"),
    free("delete_nothrow"),
    free("delete_aligned"),
    free("delete_sized_aligned"),
    free("delete_aligned_nothrow"),
    free("deletearray"),
    free("deletearray_sized"),
    free("deletearray_nothrow"),
    free("deletearray_aligned"),
    free("deletearray_sized_aligned"),
    free("deletearray_aligned_nothrow"),
];

/// Under which prefix an allocator has which functions. `je_` is jemalloc's usual one where it is built into something, `je_arrow_` that
/// of Apache Arrow's copy, `_rjem_` that of Rust programs.
const PREFIXES: &[(&str, &[&[Function]])] = &[
    ("", &[FAMILY, OPERATORS, JEMALLOC]),
    ("je_", &[FAMILY, JEMALLOC]),
    ("je_arrow_", &[FAMILY, JEMALLOC]),
    ("_rjem_", &[FAMILY, JEMALLOC]),
    ("mi_", &[FAMILY, MIMALLOC]),
    ("tc_", &[FAMILY, TCMALLOC]),
];

/// The symbols of the allocators that there may be in one file, each with its function and its prefix.
pub fn symbols() -> impl Iterator<Item = (String, Function, &'static str)> {
    PREFIXES.iter().flat_map(|(prefix, parts)| {
        parts
            .iter()
            .copied()
            .flatten()
            .map(move |function| (format!("{prefix}{}", function.symbol), *function, *prefix))
    })
}

/// The prefixes under which a file that defines the symbols for which `defines` is true is an allocator; "" is the C library's own.
pub fn prefixes(defines: impl Fn(&str) -> bool) -> Vec<&'static str> {
    let has = |prefix: &str, name: &str| defines(&format!("{prefix}{name}"));
    PREFIXES.iter().map(|(prefix, _)| *prefix).filter(|prefix| has(prefix, "malloc") && has(prefix, "free")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_reads_the_same_arguments_everywhere() {
        let all: Vec<_> = symbols().collect();
        for (symbol, function, _) in &all {
            for (_, other, _) in all.iter().filter(|(_, other, _)| other.role == function.role) {
                assert_eq!((function.arguments, function.returns), (other.arguments, other.returns), "{symbol}");
            }
            assert_eq!(function.returns, function.role != abi::RM_ROLE_FREE, "{symbol}");
        }
    }

    #[test]
    fn no_symbol_stands_for_two_functions() {
        let mut names: Vec<String> = symbols().map(|(symbol, ..)| symbol).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn an_allocator_has_malloc_and_free_of_one_prefix() {
        let of = |names: &[&str]| prefixes(|name| names.contains(&name));
        assert_eq!(of(&["malloc", "free", "_Znwm"]), [""]);
        assert_eq!(of(&["_Znwm", "_ZdlPv", "calloc", "free"]), [""; 0]);
        assert_eq!(of(&["malloc", "mi_free"]), [""; 0]);
        assert_eq!(of(&["malloc", "free", "mi_malloc", "mi_free", "je_malloc"]), ["", "mi_"]);
        assert_eq!(of(&["je_arrow_malloc", "je_arrow_free", "mi_malloc", "mi_free"]), ["je_arrow_", "mi_"]);
    }
}

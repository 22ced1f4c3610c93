//! The allocators, as a table: a function's symbol, what it does, and which of its arguments the probe reads.
//!
//! A library is an allocator when it defines both `malloc` and `free`; every such library that a process maps is probed, and only
//! the outermost call of a thread counts, so one that hands on to another is counted once.

use rmprof_probes::abi;

/// A function of the malloc family.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    /// Its symbol.
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

/// The family (malloc(3), posix_memalign(3)). `free_sized` and `free_aligned_sized` are C23's.
pub const FAMILY: &[Function] = &[
    row("malloc", abi::RM_ROLE_MALLOC, 1, true),
    row("calloc", abi::RM_ROLE_CALLOC, 2, true),
    row("realloc", abi::RM_ROLE_REALLOC, 2, true),
    row("reallocarray", abi::RM_ROLE_REALLOCARRAY, 3, true),
    row("posix_memalign", abi::RM_ROLE_POSIX_MEMALIGN, 3, true),
    row("aligned_alloc", abi::RM_ROLE_ALIGNED, 2, true),
    row("memalign", abi::RM_ROLE_ALIGNED, 2, true),
    row("valloc", abi::RM_ROLE_VALLOC, 1, true),
    row("pvalloc", abi::RM_ROLE_VALLOC, 1, true),
    row("free", abi::RM_ROLE_FREE, 1, false),
    row("cfree", abi::RM_ROLE_FREE, 1, false),
    row("free_sized", abi::RM_ROLE_FREE, 1, false),
    row("free_aligned_sized", abi::RM_ROLE_FREE, 1, false),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_reads_the_same_arguments_everywhere() {
        for function in FAMILY {
            for other in FAMILY.iter().filter(|other| other.role == function.role) {
                assert_eq!(
                    (function.arguments, function.returns),
                    (other.arguments, other.returns),
                    "{}",
                    function.symbol
                );
            }
            assert_eq!(function.returns, function.role != abi::RM_ROLE_FREE, "{}", function.symbol);
        }
    }
}

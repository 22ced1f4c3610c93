//! Functions that ask for memory on behalf of others: the one that called them is the one that is named.

/// Whole names. CPython: Objects/obmalloc.c, Modules/gcmodule.c (Python/gc.c), Objects/typeobject.c, Objects/object.c; numpy:
/// numpy/core/src/multiarray/alloc.c (numpy/_core since 2.0).
const NAMES: &[&str] = &[
    "_PyObject_Calloc",
    "_PyObject_Malloc",
    "_PyObject_MallocWithType",
    "_PyObject_New",
    "_PyObject_NewVar",
    "_PyObject_Realloc",
    "PyObject_Calloc",
    "PyObject_Malloc",
    "PyObject_Realloc",
    "PyType_GenericAlloc",
    "_PyType_AllocNoTrack",
    "gc_alloc",
    "_npy_alloc_cache",
    "npy_alloc_cache",
    "npy_alloc_cache_zero",
    "default_calloc",
    "default_malloc",
    "default_realloc",
    "aligned_alloc",
    "calloc",
    "malloc",
    "memalign",
    "mmap",
    "mmap64",
    "mremap",
    "posix_memalign",
    "pvalloc",
    "realloc",
    "reallocarray",
    "sbrk",
    "valloc",
];

/// Beginnings of names. numpy's constructors are among them: every array comes from one, and who wanted it is what tells something.
/// The last are those of C++, demangled.
const BEGINNINGS: &[&str] = &[
    "PyMem_",
    "_PyMem_",
    "_PyObject_GC_",
    "PyObject_GC_",
    "pymalloc_",
    "PyArena_",
    "PyDataMem_",
    "PyArray_New",
    "PyArray_Empty",
    "PyArray_Zeros",
    "operator new",
];

/// Files in which nothing is named while there is a caller: the C library and its loader. Beginnings of file names.
const LIBRARIES: &[&str] =
    &["libc.so", "libc-2.", "libpthread", "ld-linux", "ld-2.", "ld-musl", "libc.musl", "libstdc++.so"];

/// Is this a function that only hands on?
pub(super) fn is_wrapper(name: &str) -> bool {
    // What a compiler makes of a function has the function's name before the first point: `default_malloc.part.0`.
    let plain = name.split('.').next().unwrap_or(name);
    NAMES.contains(&plain) || BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
}

/// Is this a file whose functions are nobody's own?
pub(super) fn is_library(file: &str) -> bool {
    LIBRARIES.iter().any(|beginning| file.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_hand_on() {
        for name in
            ["PyMem_RawMalloc", "default_malloc.part.0", "operator new(unsigned long)", "PyArray_NewFromDescr_int"]
        {
            assert!(is_wrapper(name), "{name}");
        }
        for name in
            ["PyBytes_FromStringAndSize", "array_new_likearray", "list_resize", "mallocator", "PyMemoryView_New"]
        {
            assert!(!is_wrapper(name), "{name}");
        }
        assert!(is_library("libc.so.6") && !is_library("libcrypto.so.3"));
    }
}

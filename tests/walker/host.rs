//! The walker of `probes/bpf/python.bpf.h` as a shared object: compiled from `host.c` when the tests begin.

use std::ffi::{CStr, CString, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use rmprof_bpf::python::code::Memory;
use rmprof_bpf::python::discover::Interpreter;
use rmprof_bpf::python::layout::{ABSENT, Layout, POSITION_POINTER};
use rmprof_bpf::python::thread_slot::ThreadSlot;
use rmprof_probes::abi;

/// `struct pthread.specific` of glibc on x86-64 (nptl/descr.h).
pub const GLIBC_SPECIFIC: u32 = 0x510;

type Reader = unsafe extern "C" fn(*mut c_void, *mut c_void, u32, u64) -> c_int;
type FindThreadState = unsafe extern "C" fn(Reader, *mut c_void, *mut abi::rm_process, u64, *mut u64) -> u32;
type RunningState = unsafe extern "C" fn(Reader, *mut c_void, *const abi::rm_process, u64, *mut u64) -> u64;
type WalkFrames =
    unsafe extern "C" fn(Reader, *mut c_void, *const abi::rm_process, u64, *mut abi::rm_stack_event) -> u32;

/// The functions of host.c.
pub struct Walker {
    find_thread_state: FindThreadState,
    running_state: RunningState,
    walk_frames: WalkFrames,
}

/// What a walk gave.
#[derive(Clone, Debug)]
pub struct Walk {
    /// `enum rm_stack_status`.
    pub status: u32,
    /// Innermost first.
    pub frames: Vec<abi::rm_frame>,
    /// The hash that stands for them.
    pub stack: u64,
    /// Code of the JIT ran.
    pub approximate: bool,
}

/// The walker, compiled at the first call.
pub fn walker() -> &'static Walker {
    static WALKER: OnceLock<Option<Walker>> = OnceLock::new();
    let walker = WALKER.get_or_init(|| {
        let folder = tempfile::tempdir().ok()?;
        let object = folder.path().join("walker.so");
        compile(&object).then(|| Walker::open(&object))
    });
    walker.as_ref().expect("the C compiler takes tests/walker/host.c")
}

fn compile(object: &Path) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let status = Command::new(&compiler)
        .args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-I"])
        .arg(root.join("probes/bpf"))
        .arg("-o")
        .arg(object)
        .arg(root.join("tests/walker/host.c"))
        .status();
    status.is_ok_and(|status| status.success())
}

impl Walker {
    fn open(object: &Path) -> Walker {
        let path = CString::new(object.as_os_str().as_bytes()).unwrap();
        // SAFETY: a NUL-terminated path; the object has no initialisers. It is never closed, so its functions stay.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "{} cannot be loaded", object.display());
        let symbol = |name: &CStr| {
            // SAFETY: the handle is open, the name NUL-terminated.
            let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
            assert!(!address.is_null(), "{name:?} is not in it");
            address
        };
        let (find, walk) = (symbol(c"host_find_thread_state"), symbol(c"host_walk_frames"));
        let running = symbol(c"host_running_state");
        // SAFETY: the types are those of host.c.
        unsafe {
            Walker {
                find_thread_state: std::mem::transmute(find),
                running_state: std::mem::transmute(running),
                walk_frames: std::mem::transmute(walk),
            }
        }
    }

    /// Status and address of the thread state of the thread with this thread pointer. The walker keeps the key in `process`.
    pub fn find_thread_state(
        &self,
        memory: &dyn Memory,
        process: &mut abi::rm_process,
        thread_pointer: u64,
    ) -> (u32, u64) {
        let mut thread_state = u64::MAX;
        let context = (&raw const memory).cast_mut().cast();
        // SAFETY: `read` takes the context that is given, both pointers are valid for the call.
        let status = unsafe { (self.find_thread_state)(read, context, process, thread_pointer, &mut thread_state) };
        (status, thread_state)
    }

    /// The thread state whose code the thread executes that has `own` in its slot. The walker keeps another interpreter's in `other`.
    pub fn running_state(&self, memory: &dyn Memory, process: &abi::rm_process, own: u64, other: &mut u64) -> u64 {
        let context = (&raw const memory).cast_mut().cast();
        // SAFETY: `read` takes the context that is given, both pointers are valid for the call.
        unsafe { (self.running_state)(read, context, process, own, other) }
    }

    /// Walks a thread's frames. What is written beyond the event's end kills the test.
    pub fn walk(&self, memory: &dyn Memory, process: &abi::rm_process, thread_state: u64) -> Walk {
        let stack = Guarded::new(size_of::<abi::rm_stack_event>());
        let event: *mut abi::rm_stack_event = stack.start().cast();
        let context = (&raw const memory).cast_mut().cast();
        // SAFETY: `read` takes the context that is given; the buffer is as long as the struct, and aligned.
        let status = unsafe { (self.walk_frames)(read, context, process, thread_state, event) };
        // SAFETY: the buffer holds the struct, whose every bit pattern is valid.
        let event = unsafe { event.read() };
        assert_eq!(event.status, status);
        assert_ne!(event.stack, 0, "0 is no stack");
        Walk {
            status,
            frames: event.frames[..event.frame_count as usize].to_vec(),
            stack: event.stack,
            approximate: event.approximate != 0,
        }
    }
}

/// `READ_USER` of host.c: `context` is a `*const &dyn Memory`.
unsafe extern "C" fn read(context: *mut c_void, to: *mut c_void, size: u32, address: u64) -> c_int {
    // SAFETY: the walker hands back the context it was given, and `size` bytes of a buffer of its own.
    let (memory, buffer) = unsafe {
        (*context.cast_const().cast::<&dyn Memory>(), std::slice::from_raw_parts_mut(to.cast::<u8>(), size as usize))
    };
    // bpf_probe_read_user leaves zeros where it fails.
    memory.read(address, buffer).map_or_else(
        |_| {
            buffer.fill(0);
            -libc::EFAULT
        },
        |()| 0,
    )
}

/// A buffer that ends where a page begins that cannot be touched.
struct Guarded {
    mapping: *mut u8,
    pages: usize,
    bytes: usize,
}

const PAGE: usize = 4096;

impl Guarded {
    fn new(bytes: usize) -> Guarded {
        let pages = bytes.div_ceil(PAGE);
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let mapping = unsafe { libc::mmap(std::ptr::null_mut(), (pages + 1) * PAGE, protection, flags, -1, 0) };
        assert_ne!(mapping, libc::MAP_FAILED);
        let mapping: *mut u8 = mapping.cast();
        // SAFETY: the last page of our own mapping.
        assert_eq!(unsafe { libc::mprotect(mapping.add(pages * PAGE).cast(), PAGE, libc::PROT_NONE) }, 0);
        Guarded { mapping, pages, bytes }
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: within the mapping, which is at least `bytes` long before the guard.
        unsafe { self.mapping.add(self.pages * PAGE - self.bytes) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of which no pointer is left.
        unsafe { libc::munmap(self.mapping.cast(), (self.pages + 1) * PAGE) };
    }
}

/// What the walker is told of a process with this interpreter.
pub fn process_of(interpreter: &Interpreter) -> abi::rm_process {
    let mut process = process(interpreter.layout, interpreter.interpreters_address());
    process.slot_kind = abi::RM_SLOT_VARIABLE;
    process.holder_address = interpreter.holder_address.unwrap_or(0);
    process.interpreters_address = interpreter.interpreters_address();
    match interpreter.thread_slot {
        ThreadSlot::TssKey { address } => (process.slot_kind, process.key_address) = (abi::RM_SLOT_TSS_KEY, address),
        ThreadSlot::Key { address } => (process.slot_kind, process.key_address) = (abi::RM_SLOT_KEY, address),
        ThreadSlot::Static { offset } => process.slot_offset = offset,
        ThreadSlot::InModule { index, offset } => (process.slot_module, process.slot_offset) = (index, offset),
        ThreadSlot::Distance { word, offset } => {
            (process.slot_kind, process.slot_module, process.slot_offset) = (abi::RM_SLOT_DISTANCE, word, offset);
        }
    }
    process
}

/// What the walker is told of a process.
pub fn process(layout: &Layout, key_address: u64) -> abi::rm_process {
    // SAFETY: a plain C struct for which all zero is valid.
    let mut process: abi::rm_process = unsafe { std::mem::zeroed() };
    process.id = 1;
    process.key_address = key_address;
    process.specific_offset = GLIBC_SPECIFIC;
    process.layout = layout_of(layout);
    process
}

/// Bytes from the start of a frame's read to the end of the last field that is wanted.
pub fn frame_bytes(layout: &Layout) -> u32 {
    let position_bytes = if layout.position_kind == POSITION_POINTER { 8 } else { 4 };
    let owner_end = if layout.frame_owner == ABSENT { 0 } else { layout.frame_owner + 1 };
    let index_end = if layout.frame_bytecode_index == ABSENT { 0 } else { layout.frame_bytecode_index + 4 };
    [layout.frame_back + 8, layout.frame_code + 8, layout.frame_position + position_bytes, owner_end, index_end]
        .into_iter()
        .max()
        .unwrap_or(0)
}

/// The walker has no use for it.
const NO_CLEAN_UP: abi::rm_clean_up = abi::rm_clean_up {
    calls: [0; 8],
    load: [abi::RM_ABSENT; 2],
    again: [0; 2],
    argument: 0,
    raised: 0,
    before: [0; 3],
    line: 0,
};

/// The layout field by field, each under its own name; the compiler sees to it that none is left out.
fn layout_of(layout: &Layout) -> abi::rm_layout {
    macro_rules! by_name {
        ($($name:ident)*) => { abi::rm_layout { frame_bytes: frame_bytes(layout), lines_mended: 0, clean_up: NO_CLEAN_UP, $($name: layout.$name),* } };
    }
    by_name! {
        thread_head thread_head_hop thread_thread_id thread_executor frame_bytecode_index frame_base frame_back frame_code frame_code_tags frame_position frame_owner owner_skip
        position_kind code_base code_first_line code_filename code_name code_qualname code_line_table code_code code_version
        code_bytecode object_type str_length str_state str_ascii_data str_compact_data str_kind_shift str_compact_bit
        str_ascii_bit bytes_length bytes_data arena_bytes reserve_flags code_thread_bytecode thread_bytecode_entries
        thread_interpreter interpreter_collecting interpreter_threads_head thread_next interpreter_next thread_attached attached_mask attached_value
    }
}

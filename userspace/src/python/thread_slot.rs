//! Where the threads of an interpreter keep their thread states, whoever holds the GIL (Python/pystate.c, gilstate): as the layout
//! says, or read off the code of the function that returns it.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use serde::Deserialize;

use super::discover::Module;
use super::layout::Layout;

/// Which way a minor version keeps it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum SlotKind {
    /// Under a pthread key that stands in `_PyRuntime` at [`Layout::runtime_key`] (3.7 to 3.14).
    TssKey,
    /// Under a pthread key in a static variable, which the code of [`GETTER`] reads (3.6).
    Key,
    /// In a variable of the thread that [`GETTER`] returns (3.15).
    Variable,
}

/// The place, in terms of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadSlot {
    /// Under the pthread key whose number (u32) is at `address`; the i32 before it tells whether the key is made.
    TssKey {
        /// In the process.
        address: u64,
    },
    /// Under the pthread key whose number (i32) is at `address`, negative before it is made.
    Key {
        /// In the process.
        address: u64,
    },
    /// At `offset` from the thread pointer, which is the same in every thread: a program's own variable.
    Static {
        /// Negative: such variables stand below the thread pointer.
        offset: i64,
    },
    /// At `offset` in the thread's block of a module: a library's variable.
    InModule {
        /// Address of the module's `tls_index` in the process: number and offset, which the loader fills in.
        index: u64,
        /// From where that leads to.
        offset: i64,
    },
}

/// Exported by every CPython 3; its value is what is looked for.
const GETTER: &str = "PyGILState_GetThisThreadState";

/// How much of the function is looked at: where it returns a variable it is half as long at most.
const LONGEST_LOOK: usize = 64;

/// The most that variables of all modules take of a thread's static block.
const LARGEST_BLOCK: i64 = 1 << 24;

/// Finds the place in an interpreter's file. `None`: its code is of another shape.
pub fn find(module: &Module<'_>, runtime_address: u64, layout: &Layout) -> Option<ThreadSlot> {
    match layout.thread_slot {
        SlotKind::TssKey => {
            Some(ThreadSlot::TssKey { address: runtime_address.wrapping_add(layout.runtime_key.into()) })
        }
        SlotKind::Key => {
            let (code, address) = getter(module)?;
            let key = key_read(&code, address)?;
            Some(ThreadSlot::Key { address: key.wrapping_add(module.load_bias) })
        }
        SlotKind::Variable => {
            let (code, address) = getter(module)?;
            match returned_variable(&code, address)? {
                ThreadSlot::InModule { index, offset } => {
                    Some(ThreadSlot::InModule { index: index.wrapping_add(module.load_bias), offset })
                }
                other => Some(other),
            }
        }
    }
}

/// The code of [`GETTER`] and its address in the file.
fn getter(module: &Module<'_>) -> Option<(Vec<u8>, u64)> {
    let (address, _) = module.file.symbol(GETTER)?;
    Some((module.file.read_at_address(address, LONGEST_LOOK)?, address))
}

/// Address of the key that a function hands to another as its first argument: `mov key(%rip),%edi` before the first call or jump that is
/// always made. `code` begins at `address`; conditional branches, which lead around the call, are not followed.
fn key_read(code: &[u8], address: u64) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        match instruction.flow_control() {
            FlowControl::Next if instruction.is_invalid() => return None,
            FlowControl::Next if instruction.op_count() > 0 && instruction.op0_register() == Register::EDI => {
                let loads = instruction.code() == Code::Mov_r32_rm32 && instruction.is_ip_rel_memory_operand();
                return loads.then(|| instruction.ip_rel_memory_address());
            }
            FlowControl::Next | FlowControl::ConditionalBranch => {}
            _ => return None,
        }
    }
    None
}

/// The variable of the thread that a function without branches returns: `mov %fs:offset,%rax` in a program, `lea tls_index(%rip),%rdi;
/// call __tls_get_addr; mov offset(%rax),%rax` in a library (local exec, local and general dynamic of the psABI supplement "ELF Handling
/// for Thread-Local Storage"). `code` begins at `address`.
fn returned_variable(code: &[u8], address: u64) -> Option<ThreadSlot> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let (mut index, mut called) = (None, None);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        match instruction.flow_control() {
            FlowControl::Next if is_load_to_rax(&instruction) => {
                let offset = instruction.memory_displacement64().cast_signed();
                return match (instruction.segment_prefix(), instruction.memory_base(), called) {
                    (Register::FS, Register::None, _) => {
                        (-LARGEST_BLOCK..0).contains(&offset).then_some(ThreadSlot::Static { offset })
                    }
                    (Register::None, Register::RAX, Some(index)) => {
                        (0..LARGEST_BLOCK).contains(&offset).then_some(ThreadSlot::InModule { index, offset })
                    }
                    _ => None,
                };
            }
            FlowControl::Next if instruction.is_invalid() => return None,
            FlowControl::Next
                if instruction.code() == Code::Lea_r64_m && instruction.op0_register() == Register::RDI =>
            {
                index = instruction.is_ip_rel_memory_operand().then(|| instruction.ip_rel_memory_address());
            }
            FlowControl::Next => {}
            FlowControl::Call | FlowControl::IndirectCall => called = index.take(),
            _ => return None,
        }
    }
    None
}

/// `mov …,%rax` from memory, without an index.
fn is_load_to_rax(instruction: &Instruction) -> bool {
    instruction.code() == Code::Mov_r64_rm64
        && instruction.op0_register() == Register::RAX
        && instruction.op1_kind() == OpKind::Memory
        && instruction.memory_index() == Register::None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `PyGILState_GetThisThreadState` of Debian's python3.15 3.15.2: `endbr64; mov %fs:-40,%rax; ret`.
    const PROGRAM: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa, 0x64, 0x48, 0x8b, 0x04, 0x25, 0xd8, 0xff, 0xff, 0xff, 0xc3];

    /// And of its libpython3.15.so: `endbr64; push; mov; lea tls_index(%rip),%rdi; call __tls_get_addr; pop; mov 0x28(%rax),%rax; ret`.
    #[rustfmt::skip]
    const LIBRARY: &[u8] = &[
        0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x3d, 0x61, 0xa6, 0x4a, 0x00, 0xe8, 0x5c, 0x9d, 0xcf, 0xff,
        0x5d, 0x48, 0x8b, 0x80, 0x28, 0x00, 0x00, 0x00, 0xc3,
    ];

    #[test]
    fn a_program_has_it_at_an_offset_from_the_thread_pointer() {
        assert_eq!(returned_variable(PROGRAM, 0x42_fa7d), Some(ThreadSlot::Static { offset: -40 }));
    }

    #[test]
    fn a_library_has_it_in_its_block() {
        let found = returned_variable(LIBRARY, 0x3c_f120);
        assert_eq!(found, Some(ThreadSlot::InModule { index: 0x87_9790, offset: 0x28 }));
    }

    /// As pyenv's 3.6.15 has it: `cmpq $0,autoInterpreterState(%rip); je; mov autoTLSkey(%rip),%edi; jmp PyThread_get_key_value`.
    #[rustfmt::skip]
    const KEY: &[u8] = &[
        0x48, 0x83, 0x3d, 0x70, 0xa1, 0x18, 0x00, 0x00, 0x74, 0x0e, 0x8b, 0x3d, 0x80, 0x81, 0x13, 0x00, 0xe9, 0x4b, 0xa7, 0xee, 0xff,
    ];

    #[test]
    fn the_key_of_3_6_is_the_argument_of_a_call() {
        assert_eq!(key_read(KEY, 0x17_4d70), Some(0x2a_cf00));
        for length in 0..16 {
            assert_eq!(key_read(&KEY[..length], 0x17_4d70), None);
        }
        // `mov $5,%edi` names no variable; a jump ends the search.
        assert_eq!(key_read(&[0xbf, 5, 0, 0, 0], 0), None);
        assert_eq!(key_read(&[&[0xeb, 0x00], KEY].concat(), 0), None);
    }

    #[test]
    fn other_shapes_are_not_guessed() {
        // A branch before: which way it goes is not known. As 3.14 has it, which keeps a key.
        let key = [0xf3, 0x0f, 0x1e, 0xfa, 0x83, 0x3d, 0x3b, 0x49, 0x77, 0, 0, 0x74, 0x0a, 0xbf, 0xe0, 0x10, 0xba, 0];
        assert_eq!(returned_variable(&key, 0x42_c79a), None);
        // No call before the load; the thread pointer itself; an offset above it.
        assert_eq!(returned_variable(&LIBRARY[21..], 0x3c_f135), None);
        for offset in [0i32, 8] {
            let mut code = PROGRAM.to_vec();
            code[9..13].copy_from_slice(&offset.to_le_bytes());
            assert_eq!(returned_variable(&code, 0x42_fa7d), None);
        }
        for length in 0..13 {
            assert_eq!(returned_variable(&PROGRAM[..length], 0x42_fa7d), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_do(code in prop::collection::vec(any::<u8>(), 0..64), address: u64) {
            returned_variable(&code, address);
            key_read(&code, address);
        }
    }
}

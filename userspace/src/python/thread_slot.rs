//! Where the threads of an interpreter keep their thread states, whoever holds the GIL (Python/pystate.c, gilstate): as the layout
//! says, or read off the code of the function that returns it.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Register};
use serde::Deserialize;

use super::discover::Module;
use super::layout::Layout;
use super::thread_variable::returned_variable;

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
    /// At `offset` from where a word that the loader fills in leads to: an entry of the global offset table or the argument of a TLS
    /// descriptor, which hold a distance from the thread pointer, the latter else the address of a `tls_index`.
    Distance {
        /// Address of the word in the process.
        word: u64,
        /// From there.
        offset: i64,
    },
}

impl ThreadSlot {
    /// An address of the file in it becomes that of the process.
    fn loaded_at(self, load_bias: u64) -> Self {
        match self {
            Self::TssKey { address } => Self::TssKey { address: address.wrapping_add(load_bias) },
            Self::Key { address } => Self::Key { address: address.wrapping_add(load_bias) },
            Self::Static { offset } => Self::Static { offset },
            Self::InModule { index, offset } => Self::InModule { index: index.wrapping_add(load_bias), offset },
            Self::Distance { word, offset } => Self::Distance { word: word.wrapping_add(load_bias), offset },
        }
    }
}

/// Exported by every CPython 3; its value is what is looked for.
const GETTER: &str = "PyGILState_GetThisThreadState";

/// How much of the function is looked at: where it returns a variable it is half as long at most.
const LONGEST_LOOK: usize = 64;

/// Finds the place in an interpreter's file. `None`: its code is of another shape.
pub fn find(module: &Module<'_>, runtime_address: u64, layout: &Layout) -> Option<ThreadSlot> {
    match layout.thread_slot {
        SlotKind::TssKey => {
            Some(ThreadSlot::TssKey { address: runtime_address.wrapping_add(layout.runtime_key.into()) })
        }
        SlotKind::Key => {
            let (code, address) = getter(module)?;
            let key = key_read(&code, address)?;
            Some(ThreadSlot::Key { address: key }.loaded_at(module.load_bias))
        }
        SlotKind::Variable => {
            let (code, address) = getter(module)?;
            Some(returned_variable(&code, address)?.loaded_at(module.load_bias))
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    proptest! {
        #[test]
        fn any_bytes_do(code in prop::collection::vec(any::<u8>(), 0..64), address: u64) {
            key_read(&code, address);
        }
    }
}

//! Where an interpreter has what belongs to the whole process: its list of interpreters above all.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Register};
use serde::Deserialize;

use super::discover::{Module, SymbolSource};
use super::layout::Layout;

/// Which way a minor version has it.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum RuntimeKind {
    /// In `_PyRuntime`: a symbol, or from 3.11 on the section it is alone in.
    Symbol,
    /// In static variables (3.6): the list's head, which [`HEAD`] returns, stands for the whole.
    Function,
}

/// Exported by every CPython 3.
const HEAD: &str = "PyInterpreterState_Head";

/// How much of the function is looked at.
const LONGEST_LOOK: usize = 32;

/// Its address in the file.
pub(super) fn find(file: &dyn SymbolSource, kind: RuntimeKind) -> Option<u64> {
    match kind {
        RuntimeKind::Symbol => {
            let place = file.symbol("_PyRuntime").or_else(|| file.section(".PyRuntime"));
            place.map(|(address, _)| address)
        }
        RuntimeKind::Function => {
            let (address, _) = file.symbol(HEAD)?;
            returned_word(&file.read_at_address(address, LONGEST_LOOK)?, address)
        }
    }
}

/// Where the process has the thread state that ends its interpreter.
pub(super) fn finalizing(module: &Module<'_>, runtime_address: u64, layout: &Layout) -> Option<u64> {
    match layout.runtime {
        RuntimeKind::Symbol => Some(runtime_address.wrapping_add(layout.runtime_finalizing.into())),
        RuntimeKind::Function => {
            module.file.symbol("_Py_Finalizing").map(|(address, _)| address.wrapping_add(module.load_bias))
        }
    }
}

/// The address of the word that a function without branches returns: `mov word(%rip),%rax; ret`. `code` begins at `address`.
fn returned_word(code: &[u8], address: u64) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut word = None;
    while decoder.can_decode() {
        let instruction = decoder.decode();
        match instruction.flow_control() {
            FlowControl::Next if instruction.is_invalid() => return None,
            FlowControl::Next if instruction.op_count() > 0 && instruction.op0_register() == Register::RAX => {
                let loads = instruction.code() == Code::Mov_r64_rm64 && instruction.is_ip_rel_memory_operand();
                word = loads.then(|| instruction.ip_rel_memory_address());
            }
            FlowControl::Next => {}
            FlowControl::Return => return word,
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_word_that_is_returned() {
        // As pyenv's 3.6.15 has it: `mov interp_head(%rip),%rax; ret`.
        let code = [0x48, 0x8b, 0x05, 0x49, 0xa3, 0x18, 0x00, 0xc3];
        assert_eq!(returned_word(&code, 0x17_4b90), Some(0x2f_eee0));
        // Another value put in its place, a jump, no end.
        assert_eq!(returned_word(&[&code[..7], &[0x48, 0x8b, 0x00, 0xc3]].concat(), 0x17_4b90), None);
        assert_eq!(returned_word(&[&code[..7], &[0xeb, 0x00]].concat(), 0x17_4b90), None);
        assert_eq!(returned_word(&code[..7], 0x17_4b90), None);
    }

    proptest! {
        #[test]
        fn any_bytes_do(code in prop::collection::vec(any::<u8>(), 0..32), address: u64) {
            returned_word(&code, address);
        }
    }
}

//! Where an interpreter has what belongs to the whole process: its list of interpreters above all.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Register};
use serde::Deserialize;

use super::discover::{Module, SymbolSource};
use super::layout::{ABSENT, Layout};

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

/// The collection that a program asks for, exported by every CPython 3.
const COLLECT: &str = "PyGC_Collect";

/// How much of it is looked at.
const LONGEST_COLLECT: usize = 256;

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

/// Where the process has the word that tells whether garbage is collected; `None`: in the interpreter's own state, or not told.
pub(super) fn collecting(module: &Module<'_>, runtime_address: u64, layout: &Layout) -> Option<u64> {
    match layout.runtime {
        RuntimeKind::Symbol => in_struct(layout.runtime_collecting).map(|offset| runtime_address.wrapping_add(offset)),
        RuntimeKind::Function => {
            let (address, _) = module.file.symbol(COLLECT)?;
            let code = module.file.read_at_address(address, LONGEST_COLLECT)?;
            raised_word(&code, address).map(|address| address.wrapping_add(module.load_bias))
        }
    }
}

/// Where the process has the thread state that holds the GIL; `None`: each thread state tells it of itself.
pub(super) fn holder(module: &Module<'_>, runtime_address: u64, layout: &Layout) -> Option<u64> {
    match layout.runtime {
        RuntimeKind::Symbol => in_struct(layout.runtime_holder).map(|offset| runtime_address.wrapping_add(offset)),
        RuntimeKind::Function => {
            let (address, _) = module.file.symbol("_PyThreadState_Current")?;
            Some(address.wrapping_add(module.load_bias))
        }
    }
}

fn in_struct(offset: u32) -> Option<u64> {
    (offset != ABSENT).then(|| offset.into())
}

/// The address of the only word that a function looks at, then sets to 1 and to 0, by constants: a static flag that keeps it from being
/// entered again (3.6, Modules/gcmodule.c, PyGC_Collect: `collecting`). `code` begins at `address`.
fn raised_word(code: &[u8], address: u64) -> Option<u64> {
    let mut looked_at = Vec::new();
    let mut set = Vec::new();
    for instruction in &mut Decoder::with_ip(64, code, address, DecoderOptions::NONE) {
        if instruction.is_invalid() {
            break;
        }
        if !instruction.is_ip_rel_memory_operand() {
            continue;
        }
        let word = instruction.ip_rel_memory_address();
        match instruction.code() {
            Code::Mov_r32_rm32 | Code::Cmp_rm32_imm8 | Code::Cmp_rm32_imm32 => looked_at.push(word),
            Code::Mov_rm32_imm32 => set.push((word, instruction.immediate32())),
            _ => {}
        }
    }
    let raised = looked_at.iter().find(|word| set.contains(&(**word, 1)) && set.contains(&(**word, 0)));
    raised.copied().filter(|word| set.iter().all(|(other, _)| other == word))
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

    #[test]
    fn the_word_that_is_raised() {
        // As pyenv's 3.6.15 has it: `mov collecting(%rip),%eax; test; je; …; movl $1,collecting(%rip); …; movl $0,collecting(%rip); ret`.
        let look = [0x8b, 0x05, 0x3b, 0xa1, 0x17, 0x00, 0x85, 0xc0, 0x74, 0x0f];
        let set = |at: u32, value| {
            let distance = 0x30_ce38_u32.wrapping_sub(0x19_2cf7 + at + 10).to_le_bytes();
            [&[0xc7, 0x05][..], &distance, &[value, 0, 0, 0]].concat()
        };
        let code = [&look[..], &set(10, 1), &set(20, 0), &[0xc3]].concat();
        assert_eq!(raised_word(&code, 0x19_2cf7), Some(0x30_ce38));
        // Never set back, and never looked at.
        assert_eq!(raised_word(&code[..20], 0x19_2cf7), None);
        assert_eq!(raised_word(&code[10..], 0x19_2d01), None);
        // Another word is set too: it is not known which is meant.
        let other = [&code[..30], &[0xc7, 0x05, 0, 0, 0, 0, 1, 0, 0, 0], &[0xc3]].concat();
        assert_eq!(raised_word(&other, 0x19_2cf7), None);
    }

    proptest! {
        #[test]
        fn any_bytes_do(code in prop::collection::vec(any::<u8>(), 0..32), address: u64) {
            returned_word(&code, address);
            raised_word(&code, address);
        }
    }
}

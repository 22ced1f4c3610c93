//! Where in a function to put a probe: on an instruction the kernel emulates.
//!
//! The kernel runs the instruction a uprobe replaced either by emulating it within the breakpoint's handler or by
//! single-stepping a copy, a second exception that costs forty times the probe on a virtual machine. Which it does is decided
//! in `arch/x86/kernel/uprobes.c` (`branch_setup_xol_ops`, `push_setup_xol_ops`).

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess, Register};

/// How many instructions of a function's beginning are looked at for a place.
const LONGEST_PROLOGUE: usize = 16;
/// How many bytes of a function are searched for jumps back into its beginning.
const LONGEST_SCAN: usize = 64 << 10;

/// An argument of the C calling convention that the probe reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// `rdi`
    First,
    /// `rsi`
    Second,
    /// `rdx`
    Third,
    /// `rcx`
    Fourth,
}

impl Argument {
    fn register(self) -> Register {
        match self {
            Argument::First => Register::RDI,
            Argument::Second => Register::RSI,
            Argument::Third => Register::RDX,
            Argument::Fourth => Register::RCX,
        }
    }
}

/// What the machine and kernel can do with a probed instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Emulation {
    /// The code is x86-64; for anything else the first instruction is taken.
    pub x86_64: bool,
    /// `nop`s of several bytes are emulated: Linux 6.18 and later (`x86_nops` in `branch_setup_xol_ops`).
    pub long_nops: bool,
}

/// Where the probe goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// Bytes from the function's first instruction.
    pub offset_in_function: u64,
    /// Whether the kernel emulates the instruction there; a probe elsewhere works, slowly.
    pub emulated: bool,
}

/// The place where nothing is known to be better.
const FIRST_INSTRUCTION: Site = Site { offset_in_function: 0, emulated: false };

/// Chooses where to probe a function whose bytes are `code` (all of it where known, and nothing beyond it), so that
/// every call passes the place exactly once, the `arguments` still hold what the caller gave, and the stack pointer is
/// that of the entry (the return address is on top).
pub fn choose(code: &[u8], arguments: &[Argument], emulation: Emulation) -> Site {
    if !emulation.x86_64 {
        return FIRST_INSTRUCTION;
    }
    let code = &code[..code.len().min(LONGEST_SCAN)];
    let kept: Vec<Register> = arguments.iter().map(|argument| argument.register()).collect();
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let mut factory = InstructionInfoFactory::new();
    for _ in 0..LONGEST_PROLOGUE {
        if !decoder.can_decode() {
            break;
        }
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            break;
        }
        let offset = instruction.ip();
        let bytes = &code[offset as usize..(instruction.next_ip() as usize).min(code.len())];
        if is_emulated(bytes, emulation) {
            let once = offset == 0 || !is_jumped_into(code, offset);
            return if once { Site { offset_in_function: offset, emulated: true } } else { FIRST_INSTRUCTION };
        }
        if instruction.flow_control() != FlowControl::Next || spoils(&mut factory, &instruction, &kept) {
            break;
        }
    }
    FIRST_INSTRUCTION
}

/// Whether the kernel emulates an instruction, by its bytes: those forms that every kernel from 5.10 on emulates. A prefix
/// other than the REX of a `push` makes it another matter: 66 on a branch is refused outright, as are lock and segment
/// prefixes (`is_prefix_bad`). `endbr64` (f3 0f 1e fa) is none of these: it is single-stepped.
fn is_emulated(bytes: &[u8], emulation: Emulation) -> bool {
    match bytes {
        // push, of the old registers and of the new
        [0x50..=0x57] | [0x41, 0x50..=0x57] => true,
        // nop; jmp short and near; call
        [0x90] | [0xeb, _] | [0xe9, _, _, _, _] | [0xe8, _, _, _, _] => true,
        // jcc short and near
        [0x70..=0x7f, _] | [0x0f, 0x80..=0x8f, _, _, _, _] => true,
        // The assembler's own nops of 3, 4, 5, 7 and 8 bytes; the kernel compares them byte by byte.
        [0x0f, 0x1f, 0x00]
        | [0x0f, 0x1f, 0x40, 0x00]
        | [0x0f, 0x1f, 0x44, 0x00, 0x00]
        | [0x0f, 0x1f, 0x80, 0, 0, 0, 0]
        | [0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0] => emulation.long_nops,
        _ => false,
    }
}

/// Whether an instruction writes the stack pointer or one of the registers to be kept.
fn spoils(factory: &mut InstructionInfoFactory, instruction: &Instruction, kept: &[Register]) -> bool {
    factory.info(instruction).used_registers().iter().any(|used| {
        let writes =
            !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess | OpAccess::None);
        let register = used.register().full_register();
        writes && (register == Register::RSP || kept.contains(&register))
    })
}

/// Whether a later jump of the function comes back to its beginning, after its first instruction and up to `last`:
/// a probe there would fire again without a call.
fn is_jumped_into(code: &[u8], last: u64) -> bool {
    let decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    decoder.into_iter().any(|instruction| {
        let jumps =
            matches!(instruction.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch);
        jumps && (1..=last).contains(&instruction.near_branch_target())
    })
}

#[cfg(test)]
mod tests {
    use super::Argument::{First, Fourth, Second, Third};
    use super::*;

    const OLD: Emulation = Emulation { x86_64: true, long_nops: false };
    const NEW: Emulation = Emulation { x86_64: true, long_nops: true };

    fn at(offset: u64) -> Site {
        Site { offset_in_function: offset, emulated: true }
    }

    /// The beginnings of glibc 2.36's functions (Debian 12, x86-64).
    #[test]
    fn glibc_2_36() {
        let malloc =
            b"\x41\x54\x55\x53\x48\x89\xfb\x48\x83\xec\x10\x80\x3d\x46\x1b\x14\x00\x00\x0f\x84\xf8\x01\x00\x00";
        assert_eq!(choose(malloc, &[First], OLD), at(0));
        let free = b"\x48\x85\xff\x0f\x84\xbf\x00\x00\x00\x55\x48\x8d\x77\xf0\x53\x48\x83\xec\x18";
        assert_eq!(choose(free, &[First], OLD), at(3));
        let calloc = b"\x41\x55\x48\x89\xf8\x41\x54\x55\x53\x48\x83\xec\x18\x48\xf7\xe6";
        assert_eq!(choose(calloc, &[First, Second], OLD), at(0));
        let realloc = b"\x41\x57\x41\x56\x41\x55\x41\x54\x55\x48\x89\xf5\x53\x48\x89\xfb\x48\x83\xec\x28";
        assert_eq!(choose(realloc, &[First, Second], OLD), at(0));
        let posix_memalign =
            b"\x80\x3d\x01\x02\x14\x00\x00\x41\x54\x49\x89\xd4\x55\x48\x89\xfd\x53\x48\x89\xf3\x74\x5a";
        assert_eq!(choose(posix_memalign, &[First, Second, Third], OLD), at(7));
        // aligned_alloc and memalign are one function.
        let memalign = b"\x80\x3d\x71\x0e\x14\x00\x00\x74\x07\xe9\x32\xf6\xff\xff\x66\x90\x48\x83\xec\x18";
        assert_eq!(choose(memalign, &[First, Second], OLD), at(7));
        let valloc = b"\x80\x3d\x31\x0e\x14\x00\x00\x53\x48\x89\xfb\x74\x1b";
        assert_eq!(choose(valloc, &[First], OLD), at(7));
        let reallocarray = b"\x48\x89\xf0\x48\xf7\xe2\x48\x89\xc6\x70\x05\xe9\x40\xb8\xf8\xff";
        assert_eq!(choose(reallocarray, &[First, Second, Third], OLD), FIRST_INSTRUCTION);
        // The first argument alone would still be whole at the jo.
        assert_eq!(choose(reallocarray, &[First], OLD), at(9));
    }

    #[test]
    fn what_is_emulated() {
        assert_eq!(choose(b"\x0f\x1f\x44\x00\x00\x55", &[], NEW), at(0));
        assert_eq!(choose(b"\x0f\x1f\x44\x00\x00\x55", &[], OLD), at(5));
        // endbr64, then push
        assert_eq!(choose(b"\xf3\x0f\x1e\xfa\x55", &[First], NEW), at(4));
        // xchg %ax,%ax; nopw %cs:…; bnd jmp: refused or stepped
        assert_eq!(choose(b"\x66\x90\x55", &[], NEW), at(2));
        assert_eq!(choose(b"\x66\x2e\x0f\x1f\x84\x00\x00\x00\x00\x00\x55", &[], NEW), at(10));
        assert_eq!(choose(b"\xf2\xe9\x00\x00\x00\x00\x55", &[], NEW), FIRST_INSTRUCTION);
        // push of 16 bits is single-stepped and moves the stack pointer
        assert_eq!(choose(b"\x66\x55\x55", &[], NEW), FIRST_INSTRUCTION);
    }

    #[test]
    fn what_ends_the_search() {
        // sub $8,%rsp; push
        assert_eq!(choose(b"\x48\x83\xec\x08\x55", &[], NEW), FIRST_INSTRUCTION);
        // mov %esi,%edi clears the upper half of rdi too
        assert_eq!(choose(b"\x89\xf7\x55", &[First], NEW), FIRST_INSTRUCTION);
        assert_eq!(choose(b"\x89\xf7\x55", &[Second], NEW), at(2));
        // mov $0,%cl
        assert_eq!(choose(b"\xb1\x00\x55", &[Fourth], NEW), FIRST_INSTRUCTION);
        // cmove %rax,%rdi may write
        assert_eq!(choose(b"\x48\x0f\x44\xf8\x55", &[First], NEW), FIRST_INSTRUCTION);
        // rep stos writes rdi and rcx
        assert_eq!(choose(b"\xf3\xaa\x55", &[First], NEW), FIRST_INSTRUCTION);
        // ret; syscall; ud2; jmp *%rax; nothing at all; rubbish
        for code in [&b"\xc3\x55"[..], b"\x0f\x05\x55", b"\x0f\x0b\x55", b"\xff\xe0\x55", b"", b"\x06\x55", b"\x0f"] {
            assert_eq!(choose(code, &[First], NEW), FIRST_INSTRUCTION, "{code:x?}");
        }
    }

    #[test]
    fn a_loop_back_into_the_beginning_is_refused() {
        // 0: test %rdi,%rdi  3: je +2  5: dec %rax ... jmp 3
        assert_eq!(choose(b"\x48\x85\xff\x74\x05\x48\xff\xc8\xeb\xf9\xc3", &[First], NEW), FIRST_INSTRUCTION);
        // back to the very first instruction: a tail call to itself, that counts as a call at either place
        assert_eq!(choose(b"\x48\x85\xff\x74\x05\x48\xff\xc8\xeb\xf6\xc3", &[First], NEW), at(3));
    }

    #[test]
    fn other_machines_take_the_first_instruction() {
        let arm = Emulation { x86_64: false, long_nops: true };
        assert_eq!(choose(b"\xfd\x7b\xbe\xa9", &[First], arm), FIRST_INSTRUCTION);
    }
}

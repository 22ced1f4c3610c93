//! Where a function keeps a variable of its thread: read off its code.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};

/// How many instructions of a function are looked at.
const LONGEST_LOOK: usize = 48;

/// Address (as the code's) of the word that holds the offset, from the thread pointer, of the first thread-local variable that a
/// function reads in the initial-exec way: `mov word(%rip), %r; mov %fs:(%r), …` (the psABI supplement "ELF Handling for
/// Thread-Local Storage"). `code` begins at `address`; branches are not followed. `None` where there is no such pair.
pub fn first_initial_exec(code: &[u8], address: u64) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut loaded: Vec<(Register, u64)> = Vec::new();
    for _ in 0..LONGEST_LOOK {
        if !decoder.can_decode() {
            return None;
        }
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            return None;
        }
        if reads_thread_local(&instruction) {
            let base = instruction.memory_base();
            return loaded.iter().rev().find(|(register, _)| *register == base).map(|(_, word)| *word);
        }
        if instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Register {
            let written = instruction.op0_register().full_register();
            loaded.retain(|(register, _)| *register != written);
            if instruction.code() == Code::Mov_r64_rm64 && instruction.is_ip_rel_memory_operand() {
                loaded.push((written, instruction.ip_rel_memory_address()));
            }
        }
    }
    None
}

/// `mov %fs:(%r), %r64`
fn reads_thread_local(instruction: &Instruction) -> bool {
    instruction.code() == Code::Mov_r64_rm64
        && instruction.op1_kind() == OpKind::Memory
        && instruction.segment_prefix() == Register::FS
        && instruction.memory_displacement64() == 0
        && instruction.memory_index() == Register::None
        && instruction.memory_base() != Register::None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `mov 0x13a408(%rip),%r12; mov %fs:(%r12),%rdx; test %rdx,%rdx` as glibc 2.36 has it in malloc for its tcache.
    const MALLOC: &[u8] = &[0x4c, 0x8b, 0x25, 0x08, 0xa4, 0x13, 0x00, 0x64, 0x49, 0x8b, 0x14, 0x24, 0x48, 0x85, 0xd2];

    #[test]
    fn finds_the_word_of_the_first_variable() {
        assert_eq!(first_initial_exec(MALLOC, 0x98969), Some(0x1d2d78));
    }

    #[test]
    fn a_register_written_in_between_is_not_taken() {
        let mut code = MALLOC[..7].to_vec();
        code.extend([0x4d, 0x31, 0xe4]); // xor %r12,%r12
        code.extend(&MALLOC[7..]);
        assert_eq!(first_initial_exec(&code, 0x98969), None);
    }

    #[test]
    fn any_bytes_do() {
        for seed in 0..2000u32 {
            let code: Vec<u8> =
                (0..64).map(|i| (seed.wrapping_mul(2_654_435_761).rotate_left(i) >> 7).to_le_bytes()[0]).collect();
            first_initial_exec(&code, u64::MAX - 10);
        }
        assert_eq!(first_initial_exec(&[], 0), None);
    }
}

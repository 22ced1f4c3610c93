//! The instructions of BPF, as far as stacks are concerned (Documentation/bpf/standardization/instruction-set.rst).

/// Bytes of one; those with 64 bits in them are two.
pub const SIZE: usize = 8;
/// The register that says where a function's stack ends.
pub const FRAME: u8 = 10;

pub const LOAD_WIDE: u8 = 0x18;
pub const ADD: u8 = 0x07;
pub const ADD_REGISTER: u8 = 0x0f;
pub const SUBTRACT: u8 = 0x17;
pub const MOVE_REGISTER: u8 = 0xbf;
pub const JUMP: u8 = 0x05;
pub const JUMP_FAR: u8 = 0x06;
pub const CALL: u8 = 0x85;
pub const EXIT: u8 = 0x95;

/// Where the low three bits of the code say what kind it is.
pub const CLASS: u8 = 7;
pub const LOAD: u8 = 1;
pub const STORE: u8 = 2;
pub const STORE_REGISTER: u8 = 3;
pub const ARITHMETIC_32: u8 = 4;
pub const BRANCH: u8 = 5;
pub const BRANCH_32: u8 = 6;
pub const ARITHMETIC: u8 = 7;

/// What `source` of a call is when it is to a function of the object (`BPF_PSEUDO_CALL`), not to a helper.
pub const OF_OBJECT: u8 = 1;

#[derive(Clone, Copy, Debug)]
pub struct Instruction {
    pub code: u8,
    pub target: u8,
    pub source: u8,
    pub offset: i16,
    pub immediate: i32,
}

impl Instruction {
    /// The instructions of little-endian code, one for each 8 bytes.
    pub fn all(code: &[u8]) -> Vec<Self> {
        code.chunks_exact(SIZE).filter_map(|bytes| bytes.try_into().ok()).map(Self::of).collect()
    }

    fn of([code, registers, o0, o1, i0, i1, i2, i3]: [u8; SIZE]) -> Self {
        Self {
            code,
            target: registers & 15,
            source: registers >> 4,
            offset: i16::from_le_bytes([o0, o1]),
            immediate: i32::from_le_bytes([i0, i1, i2, i3]),
        }
    }

    pub const fn class(self) -> u8 {
        self.code & CLASS
    }
}

//! Which variable of the thread a function returns, read off its code: the compiler's way to it and what the linker makes of that
//! ("ELF Handling for Thread-Local Storage", its x86-64 models and relaxations; Alexandre Oliva's TLS descriptors).

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};

use super::thread_slot::ThreadSlot;

/// The most that variables of all modules take of a thread's static block.
const LARGEST_BLOCK: i64 = 1 << 24;

/// What is known of a register. Addresses are the file's own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    Unknown,
    Number(i64),
    Address(u64),
    /// Points to, once the second is added: the thread pointer, or where a word or a `tls_index` leads to.
    Pointer(Base, i64),
    /// The distance from the thread pointer that is in a word of the file: not a pointer yet.
    Distance(u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Base {
    ThreadPointer,
    Word(u64),
    Index(u64),
}

impl Value {
    fn plus(self, number: i64) -> Self {
        match self {
            Self::Number(value) => Self::Number(value.wrapping_add(number)),
            Self::Pointer(base, offset) => Self::Pointer(base, offset.wrapping_add(number)),
            _ if number == 0 => self,
            _ => Self::Unknown,
        }
    }

    /// With the thread pointer added, by an instruction or by the segment of a memory operand.
    fn in_thread(self) -> Self {
        match self {
            Self::Number(offset) => Self::Pointer(Base::ThreadPointer, offset),
            Self::Distance(word) => Self::Pointer(Base::Word(word), 0),
            _ => Self::Unknown,
        }
    }

    /// The place it points to.
    fn place(self) -> Option<ThreadSlot> {
        let Self::Pointer(base, offset) = self else { return None };
        match base {
            Base::ThreadPointer if (-LARGEST_BLOCK..0).contains(&offset) => Some(ThreadSlot::Static { offset }),
            Base::Index(index) if (0..LARGEST_BLOCK).contains(&offset) => Some(ThreadSlot::InModule { index, offset }),
            Base::Word(word) if (0..LARGEST_BLOCK).contains(&offset) => Some(ThreadSlot::Distance { word, offset }),
            _ => None,
        }
    }
}

/// The variable of the thread that a function without branches returns. `code` begins at `address`.
pub(super) fn returned_variable(code: &[u8], address: u64) -> Option<ThreadSlot> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let mut registers = Registers { rax: Value::Unknown, rdi: Value::Unknown };
    while decoder.can_decode() {
        let instruction = decoder.decode();
        match instruction.flow_control() {
            FlowControl::Next if instruction.is_invalid() => return None,
            FlowControl::Next => {
                if let Some(place) = registers.execute(&instruction) {
                    return Some(place);
                }
            }
            FlowControl::Call | FlowControl::IndirectCall => registers.call(&instruction),
            _ => return None,
        }
    }
    None
}

/// The two that all the ways go through: the result, and the argument of `__tls_get_addr`.
struct Registers {
    rax: Value,
    rdi: Value,
}

impl Registers {
    /// Executes what does not branch. The place, if it is this instruction that loads its value.
    fn execute(&mut self, instruction: &Instruction) -> Option<ThreadSlot> {
        let target = instruction.op0_register();
        if instruction.op_count() == 0 || !matches!(target.full_register(), Register::RAX | Register::RDI) {
            return None;
        }
        let value = match instruction.code() {
            Code::Mov_r64_rm64 if instruction.op1_kind() == OpKind::Memory => {
                let pointer = self.pointer(instruction);
                if let (Some(place), Register::RAX) = (pointer.place(), target) {
                    return Some(place);
                }
                loaded(pointer)
            }
            Code::Lea_r64_m if instruction.segment_prefix() == Register::None => self.pointer(instruction),
            Code::Mov_rm64_imm32 => Value::Number(instruction.immediate32to64()),
            Code::Add_rm64_imm8 => self.of(target).plus(instruction.immediate8to64()),
            Code::Add_rm64_imm32 | Code::Add_RAX_imm32 => self.of(target).plus(instruction.immediate32to64()),
            Code::Add_r64_rm64 if instruction.op1_kind() == OpKind::Memory => {
                sum(self.of(target), loaded(self.pointer(instruction)))
            }
            _ => Value::Unknown,
        };
        match target {
            Register::RAX => self.rax = value,
            Register::RDI => self.rdi = value,
            // A part of one of them.
            _ if target.full_register() == Register::RAX => self.rax = Value::Unknown,
            _ => self.rdi = Value::Unknown,
        }
        None
    }

    /// `__tls_get_addr`, near or through the global offset table; or a TLS descriptor's function, which is the descriptor's first word
    /// and returns what its second leads to.
    fn call(&mut self, instruction: &Instruction) {
        let descriptor = instruction.code() == Code::Call_rm64 && instruction.memory_base() == Register::RAX;
        self.rax = match (self.rax, self.rdi) {
            (Value::Address(at), _) if descriptor && instruction.memory_displacement64() == 0 => {
                Value::Distance(at.wrapping_add(8))
            }
            (_, Value::Address(index)) if !descriptor => Value::Pointer(Base::Index(index), 0),
            _ => Value::Unknown,
        };
        self.rdi = Value::Unknown;
    }

    fn of(&self, register: Register) -> Value {
        match register {
            Register::RAX => self.rax,
            Register::RDI => self.rdi,
            Register::None => Value::Number(0),
            _ => Value::Unknown,
        }
    }

    /// Where a memory operand is.
    fn pointer(&self, instruction: &Instruction) -> Value {
        if instruction.memory_index() != Register::None {
            return Value::Unknown;
        }
        let displacement = instruction.memory_displacement64();
        match (instruction.segment_prefix(), instruction.memory_base()) {
            (Register::None, Register::RIP) => Value::Address(displacement),
            (Register::None, base) => self.of(base).plus(displacement.cast_signed()),
            (Register::FS, base) => match self.of(base).in_thread() {
                Value::Pointer(from, offset) => Value::Pointer(from, offset.wrapping_add(displacement.cast_signed())),
                _ => Value::Unknown,
            },
            _ => Value::Unknown,
        }
    }
}

/// The word at a place that is not yet the one looked for: the thread pointer itself, which it begins with, or one of the file.
fn loaded(pointer: Value) -> Value {
    match pointer {
        Value::Pointer(Base::ThreadPointer, 0) => pointer,
        Value::Address(word) => Value::Distance(word),
        _ => Value::Unknown,
    }
}

fn sum(one: Value, other: Value) -> Value {
    match (one, other) {
        (Value::Pointer(Base::ThreadPointer, 0), distance) | (distance, Value::Pointer(Base::ThreadPointer, 0)) => {
            distance.in_thread()
        }
        _ => Value::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STATIC: Option<ThreadSlot> = Some(ThreadSlot::Static { offset: -16 });

    /// What gcc 12 and clang 19 make of `return variable;`, GNU ld 2.40 and lld 19 of that: the bytes before the function returns, and the
    /// place for a function at 0x1000.
    #[rustfmt::skip]
    const SHAPES: &[(&str, &[u8], Option<ThreadSlot>)] = &[
        ("-fno-pie, and -fPIE of clang: mov %fs:-16,%rax",
            &[0x64, 0x48, 0x8b, 0x04, 0x25, 0xf0, 0xff, 0xff, 0xff], STATIC),
        ("-fPIE of gcc, and its -mtls-dialect=gnu2: mov $-16,%rax; nop; mov %fs:(%rax),%rax",
            &[0x48, 0xc7, 0xc0, 0xf0, 0xff, 0xff, 0xff, 0x66, 0x90, 0x64, 0x48, 0x8b, 0x00], STATIC),
        ("-fPIC -mtls-dialect=gnu2 of clang, in a program: mov $0,%rax; nop; mov %fs:-16(%rax),%rax",
            &[0x48, 0xc7, 0xc0, 0, 0, 0, 0, 0x66, 0x90, 0x64, 0x48, 0x8b, 0x80, 0xf0, 0xff, 0xff, 0xff], STATIC),
        ("-fPIC of gcc in a program: mov %fs:0,%rax; lea -16(%rax),%rax; mov (%rax),%rax",
            &[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x48, 0x8d, 0x80, 0xf0, 0xff, 0xff, 0xff, 0x48, 0x8b, 0x00], STATIC),
        ("-fPIC of clang in a program: mov %fs:0,%rax; mov -16(%rax),%rax",
            &[0x66, 0x66, 0x66, 0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x48, 0x8b, 0x80, 0xf0, 0xff, 0xff, 0xff], STATIC),
        ("-fPIC of gcc: lea tls_index(%rip),%rdi; call __tls_get_addr; mov (%rax),%rax",
            &[0x66, 0x48, 0x8d, 0x3d, 0x34, 0, 0, 0, 0x66, 0x66, 0x48, 0xe8, 0xbc, 0xfe, 0xff, 0xff, 0x48, 0x8b, 0x00],
            Some(ThreadSlot::InModule { index: 0x103c, offset: 0 })),
        ("and -fno-plt: call *__tls_get_addr(%rip)",
            &[0x66, 0x48, 0x8d, 0x3d, 0x34, 0, 0, 0, 0x66, 0x48, 0xff, 0x15, 0x64, 0x2e, 0, 0, 0x48, 0x8b, 0x00],
            Some(ThreadSlot::InModule { index: 0x103c, offset: 0 })),
        ("-fPIC of clang: lea; call; mov 16(%rax),%rax",
            &[0x48, 0x8d, 0x3d, 0x70, 0, 0, 0, 0xe8, 0xf3, 0xfe, 0xff, 0xff, 0x48, 0x8b, 0x80, 0x10, 0, 0, 0],
            Some(ThreadSlot::InModule { index: 0x1077, offset: 16 })),
        ("-fPIC -ftls-model=initial-exec: mov distance(%rip),%rax; mov %fs:(%rax),%rax",
            &[0x48, 0x8b, 0x05, 0x69, 0, 0, 0, 0x64, 0x48, 0x8b, 0x00],
            Some(ThreadSlot::Distance { word: 0x1070, offset: 0 })),
        ("-fPIC of a program whose variable a library may replace: mov %fs:0,%rax; add distance(%rip),%rax; mov (%rax),%rax",
            &[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0x48, 0x03, 0x05, 0x34, 0, 0, 0, 0x48, 0x8b, 0x00],
            Some(ThreadSlot::Distance { word: 0x1044, offset: 0 })),
        ("-fPIC -mtls-dialect=gnu2: lea descriptor(%rip),%rax; call *(%rax); mov %fs:16(%rax),%rax",
            &[0x48, 0x8d, 0x05, 0xb0, 0, 0, 0, 0xff, 0x10, 0x64, 0x48, 0x8b, 0x80, 0x10, 0, 0, 0],
            Some(ThreadSlot::Distance { word: 0x10bf, offset: 16 })),
        // `PyGILState_GetThisThreadState` of Debian's libpython3.15.so 3.15.2, and where libpython3.15-pic.a is linked into a program.
        ("endbr64; push; mov; lea tls_index(%rip),%rdi; call __tls_get_addr; pop; mov 0x28(%rax),%rax",
            &[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x3d, 0x61, 0, 0, 0, 0xe8, 0x5c, 0x9d, 0xcf, 0xff,
                0x5d, 0x48, 0x8b, 0x80, 0x28, 0, 0, 0], Some(ThreadSlot::InModule { index: 0x1070, offset: 0x28 })),
    ];

    #[test]
    fn every_way_to_a_variable() {
        for (shape, code, place) in SHAPES {
            let found = returned_variable(&[code, &[0xc3][..]].concat(), 0x1000);
            assert_eq!(found, *place, "{shape}");
            for length in 0..code.len() {
                assert_eq!(returned_variable(&code[..length], 0x1000), None, "{shape}: {length} bytes of it");
            }
        }
    }

    #[test]
    fn other_shapes_are_not_guessed() {
        // A branch before: which way it goes is not known. As 3.14 has it, which keeps a key.
        let key = [0xf3, 0x0f, 0x1e, 0xfa, 0x83, 0x3d, 0x3b, 0x49, 0x77, 0, 0, 0x74, 0x0a, 0xbf, 0xe0, 0x10, 0xba, 0];
        assert_eq!(returned_variable(&key, 0x42_c79a), None);
        for (shape, code) in [
            ("no call before the load", &[0x48, 0x8b, 0x80, 0x28, 0, 0, 0, 0xc3][..]),
            ("above the thread pointer", &[0x64, 0x48, 0x8b, 0x04, 0x25, 8, 0, 0, 0, 0xc3]),
            ("the thread pointer", &[0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0, 0xc3]),
            ("of another segment", &[0x65, 0x48, 0x8b, 0x04, 0x25, 0xf0, 0xff, 0xff, 0xff, 0xc3]),
            ("with an index", &[0x64, 0x48, 0x8b, 0x04, 0x05, 0xf0, 0xff, 0xff, 0xff, 0xc3]),
            (
                "a part of the register overwritten",
                &[0x48, 0xc7, 0xc0, 0xf0, 0xff, 0xff, 0xff, 0x31, 0xc0, 0x64, 0x48, 0x8b, 0x00, 0xc3],
            ),
            ("a word of the file", &[0x48, 0x8b, 0x05, 0x69, 0, 0, 0, 0xc3]),
            ("what a word of the file points to", &[0x48, 0x8b, 0x05, 0x69, 0, 0, 0, 0x48, 0x8b, 0x00, 0xc3]),
        ] {
            assert_eq!(returned_variable(code, 0x1000), None, "{shape}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_do(code in prop::collection::vec(any::<u8>(), 0..64), address: u64) {
            returned_variable(&code, address);
        }
    }
}

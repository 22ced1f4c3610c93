//! How the kernel side is to read the frames of one Python: what is known of it, as the structs of the ABI.

use rmprof_probes::abi;

use crate::python::discover::Interpreter;
use crate::python::layout::{CleanUpCodes, Layout};
use crate::python::thread_slot::ThreadSlot;
use crate::python::with_cleanup;

/// `struct pthread.specific` in glibc (nptl/descr.h), the same from 2.27 to 2.43 on x86-64.
const GLIBC_SPECIFIC: u32 = 0x510;
/// `struct pthread.tsd` in musl (src/internal/pthread_impl.h), as `pthread_getspecific` of 1.2.3 and 1.2.6 has it on x86-64.
const MUSL_SPECIFIC: u32 = 0x80;

/// Sets what the walker needs.
pub fn describe(process: &mut abi::rm_process, interpreter: &Interpreter, layout: &Layout, is_musl: bool) {
    process.flags |= abi::RM_PYTHON;
    process.layout = layout_of(layout);
    set_thread_slot(process, interpreter);
    (process.text_start, process.text_end) = (interpreter.text_range.start, interpreter.text_range.end);
    (process.specific_kind, process.specific_offset) =
        if is_musl { (abi::RM_SPECIFIC_MUSL, MUSL_SPECIFIC) } else { (abi::RM_SPECIFIC_GLIBC, GLIBC_SPECIFIC) };
    process.finalizing_address = interpreter.finalizing_address.unwrap_or(0);
    process.collecting_address = interpreter.collecting_address.unwrap_or(0);
    process.holder_address = interpreter.holder_address.unwrap_or(0);
    process.interpreters_address = interpreter.interpreters_address();
    process.code_type = interpreter.code_type.unwrap_or(0);
}

/// Where its threads keep their thread states.
fn set_thread_slot(process: &mut abi::rm_process, interpreter: &Interpreter) {
    process.slot_kind = abi::RM_SLOT_VARIABLE;
    process.key_address = interpreter.interpreters_address();
    match interpreter.thread_slot {
        ThreadSlot::TssKey { address } => {
            (process.slot_kind, process.key_address) = (abi::RM_SLOT_TSS_KEY, address);
        }
        ThreadSlot::Key { address } => (process.slot_kind, process.key_address) = (abi::RM_SLOT_KEY, address),
        ThreadSlot::Static { offset } => process.slot_offset = offset,
        ThreadSlot::InModule { index, offset } => (process.slot_module, process.slot_offset) = (index, offset),
        ThreadSlot::Distance { word, offset } => {
            (process.slot_kind, process.slot_module, process.slot_offset) = (abi::RM_SLOT_DISTANCE, word, offset);
        }
    }
}

/// How much of a frame is to be read: to the last field wanted and no further.
fn frame_bytes(layout: &Layout) -> u32 {
    let position = if layout.position_kind == abi::RM_POSITION_POINTER { 8 } else { 4 };
    let owner = if layout.frame_owner == abi::RM_ABSENT { 0 } else { layout.frame_owner + 1 };
    let index = if layout.frame_bytecode_index == abi::RM_ABSENT { 0 } else { layout.frame_bytecode_index + 4 };
    (layout.frame_back + 8).max(layout.frame_code + 8).max(layout.frame_position + position).max(owner).max(index)
}

/// The data file's fields as the walker's struct, name by name.
fn layout_of(layout: &Layout) -> abi::rm_layout {
    abi::rm_layout {
        thread_head: layout.thread_head,
        thread_head_hop: layout.thread_head_hop,
        thread_thread_id: layout.thread_thread_id,
        thread_executor: layout.thread_executor,
        frame_base: layout.frame_base,
        frame_bytes: frame_bytes(layout),
        frame_back: layout.frame_back,
        frame_code: layout.frame_code,
        frame_code_tags: layout.frame_code_tags,
        frame_position: layout.frame_position,
        frame_owner: layout.frame_owner,
        frame_bytecode_index: layout.frame_bytecode_index,
        owner_skip: layout.owner_skip,
        position_kind: layout.position_kind,
        code_base: layout.code_base,
        code_first_line: layout.code_first_line,
        code_filename: layout.code_filename,
        code_name: layout.code_name,
        code_qualname: layout.code_qualname,
        code_line_table: layout.code_line_table,
        code_version: layout.code_version,
        code_code: layout.code_code,
        lines_mended: with_cleanup::is_needed(layout.minor).into(),
        code_bytecode: layout.code_bytecode,
        code_thread_bytecode: layout.code_thread_bytecode,
        thread_bytecode_entries: layout.thread_bytecode_entries,
        object_type: layout.object_type,
        str_length: layout.str_length,
        str_state: layout.str_state,
        str_ascii_data: layout.str_ascii_data,
        str_compact_data: layout.str_compact_data,
        str_kind_shift: layout.str_kind_shift,
        str_compact_bit: layout.str_compact_bit,
        str_ascii_bit: layout.str_ascii_bit,
        bytes_length: layout.bytes_length,
        bytes_data: layout.bytes_data,
        arena_bytes: layout.arena_bytes,
        reserve_flags: layout.reserve_flags,
        thread_interpreter: layout.thread_interpreter,
        interpreter_collecting: layout.interpreter_collecting,
        interpreter_threads_head: layout.interpreter_threads_head,
        thread_next: layout.thread_next,
        interpreter_next: layout.interpreter_next,
        thread_attached: layout.thread_attached,
        attached_mask: layout.attached_mask,
        attached_value: layout.attached_value,
        clean_up: layout.clean_up.as_ref().map_or(NO_CLEAN_UP, clean_up_of),
    }
}

const NO_CLEAN_UP: abi::rm_clean_up = abi::rm_clean_up {
    calls: [0; 8],
    load: [abi::RM_ABSENT; 2],
    again: [abi::RM_ABSENT; 2],
    argument: 0,
    raised: abi::RM_ABSENT,
    before: [abi::RM_ABSENT; 3],
    line: abi::RM_ABSENT,
};

fn clean_up_of(codes: &CleanUpCodes) -> abi::rm_clean_up {
    let mut calls = [0; 8];
    for call in &codes.calls {
        calls[usize::from(call >> 5)] |= 1 << (call & 31);
    }
    abi::rm_clean_up {
        calls,
        load: filled(codes.load.iter().copied().map(u32::from)),
        again: filled(codes.again.iter().copied().map(u32::from)),
        argument: codes.argument.into(),
        raised: codes.raised.into(),
        before: filled(codes.before.iter().map(|(opcode, argument)| u32::from(*opcode) | u32::from(*argument) << 8)),
        line: codes.line.map_or(abi::RM_ABSENT, u32::from),
    }
}

/// What there is, and `RM_ABSENT` in the rest; more than there is room for was refused (`CleanUpCodes::validate`).
fn filled<const N: usize>(values: impl Iterator<Item = u32>) -> [u32; N] {
    let mut all = [abi::RM_ABSENT; N];
    all.iter_mut().zip(values).for_each(|(place, value)| *place = value);
    all
}

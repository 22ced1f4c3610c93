//! Records of the ring buffer as values of our own: what is there is checked, what is not is `None`.

use std::mem::offset_of;

use rmprof_probes::abi;

use super::attach::from_bytes;
use crate::ledger::{CodeKey, Frame, MapChange, Origin, ProcessId, Stack, StackId, StackStatus};
use crate::native::Snapshot;
use crate::target::Pid;
use crate::target::status::split_command_line;

/// A str as the kernel side copied it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawText {
    /// Bytes a character: 1 (Latin-1), 2, 4.
    pub kind: u32,
    /// The characters.
    pub bytes: Vec<u8>,
}

/// A code object as the kernel side copied it; what is absent came as [`Event::Part`]s or is to be read by user space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawCode {
    /// `co_firstlineno`.
    pub first_line: u32,
    /// `co_filename`.
    pub filename: Option<RawText>,
    /// `co_name`.
    pub name: Option<RawText>,
    /// `co_qualname`.
    pub qualified_name: Option<RawText>,
    /// `co_lnotab` or `co_linetable`.
    pub line_table: Option<Vec<u8>>,
}

/// A part of a code object that travels for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// `co_filename`.
    Filename,
    /// `co_name`.
    Name,
    /// `co_qualname`.
    QualifiedName,
    /// `co_lnotab` or `co_linetable`.
    LineTable,
    /// `co_code`.
    Bytecode,
    /// `co_code` of a marked code object, as the compiler made it.
    Instructions,
    /// `co_exceptiontable` of a marked code object.
    Handlers,
}

/// Some bytes of a [`Part`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Of which part.
    pub part: Part,
    /// Of a str: bytes a character.
    pub kind: u32,
    /// Where in the part it begins.
    pub offset: u32,
    /// Bytes of the whole part.
    pub total: u32,
    /// The bytes; none where they could not be read.
    pub bytes: Vec<u8>,
}

/// What can become of a process that nobody holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is a fork of this image, and counted.
    Forked(ProcessId),
    /// It borrows the memory of its parent until its exec, and is not counted.
    Borrows,
    /// It has mapped further code: a library, perhaps an allocator.
    Loaded,
    /// It is a fork of this image, which is not counted, and neither is it.
    Young(ProcessId),
    /// Its image was replaced by one of this program, with this command line.
    Executed(Executable, Command),
    /// It has ended.
    Exited {
        /// The status of `wait`.
        status: i32,
        /// The kernel had chosen to end it for want of memory.
        victim: bool,
    },
}

/// The command line of something that was just executed, as far as the kernel side read it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Its words.
    pub words: Vec<String>,
    /// These are all.
    pub whole: bool,
}

/// A program's file, as the kernel side knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Executable {
    /// Number of its inode.
    pub inode: u64,
    /// Its size.
    pub bytes: u64,
    /// The kernel's number of its file system.
    pub device: u32,
    /// Which file it is of those that had the inode.
    pub generation: u32,
}

/// What can become of a limit of resident memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitNews {
    /// The process can be told.
    Ready,
    /// The debugger is about to open.
    Stopped,
    /// It has let the program go on.
    Continued,
    /// It cannot open, for this `rm_limit_refusal`.
    Refused(u32),
    /// It is to be opened from outside, in the thread that passed the limit.
    Reached {
        /// Its number.
        thread: Pid,
        /// Address of its `PyThreadState`.
        state: u64,
        /// It was in a system call.
        in_call: bool,
        /// Resident bytes at that moment.
        bytes: u64,
    },
    /// Resident memory passed the alarm of this number.
    Passed {
        /// Which.
        alarm: usize,
        /// Resident bytes at that moment.
        bytes: u64,
        /// Bytes that were compared with it.
        measured: u64,
    },
}

/// What the kernel side tells at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// First sight of a stack.
    Stack {
        /// In which process.
        process: ProcessId,
        /// Its name.
        id: StackId,
        /// Its frames.
        stack: Stack,
        /// Address of the thread state it was read from, 0 for none.
        thread_state: u64,
        /// The thread pointer of the thread.
        thread_pointer: u64,
        /// Without a Python frame: the address of the function its thread began with, 0 where there is none.
        thread_start: u64,
    },
    /// Where a stack was called from, after its first sight.
    Native {
        /// In which process.
        process: ProcessId,
        /// What was copied.
        snapshot: Snapshot,
    },
    /// First sight of a code object.
    Code {
        /// In which process.
        process: ProcessId,
        /// Which.
        key: CodeKey,
        /// What was copied.
        code: RawCode,
    },
    /// A piece of a code object whose record is still to come and has no room for it.
    Part {
        /// In which process.
        process: ProcessId,
        /// Which.
        key: CodeKey,
        /// The piece.
        piece: Piece,
    },
    /// A function gives line events from here on.
    Mark {
        /// In which process.
        process: ProcessId,
        /// Its code object.
        key: CodeKey,
        /// The number of its code object in the process.
        number: u32,
        /// Did the program ask for it, with a mark?
        asked: bool,
    },
    /// The launch help is loaded: marks are available.
    Hello {
        /// In which process.
        process: ProcessId,
    },
    /// What was resident from an event of the process's tally on.
    Resident {
        /// In which process.
        process: ProcessId,
        /// The number of that event.
        sequence: u64,
        /// Bytes, the tally's own left out.
        bytes: u64,
    },
    /// What became of the limit of resident memory.
    Limit {
        /// In which process.
        process: ProcessId,
        /// What.
        news: LimitNews,
    },
    /// Something became of a process that nobody holds.
    Followed {
        /// Which image: of a fork its own.
        process: ProcessId,
        /// Its process.
        pid: Pid,
        /// What became of it.
        change: Change,
        /// Resident bytes at that moment, and the most there were.
        resident: (u64, u64),
    },
    /// A mapping call of the program's own.
    Map {
        /// In which process.
        process: ProcessId,
        /// By which stack.
        stack: StackId,
        /// What it changed.
        change: MapChange,
    },
}

impl Event {
    /// The image it is about.
    pub fn process(&self) -> ProcessId {
        match self {
            Self::Stack { process, .. }
            | Self::Native { process, .. }
            | Self::Code { process, .. }
            | Self::Part { process, .. }
            | Self::Mark { process, .. }
            | Self::Hello { process }
            | Self::Resident { process, .. }
            | Self::Limit { process, .. }
            | Self::Followed { process, .. }
            | Self::Map { process, .. } => *process,
        }
    }
}

/// The status as the ledger names it.
pub(super) fn stack_status(status: u32) -> StackStatus {
    match status {
        abi::RM_STACK_COMPLETE => StackStatus::Complete,
        abi::RM_STACK_TRUNCATED => StackStatus::Truncated,
        abi::RM_STACK_NO_THREAD => StackStatus::NoPythonFrame,
        abi::RM_STACK_START_UP => StackStatus::StartUp,
        abi::RM_STACK_FOREIGN => StackStatus::Foreign,
        _ => StackStatus::ReadFailed,
    }
}

/// Reads one record. `None`: not one of ours, which cannot happen with the object of this build.
pub fn parse(record: &[u8]) -> Option<Event> {
    let head: abi::rm_event = from_bytes(record)?;
    let process = ProcessId(head.process);
    match head.kind {
        abi::RM_EVENT_STACK => parse_stack(process, record),
        abi::RM_EVENT_NATIVE => parse_native(process, record),
        abi::RM_EVENT_CODE => parse_code(process, record),
        abi::RM_EVENT_MARK => {
            let mark: abi::rm_mark_event = from_bytes(record)?;
            let key = CodeKey { address: mark.code, fingerprint: mark.fingerprint };
            Some(Event::Mark { process, key, number: mark.number, asked: mark.asked != 0 })
        }
        abi::RM_EVENT_PART => parse_part(process, record),
        abi::RM_EVENT_HELLO => Some(Event::Hello { process }),
        abi::RM_EVENT_FOLLOW => parse_follow(process, record),
        abi::RM_EVENT_LIMIT => {
            let limit: abi::rm_limit_event = from_bytes(record)?;
            let news = match limit.call {
                abi::RM_LIMIT_READY => LimitNews::Ready,
                abi::RM_LIMIT_STOPPED => LimitNews::Stopped,
                abi::RM_LIMIT_CONTINUED => LimitNews::Continued,
                abi::RM_LIMIT_REFUSED => LimitNews::Refused(limit.reason),
                abi::RM_LIMIT_REACHED => LimitNews::Reached {
                    thread: Pid::from_raw(limit.reason.try_into().ok()?),
                    state: limit.thread,
                    in_call: limit.in_call != 0,
                    bytes: limit.bytes,
                },
                abi::RM_LIMIT_ALARM => {
                    let alarm = limit.reason.try_into().ok()?;
                    LimitNews::Passed { alarm, bytes: limit.bytes, measured: limit.measured }
                }
                _ => return None,
            };
            Some(Event::Limit { process, news })
        }
        abi::RM_EVENT_RESIDENT => {
            let resident: abi::rm_resident_event = from_bytes(record)?;
            Some(Event::Resident { process, sequence: resident.sequence, bytes: resident.bytes })
        }
        abi::RM_EVENT_MAP => {
            let map: abi::rm_map_event = from_bytes(record)?;
            let change = match map.change {
                abi::RM_MAP_MMAP => MapChange::Map { start: map.to, bytes: map.to_bytes },
                abi::RM_MAP_MUNMAP => MapChange::Unmap { start: map.from, bytes: map.from_bytes },
                abi::RM_MAP_MREMAP => {
                    MapChange::Move { from: map.from, from_bytes: map.from_bytes, to: map.to, to_bytes: map.to_bytes }
                }
                _ => MapChange::Break { from: map.from, to: map.to },
            };
            Some(Event::Map { process, stack: StackId(map.stack), change })
        }
        _ => None,
    }
}

fn parse_follow(process: ProcessId, record: &[u8]) -> Option<Event> {
    let follow: abi::rm_follow_event = from_bytes(record)?;
    let change = match follow.change {
        abi::RM_FOLLOW_FORK => Change::Forked(ProcessId(follow.parent)),
        abi::RM_FOLLOW_VFORK => Change::Borrows,
        abi::RM_FOLLOW_LOADED => Change::Loaded,
        abi::RM_FOLLOW_YOUNG => Change::Young(ProcessId(follow.parent)),
        abi::RM_FOLLOW_EXEC => Change::Executed(executable(&follow.executable), command_of(record)),
        abi::RM_FOLLOW_EXIT => Change::Exited { status: follow.exit_code, victim: follow.victim != 0 },
        _ => return None,
    };
    let pid = Pid::from_raw(i32::try_from(follow.pid).ok()?);
    let bytes = |value: i64| u64::try_from(value).unwrap_or(0);
    Some(Event::Followed {
        process,
        pid,
        change,
        resident: (bytes(follow.resident_bytes), bytes(follow.resident_peak)),
    })
}

fn executable(of: &abi::rm_executable) -> Executable {
    Executable { inode: of.inode, bytes: of.bytes, device: of.device, generation: of.generation }
}

fn command_of(record: &[u8]) -> Command {
    const COMMAND_AT: usize = offset_of!(abi::rm_exec_event, command);
    let bytes: u32 = field(record, offset_of!(abi::rm_exec_event, command_bytes)).unwrap_or(0);
    let text = record.get(COMMAND_AT..).unwrap_or_default();
    let whole = bytes > 0 && (bytes as usize) <= text.len().min(abi::RM_COMMAND as usize);
    let text = text.get(..bytes as usize).unwrap_or(text);
    let words = split_command_line(text).iter().map(|word| word.to_string_lossy().into_owned()).collect();
    Command { words, whole }
}

/// What is at `at` of a record, which may be shorter than its type.
fn field<T: Copy>(record: &[u8], at: usize) -> Option<T> {
    record.get(at..).and_then(from_bytes)
}

/// The code object whose address and fingerprint are at these places.
fn code_key(record: &[u8], address: usize, fingerprint: usize) -> Option<CodeKey> {
    Some(CodeKey { address: field(record, address)?, fingerprint: field(record, fingerprint)? })
}

fn parse_stack(process: ProcessId, record: &[u8]) -> Option<Event> {
    const FRAMES_AT: usize = offset_of!(abi::rm_stack_event, frames);
    let status = field(record, offset_of!(abi::rm_stack_event, status))?;
    let count: u32 = field(record, offset_of!(abi::rm_stack_event, frame_count))?;
    let frames = record.get(FRAMES_AT..)?.chunks_exact(size_of::<abi::rm_frame>()).take(count as usize);
    let frames: Vec<Frame> = frames
        .filter_map(from_bytes::<abi::rm_frame>)
        .map(|frame| Frame {
            code: CodeKey { address: frame.code, fingerprint: frame.fingerprint },
            position: frame.position,
        })
        .collect();
    Some(Event::Stack {
        process,
        id: StackId(field(record, offset_of!(abi::rm_stack_event, stack))?),
        stack: Stack {
            status: stack_status(status),
            frames,
            approximate: field::<u32>(record, offset_of!(abi::rm_stack_event, approximate))? != 0,
            collector: field::<u32>(record, offset_of!(abi::rm_stack_event, collector))? != 0,
            origin: Origin::default(),
        },
        thread_state: field(record, offset_of!(abi::rm_stack_event, thread_state))?,
        thread_pointer: field(record, offset_of!(abi::rm_stack_event, fsbase))?,
        thread_start: field(record, offset_of!(abi::rm_stack_event, thread_start))?,
    })
}

fn parse_native(process: ProcessId, record: &[u8]) -> Option<Event> {
    let bytes: u32 = field(record, offset_of!(abi::rm_native_event, bytes))?;
    let returns: u32 = field(record, offset_of!(abi::rm_native_event, returns))?;
    let snapshot = Snapshot {
        stack: StackId(field(record, offset_of!(abi::rm_native_event, stack))?),
        instruction: field(record, offset_of!(abi::rm_native_event, instruction))?,
        returns: returns != 0,
        stack_pointer: field(record, offset_of!(abi::rm_native_event, stack_pointer))?,
        frame_pointer: field(record, offset_of!(abi::rm_native_event, frame_pointer))?,
        bytes: record.get(offset_of!(abi::rm_native_event, data)..)?.get(..bytes as usize)?.to_vec(),
    };
    Some(Event::Native { process, snapshot })
}

fn parse_part(process: ProcessId, record: &[u8]) -> Option<Event> {
    let part = match field(record, offset_of!(abi::rm_part_event, part))? {
        abi::RM_PART_FILENAME => Part::Filename,
        abi::RM_PART_NAME => Part::Name,
        abi::RM_PART_QUALNAME => Part::QualifiedName,
        abi::RM_PART_TABLE => Part::LineTable,
        abi::RM_PART_BYTECODE => Part::Bytecode,
        abi::RM_PART_INSTRUCTIONS => Part::Instructions,
        abi::RM_PART_HANDLERS => Part::Handlers,
        _ => return None,
    };
    let bytes: u32 = field(record, offset_of!(abi::rm_part_event, bytes))?;
    let piece = Piece {
        part,
        kind: field(record, offset_of!(abi::rm_part_event, kind))?,
        offset: field(record, offset_of!(abi::rm_part_event, offset))?,
        total: field(record, offset_of!(abi::rm_part_event, total))?,
        bytes: record.get(offset_of!(abi::rm_part_event, data)..)?.get(..bytes as usize)?.to_vec(),
    };
    let key = code_key(record, offset_of!(abi::rm_part_event, code), offset_of!(abi::rm_part_event, fingerprint))?;
    Some(Event::Part { process, key, piece })
}

fn parse_code(process: ProcessId, record: &[u8]) -> Option<Event> {
    let flags: u32 = field(record, offset_of!(abi::rm_code_event, flags))?;
    let text = |missing: u32, head: usize, data: usize, limit: u32| -> Option<RawText> {
        let head: abi::rm_text = field(record, head)?;
        let absent = flags & missing != 0 || head.bytes > limit;
        let bytes = (!absent).then(|| record.get(data..data + head.bytes as usize)).flatten()?;
        Some(RawText { kind: head.kind, bytes: bytes.to_vec() })
    };
    let table_bytes: u32 = field(record, offset_of!(abi::rm_code_event, table_bytes))?;
    let table_at = offset_of!(abi::rm_code_event, table);
    let code = RawCode {
        first_line: field(record, offset_of!(abi::rm_code_event, first_line))?,
        filename: text(
            abi::RM_CODE_NO_FILENAME,
            offset_of!(abi::rm_code_event, filename),
            offset_of!(abi::rm_code_event, filename_data),
            abi::RM_FILENAME_BYTES,
        ),
        name: text(
            abi::RM_CODE_NO_NAME,
            offset_of!(abi::rm_code_event, name),
            offset_of!(abi::rm_code_event, name_data),
            abi::RM_NAME_BYTES,
        ),
        qualified_name: text(
            abi::RM_CODE_NO_QUALNAME,
            offset_of!(abi::rm_code_event, qualname),
            offset_of!(abi::rm_code_event, qualname_data),
            abi::RM_QUALNAME_BYTES,
        ),
        line_table: (flags & abi::RM_CODE_NO_TABLE == 0)
            .then(|| record.get(table_at..table_at + table_bytes as usize).map(<[u8]>::to_vec))
            .flatten(),
    };
    let key = code_key(record, offset_of!(abi::rm_code_event, code), offset_of!(abi::rm_code_event, fingerprint))?;
    Some(Event::Code { process, key, code })
}

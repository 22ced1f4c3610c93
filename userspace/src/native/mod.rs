//! Native functions: in which of them memory was asked for, and with which a thread began.
//!
//! The kernel side tells apart by the return address alone, and sends a copy of the thread's stack once ([`Snapshot`]); what is read
//! from it is read here, by the unwind tables and symbols of the files the process maps. The files are opened through the process
//! (`map_files`), never by a path of ours, and what they say is taken as theirs: a name that is not there is an offset in the file.

mod files;
mod functions;
mod wrappers;

pub use files::{CodeMapping, Files, code_of};
pub use functions::{Function, Natives, Snapshot};

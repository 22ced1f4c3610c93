//! rmprof-bpf: a line-by-line memory profiler for Python that lives outside the program.
//!
//! Rooms: [`kernel`] (probes, maps, attach), [`target`] (processes, ELF, /proc), [`python`] (layouts, code objects, lines),
//! [`ledger`] (events to bytes by line; pure), [`report`] (what a person reads), [`launch`] (what a started program gets from us).
//! [`tally`] (processes that count themselves), [`prompts`] (the debugger of processes that run already), [`native`] (native functions by their addresses).
//! [`session`] alone sees them all. See ARCHITECTURE.md.

pub mod alarm;
pub mod cli;
pub mod doctor;
pub mod kernel;
pub mod launch;
pub mod ledger;
pub mod native;
pub mod plan;
pub mod prompts;
pub mod python;
pub mod report;
pub mod rights;
pub mod session;
pub mod tally;
pub mod target;

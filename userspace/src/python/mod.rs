//! Everything that is known about CPython from outside: which it is, how its frames and code objects lie in memory, and how an
//! instruction tells its line. Reads (and in [`remote`] writes) nothing by itself: files and memory are given by the caller ([`discover::SymbolSource`],
//! [`code::Memory`]), and all of it is taken as the word of a stranger.

pub mod code;
pub mod discover;
pub mod flow;
pub mod layout;
pub mod line_table;
pub mod remote;
pub mod runtime;
pub mod thread_slot;
mod thread_variable;
pub mod verify;
mod version;
pub mod with_cleanup;

#[cfg(test)]
mod tests;

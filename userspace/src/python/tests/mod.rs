//! Tests against the interpreters of this machine. None needs root; a version that is not installed is named and passed over.

mod discovery;
mod interpreters;
mod line_tables;
mod live;
mod process;

//! The command line of the real binary, without root: help, usage errors, and what cannot be run. Whole outputs, as a person sees them.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

#[path = "cli/doctor.rs"]
mod doctor;
#[path = "cli/usage.rs"]
mod usage;

//! The kernel's side of the house: what it offers, loading, attaching, draining. The only place that names the BPF library.

pub mod allocators;
mod attach;
mod batch;
pub mod counters;
mod drain;
pub mod event;
pub mod features;
mod keeper;
mod load;

pub use attach::{Attacher, Links, ProbePoint, Rung, resident_bytes};
pub use drain::{Drain, Totals};
pub use load::{Kernel, LoadError, Mode, Wanted};

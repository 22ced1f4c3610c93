//! The kernel's side of the house: what it offers, loading, attaching, draining. The only place that names the BPF
//! libraries, and of it `backend` alone.

pub mod allocators;
mod attach;
mod backend;
mod bpf;
pub mod counters;
mod direct;
mod drain;
pub mod event;
pub mod features;
mod keeper;
mod load;
mod map;
mod preempted;

pub use attach::{Attacher, Links, ProbePoint, Rung, resident_bytes};
pub use backend::Loader;
pub use drain::{Drain, Sampled, Totals};
pub use load::{Follow, How, Kernel, LoadError, Mode, Wanted};

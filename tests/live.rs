//! The real binary over real Pythons with real probes: all of it needs root.
//!
//! Nothing here sleeps: programs say on standard output how far they are, and what cannot say it is asked, bounded.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod common;

#[path = "live/acceptance.rs"]
mod acceptance;
#[path = "live/allocators.rs"]
mod allocators;
#[path = "live/attach.rs"]
mod attach;
#[path = "live/cases.rs"]
mod cases;
#[path = "live/checks.rs"]
mod checks;
#[path = "live/collector.rs"]
mod collector;
#[path = "live/containers.rs"]
mod containers;
#[path = "live/death.rs"]
mod death;
#[path = "live/debugger.rs"]
mod debugger;
#[path = "live/debugger_attached.rs"]
mod debugger_attached;
#[path = "live/debugger_runs.rs"]
mod debugger_runs;
#[path = "live/direct.rs"]
mod direct;
#[path = "live/every.rs"]
mod every;
#[path = "live/filling.rs"]
mod filling;
#[path = "live/flight.rs"]
mod flight;
#[path = "live/forks.rs"]
mod forks;
#[path = "live/generated/mod.rs"]
mod generated;
#[path = "live/hostile.rs"]
mod hostile;
#[path = "live/jit.rs"]
mod jit;
#[path = "live/left.rs"]
mod left;
#[cfg(all(feature = "aya", feature = "libbpf"))]
#[path = "live/loaders.rs"]
mod loaders;
#[path = "live/musl.rs"]
mod musl;
#[path = "live/native.rs"]
mod native;
#[path = "live/objects.rs"]
mod objects;
#[path = "live/occurrences.rs"]
mod occurrences;
#[path = "live/odd_sources.rs"]
mod odd_sources;
#[path = "live/on_limit.rs"]
mod on_limit;
#[path = "live/on_limit_total.rs"]
mod on_limit_total;
#[path = "live/pages.rs"]
mod pages;
#[path = "live/refused.rs"]
mod refused;
#[path = "live/rights.rs"]
mod rights;
#[path = "live/rungs.rs"]
mod rungs;
#[path = "live/sample.rs"]
mod sample;
#[path = "live/servers.rs"]
mod servers;
#[path = "live/signals.rs"]
mod signals;
#[path = "live/snapshots.rs"]
mod snapshots;
#[path = "live/start.rs"]
mod start;
#[path = "live/streams.rs"]
mod streams;
#[path = "live/subinterpreters.rs"]
mod subinterpreters;
#[path = "live/system.rs"]
mod system;
#[path = "live/tally.rs"]
mod tally;
#[path = "live/unmarked.rs"]
mod unmarked;
#[path = "live/with_lines.rs"]
mod with_lines;

//! Loaders: what makes programs and maps of the compiled probes. A loader is one of two libraries behind this interface; all that comes
//! after loading but the reading of the ring buffers is by raw call, the same for both.

#[cfg(feature = "aya")]
mod aya;
#[cfg(feature = "libbpf")]
mod libbpf;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rmprof_probes::abi;

use super::attach::Rung;
use super::event::Event;
use super::load::LoadError;
use super::map::Map;

#[cfg(not(any(feature = "libbpf", feature = "aya")))]
compile_error!("no loader: build with the feature `libbpf` (the default) or `aya`");

/// The library that loads the probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// libbpf, by libbpf-rs: every way to attach.
    #[cfg(feature = "libbpf")]
    Libbpf,
    /// aya, without a line of C: single probes.
    #[cfg(feature = "aya")]
    Aya,
}

#[allow(clippy::derivable_impls)] // which one it is depends on the features
impl Default for Loader {
    fn default() -> Self {
        #[cfg(feature = "libbpf")]
        return Self::Libbpf;
        #[cfg(not(feature = "libbpf"))]
        return Self::Aya;
    }
}

/// What of the probes is loaded, and how large.
pub(super) struct Settings<'s> {
    /// Programs, by name; the others are left out.
    pub wanted: &'s dyn Fn(&str) -> bool,
    /// Tracepoints, by the program for each; libbpf has them from the object.
    #[cfg_attr(not(feature = "aya"), expect(dead_code))]
    pub tracepoints: &'s [(&'static str, &'static str)],
    /// Entries of maps, by name; the others have those of their definition.
    pub entries: &'s [(&'static str, u32)],
    /// What is `constants` in compat.bpf.h, the only constant of the object.
    pub constants: abi::rm_constants,
    /// Ring buffers, in the order in which they are read.
    pub rings: &'s [&'static str],
    /// What is waited for.
    #[cfg_attr(not(feature = "libbpf"), expect(dead_code))]
    pub first: First<'s>,
}

/// Programs that are wanted before the others: a loader that can loads them first, and says so.
#[cfg_attr(not(feature = "libbpf"), expect(dead_code))]
pub(super) struct First<'s> {
    /// Their names.
    pub programs: &'s [&'static str],
    /// Told when they are loaded, maybe on another thread.
    pub loaded: &'s Told<'s>,
}

/// Is told of programs, by name.
type Told<'s> = dyn Fn(&[(String, OwnedFd)]) + Sync + 's;

#[cfg(feature = "libbpf")]
impl First<'_> {
    fn names(&self, program: &str) -> bool {
        self.programs.contains(&program)
    }
}

/// What was loaded. Dropping it closes the descriptors; what was attached or taken out stays.
pub(super) struct Loaded {
    programs: HashMap<String, OwnedFd>,
    maps: HashMap<String, Map>,
    records: Box<dyn Records>,
}

impl Loaded {
    /// A program that was wanted.
    pub fn program(&self, name: &'static str) -> Result<BorrowedFd<'_>, LoadError> {
        self.programs.get(name).map(AsFd::as_fd).ok_or(LoadError::Missing(name))
    }

    /// The same, to keep.
    pub fn take_program(&mut self, name: &'static str) -> Result<OwnedFd, LoadError> {
        self.programs.remove(name).ok_or(LoadError::Missing(name))
    }

    /// A map, to keep.
    pub fn take_map(&mut self, name: &'static str) -> Result<Map, LoadError> {
        self.maps.remove(name).ok_or(LoadError::Missing(name))
    }

    /// The ring buffers.
    pub fn into_records(self) -> Box<dyn Records> {
        self.records
    }
}

/// The ring buffers. Belongs to one thread.
pub(super) trait Records {
    /// Everything recorded so far: of each ring buffer in order, one after the other.
    fn take(&self) -> io::Result<Vec<Event>>;

    /// A descriptor that becomes readable when one of them fills up.
    fn descriptor(&self) -> io::Result<OwnedFd>;
}

/// Kinds of maps that are asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum MapKind {
    RingBuffer,
    ThreadStorage,
}

impl Loader {
    /// All that this build has.
    pub const ALL: &[Self] = &[
        #[cfg(feature = "libbpf")]
        Self::Libbpf,
        #[cfg(feature = "aya")]
        Self::Aya,
    ];

    /// Its name in options and messages.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "libbpf")]
            Self::Libbpf => "libbpf",
            #[cfg(feature = "aya")]
            Self::Aya => "aya",
        }
    }

    /// The ways to attach that it loads programs for, best first.
    pub(super) fn rungs(self) -> &'static [Rung] {
        match self {
            #[cfg(feature = "libbpf")]
            Self::Libbpf => &[Rung::Session, Rung::Multi, Rung::Single],
            #[cfg(feature = "aya")]
            Self::Aya => &[Rung::Single],
        }
    }

    pub(super) fn load(self, settings: &Settings<'_>) -> Result<Loaded, LoadError> {
        match self {
            #[cfg(feature = "libbpf")]
            Self::Libbpf => libbpf::load(settings),
            #[cfg(feature = "aya")]
            Self::Aya => aya::load(settings),
        }
    }

    /// Has the kernel such maps, and may we make them?
    pub(super) fn can_make(self, kind: MapKind) -> Result<bool, String> {
        match self {
            #[cfg(feature = "libbpf")]
            Self::Libbpf => libbpf::can_make(kind),
            #[cfg(feature = "aya")]
            Self::Aya => aya::can_make(kind),
        }
    }
}

//! aya: no C, so that a static program needs nothing but the kernel. It knows neither multi-probes nor functions of the kernel, so it
//! has an object of its own without them (`-DRM_SINGLE` of rmprof.bpf.c).

use std::cell::RefCell;
use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Map as AyaMap, MapData, MapType, RingBuf};
use aya::programs::{Program, ProgramError, ProgramFd};
use aya::sys::is_map_supported;
use aya::{Btf, Ebpf, EbpfLoader};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::{Loaded, MapKind, Records, Settings};
use crate::kernel::event::{self, Event};
use crate::kernel::load::LoadError;
use crate::kernel::map::Map;

/// With all that its causes say: aya's errors name the step, and their sources the reason.
fn refused(error: &(dyn Error + 'static)) -> LoadError {
    let mut said = String::new();
    let mut errno = None;
    let mut cause = error.source();
    while let Some(error) = cause {
        said.push_str(&error.to_string());
        said.push('\n');
        errno = errno.or_else(|| error.downcast_ref::<io::Error>()?.raw_os_error());
        cause = error.source();
    }
    // The verifier's log, which may be part of the message, is in `said` as well.
    let message = error.to_string();
    let (first, log) = message.split_once('\n').unwrap_or((&message, ""));
    LoadError::refused(&first, &format!("{log}\n{said}"), errno)
}

pub(super) fn load(settings: &Settings<'_>) -> Result<Loaded, LoadError> {
    let btf = Btf::from_sys_fs().map_err(|error| refused(&error))?;
    let mut loader = EbpfLoader::new();
    // The storage of threads is a map that aya makes, but has no type for.
    loader.btf(Some(&btf)).allow_unsupported_maps().override_global("constants", settings.constants.bytes(), true);
    for (name, entries) in settings.entries {
        loader.map_max_entries(name, *entries);
    }
    let mut object = loader.load(rmprof_probes::SINGLE_OBJECT).map_err(|error| refused(&error))?;
    let programs = load_programs(&mut object, settings, &btf)?;
    let mut maps = HashMap::new();
    for (name, map) in object.maps() {
        let map = data(map).ok_or(LoadError::Missing("a map of a known kind"))?;
        let descriptor = map.fd().as_fd().try_clone_to_owned().map_err(LoadError::Descriptor)?;
        maps.insert(name.to_owned(), Map::new(descriptor).map_err(LoadError::Descriptor)?);
    }
    let records = Box::new(Rings::new(&mut object, settings.rings)?);
    Ok(Loaded { programs, maps, records })
}

fn load_programs(object: &mut Ebpf, settings: &Settings<'_>, btf: &Btf) -> Result<HashMap<String, OwnedFd>, LoadError> {
    let mut programs = HashMap::new();
    for (name, program) in object.programs_mut().filter(|(name, _)| (settings.wanted)(name)) {
        load_program(name, program, settings, btf)?;
        let descriptor = program.fd().map(ProgramFd::as_fd).map_err(|error| refused(&error))?;
        programs.insert(name.to_owned(), descriptor.try_clone_to_owned().map_err(LoadError::Descriptor)?);
    }
    Ok(programs)
}

fn load_program(name: &str, program: &mut Program, settings: &Settings<'_>, btf: &Btf) -> Result<(), LoadError> {
    let done: Result<(), ProgramError> = match program {
        Program::UProbe(probe) => probe.load(),
        Program::RawTracePoint(program) => program.load(),
        Program::BtfTracePoint(program) => {
            let of_this = settings.tracepoints.iter().find(|(program, _)| *program == name);
            program.load(of_this.map_or(name, |(_, tracepoint)| tracepoint), btf)
        }
        _ => return Err(LoadError::Missing("a program of a known kind")),
    };
    done.map_err(|error| refused(&error))
}

/// What every kind of map has; of those of [`EbpfLoader::allow_unsupported_maps`] too.
fn data(map: &AyaMap) -> Option<&MapData> {
    match map {
        AyaMap::Array(data)
        | AyaMap::PerCpuArray(data)
        | AyaMap::ProgramArray(data)
        | AyaMap::HashMap(data)
        | AyaMap::LruHashMap(data)
        | AyaMap::RingBuf(data)
        | AyaMap::Unsupported(data) => Some(data),
        _ => None,
    }
}

pub(super) fn can_make(kind: MapKind) -> Result<bool, String> {
    let kind = match kind {
        MapKind::RingBuffer => MapType::RingBuf,
        MapKind::ThreadStorage => MapType::TaskStorage,
    };
    is_map_supported(kind).map_err(|error| error.to_string())
}

struct Rings {
    rings: RefCell<Vec<RingBuf<MapData>>>,
    all: Epoll,
}

impl Rings {
    fn new(object: &mut Ebpf, names: &[&'static str]) -> Result<Self, LoadError> {
        let system = |errno: nix::Error| LoadError::Descriptor(errno.into());
        let all = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system)?;
        let mut rings = Vec::new();
        for name in names {
            let map = object.take_map(name).ok_or(LoadError::Missing(name))?;
            let ring = RingBuf::try_from(map).map_err(|error| refused(&error))?;
            all.add(ring.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0)).map_err(system)?;
            rings.push(ring);
        }
        Ok(Self { rings: RefCell::new(rings), all })
    }
}

impl Records for Rings {
    fn take(&self) -> io::Result<Vec<Event>> {
        let mut records = Vec::new();
        for ring in self.rings.try_borrow_mut().map_err(io::Error::other)?.iter_mut() {
            while let Some(record) = ring.next() {
                records.extend(event::parse(&record));
            }
        }
        Ok(records)
    }

    fn descriptor(&self) -> io::Result<OwnedFd> {
        self.all.0.try_clone()
    }
}

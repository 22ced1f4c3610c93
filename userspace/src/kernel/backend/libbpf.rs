//! libbpf, by libbpf-rs.

mod beside;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Mutex;

use libbpf_rs::{
    ErrorKind, MapCore, MapHandle, MapType, Object, ObjectBuilder, OpenObject, PrintLevel, RingBuffer,
    RingBufferBuilder,
};

use super::{Loaded, MapKind, Records, Settings};
use crate::kernel::event::{self, Event};
use crate::kernel::load::LoadError;
use crate::kernel::map::Map;

/// What libbpf printed at the level of warnings, for the error.
static MESSAGES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn keep_message(_: PrintLevel, text: String) {
    if let Ok(mut messages) = MESSAGES.lock() {
        messages.push(text.trim_end().to_owned());
        if messages.len() > 400 {
            messages.remove(0);
        }
    }
}

fn refused(error: &libbpf_rs::Error) -> LoadError {
    let said = MESSAGES.lock().map(|mut messages| std::mem::take(&mut *messages)).unwrap_or_default();
    // One kind for both: EPERM is about us, EACCES is the verifier's about the probes. Only the text tells.
    let text = format!("{error:#}");
    let errno = (error.kind() == ErrorKind::PermissionDenied).then_some([libc::EPERM, libc::EACCES]);
    let errno = errno.and_then(|both| {
        both.into_iter().find(|errno| text.ends_with(&io::Error::from_raw_os_error(*errno).to_string()))
    });
    LoadError::refused(error, &said.join("\n"), errno)
}

pub(super) fn load(settings: &Settings<'_>) -> Result<Loaded, LoadError> {
    let (object, beside) =
        open(settings).and_then(|open| beside::load(open, &settings.first)).map_err(|error| refused(&error))?;
    let mut programs: HashMap<_, _> = beside.into_iter().collect();
    for program in object.progs().filter(|program| program.autoload()) {
        let descriptor = program.as_fd().try_clone_to_owned().map_err(LoadError::Descriptor)?;
        programs.insert(program.name().to_string_lossy().into_owned(), descriptor);
    }
    let mut maps = HashMap::new();
    for map in object.maps() {
        let descriptor = map.as_fd().try_clone_to_owned().map_err(LoadError::Descriptor)?;
        let map_of_ours = Map::new(descriptor).map_err(LoadError::Descriptor)?;
        maps.insert(map.name().to_string_lossy().into_owned(), map_of_ours);
    }
    let records = Box::new(Rings::new(&object, settings.rings)?);
    Ok(Loaded { programs, maps, records })
}

fn open(settings: &Settings<'_>) -> libbpf_rs::Result<OpenObject> {
    libbpf_rs::set_print(Some((PrintLevel::Warn, keep_message)));
    let mut open = ObjectBuilder::default().open_memory(rmprof_probes::OBJECT)?;
    for mut program in open.progs_mut() {
        let wanted = (settings.wanted)(&program.name().to_string_lossy());
        program.set_autoload(wanted);
    }
    for mut map in open.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        if let Some((_, entries)) = settings.entries.iter().find(|(of, _)| *of == name) {
            map.set_max_entries(*entries)?;
        } else if name.ends_with(".rodata")
            && let Some(constants) = map.initial_value_mut()
            && let Some(constants) = constants.get_mut(..settings.constants.bytes().len())
        {
            constants.copy_from_slice(settings.constants.bytes());
        }
    }
    Ok(open)
}

pub(super) fn can_make(kind: MapKind) -> Result<bool, String> {
    let kind = match kind {
        MapKind::RingBuffer => MapType::RingBuf,
        MapKind::ThreadStorage => MapType::TaskStorage,
    };
    kind.is_supported().map_err(|error| error.to_string())
}

struct Rings {
    ring: RingBuffer<'static>,
    records: Rc<RefCell<VecDeque<Event>>>,
}

impl Rings {
    fn new(object: &Object, names: &[&'static str]) -> Result<Self, LoadError> {
        let records = Rc::new(RefCell::new(VecDeque::new()));
        let maps = names.iter().map(|name| {
            let map = object.maps().find(|map| map.name() == *name).ok_or(LoadError::Missing(name))?;
            MapHandle::try_from(&map).map_err(|error| refused(&error))
        });
        let maps = maps.collect::<Result<Vec<_>, _>>()?;
        let mut builder = RingBufferBuilder::new();
        for map in &maps {
            let sink = Rc::clone(&records);
            builder
                .add(map, move |record: &[u8]| {
                    if let (Some(event), Ok(mut sink)) = (event::parse(record), sink.try_borrow_mut()) {
                        sink.push_back(event);
                    }
                    0
                })
                .map_err(|_| LoadError::Missing("its ring buffers"))?;
        }
        let ring = builder.build().map_err(|_| LoadError::Missing("its ring buffers"))?;
        Ok(Self { ring, records })
    }
}

impl Records for Rings {
    fn take(&self) -> io::Result<Vec<Event>> {
        self.ring.consume().map_err(io::Error::other)?;
        Ok(self.records.borrow_mut().drain(..).collect())
    }

    fn descriptor(&self) -> io::Result<OwnedFd> {
        // SAFETY: the descriptor is the ring buffer's, which outlives the borrow: it is only copied here.
        unsafe { BorrowedFd::borrow_raw(self.ring.epoll_fd()) }.try_clone_to_owned()
    }
}

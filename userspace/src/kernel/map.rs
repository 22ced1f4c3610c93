//! A map of the kernel's, by raw call: whichever library loaded it. Whole maps are read at once; libbpf-rs 0.27's `lookup_batch` takes
//! a short batch for the last one and loses entries without a word, and aya 0.14 has none.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::attach::from_bytes;
use super::bpf::{self, Command, call, checked};
use super::preempted::Ahead;

/// As many entries as are asked for at first.
const BATCH: u32 = 4096;

/// What every CPU has its own of takes a multiple of so many bytes.
const NUMBER: usize = size_of::<u64>();

/// `enum bpf_map_type`: those of whose values every CPU has its own.
const PER_CPU: &[u32] = &[5, 6, 10, 21];

/// An open map.
#[derive(Debug)]
pub struct Map {
    descriptor: OwnedFd,
    key_size: usize,
    value_size: usize,
    /// What the kernel writes at a lookup: a value, or one for each CPU.
    room: usize,
}

/// `struct bpf_map_info`, its head.
#[derive(Default)]
#[repr(C)]
struct Info {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
}

#[repr(C)]
struct ElementCall {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct BatchCall {
    token: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

impl Map {
    /// Asks the kernel how large its keys and values are.
    ///
    /// # Errors
    /// When it is no map.
    pub(super) fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let mut info = Info::default();
        // SAFETY: a struct of numbers, without addresses.
        unsafe { bpf::info(descriptor.as_fd(), &mut info) }?;
        let value_size = info.value_size as usize;
        let room = if PER_CPU.contains(&info.kind) {
            value_size.next_multiple_of(NUMBER) * possible_cpus()? as usize
        } else {
            value_size
        };
        Ok(Self { descriptor, key_size: info.key_size as usize, value_size, room })
    }

    /// `value` is as long as the command reads or writes: [`Self::room`].
    fn element(&self, command: Command, key: &[u8], value: Option<*mut u8>) -> io::Result<()> {
        if key.len() != self.key_size {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut attributes = ElementCall {
            map: self.number(),
            pad: 0,
            key: key.as_ptr().addr() as u64,
            value: value.map_or(0, |value| value.addr() as u64),
            flags: 0,
        };
        let _ahead = Ahead::begin();
        // SAFETY: what the command expects: a key of the map's size; the callers see to the value.
        checked(unsafe { call(command, &mut attributes) }).map(|_| ())
    }

    fn number(&self) -> u32 {
        self.descriptor.as_raw_fd().cast_unsigned()
    }

    /// Writes an entry, new or not.
    ///
    /// # Errors
    /// What the kernel says, e.g. that the map is full (`E2BIG`).
    pub fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if value.len() != self.room {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.element(Command::MapUpdate, key, Some(value.as_ptr().cast_mut())) // which the kernel reads
    }

    /// An entry, of every CPU where each has its own; nothing when there is none.
    ///
    /// # Errors
    /// What the kernel says otherwise.
    pub fn lookup(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.room];
        match self.element(Command::MapLookup, key, Some(value.as_mut_ptr())) {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The sum of an element of an array of numbers, of which every CPU has its own.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn sum(&self, index: u32) -> io::Result<u64> {
        let values = self.lookup(&index.to_ne_bytes())?.unwrap_or_default();
        Ok(values.chunks_exact(NUMBER).filter_map(from_bytes::<u64>).fold(0, u64::wrapping_add))
    }

    /// Deletes an entry. One that is not there is no error.
    ///
    /// # Errors
    /// What the kernel says otherwise.
    pub fn delete(&self, key: &[u8]) -> io::Result<()> {
        match self.element(Command::MapDelete, key, None) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Every key and value of a hash map, as they stand. Entries written meanwhile may or may not be there.
    ///
    /// # Errors
    /// What the kernel says, e.g. without the right to read maps.
    pub fn entries(&self) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        if self.key_size == 0 || self.value_size == 0 || self.room != self.value_size {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut room = BATCH;
        let mut found = Vec::new();
        // A key or a bucket number.
        let mut token = vec![0u8; self.key_size.max(8)];
        let mut next = token.clone();
        let mut first = true;
        loop {
            let mut keys = vec![0u8; self.key_size * room as usize];
            let mut values = vec![0u8; self.value_size * room as usize];
            let mut attributes = BatchCall {
                token: if first { 0 } else { token.as_mut_ptr().addr() as u64 },
                next: next.as_mut_ptr().addr() as u64,
                keys: keys.as_mut_ptr().addr() as u64,
                values: values.as_mut_ptr().addr() as u64,
                count: room,
                map: self.number(),
                element_flags: 0,
                flags: 0,
            };
            let ahead = Ahead::begin();
            // SAFETY: what the command expects: the buffers hold `room` keys and values, the tokens at least a key or a bucket number
            // (kernel/bpf/hashtab.c, `__htab_map_lookup_and_delete_batch`).
            let code = unsafe { call(Command::MapLookupBatch, &mut attributes) };
            drop(ahead);
            if code == -libc::ENOSPC && room < 1 << 20 {
                room *= 4; // one bucket holds more than the room
                continue;
            }
            if code != -libc::ENOENT {
                checked(code)?;
            }
            let got = (attributes.count.min(room)) as usize;
            let pairs = keys.chunks_exact(self.key_size).zip(values.chunks_exact(self.value_size)).take(got);
            found.extend(pairs.map(|(key, value)| (key.to_vec(), value.to_vec())));
            if code == -libc::ENOENT {
                return Ok(found);
            }
            std::mem::swap(&mut token, &mut next);
            first = false;
        }
    }
}

/// How many CPUs the machine can ever have, as the kernel counts them.
///
/// # Errors
/// Without /sys.
pub(super) fn possible_cpus() -> io::Result<u32> {
    cpus_of("/sys/devices/system/cpu/possible")
}

/// What each CPU keeps of a counter of the kernel's for itself is less than this.
///
/// # Errors
/// Without /sys.
pub(super) fn counter_batch() -> io::Result<u64> {
    // compute_batch_value in lib/percpu_counter.c.
    Ok(u64::from(cpus_of("/sys/devices/system/cpu/online")?).saturating_mul(2).max(32))
}

fn cpus_of(file: &str) -> io::Result<u32> {
    let text = std::fs::read_to_string(file)?;
    count_cpus(text.trim()).ok_or_else(|| io::Error::other(format!("{file} says {text:?}")))
}

/// The kernel's lists of CPUs: numbers and ranges, separated by commas.
fn count_cpus(list: &str) -> Option<u32> {
    list.split(',').try_fold(0u32, |count, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted() {
        for (list, count) in
            [("0", Some(1)), ("0-7", Some(8)), ("0,2-3,8", Some(4)), ("", None), ("3-1", None), ("0-4294967295", None)]
        {
            assert_eq!(count_cpus(list), count, "{list}");
        }
    }
}

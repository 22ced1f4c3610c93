//! Whole maps at once. libbpf-rs 0.27's `lookup_batch` takes a short batch for the last one and loses entries without a word, so
//! this is the raw call, as the kernel defines it (kernel/bpf/hashtab.c, `__htab_map_lookup_and_delete_batch`).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{MapCore, MapHandle};

const BATCH: u32 = 4096;

/// Deletes entries by their keys. One that is not there any more is no error.
///
/// # Errors
/// What the kernel says otherwise.
pub fn delete<'k>(map: &MapHandle, keys: impl Iterator<Item = &'k [u8]>) -> io::Result<()> {
    for key in keys {
        match map.delete(key) {
            Ok(()) => {}
            Err(error) if error.kind() == libbpf_rs::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::other(error)),
        }
    }
    Ok(())
}

/// Every key and value of a hash map, as they stand. Entries written meanwhile may or may not be there.
///
/// # Errors
/// What the kernel says, e.g. without the right to read maps.
pub fn entries(map: &MapHandle) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let (key_size, value_size) = (map.key_size() as usize, map.value_size() as usize);
    let mut room = BATCH;
    let mut found = Vec::new();
    let mut token = vec![0u8; key_size.max(8)];
    let mut next = vec![0u8; key_size.max(8)];
    let mut first = true;
    loop {
        let mut keys = vec![0u8; key_size * room as usize];
        let mut values = vec![0u8; value_size * room as usize];
        let mut count = room;
        // SAFETY: the buffers hold `room` keys and values, the tokens at least a key or a bucket number, as the call asks.
        let code = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                map.as_fd().as_raw_fd(),
                if first { std::ptr::null_mut() } else { token.as_mut_ptr().cast() },
                next.as_mut_ptr().cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &mut count,
                std::ptr::null(),
            )
        };
        if code == -libc::ENOSPC && room < 1 << 20 {
            room *= 4; // one bucket holds more than the room
            continue;
        }
        if code != 0 && code != -libc::ENOENT {
            return Err(io::Error::from_raw_os_error(-code));
        }
        let got = count as usize;
        found.extend((0..got).map(|i| {
            (keys[i * key_size..(i + 1) * key_size].to_vec(), values[i * value_size..(i + 1) * value_size].to_vec())
        }));
        if code == -libc::ENOENT {
            return Ok(found);
        }
        std::mem::swap(&mut token, &mut next);
        first = false;
    }
}

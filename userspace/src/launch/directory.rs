//! Where the shim directory can be: code must load from there, the program's user must get there, and nobody but us may
//! replace it.

use std::env;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{UnlinkatFlags, geteuid, mkdir, unlinkat};

use super::janitor::Janitor;

/// Makes an empty directory of mode 0755 and opens it. Its name has our process number, so that a person can tell whose it is, and
/// cannot be predicted. The janitor who is to remove it is there before it.
pub(super) fn create(names: &[&CStr]) -> Result<(PathBuf, OwnedFd, Janitor)> {
    let mut reasons = Vec::new();
    for parent in candidates() {
        match refusal(&parent).map_or_else(|| create_in(&parent, names), |reason| bail!(reason)) {
            Ok(created) => return Ok(created),
            Err(error) => reasons.push(format!("{}: {error:#}", parent.display())),
        }
    }
    bail!(
        "no directory for the launch shim ({})\nhint: set TMPDIR to a directory that is owned by root, open to the \
         program's user, and on a filesystem mounted without noexec",
        reasons.join("; ")
    )
}

fn candidates() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = vec!["/run".into()];
    found.extend(env::var_os("TMPDIR").map(PathBuf::from).filter(|path| path.is_absolute()));
    found.extend(["/tmp", "/var/tmp", "/dev/shm"].map(PathBuf::from));
    // PYTHONPATH has no way to quote its separator.
    found.retain(|path| !path.as_os_str().as_encoded_bytes().contains(&b':'));
    found
}

/// Why the shim cannot be there; `None`: it can.
fn refusal(parent: &Path) -> Option<String> {
    let Ok(real) = parent.canonicalize() else {
        return Some("does not exist".into());
    };
    match statvfs(&real) {
        Ok(status) if status.flags().contains(FsFlags::ST_NOEXEC) => return Some("mounted noexec".into()),
        Ok(status) if status.flags().contains(FsFlags::ST_RDONLY) => return Some("mounted read-only".into()),
        Ok(_) => {}
        Err(error) => return Some(error.desc().into()),
    }
    for place in real.ancestors() {
        let Ok(status) = place.metadata() else {
            return Some(format!("{} cannot be looked at", place.display()));
        };
        let (mode, owner) = (status.mode(), status.uid());
        if owner != 0 && owner != geteuid().as_raw() {
            return Some(format!("{} belongs to user {owner}", place.display()));
        }
        if mode & 0o022 != 0 && mode & 0o1000 == 0 {
            return Some(format!("{} can be written to by others", place.display()));
        }
        if mode & 0o001 == 0 {
            return Some(format!("{} is closed to other users", place.display()));
        }
    }
    None
}

fn create_in(parent: &Path, names: &[&CStr]) -> Result<(PathBuf, OwnedFd, Janitor)> {
    let path = parent.canonicalize()?.join(format!("rmprof-bpf-{}-{:016x}", std::process::id(), random()?));
    let janitor = Janitor::start(&path, names)?;
    mkdir(&path, Mode::S_IRWXU).context("cannot make a directory")?;
    let opened = open_own(&path);
    if opened.is_err() {
        let _ = std::fs::remove_dir(&path); // still empty; the first error is the one to tell
    }
    Ok((path, opened?, janitor))
}

fn random() -> Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: there is room for what is asked for.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got != 8 {
        bail!("no random number: {}", std::io::Error::last_os_error());
    }
    Ok(u64::from_ne_bytes(bytes))
}

fn open_own(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = open(path, flags, Mode::empty())?;
    if fstat(&directory)?.st_uid != geteuid().as_raw() {
        bail!("the directory just made belongs to somebody else");
    }
    fchmod(&directory, Mode::from_bits_truncate(0o755))?;
    Ok(directory)
}

/// Removes `names` from the opened directory, then the directory itself. What cannot be removed stays.
pub(super) fn remove(directory: &OwnedFd, path: &Path, names: &[&CStr]) {
    for name in names {
        let _ = unlinkat(directory.as_fd(), *name, UnlinkatFlags::NoRemoveDir);
    }
    let _ = std::fs::remove_dir(path);
}

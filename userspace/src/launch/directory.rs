//! Directories of ours that a program reads: where one can be so that its user gets there and nobody but us may replace anything in it.

use std::env;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::janitor::Janitor;

/// An empty directory of mode 0755, opened. Its name has our process number, so that a person can tell whose it is, and cannot be predicted.
/// The janitor who is to remove it is there before it. Dropping it removes it.
#[derive(Debug)]
pub struct Folder {
    parent: OwnedFd,
    name: CString,
    directory: OwnedFd,
    /// All that may be in it.
    names: &'static [&'static CStr],
    janitor: Option<Janitor>,
}

impl Folder {
    /// Makes one in a directory that [`refuse_owner_and_mode`] has nothing against, all the way up.
    ///
    /// # Errors
    /// When it cannot be made, or the janitor cannot be forked.
    pub fn create_in(parent: OwnedFd, names: &'static [&'static CStr]) -> Result<Self> {
        let name = CString::new(format!("rmprof-bpf-{}-{:016x}", std::process::id(), random()?))?;
        let janitor = Some(Janitor::start(parent.as_fd(), &name, names)?);
        mkdirat(&parent, name.as_c_str(), Mode::S_IRWXU).context("cannot make a directory")?;
        match open_own(parent.as_fd(), &name) {
            Ok(directory) => Ok(Self { parent, name, directory, names, janitor }),
            Err(error) => {
                // Still empty; the first error is the one to tell.
                let _ = unlinkat(&parent, name.as_c_str(), UnlinkatFlags::RemoveDir);
                Err(error)
            }
        }
    }

    /// Its name in its parent.
    pub fn name(&self) -> &OsStr {
        OsStr::from_bytes(self.name.to_bytes())
    }

    /// The directory.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Writes a file of mode 0644 that is not there yet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &CStr, mut content: &[u8]) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = openat(self.directory.as_fd(), name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        while !content.is_empty() {
            match nix::unistd::write(&file, content) {
                Ok(written) => content = content.get(written..).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        fchmod(&file, Mode::from_bits_truncate(0o644))?; // whatever the umask says
        Ok(())
    }

    /// Where to write the number of the program's process (four bytes, native order) before it is let go: should we be killed, the
    /// directory stays until the program has ended too.
    pub(super) fn notice(&self) -> Option<OwnedFd> {
        self.janitor.as_ref()?.notice()
    }

    /// The janitor's process id.
    #[cfg(test)]
    pub(super) fn janitor(&self) -> nix::unistd::Pid {
        self.janitor.as_ref().unwrap().process()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.janitor.take()); // waits: the directory is gone
        // Unless somebody killed it: what cannot be removed stays.
        for name in self.names {
            let _ = unlinkat(self.directory.as_fd(), *name, UnlinkatFlags::NoRemoveDir);
        }
        let _ = unlinkat(&self.parent, self.name.as_c_str(), UnlinkatFlags::RemoveDir);
    }
}

/// Makes the shim's directory, where code can be loaded from too; gives its path.
pub(super) fn create(names: &'static [&'static CStr]) -> Result<(PathBuf, Folder)> {
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
        if let Some(reason) = refuse_owner_and_mode(&status, &[]) {
            return Some(format!("{} {reason}", place.display()));
        }
    }
    None
}

/// What is wrong with a directory on the way: nobody but root, us and `owners` may replace what is in it, and everybody gets through.
pub fn refuse_owner_and_mode(status: &std::fs::Metadata, owners: &[u32]) -> Option<String> {
    let (mode, owner) = (status.mode(), status.uid());
    if owner != 0 && owner != geteuid().as_raw() && !owners.contains(&owner) {
        return Some(format!("belongs to user {owner}"));
    }
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        return Some("can be written to by others".into());
    }
    (mode & 0o001 == 0).then(|| "is closed to other users".into())
}

fn create_in(parent: &Path, names: &'static [&'static CStr]) -> Result<(PathBuf, Folder)> {
    let real = parent.canonicalize()?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let folder = Folder::create_in(open(&real, flags, Mode::empty())?, names)?;
    Ok((real.join(folder.name()), folder))
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

fn open_own(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty())?;
    if fstat(&directory)?.st_uid != geteuid().as_raw() {
        bail!("the directory just made belongs to somebody else");
    }
    fchmod(&directory, Mode::from_bits_truncate(0o755))?;
    Ok(directory)
}

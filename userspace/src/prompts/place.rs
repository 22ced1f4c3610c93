//! Where a process that runs already finds the debugger: a folder in its own view of the file system, with a socket that we listen at.
//!
//! A path, not an abstract name or a descriptor: it is the process itself that opens the files, in its mount namespace and with its rights,
//! and a path of a socket is the same in every network namespace.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::task::{Context, Poll, ready};

use anyhow::{Context as _, Result, bail};
use tokio::io::unix::AsyncFd;

use crate::launch::{Folder, SCRIPT, files_from_outside, refuse_owner_and_mode};
use crate::target::source::Root;
use crate::target::{Pid, identity};

const SOCKET: &str = "socket";
/// All that may be in the folder.
const NAMES: &[&std::ffi::CStr] = &[SCRIPT, c"debugger.py", c"socket"];
/// Where it may be, in the order of trial.
const PARENTS: &[&str] = &["/run", "/tmp", "/var/tmp", "/dev/shm"];

/// A root directory and mount namespace, in which processes see the same files.
pub(super) type View = (u64, u64, PathBuf);

/// See the module. Dropping it removes the folder; should we be killed, its janitor does.
pub(super) struct Place {
    /// Who sees it.
    pub view: View,
    /// The path of the script, for those.
    pub script: Vec<u8>,
    listener: AsyncFd<UnixListener>,
    _folder: Folder,
}

/// What a process sees.
pub(super) fn view_of(pid: Pid, root: &Root) -> io::Result<View> {
    let (device, inode) = root.identity()?;
    Ok((device, inode, std::fs::read_link(format!("/proc/{pid}/ns/mnt"))?))
}

impl Place {
    /// Makes the folder in a process's view, and listens. To be called within the runtime that will wait.
    pub fn create(pid: Pid, root: &Root, view: View) -> Result<Self> {
        let owners = identity::root_of_namespace(pid).into_iter().collect::<Vec<_>>();
        let mut reasons = Vec::new();
        for parent in PARENTS {
            let made = match refusal(root, Path::new(parent), &owners) {
                Some(reason) => Err(anyhow::anyhow!(reason)),
                None => make(root, Path::new(parent)),
            };
            match made {
                Ok((folder, script, listener)) => return Ok(Self { view, script, listener, _folder: folder }),
                Err(error) => reasons.push(format!("{parent}: {error:#}")),
            }
        }
        bail!("no folder in its file system can hold the debugger ({})", reasons.join("; "))
    }

    /// The next that has connected, and the process that the kernel says it is.
    pub fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<(UnixStream, Pid)>> {
        loop {
            let mut guard = ready!(self.listener.poll_read_ready(context))?;
            let Ok(accepted) = guard.try_io(|listener| listener.get_ref().accept()) else { continue };
            let (stream, _) = accepted?;
            stream.set_nonblocking(true)?;
            let peer = peer_of(&stream)?;
            return Poll::Ready(Ok((stream, peer)));
        }
    }
}

/// Who connected: its number as our PID namespace has it.
fn peer_of(stream: &UnixStream) -> io::Result<Pid> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: both are valid for writing, the first for as many bytes as the second says.
    let answer = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut peer).cast(), &raw mut size)
    };
    if answer == 0 { Ok(Pid::from_raw(peer.pid)) } else { Err(io::Error::last_os_error()) }
}

/// Why the folder cannot be there: neither links, nor anybody who could put his own in its place, are on the way.
fn refusal(root: &Root, parent: &Path, owners: &[u32]) -> Option<String> {
    for place in parent.ancestors() {
        let status = root.open_directory(place).and_then(|opened| File::from(opened).metadata());
        match status {
            Err(error) => return Some(error.to_string()),
            Ok(status) => {
                if let Some(reason) = refuse_owner_and_mode(&status, owners) {
                    return Some(format!("{} {reason}", place.display()));
                }
            }
        }
    }
    None
}

fn make(root: &Root, parent: &Path) -> Result<(Folder, Vec<u8>, AsyncFd<UnixListener>)> {
    let folder = Folder::create_in(root.open_directory(parent)?, NAMES)?;
    let path = parent.join(folder.name());
    let path = path.to_str().context("a name that is no text")?;
    for (name, content) in files_from_outside(path) {
        folder.write(name, content.as_bytes())?;
    }
    let listener = listen_in(&folder).context("cannot listen at a socket")?;
    Ok((folder, format!("{path}/{}", SCRIPT.to_string_lossy()).into_bytes(), listener))
}

fn listen_in(folder: &Folder) -> io::Result<AsyncFd<UnixListener>> {
    // Through our descriptor: the folder need not be in our own view.
    let path = format!("/proc/self/fd/{}/{SOCKET}", folder.descriptor().as_raw_fd());
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    // The process connects with its own rights. Of others that do the kernel says who they are, and they are not listened to.
    std::fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    // SAFETY: the descriptor is owned by what is registered, and open for as long.
    Ok(unsafe { AsyncFd::register(listener) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_connects_is_known_and_the_folder_goes() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let script = runtime.block_on(async {
            let me = Pid::this();
            let root = Root::of(me).unwrap();
            let view = view_of(me, &root).unwrap();
            let place = Place::create(me, &root, view).unwrap();
            let script = PathBuf::from(String::from_utf8(place.script.clone()).unwrap());
            let folder = script.parent().unwrap();
            assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
            for name in [script.as_path(), &folder.join("debugger.py")] {
                assert_eq!(name.metadata().unwrap().permissions().mode() & 0o7777, 0o644);
            }
            let _stream = UnixStream::connect(folder.join(SOCKET)).unwrap();
            let (_, peer) = std::future::poll_fn(|context| place.poll_accept(context)).await.unwrap();
            assert_eq!(peer, me);
            script
        });
        assert!(!script.parent().unwrap().exists());
    }
}

//! Attaching: the ladder of user probes, tracepoints, and the table of watched processes.
//!
//! Links are made by the raw call: libbpf's own attach by symbol name fails on stripped libraries, and we choose the
//! instruction ourselves (`target::sites`). A link is a descriptor; closing it detaches. The calls are the keeper's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::{Arc, OnceLock};

use rmprof_probes::abi;

use super::bpf;
use super::event::Executable;
use super::keeper::{Keeper, MOST_PROBES, Order, Task};
use super::map::Map;
use crate::ledger::ProcessId;
use crate::target::Pid;

/// How user probes are attached on this kernel, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// One link; the entry decides whether the return is trapped (Linux 6.13).
    Session,
    /// A link for entries and one for returns (Linux 6.6, where its process filter is right).
    Multi,
    /// A perf event for every probe.
    Single,
}

/// One place to probe in a file.
#[derive(Clone, Copy, Debug)]
pub struct ProbePoint {
    /// Offset in the file.
    pub offset: u64,
    /// `enum rm_role` or `enum rm_launch_role`.
    pub role: u32,
    /// Does the role need the return?
    pub returns: bool,
}

/// What is attached. Dropping it detaches, and does not wait for the kernel to be done with it.
#[derive(Debug, Default)]
pub struct Links(Vec<Link>);

impl Links {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Nothing attached.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what another holds.
    pub fn extend(&mut self, other: Links) {
        self.0.extend(other.0);
    }
}

/// A link on user probes, which the keeper made and will close, or a file that it remembers.
#[derive(Debug)]
struct Link {
    descriptor: RawFd,
    keeper: Arc<Keeper>,
}

impl Link {
    fn made(keeper: &Arc<Keeper>, order: &Order) -> io::Result<Self> {
        Ok(Link { descriptor: keeper.carry_out(order)?, keeper: Arc::clone(keeper) })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let order = Order { link: self.descriptor, ..Order::new(Task::Release) };
        let _ = self.keeper.carry_out(&order); // a descriptor of ours: closing it cannot fail
    }
}

/// Programs of the rung that was loaded.
#[derive(Debug)]
pub(super) enum HeapPrograms {
    Session(OwnedFd),
    Pair { enter: OwnedFd, exit: OwnedFd, multi: bool },
}

/// The program of the launch sites, and whether it is one for multi-probes.
#[derive(Debug)]
pub(super) struct LaunchProgram {
    pub program: OwnedFd,
    pub multi: bool,
}

/// What of the loaded probes it takes to attach and to watch.
#[derive(Debug)]
pub(super) struct Probes {
    pub(super) heap: Option<HeapPrograms>,
    pub(super) processes: Map,
    pub(super) other_programs: Map,
    pub(super) memories: Map,
    pub(super) next_limits: Map,
    /// Told of who begins and ends; nothing where no limits are told.
    pub(super) alarms: Option<OwnedFd>,
    pub(super) arenas: Arc<Map>,
}

/// Attaches probes to processes and keeps the table of watched ones. Used by the supervisor while a process is held.
///
/// It is there before the probes are: a program is executed, and held, while they are loaded. What needs them waits for them, and fails
/// where they could not be loaded.
#[derive(Debug)]
pub struct Attacher {
    pub(super) keeper: Arc<Keeper>,
    /// Of the launch sites, which may be loaded before the others are; `None`: it could not be.
    launch: OnceLock<Option<LaunchProgram>>,
    probes: OnceLock<Option<Probes>>,
}

impl Attacher {
    /// One whose probes are to be loaded ([`Kernel::load_for`](super::Kernel::load_for)).
    ///
    /// # Errors
    /// The process that attaches could not be started.
    pub fn start() -> io::Result<Self> {
        Ok(Self { keeper: Arc::new(Keeper::start()?), launch: OnceLock::new(), probes: OnceLock::new() })
    }

    /// Are the probes loaded? Waits until they are, or cannot be.
    pub fn has_probes(&self) -> bool {
        self.probes.wait().is_some()
    }

    /// Is the program of the launch sites there by now?
    pub(super) fn has_launch(&self) -> bool {
        self.launch.get().is_some()
    }

    /// The program of the launch sites is loaded. The first that is told of stays.
    pub(super) fn set_launch(&self, launch: LaunchProgram) {
        let _ = self.launch.set(Some(launch));
    }

    pub(super) fn set_probes(&self, probes: Probes) {
        let _ = self.probes.set(Some(probes));
    }

    /// What is not loaded by now will not be: nobody waits for it any longer.
    pub(super) fn give_up(&self) {
        let _ = self.launch.set(None);
        let _ = self.probes.set(None);
    }

    fn probes(&self) -> io::Result<&Probes> {
        self.probes.wait().as_ref().ok_or_else(|| io::Error::other("the probes are not loaded"))
    }

    /// Probes the malloc family in `library` for one process.
    ///
    /// # Errors
    /// What the kernel says of the file or the offsets.
    pub fn attach_heap(&self, pid: u32, library: &File, points: &[ProbePoint]) -> io::Result<Links> {
        let points = &releases_first(points);
        match &self.probes()?.heap {
            None => Ok(Links::default()),
            Some(HeapPrograms::Session(program)) => {
                multi_link(&self.keeper, program, bpf::TRACE_UPROBE_SESSION, 0, pid, library, points)
                    .map(|link| Links(vec![link]))
            }
            Some(HeapPrograms::Pair { enter, exit, multi }) => {
                let returning: Vec<ProbePoint> = points.iter().copied().filter(|point| point.returns).collect();
                let mut links = attach_points(&self.keeper, exit, *multi, true, pid, library, &returning)?;
                links.extend(attach_points(&self.keeper, enter, *multi, false, pid, library, points)?);
                Ok(links)
            }
        }
    }

    /// Probes the site functions of the launch extension for one process.
    ///
    /// # Errors
    /// What the kernel says of the file or the offsets.
    pub fn attach_launch(&self, pid: u32, extension: &File, points: &[ProbePoint]) -> io::Result<Links> {
        let launch = self.launch.wait().as_ref().ok_or_else(|| io::Error::other("the probes are not loaded"))?;
        attach_points(&self.keeper, &launch.program, launch.multi, false, pid, extension, points)
    }

    /// As long as the result is kept: should we be killed, four bytes of zero are written to `file` at `offset`.
    ///
    /// # Errors
    /// Too few descriptors.
    pub fn silence(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<Links> {
        let mut order = Order { file: file.try_clone_to_owned()?.into_raw_fd(), ..Order::new(Task::Silence) };
        order.offsets[0] = offset;
        Ok(Links(vec![Link::made(&self.keeper, &order)?]))
    }

    /// Begins to watch a process image, or replaces what is known of it. Only while the process is held.
    ///
    /// # Errors
    /// When the table is full.
    pub fn watch(&self, pid: u32, process: &abi::rm_process) -> io::Result<()> {
        self.probes()?.processes.update(&pid.to_ne_bytes(), bytes_of(process))?;
        self.look_at_alarms(pid, false)
    }

    /// What the process has resident counts from now on, or (`leaves`) does not any more.
    fn look_at_alarms(&self, pid: u32, leaves: bool) -> io::Result<()> {
        let Some(program) = &self.probes()?.alarms else { return Ok(()) };
        bpf::run(program.as_fd(), &[u64::from(pid), u64::from(leaves)]).map(drop)
    }

    /// What is known of a watched process now.
    pub fn watched(&self, pid: u32) -> Option<abi::rm_process> {
        let value = self.probes().ok()?.processes.lookup(&pid.to_ne_bytes()).ok()??;
        from_bytes(&value)
    }

    /// Ends the watch and returns the last state.
    pub fn forget(&self, pid: u32) -> Option<abi::rm_process> {
        let last = self.watched(pid)?;
        let Probes { processes, memories, .. } = self.probes().ok()?;
        // A program that was loaded can be run.
        let _ = self.look_at_alarms(pid, true);
        // Gone already is as good: both entries are ours alone.
        let _ = processes.delete(&pid.to_ne_bytes());
        let memory = last.memory.to_ne_bytes();
        // A child of vfork had its parent's.
        if memories.lookup(&memory).ok().flatten().is_some_and(|owner| owner == pid.to_ne_bytes()) {
            let _ = memories.delete(&memory);
        }
        Some(last)
    }

    /// This program is no Python: whoever executes it is nothing to tell of.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pass_over(&self, executable: &Executable) -> io::Result<()> {
        let Executable { inode, bytes, device, generation } = *executable;
        let key = abi::rm_executable { inode, bytes, device, generation };
        self.probes()?.other_programs.update(bytes_of(&key), &[1])
    }

    /// What is known of a process, if it is still that one: a process that has ended leaves its number to others.
    pub fn still_watched(&self, pid: Pid, process: ProcessId) -> Option<abi::rm_process> {
        self.watched(pid.as_raw().unsigned_abs()).filter(|now| now.id == process.0)
    }

    /// A process that nobody holds, and in which the debugger was open, is to be told of again above so many resident bytes.
    ///
    /// # Errors
    /// When the table is full.
    pub fn limit_next(&self, process: ProcessId, bytes: u64) -> io::Result<()> {
        self.probes()?.next_limits.update(&process.0.to_ne_bytes(), &bytes.to_ne_bytes())
    }

    /// A forked child has its parent's arenas: the same pages, counted in the parent.
    ///
    /// # Errors
    /// When the map cannot be read or is full.
    pub fn inherit_arenas(&self, parent: u32, child: u32) -> io::Result<()> {
        const PROCESS_AT: usize = 8; // struct arena_key: granule, process
        let arenas = &self.probes()?.arenas;
        for (mut key, value) in arenas.entries()? {
            if key.get(PROCESS_AT..PROCESS_AT + 4) == Some(&parent.to_ne_bytes()) {
                key[PROCESS_AT..PROCESS_AT + 4].copy_from_slice(&child.to_ne_bytes());
                arenas.update(&key, &value)?;
            }
        }
        Ok(())
    }
}

/// The kernel puts them on one after the other, while a process that nobody holds runs: a block that was seen to be asked for is to be seen
/// released.
fn releases_first(points: &[ProbePoint]) -> Vec<ProbePoint> {
    let mut points = points.to_vec();
    points.sort_by_key(|point| match point.role {
        abi::RM_ROLE_FREE => 0,
        abi::RM_ROLE_REALLOC | abi::RM_ROLE_REALLOCARRAY => 1,
        _ => 2,
    });
    points
}

/// Resident memory of a process, without what is ours: `resident_bytes` of probes/bpf/maps.bpf.h.
pub fn resident_bytes(process: &abi::rm_process) -> i64 {
    let [file, anonymous, _, shared] = process.resident;
    file.saturating_add(anonymous).saturating_add(shared).saturating_sub(process.own_bytes).max(0)
}

/// A struct of the ABI as the bytes the kernel sees.
pub(super) fn bytes_of<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: T is one of the ABI's plain C structs, without padding (asserted in the tests); any of its bytes may be read.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// Bytes from a map as a struct of the ABI; nothing when they are too few.
pub(super) fn from_bytes<T: Copy>(bytes: &[u8]) -> Option<T> {
    (bytes.len() >= size_of::<T>()).then(|| {
        // SAFETY: enough bytes, any alignment; T is one of the ABI's plain C structs, for which all bit patterns are valid.
        unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
    })
}

fn attach_points(
    keeper: &Arc<Keeper>,
    program: &OwnedFd,
    multi: bool,
    returns: bool,
    pid: u32,
    file: &File,
    points: &[ProbePoint],
) -> io::Result<Links> {
    if points.is_empty() {
        return Ok(Links::default());
    }
    if multi {
        let flags = if returns { bpf::UPROBE_MULTI_RETURN } else { 0 };
        return multi_link(keeper, program, bpf::TRACE_UPROBE_MULTI, flags, pid, file, points)
            .map(|link| Links(vec![link]));
    }
    points
        .iter()
        .map(|point| single_link(keeper, program, returns, pid, file, *point))
        .collect::<io::Result<Vec<_>>>()
        .map(Links)
}

fn multi_link(
    keeper: &Arc<Keeper>,
    program: &OwnedFd,
    kind: u32,
    flags: u32,
    pid: u32,
    file: &File,
    points: &[ProbePoint],
) -> io::Result<Link> {
    let order = Order { kind, flags, pid, ..order(Task::Multi, program, file, points)? };
    Link::made(keeper, &order)
}

fn single_link(
    keeper: &Arc<Keeper>,
    program: &OwnedFd,
    returns: bool,
    pid: u32,
    file: &File,
    point: ProbePoint,
) -> io::Result<Link> {
    // The PMU's number and the bit of config that asks for a return probe: kernel/events/core.c, perf_uprobe.
    let kind: u32 = std::fs::read_to_string("/sys/bus/event_source/devices/uprobe/type")?
        .trim()
        .parse()
        .map_err(io::Error::other)?;
    let order = Order { kind, flags: u32::from(returns), pid, ..order(Task::Single, program, file, &[point])? };
    Link::made(keeper, &order)
}

/// An order with all that both kinds of link need.
fn order(task: Task, program: &OwnedFd, file: &File, points: &[ProbePoint]) -> io::Result<Order> {
    if points.len() > MOST_PROBES {
        return Err(io::Error::other(format!("{} probes in one file", points.len())));
    }
    let (program, file) = (program.as_raw_fd(), file.as_raw_fd());
    let mut order = Order { program, file, probes: points.len() as u32, ..Order::new(task) };
    for (at, point) in points.iter().enumerate() {
        order.offsets[at] = point.offset;
        order.cookies[at] = u64::from(point.role);
    }
    Ok(order)
}

/// Asks the kernel what its multi-probe can do, by links on a file that cannot be probed. Kernels that have none refuse the kind
/// (EINVAL), others the file (EBADF); of a process that cannot exist kernels whose filter is right refuse the process (EINVAL), earlier
/// ones the file. See libbpf's features.c.
pub(super) fn multi_filter_is_right(program: BorrowedFd<'_>) -> bool {
    let link = |pid| bpf::link_multi(program.as_raw_fd(), (bpf::TRACE_UPROBE_MULTI, 0), pid, c"/", &[0], None);
    link(0) == -libc::EBADF && link(u32::MAX) == -libc::EINVAL
}

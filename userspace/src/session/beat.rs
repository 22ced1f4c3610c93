//! When a session looks at what the probes gathered: on a clock, and when their buffer fills up.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior};

use super::image::Image;
use super::progress::Progress;
use crate::kernel::{Attacher, Drain};
use crate::ledger::ProcessId;

/// How long records may wait in the ring buffer.
const DRAIN_EVERY: Duration = Duration::from_millis(100);

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// The clock says so.
    Due,
    /// The buffer fills up.
    Full,
}

/// See the module.
pub struct Beats {
    ring: AsyncFd<OwnedFd>,
    clock: Interval,
    /// `None`: the terminal is somebody else's.
    progress: Option<Progress>,
}

impl Beats {
    /// Begins now. To be called within the runtime that waits.
    ///
    /// # Errors
    /// Too few descriptors.
    pub fn new(drain: &Drain, may_tell: bool) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by what is registered, and open for as long.
        let ring = unsafe { AsyncFd::register(drain.descriptor()?) }?;
        let mut clock = tokio::time::interval(DRAIN_EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Ok(Self { ring, clock, progress: may_tell.then(Progress::new) })
    }

    /// Waits for the next; nothing is lost where the wait is given up.
    ///
    /// # Errors
    /// What the kernel says of the buffer.
    pub async fn next(&mut self) -> io::Result<Beat> {
        tokio::select! {
            _ = self.clock.tick() => Ok(Beat::Due),
            ready = self.ring.readable() => {
                ready?.clear_ready();
                Ok(Beat::Full)
            }
        }
    }

    /// Prints how far things are, if that is due.
    pub fn tell(&mut self, images: &BTreeMap<ProcessId, Image>, attacher: &Attacher) {
        if let Some(progress) = &mut self.progress {
            progress.tick(images, attacher);
        }
    }
}

//! The order that a run is to end: all that was started is killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use nix::unistd::Pid;

use super::ticker;

/// Given to the supervisor by whoever has a copy. It alone can carry it out: what it traces cannot be another process by now, and what is
/// made meanwhile is held for it.
#[derive(Clone, Debug, Default)]
pub struct Ending(Arc<Order>);

#[derive(Debug, Default)]
struct Order {
    asked: AtomicBool,
    /// The supervisor's thread; 0: it waits for nothing yet.
    thread: AtomicI32,
}

impl Ending {
    /// Gives the order. It cannot be taken back.
    pub fn ask(&self) {
        self.0.asked.store(true, Ordering::SeqCst);
        let thread = self.0.thread.load(Ordering::SeqCst);
        if thread > 0 {
            ticker::interrupt(Pid::from_raw(thread));
        }
    }

    /// Was it given?
    pub(super) fn is_asked(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// The calling thread, which has a ticker, will carry it out.
    pub(super) fn is_heard_here(&self) {
        self.0.thread.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
    }
}

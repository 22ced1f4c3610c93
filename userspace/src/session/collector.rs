//! The collector: records and news of processes in, one state of all images out.

use std::collections::BTreeMap;

use super::image::{Birth, Death, Image};
use super::tallied::Tally;
use crate::kernel::Totals;
use crate::kernel::event::Event;
use crate::ledger::ProcessId;

/// What the supervisor tells the collector.
#[derive(Debug)]
pub enum Message {
    /// An image with a Python begins. Sent before its first instruction.
    Born(Box<Birth>),
    /// An image has ended.
    Died(ProcessId, Death),
    /// Something for the person, on standard error.
    Note(String),
}

/// All images of the session.
#[derive(Debug, Default)]
pub struct Collector {
    /// By their number.
    pub images: BTreeMap<ProcessId, Image>,
    /// Records of images whose births have not been heard yet.
    early: Vec<Event>,
    /// How many announcements were lost so far.
    unheard: u64,
}

impl Collector {
    /// Takes one message. A fork has what its parent had announced: the records so far are to be taken before.
    pub fn hear(&mut self, message: Message) {
        match message {
            Message::Born(birth) => {
                let parent = birth.forked_from.and_then(|parent| self.images.get(&parent));
                let image = match parent {
                    Some(parent) => Image::forked(*birth, parent),
                    None => Image::new(*birth),
                };
                self.images.insert(image.birth.id, image);
                let early = std::mem::take(&mut self.early);
                self.record(early);
            }
            Message::Died(id, death) => {
                if let Some(image) = self.images.get_mut(&id) {
                    image.death = Some(death);
                    if let Some(tally) = &mut image.tally {
                        tally.finish(death.last_change);
                    }
                }
            }
            Message::Note(text) => super::say(&text),
        }
    }

    /// To be called before records are taken, now and then, and [`end_look`](Self::end_look) after: what was resident at the last
    /// events of the processes that count themselves is looked up while it is still known.
    pub fn begin_look(&mut self) {
        self.tallies().for_each(Tally::begin_look);
    }

    /// See [`begin_look`](Self::begin_look). `unheard` counts the announcements of stacks that were lost.
    pub fn end_look(&mut self, unheard: u64) {
        self.tallies().for_each(Tally::end_look);
        if unheard != std::mem::replace(&mut self.unheard, unheard) {
            self.tallies().for_each(|tally| tally.ask_again());
        }
    }

    fn tallies(&mut self) -> impl Iterator<Item = &mut Tally> {
        self.images.values_mut().filter_map(|image| image.tally.as_mut())
    }

    /// Adds to the kernel side's sums what the processes counted themselves.
    pub fn add_tallies(&mut self, totals: &mut Totals) {
        for image in self.images.values_mut() {
            if let Some(tally) = &mut image.tally {
                tally.finish(None);
                tally.add_to(image.birth.id, totals);
            }
        }
    }

    /// Takes records of the kernel side. Those of an image whose birth is still to be heard wait for it: it was sent first.
    pub fn record(&mut self, events: Vec<Event>) {
        for event in events {
            if !self.images.contains_key(&event.process()) {
                self.early.push(event);
                continue;
            }
            match event {
                Event::Stack { process, id, stack, thread_state, thread_pointer } => {
                    let Some(image) = self.images.get_mut(&process) else { continue };
                    if let Some(doubt) = image.stack(id, stack, thread_state, thread_pointer) {
                        let pid = image.birth.pid;
                        super::say(&format!(
                            "process {pid}: its Python's thread list does not agree with what was read: {doubt}"
                        ));
                    }
                }
                Event::Code { process, key, code } => {
                    if let Some(image) = self.images.get_mut(&process) {
                        image.code(key, code);
                    }
                }
                Event::Part { process, key, piece } => {
                    if let Some(image) = self.images.get_mut(&process) {
                        image.piece(key, piece);
                    }
                }
                Event::Mark { process, key, order } => {
                    if let Some(image) = self.images.get_mut(&process) {
                        image.mark(key, order);
                    }
                }
                Event::Hello { process } => {
                    if let Some(image) = self.images.get_mut(&process) {
                        image.hello = true;
                    }
                }
                Event::Resident { process, sequence, bytes } => {
                    if let Some(tally) = self.images.get_mut(&process).and_then(|image| image.tally.as_mut()) {
                        tally.changed(sequence, bytes);
                    }
                }
                Event::Followed { .. } => {} // the follower's
                Event::Map { process, stack, change } => {
                    if let Some(image) = self.images.get_mut(&process) {
                        image.map(stack, change);
                    }
                }
            }
        }
    }
}

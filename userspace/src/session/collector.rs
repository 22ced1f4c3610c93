//! The collector: records and news of processes in, one state of all images out.

use std::collections::{BTreeMap, HashSet};
use std::io;

use super::assemble::Settled;
use super::image::{Birth, Death, Image, NativeNews};
use super::limits::Limits;
use super::tallied::Tally;
use crate::kernel::counters::COUNTERS;
use crate::kernel::event::Event;
use crate::kernel::{Drain, Totals};
use crate::ledger::ProcessId;
use crate::native::{CodeMapping, Files};
use crate::plan::ReportPlan;
use crate::target::Pid;

/// What the supervisor tells the collector.
#[derive(Debug)]
pub enum Message {
    /// An image with a Python begins. Sent before its first instruction.
    Born(Box<Birth>),
    /// What an image maps of files with code: about to end, or seen for the first time and held by nobody.
    Code(ProcessId, Vec<CodeMapping>),
    /// An image has ended.
    Died(ProcessId, Death),
    /// Something for the person, on standard error.
    Note(String),
}

/// Images that were killed of which a report of their own is due, at one time.
const MOST_KILLED: usize = 64;
/// Records that wait for the births of their images. Where a birth was lost, they would wait for ever.
const MOST_EARLY: usize = 1 << 14;
/// So many images that have ended make it worth to read the maps.
const MANY: usize = 16;

fn add_tally(image: &Image, totals: &mut Totals) {
    if let Some(tally) = &image.tally {
        tally.add_to(image.birth.id, totals);
    }
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
    /// Images that have ended, and whose sums are still the kernel side's.
    ended: HashSet<ProcessId>,
    /// Those whose sums are here.
    pub settled: Settled,
    /// What their tallies counted besides: counters and bytes without a site.
    kept: Totals,
    /// Files with native code.
    files: Files,
    /// What became of the limit of resident memory.
    pub limits: Limits,
    /// Processes that ran without our help to marks.
    pub without_marks: Vec<Pid>,
    /// Images that were killed or crashed, and whose reports have not been written yet.
    pub killed: Vec<ProcessId>,
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
            Message::Code(id, code) => {
                if let Some(image) = self.images.get_mut(&id) {
                    image.settle_natives(Some(code), &mut self.files);
                }
            }
            Message::Died(id, death) => {
                if let Some(image) = self.images.get_mut(&id) {
                    if death.end.is_abnormal() && self.killed.len() < MOST_KILLED {
                        self.killed.push(id);
                    }
                    image.death = Some(death);
                    self.ended.insert(id);
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

    /// Takes the sums of images that have ended out of the kernel's maps, when there are enough of them to be worth it: the maps are
    /// read whole for that.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn make_room(&mut self, drain: &Drain, plan: &ReportPlan) -> io::Result<()> {
        if self.ended.len() >= MANY {
            self.settle(drain.sweep(&self.ended)?, plan);
        }
        Ok(())
    }

    /// Takes the sums of the images that have ended, and lets go of what is not in their reports.
    fn settle(&mut self, mut totals: Totals, plan: &ReportPlan) {
        // Counters are nobody's in particular: they are summed over all.
        (totals.counters, totals.siteless) = (std::mem::take(&mut self.kept.counters), self.kept.siteless);
        totals.counters.resize(COUNTERS.len(), 0);
        // In their order: what is kept longest of them are the last.
        let mut ended: Vec<ProcessId> = std::mem::take(&mut self.ended).into_iter().collect();
        ended.sort_unstable();
        let mut images: Vec<Image> = ended.iter().filter_map(|id| self.images.remove(id)).collect();
        for image in &mut images {
            if let Some(tally) = &mut image.tally {
                tally.finish(None);
            }
            add_tally(image, &mut totals);
            image.settle_natives(None, &mut self.files);
        }
        totals.sites.sort_by_key(|(process, ..)| *process);
        for image in &mut images {
            self.note_marks(image);
            self.settled.add(image, &totals, plan);
        }
        (self.kept.counters, self.kept.siteless) = (totals.counters, totals.siteless);
    }

    /// The end: takes the sums of all processes that count themselves, and notes which had no marks.
    pub fn finish_tallies(&mut self) {
        self.tallies().for_each(|tally| tally.finish(None));
        let images = std::mem::take(&mut self.images);
        images.values().for_each(|image| self.note_marks(image));
        self.images = images;
    }

    /// Takes their sums as they are now: before those of the kernel side, which then knows all stacks that they are of.
    pub fn take_tallies(&mut self) {
        self.tallies().for_each(Tally::take_sums);
    }

    /// Adds to the kernel side's sums what was taken of those that the processes counted themselves.
    pub fn add_tallies(&self, totals: &mut Totals) {
        self.images.values().for_each(|image| add_tally(image, totals));
        totals.counters.iter_mut().zip(&self.kept.counters).for_each(|(total, kept)| *total += kept);
        totals.siteless.0 += self.kept.siteless.0;
        totals.siteless.1 += self.kept.siteless.1;
    }

    /// The end: what is still to be known of native functions.
    pub fn finish_natives(&mut self) {
        for image in self.images.values_mut() {
            image.settle_natives(None, &mut self.files);
        }
    }

    fn note_marks(&mut self, image: &Image) {
        // One that a signal ended (a pool lets go of workers that have not begun yet) may not have come that far.
        let ended = image.death.as_ref().is_some_and(|death| death.end.signal.is_none());
        let has_run = image.stacks.values().any(|stack| !stack.frames.is_empty());
        if ended && has_run && !image.hello {
            self.without_marks.push(image.birth.pid);
        }
    }

    /// Takes records of the kernel side. Those of an image whose birth is still to be heard wait for it: it was sent first.
    pub fn record(&mut self, events: Vec<Event>) {
        for event in events {
            if !self.images.contains_key(&event.process()) {
                if self.early.len() >= MOST_EARLY {
                    self.settled.lose(self.early.len() as u64);
                    self.early.clear();
                }
                self.early.push(event);
                continue;
            }
            match event {
                Event::Stack { process, id, stack, thread_state, thread_pointer, thread_start } => {
                    let Some(image) = self.images.get_mut(&process) else { continue };
                    // The interpreter's own threads are Python's, before or after its code.
                    if thread_start != 0 && !image.birth.interpreter.text_range.contains(&thread_start) {
                        image.native(NativeNews::Thread(id, thread_start), &mut self.files);
                    }
                    if let Some(doubt) = image.stack(id, stack, thread_state, thread_pointer) {
                        let pid = image.birth.pid;
                        super::say(&format!(
                            "process {pid}: its Python's thread list does not agree with what was read: {doubt}"
                        ));
                    }
                }
                Event::Native { process, snapshot } => {
                    if let Some(image) = self.images.get_mut(&process) {
                        image.native(NativeNews::Call(snapshot), &mut self.files);
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
                Event::Mark { process, key, number, asked } => {
                    if let Some(image) = self.images.get_mut(&process) {
                        image.mark(key, number, asked);
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
                Event::Limit { process, news } => self.limits.hear(process, news, &self.images),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the birth of an image is not heard, its records go at last, and are missed.
    #[test]
    fn records_that_are_dropped_are_counted() {
        let mut collector = Collector::default();
        let hello = |_| Event::Hello { process: ProcessId(1) };
        collector.record((0..MOST_EARLY).map(hello).collect());
        assert_eq!(collector.settled.health().lost, 0);
        collector.record(vec![hello(0)]);
        let dropped = MOST_EARLY as u64;
        assert_eq!(collector.settled.health().lost, dropped);
        assert_eq!(collector.settled.health().counters, [("early_full".to_owned(), dropped)]);
    }
}

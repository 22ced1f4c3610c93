//! How much was resident at an event of a tally. The process knows the order of its events and not its resident memory, the kernel
//! side the reverse: it tells of each change, with the last event before it.

/// The changes of one process that may still be asked for, in order.
#[derive(Clone, Debug)]
pub struct History(Vec<(u64, u64)>);

impl History {
    /// What was resident before the first event.
    pub fn new(bytes: u64) -> Self {
        Self(vec![(0, bytes)])
    }

    /// After the event `sequence`, and before the next one, it came to be `bytes`.
    pub fn changed(&mut self, sequence: u64, bytes: u64) {
        let at = self.0.partition_point(|(other, _)| *other <= sequence);
        match self.0.get_mut(at.wrapping_sub(1)) {
            Some(same) if same.0 == sequence => same.1 = bytes,
            _ => self.0.insert(at, (sequence, bytes)),
        }
    }

    /// What was resident at the event `sequence`, which begins after all changes told of the one before.
    pub fn at(&self, sequence: u64) -> u64 {
        let at = self.0.partition_point(|(other, _)| *other < sequence);
        self.0.get(at.saturating_sub(1)).map_or(0, |(_, bytes)| *bytes)
    }

    /// Forgets what no event from `sequence` on asks for.
    pub fn forget_before(&mut self, sequence: u64) {
        let kept = self.0.partition_point(|(other, _)| *other < sequence).saturating_sub(1);
        self.0.drain(..kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_the_last_change_before_it() {
        let mut history = History::new(100);
        for (sequence, bytes) in [(3, 130), (3, 131), (7, 170), (5, 150)] {
            history.changed(sequence, bytes);
        }
        let at: Vec<u64> = (0..10).map(|sequence| history.at(sequence)).collect();
        assert_eq!(at, [100, 100, 100, 100, 131, 131, 150, 150, 170, 170]);
        history.forget_before(7);
        assert_eq!((history.at(7), history.at(8), history.0.len()), (150, 170, 2));
        history.forget_before(u64::MAX);
        assert_eq!((history.at(8), history.0.len()), (170, 1));
    }
}

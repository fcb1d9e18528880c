//! The rule by which pieces of a job's stdin are taken. PURE.
//!
//! **Owns** `have`, where the end was given, and the order of the reasons to refuse a piece.
//! **Does not own** the bytes: it is told how much room there is for them.
//!
//! A stdin is open, then it has its end (`eof`), or its reader has gone; each run of the job begins with an open one.

/// The step that follows from a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Its bytes are taken; with `eof` the end follows them.
    Take { eof: bool },
    /// Nothing is taken: it was before, or it is not its turn, or there is no room for the whole.
    Nothing,
}

/// A reason why no piece is taken any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The job has closed its stdin.
    Closed,
    /// An earlier piece was the last.
    Ended,
}

/// The state of one job's stdin.
#[derive(Clone, Debug, Default)]
pub(super) struct Rule {
    /// Bytes that were taken, of all runs.
    pub(super) have: u64,
    /// Where the end was given in this run.
    eof_at: Option<u64>,
    is_closed: bool,
}

impl Rule {
    /// Takes a piece of `length` bytes, or none of it. A terminal goes on after an end, which is a Ctrl-D there.
    pub(super) fn take(
        &mut self,
        offset: Option<u64>,
        length: usize,
        eof: bool,
        room: usize,
        is_terminal: bool,
    ) -> Result<Step, Refusal> {
        // An end that came again changes nothing, and neither does an empty piece.
        let is_done = length == 0 && (!eof || offset.is_some() && self.eof_at == Some(self.have));
        if offset.is_some_and(|offset| offset != self.have) || is_done {
            return Ok(Step::Nothing);
        }
        if self.is_closed {
            return Err(Refusal::Closed);
        }
        if self.eof_at.is_some() && !is_terminal {
            return Err(Refusal::Ended);
        }
        if length > room {
            return Ok(Step::Nothing);
        }
        self.have += length as u64;
        if eof {
            self.eof_at = Some(self.have);
        }
        Ok(Step::Take { eof })
    }

    /// Nobody reads any more.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Gives the end.
    pub(super) fn end(&mut self) {
        self.eof_at.get_or_insert(self.have);
    }

    /// Whether the end was given.
    pub(super) fn has_ended(&self) -> bool {
        self.eof_at.is_some()
    }

    /// The run is over, and the next has a stdin of its own.
    pub(super) fn begin_anew(&mut self) {
        *self = Rule { have: self.have, ..Rule::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const END: Result<Step, Refusal> = Ok(Step::Take { eof: true });
    const TAKE: Result<Step, Refusal> = Ok(Step::Take { eof: false });
    const NOTHING: Result<Step, Refusal> = Ok(Step::Nothing);

    #[test]
    fn pieces_are_taken_in_order_and_once() {
        let mut rule = Rule::default();
        // Offset, length, eof, room; the step, and what is there after it.
        for (offset, length, eof, room, step, have) in [
            (Some(0), 5, false, 10, TAKE, 5),
            (Some(0), 5, false, 10, NOTHING, 5),
            (Some(3), 5, false, 10, NOTHING, 5),
            (Some(6), 1, false, 10, NOTHING, 5),
            (Some(u64::MAX), 1, true, 10, NOTHING, 5),
            (Some(5), 11, false, 10, NOTHING, 5),
            (Some(5), 11, true, 10, NOTHING, 5),
            (Some(5), 10, false, 10, TAKE, 15),
            (None, 2, false, 10, TAKE, 17),
            (None, 11, false, 10, NOTHING, 17),
            (None, 0, false, 0, NOTHING, 17),
            (Some(17), 3, true, 10, END, 20),
            (Some(17), 3, true, 10, NOTHING, 20),
            (Some(20), 0, true, 10, NOTHING, 20),
            (Some(20), 1, false, 10, Err(Refusal::Ended), 20),
            (None, 0, true, 10, Err(Refusal::Ended), 20),
        ] {
            assert_eq!(rule.take(offset, length, eof, room, false), step, "{offset:?} {length} {eof}");
            assert_eq!(rule.have, have);
        }
        rule.begin_anew();
        assert_eq!((rule.take(Some(20), 1, false, 10, false), rule.have), (TAKE, 21));
        rule.close();
        assert_eq!(rule.take(Some(20), 1, false, 10, false), NOTHING);
        assert_eq!(rule.take(Some(21), 1, false, 10, false), Err(Refusal::Closed));
    }

    #[test]
    fn terminal_goes_on_after_an_end() {
        let mut rule = Rule::default();
        for (offset, length, eof, step) in [
            (Some(0), 0, true, END),
            (Some(0), 0, true, NOTHING),
            (Some(0), 3, true, END),
            (Some(0), 3, true, NOTHING),
            (Some(3), 0, true, NOTHING),
            (None, 0, true, END),
            (None, 1, false, TAKE),
        ] {
            assert_eq!(rule.take(offset, length, eof, 10, true), step, "{offset:?} {length} {eof}");
        }
    }

    proptest! {
        /// A client that repeats and reorders its pieces has each byte taken once, in order.
        #[test]
        fn each_byte_is_taken_once(pieces in prop::collection::vec((0u64..40, 0usize..8, 0usize..8), 0..60)) {
            let mut rule = Rule::default();
            for (offset, length, room) in pieces {
                let before = rule.have;
                let step = rule.take(Some(offset), length, false, room, false);
                let taken = step == TAKE;
                prop_assert_eq!(rule.have, before + if taken { length as u64 } else { 0 });
                prop_assert!(!taken || (offset == before && length <= room));
            }
        }
    }
}

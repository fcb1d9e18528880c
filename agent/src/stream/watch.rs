//! The rules of one watch: when its node sends, asks, waits, and when the watch has lapsed. PURE.
//!
//! **Owns** the offset of the next request, the room that the controller gave, the pauses, and the two ways in which a
//! watch lapses. Time is a value on a clock that never jumps.
//! **Does not own** the bytes, the request, or what a lapse means for the job.
//!
//! A watch of which the offset is not known (the agent died) asks for it first. One of a job with open stdin asks also
//! while there is nothing to send, for its lapse ends that stdin, and so does one of records, which has no other end.

use jscommon::frame::MAX_REQUEST_BYTES;
use std::time::Duration;

/// Bytes that a node may send before a controller has given it room.
const FIRST_ROOM_BYTES: u64 = 64 << 10;
/// The first pause while there is no room; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long after an answer without a watch the next such answer means that it has lapsed.
const LAPSE: Duration = Duration::from_secs(15);
/// How often the controller is asked meanwhile.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// How often the controller is asked while there is nothing to send, for a watch of which the lapse means something then.
const ASK_IDLE: Duration = Duration::from_secs(20);
/// How long no controller answers before a watch has lapsed.
const LONGEST_SILENCE: Duration = Duration::from_secs(600);

/// An answer of the controller that has looked at the watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Frame bytes that it has of this node.
    pub(crate) have: u64,
    /// Seconds that the watch has left; 0 when there is none, and nothing was stored.
    pub(crate) watch: u64,
    /// Bytes that this node may send next.
    pub(crate) room: u64,
}

/// The next step of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Send frames from this offset, at most so many bytes.
    Send { offset: u64, most: usize },
    /// Send an empty request, to hear `have` and `room`.
    Ask { offset: u64 },
    /// Nothing before this time.
    Wait(Duration),
    /// Nothing until there are bytes.
    Idle,
}

/// One watch.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    offset: u64,
    is_offset_known: bool,
    room: u64,
    pause: Duration,
    not_before: Duration,
    /// When the first of the answers without a watch came, with none in between that had one.
    absent_since: Option<Duration>,
    /// When the first of the requests that nobody answered was made.
    silent_since: Option<Duration>,
    has_lapsed: bool,
    /// It asks while there is nothing to send.
    asks_when_idle: bool,
    /// When it is asked next, with nothing to send.
    idle_until: Duration,
}

impl Watch {
    /// A watch of which nothing was sent.
    pub(super) fn new() -> Watch {
        Watch {
            offset: 0,
            is_offset_known: true,
            room: FIRST_ROOM_BYTES,
            pause: Duration::ZERO,
            not_before: Duration::ZERO,
            absent_since: None,
            silent_since: None,
            has_lapsed: false,
            asks_when_idle: false,
            idle_until: Duration::ZERO,
        }
    }

    /// A watch that asks, or does not, while there is nothing to send.
    pub(super) fn asking_when_idle(self, asks_when_idle: bool) -> Watch {
        Watch { asks_when_idle, ..self }
    }

    /// A watch of which an earlier agent has sent an unknown part.
    pub(super) fn resumed() -> Watch {
        Watch { is_offset_known: false, ..Watch::new() }
    }

    /// Returns the offset of the next request.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the controller is to be asked without bytes to send.
    pub(super) fn must_ask(&self) -> bool {
        !self.is_offset_known || self.asks_when_idle
    }

    pub(super) fn has_lapsed(&self) -> bool {
        self.has_lapsed
    }

    /// Returns the next step; `is_pending` says that there are bytes past the offset.
    pub(super) fn next(&self, now: Duration, is_pending: bool) -> Next {
        if !is_pending && self.is_offset_known {
            let at = self.idle_until.max(self.not_before);
            match self.asks_when_idle {
                false => Next::Idle,
                true if now < at => Next::Wait(at),
                true => Next::Ask { offset: self.offset },
            }
        } else if now < self.not_before {
            Next::Wait(self.not_before)
        } else if !self.is_offset_known || self.room == 0 || self.absent_since.is_some() {
            Next::Ask { offset: self.offset }
        } else {
            Next::Send { offset: self.offset, most: self.room.min(MAX_REQUEST_BYTES as u64) as usize }
        }
    }

    /// Takes an answer to a request that carried `sent` bytes.
    pub(super) fn answered(&mut self, now: Duration, sent: usize, reply: Reply) {
        let moved = !self.is_offset_known || reply.have != self.offset;
        self.silent_since = None;
        self.offset = reply.have;
        self.is_offset_known = true;
        self.room = reply.room;
        self.idle_until = now + ASK_IDLE;
        if reply.watch == 0 {
            let since = *self.absent_since.get_or_insert(now);
            self.has_lapsed |= now >= since + LAPSE;
            self.not_before = (now + ASK_AGAIN).min(since + LAPSE).max(now);
            self.idle_until = self.not_before;
            return;
        }
        self.absent_since = None;
        if reply.room == 0 || (sent > 0 && !moved) {
            self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            self.not_before = now + self.pause;
        } else {
            self.pause = Duration::ZERO;
            self.not_before = now;
        }
    }

    /// Sends nothing before this time.
    pub(super) fn hold(&mut self, until: Duration) {
        self.not_before = self.not_before.max(until);
    }

    /// Takes the news that nobody answered a request; the next one is not made before `again`.
    pub(super) fn failed(&mut self, now: Duration, again: Duration) {
        let since = *self.silent_since.get_or_insert(now);
        self.has_lapsed |= now >= since + LONGEST_SILENCE;
        self.not_before = again;
        self.idle_until = again;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn reply(have: u64, watch: u64, room: u64) -> Reply {
        Reply { have, watch, room }
    }

    #[test]
    fn first_request_needs_no_question() {
        let watch = Watch::new();
        assert_eq!(watch.next(ms(0), false), Next::Idle);
        assert_eq!(watch.next(ms(0), true), Next::Send { offset: 0, most: 64 << 10 });
        assert_eq!(Watch::resumed().next(ms(0), false), Next::Ask { offset: 0 });
    }

    #[test]
    fn watch_of_open_stdin_asks_while_there_is_nothing_to_send() {
        let mut watch = Watch::new().asking_when_idle(true);
        let ask = Next::Ask { offset: 0 };
        assert_eq!(watch.next(ms(0), false), ask);
        watch.answered(ms(10), 0, reply(0, 20, 5000));
        assert_eq!(watch.next(ms(20), false), Next::Wait(ms(10) + ASK_IDLE));
        assert_eq!(watch.next(ms(20), true), Next::Send { offset: 0, most: 5000 });
        let mut now = ms(10) + ASK_IDLE;
        for passed in [5, 10, 15] {
            assert_eq!(watch.next(now, false), ask);
            watch.answered(now, 0, reply(0, 0, 0));
            assert!(!watch.has_lapsed());
            now = ms(10) + ASK_IDLE + Duration::from_secs(passed);
            assert_eq!(watch.next(now - ms(1), false), Next::Wait(now));
        }
        watch.answered(now, 0, reply(0, 0, 0));
        assert!(watch.has_lapsed());
        let mut watch = Watch::new().asking_when_idle(true);
        watch.failed(ms(0), ms(100));
        assert_eq!([ms(99), ms(100)].map(|now| watch.next(now, false)), [Next::Wait(ms(100)), ask]);
        watch.failed(LONGEST_SILENCE, LONGEST_SILENCE);
        assert!(watch.has_lapsed());
    }

    #[test]
    fn room_of_the_last_answer_bounds_the_next_request() {
        let mut watch = Watch::new();
        watch.answered(ms(5), 100, reply(100, 20, 5000));
        assert_eq!(watch.next(ms(5), true), Next::Send { offset: 100, most: 5000 });
        watch.answered(ms(5), 5000, reply(5100, 20, 1 << 40));
        assert_eq!(watch.next(ms(5), true), Next::Send { offset: 5100, most: MAX_REQUEST_BYTES });
    }

    #[test]
    fn pauses_double_while_there_is_no_room() {
        let mut watch = Watch::new();
        let mut now = ms(1000);
        for pause in [20, 40, 80, 160, 320, 500, 500] {
            watch.answered(now, 0, reply(0, 20, 0));
            assert_eq!(watch.next(now, true), Next::Wait(now + ms(pause)));
            now += ms(pause);
            assert_eq!(watch.next(now, true), Next::Ask { offset: 0 });
        }
        watch.answered(now, 0, reply(0, 20, 100));
        assert_eq!(watch.next(now, true), Next::Send { offset: 0, most: 100 });
        watch.answered(now, 100, reply(100, 20, 0));
        assert_eq!(watch.next(now, true), Next::Wait(now + ms(20)));
    }

    #[test]
    fn wrong_offset_goes_on_at_once_from_what_the_controller_has() {
        let mut watch = Watch::new();
        watch.answered(ms(0), 100, reply(100, 20, 5000));
        watch.answered(ms(1), 50, reply(60, 20, 5000));
        assert_eq!(watch.next(ms(1), true), Next::Send { offset: 60, most: 5000 });
        watch.answered(ms(2), 50, reply(60, 20, 5000));
        assert_eq!(watch.next(ms(2), true), Next::Wait(ms(22)), "a request that moves nothing is no busy loop");
    }

    #[test]
    fn watch_lapses_when_it_is_absent_twice_15_seconds_apart() {
        let mut watch = Watch::new();
        watch.answered(ms(0), 10, reply(0, 0, 0));
        assert!(!watch.has_lapsed());
        assert_eq!(watch.next(ms(0), true), Next::Wait(ms(5000)));
        watch.answered(ms(14_999), 0, reply(0, 0, 0));
        assert!(!watch.has_lapsed());
        assert_eq!(watch.next(ms(15_000), true), Next::Ask { offset: 0 });
        watch.answered(ms(15_000), 0, reply(0, 1, 100));
        watch.answered(ms(16_000), 10, reply(0, 0, 0));
        watch.answered(ms(30_999), 0, reply(0, 0, 0));
        assert!(!watch.has_lapsed(), "a watch in between begins the count anew");
        watch.answered(ms(31_000), 0, reply(0, 0, 0));
        assert!(watch.has_lapsed());
    }

    #[test]
    fn watch_lapses_after_ten_minutes_of_silence() {
        let mut watch = Watch::new();
        watch.failed(ms(1000), ms(2000));
        assert_eq!(watch.next(ms(1500), true), Next::Wait(ms(2000)));
        watch.failed(ms(600_999), ms(602_000));
        assert!(!watch.has_lapsed());
        let mut answered = watch.clone();
        answered.answered(ms(600_999), 0, reply(0, 5, 5));
        answered.failed(ms(602_000), ms(602_000));
        assert!(!answered.has_lapsed());
        watch.failed(ms(601_000), ms(602_000));
        assert!(watch.has_lapsed());
    }

    proptest! {
        #[test]
        fn a_request_follows_have_and_keeps_to_the_room(
            answers in prop::collection::vec((0..1000u64, 0..3u64, 0..3_000_000u64, 0..6000u64), 1..50),
        ) {
            let (mut watch, mut now) = (Watch::new(), ms(0));
            for (have, left, room, passed) in answers {
                now += ms(passed);
                watch.answered(now, 1, reply(have, left, room));
                match watch.next(now, true) {
                    Next::Send { offset, most } => {
                        prop_assert!(left > 0 && offset == have && most > 0);
                        prop_assert!(most as u64 <= room && most <= MAX_REQUEST_BYTES);
                    }
                    Next::Ask { .. } => prop_assert!(watch.has_lapsed()),
                    Next::Wait(until) => prop_assert!(until > now && until <= now + ASK_AGAIN),
                    Next::Idle => prop_assert!(false, "there are bytes"),
                }
            }
        }
    }

    #[test]
    fn watch_that_asks_when_idle_waits_between_two_requests() {
        let mut watch = Watch::new().asking_when_idle(true);
        watch.answered(ms(1000), 0, reply(0, 30, 1 << 20));
        assert_eq!(watch.next(ms(1000), true), Next::Send { offset: 0, most: 1 << 20 });
        assert_eq!(watch.next(ms(1000), false), Next::Wait(ms(21_000)));
        assert_eq!(watch.next(ms(21_000), false), Next::Ask { offset: 0 });
        watch.failed(ms(21_000), ms(22_000));
        assert_eq!(watch.next(ms(21_001), false), Next::Wait(ms(22_000)));
        watch.answered(ms(22_000), 0, reply(0, 0, 0));
        assert_eq!(watch.next(ms(22_000), false), Next::Wait(ms(27_000)));
        assert_eq!(watch.next(ms(27_000), false), Next::Ask { offset: 0 });
        watch.answered(ms(37_000), 0, reply(0, 0, 0));
        assert!(watch.has_lapsed());
    }

    #[test]
    fn held_watch_sends_nothing_before_its_time() {
        let mut watch = Watch::new().asking_when_idle(true);
        watch.hold(ms(50));
        watch.hold(ms(40));
        assert_eq!(watch.next(ms(45), true), Next::Wait(ms(50)));
        assert_eq!(watch.next(ms(50), true), Next::Send { offset: 0, most: 64 << 10 });
    }
}

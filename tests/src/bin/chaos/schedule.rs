//! The failures and their times: a pure function of the seed.

use std::time::Duration;

/// A program that is killed, stopped or paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Redis,
    Controller(usize),
    Agent(usize),
}

/// A connection that is cut or stalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// Of a controller to Redis.
    Redis(usize),
    /// Of an agent to a controller.
    Node(usize, usize),
}

/// A failure, which begins and (but for a cut) ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// kill -9, and started again at its end.
    Kill(Program),
    /// TERM, and started again at its end.
    Stop(Program),
    /// SIGSTOP, and SIGCONT at its end.
    Pause(Program),
    Cut(Link),
    Stall(Link),
}

impl Failure {
    /// The name under which the summary counts it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Failure::Kill(Program::Redis) => "Redis killed",
            Failure::Kill(Program::Controller(_)) => "controllers killed",
            Failure::Kill(Program::Agent(_)) => "agents killed",
            Failure::Stop(Program::Redis) => "Redis stopped",
            Failure::Stop(Program::Controller(_)) => "controllers stopped",
            Failure::Stop(Program::Agent(_)) => "agents stopped",
            Failure::Pause(Program::Redis) => "Redis paused",
            Failure::Pause(Program::Controller(_)) => "controllers paused",
            Failure::Pause(Program::Agent(_)) => "agents paused",
            Failure::Cut(Link::Redis(_)) => "connections to Redis cut",
            Failure::Cut(Link::Node(..)) => "connections of nodes cut",
            Failure::Stall(Link::Redis(_)) => "connections to Redis stalled",
            Failure::Stall(Link::Node(..)) => "connections of nodes stalled",
        }
    }
}

/// One entry of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Milliseconds since the start.
    pub(crate) at: u64,
    pub(crate) failure: Failure,
    /// It begins, or ends.
    pub(crate) begins: bool,
}

/// The failures of `length`, in order. Those that end later end with it.
pub(crate) fn make(seed: u64, length: Duration, controllers: usize, agents: usize) -> Vec<Entry> {
    let mut random = fastrand::Rng::with_seed(seed);
    let length = length.as_millis() as u64;
    let mut entries = Vec::new();
    let mut at = 500;
    while at < length {
        let controller = random.usize(..controllers);
        let agent = random.usize(..agents);
        let any = match random.u32(..8) {
            0 => Program::Redis,
            1..4 => Program::Controller(controller),
            _ => Program::Agent(agent),
        };
        let link = if random.bool() { Link::Redis(controller) } else { Link::Node(agent, controller) };
        let (failure, lasts) = match random.u32(..100) {
            0..18 => (Failure::Kill(Program::Controller(controller)), random.u64(50..3_000)),
            18..42 => (Failure::Kill(Program::Agent(agent)), random.u64(50..3_000)),
            42..50 => (Failure::Kill(Program::Redis), random.u64(50..1_500)),
            50..55 => (Failure::Stop(Program::Controller(controller)), random.u64(500..3_000)),
            55..60 => (Failure::Stop(Program::Agent(agent)), random.u64(500..3_000)),
            // Longer than it takes until a silent controller is held to be dead.
            60..62 => (Failure::Pause(Program::Controller(controller)), random.u64(16_000..20_000)),
            62..72 => (Failure::Pause(any), random.u64(50..3_000)),
            72..88 => (Failure::Cut(link), 0),
            _ => (Failure::Stall(link), random.u64(50..5_000)),
        };
        entries.push(Entry { at, failure, begins: true });
        if !matches!(failure, Failure::Cut(_)) {
            entries.push(Entry { at: (at + lasts).min(length), failure, begins: false });
        }
        at += random.u64(30..900);
    }
    // Stable: of two at one time the one that began first comes first.
    entries.sort_by_key(|entry| entry.at);
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_follows_from_its_seed_and_undoes_what_it_does() {
        let minute = Duration::from_secs(60);
        let entries = make(7, minute, 2, 4);
        assert_eq!(entries, make(7, minute, 2, 4));
        assert_ne!(entries, make(8, minute, 2, 4));
        assert!(entries.len() > 100 && entries.is_sorted_by_key(|entry| entry.at));
        for (i, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.begins) {
            let ends = entries[i..].iter().any(|later| later.failure == entry.failure && !later.begins);
            assert_eq!(ends, !matches!(entry.failure, Failure::Cut(_)), "{entry:?}");
        }
        assert!(entries.iter().all(|entry| entry.at <= 60_000));
    }
}

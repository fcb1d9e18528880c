//! The resources that nodes spend, and their rates.

const KIB: f64 = 1024.0;
pub(super) const MIB: f64 = 1024.0 * KIB;
pub(super) const HOUR: f64 = 3600.0;

/// The resources that nodes spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// Requests of any kind.
    Requests,
    /// Bytes of requests' bodies.
    Bodies,
    /// Requests with live output.
    StreamRequests,
    /// Bytes of live output that were sent and not taken.
    StreamWaste,
    /// Bytes written into Redis.
    Bytes,
    /// Bytes by which lists of records have grown.
    Growth,
    /// Records.
    Records,
    /// Results.
    Results,
    /// Series.
    Series,
    /// Series that Redis did not know of the node.
    Keys,
    /// Bytes in `jsacc:stats_queue` while it is more than half full.
    Queue,
    /// Events.
    Events,
    /// Bytes of events.
    EventBytes,
    /// Look-ups of scripts that are not there, and MiB of those that are; pieces of large files.
    Lookups,
    /// Polls that brought nothing and acknowledged nothing.
    Polls,
    /// Requests for new credentials.
    Renewals,
    /// Events of the controller about refused results.
    RefusedEvents,
    /// Events of the controller about late results.
    LateEvents,
}

/// So much at once, and so much a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    pub(super) burst: f64,
    pub(super) per_second: f64,
}

impl Resource {
    /// Burst, rate a second, label in metrics, and name in sentences; a controller that takes more records than usual
    /// takes more of their bytes too.
    fn row(self, max_records: f64) -> (f64, f64, &'static str, &'static str) {
        let more = (max_records / 5000.0).max(1.0);
        match self {
            Resource::Requests => (4000.0, 2000.0, "node-rate", "requests"),
            Resource::Bodies => (64.0 * MIB * more, 4.0 * MIB * more, "node-rate", "bytes of bodies"),
            Resource::StreamRequests => (16_000.0, 8000.0, "node-rate", "requests with live output"),
            Resource::StreamWaste => (64.0 * MIB, 4.0 * MIB, "stream-waste", "bytes of live output beyond its room"),
            Resource::Bytes => (24.0 * MIB * more, MIB * more, "node-bytes", "bytes"),
            Resource::Growth => {
                (256.0 * MIB * more, 256.0 * MIB * more / (24.0 * HOUR), "node-bytes", "bytes of new records")
            }
            Resource::Records => (60.0 * max_records, max_records, "records", "records"),
            Resource::Results => (20_000.0, 2000.0, "results", "results"),
            Resource::Series => (500_000.0, 10_000.0, "series", "series"),
            Resource::Keys => (10_000.0, 2.0, "series", "new series"),
            Resource::Queue => (16.0 * MIB, 16.0 * MIB / HOUR, "series", "bytes of series"),
            Resource::Events => (1000.0, 0.2, "events", "events"),
            Resource::EventBytes => (MIB, 4.0 * KIB, "events", "bytes of events"),
            Resource::Lookups => (1000.0, 5.0, "lookups", "look-ups of scripts"),
            Resource::Polls => (1000.0, 10.0, "polls", "polls that bring nothing"),
            Resource::Renewals => (30.0, 0.05, "renewals", "requests for credentials"),
            Resource::RefusedEvents => (1.0, 1.0 / 60.0, "told", "events"),
            Resource::LateEvents => (100.0, 0.1, "told", "events"),
        }
    }

    /// The rate of the resource.
    pub(super) fn rate(self, max_records: f64) -> Rate {
        let (burst, per_second, ..) = self.row(max_records);
        Rate { burst, per_second }
    }

    /// The label of its refusals in metrics.
    pub(crate) fn label(self) -> &'static str {
        self.row(0.0).2
    }

    /// Names the resource in the sentence of a refusal.
    pub(super) fn name(self) -> &'static str {
        self.row(0.0).3
    }
}

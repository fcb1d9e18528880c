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
    /// Look-ups of scripts that are not there, and MiB of those that are.
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

/// The rate of a resource; a controller that takes more records than usual takes more of their bytes too.
pub(super) fn rate(resource: Resource, max_records: f64) -> Rate {
    let more = (max_records / 5000.0).max(1.0);
    let (burst, per_second) = match resource {
        Resource::Requests => (4000.0, 2000.0),
        Resource::Bodies => (64.0 * MIB * more, 4.0 * MIB * more),
        Resource::Bytes => (24.0 * MIB * more, MIB * more),
        Resource::Growth => (256.0 * MIB * more, 256.0 * MIB * more / (24.0 * HOUR)),
        Resource::Records => (60.0 * max_records, max_records),
        Resource::Results => (20_000.0, 2000.0),
        Resource::Series => (500_000.0, 10_000.0),
        Resource::Keys => (10_000.0, 2.0),
        Resource::Queue => (16.0 * MIB, 16.0 * MIB / HOUR),
        Resource::Events => (1000.0, 0.2),
        Resource::EventBytes => (MIB, 4.0 * KIB),
        Resource::Lookups => (1000.0, 5.0),
        Resource::Polls => (1000.0, 10.0),
        Resource::Renewals => (30.0, 0.05),
        Resource::RefusedEvents => (1.0, 1.0 / 60.0),
        Resource::LateEvents => (100.0, 0.1),
    };
    Rate { burst, per_second }
}

impl Resource {
    /// The label of its refusals in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Resource::Records => "records",
            Resource::Results => "results",
            Resource::Events | Resource::EventBytes => "events",
            Resource::Series | Resource::Keys | Resource::Queue => "series",
            Resource::Lookups => "lookups",
            Resource::Polls => "polls",
            Resource::Renewals => "renewals",
            Resource::Bytes | Resource::Growth => "node-bytes",
            Resource::Requests | Resource::Bodies => "node-rate",
            Resource::RefusedEvents | Resource::LateEvents => "told",
        }
    }

    /// Names the resource in the sentence of a refusal.
    pub(super) fn name(self) -> &'static str {
        match self {
            Resource::Requests => "requests",
            Resource::Bodies => "bytes of bodies",
            Resource::Bytes => "bytes",
            Resource::Growth => "bytes of new records",
            Resource::Records => "records",
            Resource::Results => "results",
            Resource::Series => "series",
            Resource::Keys => "new series",
            Resource::Queue => "bytes of series",
            Resource::Events | Resource::RefusedEvents | Resource::LateEvents => "events",
            Resource::EventBytes => "bytes of events",
            Resource::Lookups => "look-ups of scripts",
            Resource::Polls => "polls that bring nothing",
            Resource::Renewals => "requests for credentials",
        }
    }
}

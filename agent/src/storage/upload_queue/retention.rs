//! Drops items when too many wait, and counts them.
//!
//! The bounds: 64 MiB of records, an hour of stats, 1000 events of a controller. The oldest go first.
//! The count of dropped items stays on disk until an event has told the controllers. A record on the node itself
//! reports it once.

use super::Kind;
use super::storage::Inner;
use crate::platform::unix_ms;
use anyhow::Result;
use rusqlite::params;
use serde_json::json;
use std::time::Instant;

/// Most bytes of records, as JSON.
pub(super) const MAX_LOG_BYTES: u64 = 64 << 20;
/// How long stats are kept, in milliseconds.
const MAX_STATS_AGE: i64 = 3_600_000;
/// Most bytes of stats, as JSON; an hour of 50,000 series.
const MAX_STATS_BYTES: u64 = 128 << 20;
/// Most events of one controller.
const MAX_EVENTS: u32 = 1000;
/// A difference of the two clocks that is a jump of one of them, in milliseconds.
const JUMP: i64 = 60_000;

/// How the kinds are called in events.
const NAMES: [&str; 3] = ["log", "stats", "event"];

/// The numbers of dropped items.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    /// Records.
    pub(crate) records: u64,
    /// Batches of series.
    pub(crate) flushes: u64,
}

impl Inner {
    /// Counts what was dropped; as far as the disk takes it, over a restart too.
    pub(super) fn dropped(&mut self, kind: Kind, count: u64) {
        if count == 0 {
            return;
        }
        self.dropped[kind as usize] += count;
        match kind {
            Kind::Log => self.unreported.records += count,
            Kind::Stats => self.unreported.flushes += count,
            Kind::Event => {}
        }
        let sql = "INSERT OR REPLACE INTO dropped(kind, count) VALUES(?1, ?2)";
        let _ = self.db.execute(sql, [kind as i64, self.dropped[kind as usize] as i64]);
    }

    /// Goes on counting where the start before had come to.
    pub(super) fn load_dropped(&mut self) -> Result<()> {
        let mut rows = self.db.prepare("SELECT kind, count FROM dropped")?;
        for row in rows.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))? {
            let (kind, count) = row?;
            if let Some(dropped) = self.dropped.get_mut(kind as usize) {
                *dropped = count as u64;
            }
        }
        Ok(())
    }

    /// Turns the counts into an event for every controller, in one step.
    pub(super) fn tell_dropped(&mut self, controllers: &[String]) -> Result<()> {
        if self.dropped == [0; 3] {
            return Ok(());
        }
        let dropped = self.dropped;
        self.transaction(|inner| {
            for (name, count) in NAMES.into_iter().zip(dropped).filter(|(_, count)| *count > 0) {
                let body = json!({"name": "dropped", "data": {"kind": name, "count": count}}).to_string();
                for controller in controllers {
                    let number = inner.next_number();
                    inner.insert(Kind::Event, number, controller, 1, body.as_bytes())?;
                }
            }
            inner.db.execute("DELETE FROM dropped", [])?;
            Ok(())
        })?;
        self.dropped = [0; 3];
        controllers.iter().for_each(|controller| self.trim_events(controller));
        self.wake(controllers);
        Ok(())
    }

    /// The system's clock was set (at boot, say, when the network came): what this start has stored is
    /// no older for that. `wall` is in milliseconds since 1970.
    pub(super) fn follow_clock(&mut self, steady: Instant, wall: i64) {
        let (was, then) = std::mem::replace(&mut self.clock, (steady, wall));
        let jump = wall - then - steady.saturating_duration_since(was).as_millis() as i64;
        if jump.abs() > JUMP {
            let sql = "UPDATE items SET created = created + ?1 WHERE kind = 1 AND batch >= ?2";
            let _ = self.db.execute(sql, [jump, self.first]);
        }
    }

    pub(super) fn trim_log(&mut self) {
        while self.bytes[Kind::Log as usize] > MAX_LOG_BYTES {
            if !self.drop_deferred(Kind::Log) && !self.drop_oldest(Kind::Log, "batch > 0") {
                return;
            }
        }
    }

    pub(super) fn trim_stats(&mut self) {
        let old = format!("created < {}", unix_ms() - MAX_STATS_AGE);
        while self.drop_oldest(Kind::Stats, &old) {}
        while self.bytes[Kind::Stats as usize] > MAX_STATS_BYTES {
            if !self.drop_deferred(Kind::Stats) && !self.drop_oldest(Kind::Stats, "batch > 0") {
                return;
            }
        }
    }

    /// Drops the oldest batch when it is one that `which` says; says whether it did.
    fn drop_oldest(&mut self, kind: Kind, which: &str) -> bool {
        let sql = format!(
            "SELECT batch FROM items WHERE kind = {} AND controller = '' AND {which} ORDER BY batch LIMIT 1",
            kind as i64
        );
        let oldest: Option<i64> = self.db.query_row(&sql, [], |row| row.get(0)).ok();
        let Some(number) = oldest else { return false };
        let mut count = 0;
        let done = self.transaction(|inner| {
            count = inner.remove(kind, number)?;
            Ok(())
        });
        if done.is_ok() {
            self.dropped(kind, count);
            self.log_throttled(&format!("too much {kind:?} waits for the controllers; the oldest is dropped"));
        }
        done.is_ok()
    }

    pub(super) fn trim_events(&mut self, controller: &str) {
        let done = self.db.execute(
            "DELETE FROM items WHERE kind = 2 AND controller = ?1 AND batch <= coalesce((SELECT batch FROM items
             WHERE kind = 2 AND controller = ?1 ORDER BY batch DESC LIMIT 1 OFFSET ?2), 0)",
            params![controller, MAX_EVENTS],
        );
        self.dropped(Kind::Event, done.unwrap_or(0) as u64);
    }

    pub(super) fn lost(&mut self, kind: Kind, count: u64, why: &anyhow::Error) {
        self.dropped(kind, count);
        self.log_throttled(&format!("{count} of {kind:?} for the controllers could not be stored: {why:#}"));
    }
}

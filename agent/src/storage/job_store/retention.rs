//! How long ids are remembered.

use anyhow::Result;
use rusqlite::Connection;
use std::time::Duration;

/// How long an id is remembered at most.
const REMEMBER: Duration = Duration::from_secs(7 * 86400);
/// How many ids are remembered at most.
pub(super) const REMEMBER_IDS: u64 = 100_000;
/// Ids that are accepted between two looks for ids to forget.
pub(super) const TIDY_EVERY: u64 = 5_000;

/// Forgets ids that are older than a week or beyond the last `ids`. A job that is not over is kept,
/// however old: one whose restarts are used up starts again with the agent.
pub(super) fn tidy(db: &Connection, now: i64, ids: u64) -> Result<()> {
    let oldest = now - REMEMBER.as_millis() as i64;
    db.execute("DELETE FROM jobs WHERE state = 3 AND accepted < ?", [oldest])?;
    db.execute(
        "DELETE FROM jobs WHERE state = 3 AND key <=
         (SELECT key FROM jobs WHERE run = 0 ORDER BY key DESC LIMIT 1 OFFSET ?)",
        [ids as i64],
    )?;
    Ok(())
}

//! Batches of records and stats that a controller, or a proxy before it, does not take.
//!
//! A refused batch is split in two until the culprit is alone. That one is dropped and counted, or deferred,
//! so that later ones are sent. A batch that is deferred for one controller belongs to it: its
//! rows carry the controller's name. It is sent under a new number each time, for a controller drops
//! numbers below the last that it took.

use super::storage::Inner;
use super::{Batch, Kind, UploadQueue};
use anyhow::Result;
use jscommon::lock::lock;
use rusqlite::{OptionalExtension, params};

/// Most batches of a kind that are deferred for one controller; the oldest is dropped, and counted.
const MAX_DEFERRED: i64 = 1000;

impl UploadQueue {
    /// Splits a batch in two, so that its halves are sent one after the other. `false` when it holds a
    /// single record or series, and cannot be split.
    pub(crate) fn split(&self, controller: &str, kind: Kind, number: u64) -> Result<bool> {
        self.locked(|inner| inner.split(controller, kind, number as i64))
    }

    /// Defers a batch for this controller, so that later ones are sent; returns its key.
    pub(crate) fn defer(&self, controller: &str, kind: Kind, number: u64) -> Result<i64> {
        let others = self.chosen[kind as usize].clone();
        let key = self.locked(|inner| inner.defer(controller, kind, number as i64, &others));
        lock(&self.inner).trim_log();
        key
    }

    /// Returns the keys of the batches that are deferred for this controller.
    pub(crate) fn deferred(&self, controller: &str, kind: Kind) -> Result<Vec<i64>> {
        self.locked(|inner| {
            let mut query =
                inner.db.prepare_cached("SELECT seq FROM items WHERE kind = ?1 AND controller = ?2 ORDER BY seq")?;
            let keys = query.query_map(params![kind as i64, controller], |row| row.get(0))?;
            Ok(keys.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Reads a deferred batch, under a number that this controller has not seen. Only when no
    /// other batch of this kind waits for the controller.
    pub(crate) fn read_deferred(&self, controller: &str, kind: Kind, key: i64) -> Result<Option<Batch>> {
        self.locked(|inner| inner.read_deferred(controller, kind, key))
    }

    /// Removes a deferred batch: the controller has taken it, or `dropped`, will never take it.
    pub(crate) fn remove_deferred(&self, controller: &str, kind: Kind, key: i64, dropped: bool) {
        let _ = self.locked(|inner| inner.remove_deferred(controller, kind, key, dropped));
    }
}

impl Inner {
    fn split(&mut self, controller: &str, kind: Kind, given: i64) -> Result<bool> {
        let number = self.current(controller, kind, given);
        if number != given {
            // It was split for another controller meanwhile: the half is read first.
            return Ok(true);
        }
        let mut pieces = Vec::new();
        self.append_pieces("", kind, number, &mut pieces)?;
        let Some((head, list, tail)) = parts(kind, &pieces) else { return Ok(false) };
        let cuts = commas(list);
        if cuts.is_empty() {
            return Ok(false);
        }
        let middle = cuts[cuts.len() / 2];
        let halves = [&list[..middle], &list[middle + 1..]];
        let counts = match kind {
            Kind::Log => [cuts.len() / 2 + 1, cuts.len() - cuts.len() / 2],
            _ => [1, 1],
        };
        // Beyond all numbers in use, so that the number of the whole means neither half. Those who have
        // the whole under way have both halves with it.
        let by = self.number - number + 1;
        let sql =
            "SELECT min(created), sum(length(body)) FROM items WHERE kind = ?1 AND controller = '' AND batch = ?2";
        let (created, bytes): (i64, i64) =
            self.db.query_row(sql, params![kind as i64, number], |row| Ok((row.get(0)?, row.get(1)?)))?;
        self.transaction(|inner| {
            inner.raise(kind, number, by)?;
            inner.db.execute(
                "DELETE FROM items WHERE kind = ?1 AND controller = '' AND batch = ?2",
                params![kind as i64, number + by],
            )?;
            inner.bytes[kind as usize] = inner.bytes[kind as usize].saturating_sub(bytes as u64);
            for (half, (list, count)) in halves.into_iter().zip(counts).enumerate() {
                let body = [head, list, tail].concat();
                inner.insert(kind, number + by - 1 + half as i64, "", count, &body)?;
            }
            let sql = "UPDATE items SET created = ?1 WHERE kind = ?2 AND controller = '' AND batch IN (?3, ?4)";
            inner.db.execute(sql, params![created, kind as i64, number + by - 1, number + by])?;
            Ok(())
        })?;
        self.raised(kind, number, by);
        self.handed.remove(&(controller.to_owned(), kind));
        Ok(true)
    }

    fn defer(&mut self, controller: &str, kind: Kind, given: i64, others: &[String]) -> Result<i64> {
        let number = self.current(controller, kind, given);
        let mut body = Vec::new();
        self.append_pieces("", kind, number, &mut body)?;
        let count = self.count(controller, kind, given);
        let mut key = 0;
        let owner = (controller.to_owned(), kind);
        let cursor = self.cursors.get(&owner).copied();
        let stored = self.transaction(|inner| {
            inner.insert(kind, number, controller, count as usize, &body)?;
            key = inner.db.last_insert_rowid();
            inner.taken(controller, kind, given, others)
        });
        if stored.is_err() {
            // It still waits where it was, and must not be passed over: a later one would take it away.
            match cursor {
                Some(cursor) => self.cursors.insert(owner, cursor),
                None => self.cursors.remove(&owner),
            };
        }
        stored?;
        let sql = "SELECT count(*) FROM items WHERE kind = ?1 AND controller = ?2";
        let kept: i64 = self.db.query_row(sql, params![kind as i64, controller], |row| row.get(0))?;
        if kept > MAX_DEFERRED {
            self.drop_deferred(kind);
        }
        Ok(key)
    }

    fn read_deferred(&mut self, controller: &str, kind: Kind, key: i64) -> Result<Option<Batch>> {
        let sql = "SELECT batch FROM items WHERE seq = ?1 AND kind = ?2 AND controller = ?3";
        let found: Option<i64> =
            self.db.query_row(sql, params![key, kind as i64, controller], |row| row.get(0)).optional()?;
        let Some(before) = found else { return Ok(None) };
        let cursor = self.cursors.get(&(controller.to_owned(), kind)).copied().unwrap_or(0);
        // Its last number is as good as a new one while nothing later was taken, and may be known.
        if before > cursor {
            return self.whole(controller, kind, before).map(Some);
        }
        let number = self.next_number();
        let open = self.open.as_ref().filter(|_| kind == Kind::Log).map(|open| open.number);
        let after = self.number;
        self.transaction(|inner| {
            inner.db.execute("UPDATE items SET batch = ?1 WHERE seq = ?2", params![number, key])?;
            if let Some(open) = open {
                // The batch that still grows goes after this one; nobody was given its number.
                let sql = "UPDATE items SET batch = ?1 WHERE kind = ?2 AND controller = '' AND batch = ?3";
                inner.db.execute(sql, params![after, kind as i64, open])?;
            }
            Ok(())
        })?;
        if let Some(open) = self.open.as_mut().filter(|_| kind == Kind::Log) {
            open.number = after;
            self.number += 1;
        }
        self.whole(controller, kind, number).map(Some)
    }

    fn remove_deferred(&mut self, controller: &str, kind: Kind, key: i64, dropped: bool) -> Result<()> {
        let sql = "SELECT batch, count, length(body) FROM items WHERE seq = ?1 AND kind = ?2 AND controller = ?3";
        let row = self.db.query_row(sql, params![key, kind as i64, controller], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        });
        let Some((number, count, bytes)) = row.optional()? else { return Ok(()) };
        let cursor = self.cursors.get(&(controller.to_owned(), kind)).copied().unwrap_or(0).max(number);
        self.transaction(|inner| {
            inner.db.execute("DELETE FROM items WHERE seq = ?1", [key])?;
            inner.store_cursor(controller, kind, cursor)
        })?;
        self.cursors.insert((controller.to_owned(), kind), cursor);
        let stored = &mut self.bytes[kind as usize];
        *stored = stored.saturating_sub(bytes as u64);
        if dropped {
            self.dropped(kind, count as u64);
        }
        Ok(())
    }

    /// Drops the oldest of the batches that are deferred; `false` when there is none.
    pub(super) fn drop_deferred(&mut self, kind: Kind) -> bool {
        let sql = "SELECT seq, controller FROM items WHERE kind = ?1 AND controller <> '' ORDER BY seq LIMIT 1";
        let oldest: rusqlite::Result<(i64, String)> =
            self.db.query_row(sql, [kind as i64], |row| Ok((row.get(0)?, row.get(1)?)));
        oldest.is_ok_and(|(key, controller)| self.remove_deferred(&controller, kind, key, true).is_ok())
    }
}

/// Divides what is stored of a batch into the list of its entries, and what stands before and behind it.
fn parts(kind: Kind, stored: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    match kind {
        Kind::Log => Some((&[], stored, &[])),
        Kind::Stats => {
            let open = stored.iter().position(|byte| *byte == b'[')? + 1;
            let close = stored.iter().rposition(|byte| *byte == b']').filter(|close| *close >= open)?;
            Some((&stored[..open], &stored[open..close], &stored[close..]))
        }
        Kind::Event => None,
    }
}

/// The places of the commas between the entries of a JSON list.
fn commas(list: &[u8]) -> Vec<usize> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    let mut found = Vec::new();
    for (at, byte) in list.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => found.push(at),
            _ => {}
        }
    }
    found
}

//! Looks at the rows of one database, each of them short.
//!
//! **Owns** the SQL that finds rows by number, by id and by a query, and what becomes of a row. **Does not own** which
//! database is looked at, and where to go on in the next one.

use super::query::Query;
use jscommon::Record;
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};
use std::time::{Duration, Instant};

/// How long a database is open for one look.
const SLICE: Duration = Duration::from_millis(5);
/// Rows that are looked at between two looks at the clock.
const WINDOW: i64 = 8192;

/// The columns that [`record`] reads.
pub(super) const COLUMNS: &str = "rowid, id, jobid, jobdomain, jobname, epoch, level, data";

/// How far one look at a database came.
#[derive(Clone, Copy)]
pub(super) struct ScanPage {
    /// The last row that was looked at.
    pub(super) rowid: i64,
    /// There are no more rows in this database.
    pub(super) ended: bool,
}

/// Where a record may be in one database.
pub(super) enum IdLookup {
    At(i64),
    Elsewhere,
    /// Ids do not simply count up here, so that nothing can be guessed.
    Disordered,
}

/// Finds the record `id` by halving: ids count up with the rows, around the wrap.
pub(super) fn guess(db: &Connection, id: u32) -> rusqlite::Result<IdLookup> {
    let (Some((mut low, first)), Some((mut high, last))) = (id_row(db, AFTER, i64::MIN)?, id_row(db, UP_TO, i64::MAX)?)
    else {
        return Ok(IdLookup::Elsewhere);
    };
    let wanted = id.wrapping_sub(first);
    // Less than one id for each row: they were wrapped more than once, or somebody has changed them.
    if i64::from(last.wrapping_sub(first)) < high - low {
        return Ok(IdLookup::Disordered);
    }
    if wanted > last.wrapping_sub(first) {
        return Ok(IdLookup::Elsewhere);
    }
    // The last row whose id is not past the wanted one lies between `low` and `high`.
    while low < high {
        let middle = low + (high - low + 1) / 2;
        let Some((rowid, found)) = id_row(db, UP_TO, middle)? else { return Ok(IdLookup::Elsewhere) };
        if found.wrapping_sub(first) <= wanted {
            low = middle;
        } else {
            high = rowid - 1;
        }
    }
    Ok(IdLookup::At(low))
}

/// The first row after a number, and the last up to one.
pub(super) const AFTER: &str = "rowid > ?1 ORDER BY rowid";
pub(super) const UP_TO: &str = "rowid <= ?1 ORDER BY rowid DESC";

/// Number and id of the first row of this condition and order.
pub(super) fn id_row(db: &Connection, condition: &str, value: i64) -> rusqlite::Result<Option<(i64, u32)>> {
    let sql = format!("SELECT rowid, id FROM messages WHERE {condition} LIMIT 1");
    // An id of another type must not keep the records beside it from being read.
    let row = |row: &Row| Ok((row.get(0)?, row.get_ref(1)?.as_i64().unwrap_or(0) as u32));
    db.query_row(&sql, [value], row).optional()
}

/// Hands matches after `rowid` to `take`, until it says that it is enough or the time is up.
pub(super) fn look(
    db: &Connection,
    columns: &str,
    query: &Query,
    rowid: i64,
    take: &mut dyn FnMut(&Row<'_>) -> rusqlite::Result<bool>,
) -> rusqlite::Result<ScanPage> {
    let began = Instant::now();
    let (Some((first, _)), Some((last, _))) = (id_row(db, AFTER, rowid)?, id_row(db, UP_TO, i64::MAX)?) else {
        return Ok(ScanPage { rowid, ended: true });
    };
    let (conditions, values) = query.conditions();
    let sql = format!("SELECT {columns} FROM messages WHERE rowid > ?1 AND rowid <= ?2{conditions} ORDER BY rowid");
    let mut rows = db.prepare(&sql)?;
    let mut look = ScanPage { rowid: first - 1, ended: false };
    while look.rowid < last && began.elapsed() < SLICE {
        let window = look.rowid.saturating_add(WINDOW).min(last);
        let range = [Value::from(look.rowid), Value::from(window)];
        let mut rows = rows.query(params_from_iter(range.iter().chain(&values)))?;
        while let Some(row) = rows.next()? {
            if !take(row)? {
                look.rowid = row.get(0)?;
                return Ok(look);
            }
        }
        look.rowid = window;
    }
    look.ended = look.rowid >= last;
    Ok(look)
}

/// The bytes that a text takes as JSON within JSON: the answer is a JSON text, and a string of its result.
pub(super) fn travels(text: &str) -> usize {
    let byte = |byte: u8| match byte {
        b'"' | b'\\' => 4,
        b'\n' | b'\r' | b'\t' | 8 | 12 => 3,
        0..32 => 7,
        _ => 1,
    };
    text.bytes().map(byte).sum()
}

pub(super) fn record(row: &Row<'_>) -> rusqlite::Result<Record> {
    // A value of another type must not keep the records beside it from being read.
    let number = |column| Ok::<i64, rusqlite::Error>(row.get_ref(column)?.as_i64().unwrap_or(0));
    let text = |column| {
        Ok::<String, rusqlite::Error>(match row.get_ref(column)? {
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            ValueRef::Integer(number) => number.to_string(),
            ValueRef::Real(number) => number.to_string(),
            ValueRef::Null => String::new(),
        })
    };
    Ok(Record {
        id: number(1)? as u32,
        jobid: text(2)?,
        jobdomain: text(3)?,
        jobname: text(4)?,
        epoch: number(5)?,
        level: number(6)? as u8,
        data: text(7)?,
        gid: None,
        nid: None,
    })
}

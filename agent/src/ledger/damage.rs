//! A damaged file: known as such, set aside, and what can be read of it carried over.

use super::{now_ms, table};
use crate::os;
use anyhow::{Context, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::path::{Path, PathBuf};

/// Whether the file is no good database.
pub(super) fn is_damage(fault: &rusqlite::Error) -> bool {
    matches!(fault.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Sets a damaged file aside and carries over what can still be read of it.
pub(super) fn replace_damaged(path: &Path, fault: &rusqlite::Error) -> Result<(Connection, String)> {
    let aside = free_name(path);
    for suffix in ["", "-wal", "-shm"] {
        let (from, to) = (with_suffix(path, suffix), with_suffix(&aside, suffix));
        if from.exists() {
            os::rename(&from, &to).with_context(|| format!("cannot set {} aside", from.display()))?;
        }
    }
    let db = table::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let saved = salvage(&aside, &db);
    let damage = format!(
        "{} was damaged ({fault}) and is now {}; {saved} of its jobs could be carried over, any other is forgotten",
        path.display(),
        aside.display()
    );
    Ok((db, damage))
}

/// Copies row by row, and stops at what cannot be read, from both ends of the table.
fn salvage(aside: &Path, db: &Connection) -> u64 {
    const COLUMNS: &str = "id, run, controller, state, accepted, started, reported, command, result";
    let Ok(old) = Connection::open_with_flags(aside, OpenFlags::SQLITE_OPEN_READ_WRITE) else { return 0 };
    let mut saved = 0;
    for order in ["ASC", "DESC"] {
        let Ok(mut query) = old.prepare(&format!("SELECT {COLUMNS} FROM jobs NOT INDEXED ORDER BY key {order}")) else {
            return saved;
        };
        let Ok(mut rows) = query.query([]) else { return saved };
        while let Ok(Some(row)) = rows.next() {
            let values: rusqlite::Result<Vec<rusqlite::types::Value>> = (0..9).map(|i| row.get(i)).collect();
            let Ok(values) = values else { continue };
            let insert = format!("INSERT OR IGNORE INTO jobs({COLUMNS}) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)");
            saved += db.execute(&insert, rusqlite::params_from_iter(values)).unwrap_or(0) as u64;
        }
    }
    saved
}

fn free_name(path: &Path) -> PathBuf {
    let seconds = now_ms() / 1000;
    (seconds..).map(|n| with_suffix(path, &format!(".damaged-{n}"))).find(|p| !p.exists()).unwrap_or_default()
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

//! A damaged file: known as such, set aside, and what can be read of it carried over.

use crate::platform::unix_ms;
use crate::storage::sqlite;
use anyhow::Result;
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};

/// A damaged file that was set aside, and what was wrong with it.
pub(super) struct Aside {
    path: PathBuf,
    fault: String,
}

/// Sets a damaged file aside, which nobody may have open.
pub(super) fn set_aside(path: &Path, fault: &anyhow::Error) -> Result<Aside> {
    let aside = free_name(path);
    sqlite::set_aside(path, &aside, fault)?;
    Ok(Aside { path: aside, fault: fault.to_string() })
}

impl Aside {
    /// Carries over to `db`, the file that is at `path` now, what can still be read. Says so in a sentence.
    pub(super) fn carry_over(&self, path: &Path, db: &Connection) -> String {
        let saved = salvage(&self.path, db);
        format!(
            "{} was damaged ({}) and is now {}; {saved} of its jobs could be carried over, any other is forgotten",
            path.display(),
            self.fault,
            self.path.display()
        )
    }
}

/// Copies row by row, and stops at what cannot be read, from both ends of the table. Rows keep their keys.
fn salvage(aside: &Path, db: &Connection) -> u64 {
    const COLUMNS: &str = "key, id, run, controller, state, accepted, started, reported, command, result";
    let Ok(old) = Connection::open_with_flags(aside, OpenFlags::SQLITE_OPEN_READ_WRITE) else { return 0 };
    let mut saved = 0;
    for order in ["ASC", "DESC"] {
        let Ok(mut query) = old.prepare(&format!("SELECT {COLUMNS} FROM jobs NOT INDEXED ORDER BY key {order}")) else {
            return saved;
        };
        let Ok(mut rows) = query.query([]) else { return saved };
        while let Ok(Some(row)) = rows.next() {
            let values: rusqlite::Result<Vec<rusqlite::types::Value>> = (0..10).map(|i| row.get(i)).collect();
            let Ok(values) = values else { continue };
            let insert = format!("INSERT OR IGNORE INTO jobs({COLUMNS}) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)");
            saved += db.execute(&insert, rusqlite::params_from_iter(values)).unwrap_or(0) as u64;
        }
    }
    saved
}

fn free_name(path: &Path) -> PathBuf {
    let seconds = unix_ms() / 1000;
    (seconds..).map(|n| sqlite::beside(path, &format!(".damaged-{n}"))).find(|p| !p.exists()).unwrap_or_default()
}

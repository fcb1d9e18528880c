//! Rows on their way into a database: several of them in one statement.
//!
//! Starting and ending a statement costs time, and what all rows of a batch share need not be handed over again for
//! each of them. So rows are held back until there are [`TOGETHER`] of them; the few that are left over go one by one. A
//! million lines of 100 bytes cost the agent 1.11 s of CPU so, and 1.18 s one by one.

use super::batch::Batch;
use rusqlite::{CachedStatement, Connection, Result};

/// Rows of one statement.
const TOGETHER: usize = 8;

/// Parameters that all rows of a statement share: jobid, domain, name, epoch.
const SHARED: usize = 4;

/// The values that differ from row to row: id, level, text.
type Row<'a> = (u32, u8, &'a str);

/// The statements, and the rows of one batch that they have not got yet.
pub(super) struct Rows<'db, 'a> {
    one: Statement<'db>,
    many: Statement<'db>,
    batch: Option<&'a Batch>,
    held: [Row<'a>; TOGETHER],
    count: usize,
}

/// A statement that inserts so and so many rows of one batch.
struct Statement<'db> {
    statement: CachedStatement<'db>,
    /// The values that the rows share are bound to it.
    ready: bool,
}

/// The text of the statement that inserts `count` rows.
fn sql(count: usize) -> String {
    let row = |n: usize| {
        let first = SHARED + 1 + 3 * n;
        format!("(?{first}, ?1, ?2, ?3, ?4, ?{}, ?{})", first + 1, first + 2)
    };
    let rows: Vec<String> = (0..count).map(row).collect();
    format!("INSERT INTO messages(id, jobid, jobdomain, jobname, epoch, level, data) VALUES{}", rows.join(", "))
}

/// Whether rows can be inserted at all: a file that is some other database says so here.
pub(super) fn check(db: &Connection) -> Result<()> {
    db.prepare(&sql(1)).map(drop)
}

impl<'db, 'a> Rows<'db, 'a> {
    /// The statements for this database; they stay in its cache.
    pub(super) fn new(db: &'db Connection) -> Result<Rows<'db, 'a>> {
        // The texts are made once: the cache finds them by their words.
        static SQL: std::sync::OnceLock<[String; 2]> = std::sync::OnceLock::new();
        let [one, many] = SQL.get_or_init(|| [sql(1), sql(TOGETHER)]);
        let statement = |sql| db.prepare_cached(sql).map(|statement| Statement { statement, ready: false });
        Ok(Rows { one: statement(one)?, many: statement(many)?, batch: None, held: [(0, 0, ""); TOGETHER], count: 0 })
    }

    /// Begins the rows of `batch`. No rows of another batch may be held.
    pub(super) fn begin(&mut self, batch: &'a Batch) {
        debug_assert!(self.count == 0, "the rows of the batch before are not stored");
        self.batch = Some(batch);
        (self.one.ready, self.many.ready) = (false, false);
    }

    /// Adds a row.
    #[inline]
    pub(super) fn add(&mut self, id: u32, level: u8, text: &'a str) -> Result<()> {
        self.held[self.count] = (id, level, text);
        self.count += 1;
        if self.count < TOGETHER {
            return Ok(());
        }
        self.count = 0;
        let Some(batch) = self.batch else { return Ok(()) };
        self.many.insert(batch, &self.held)
    }

    /// Stores what is held back.
    pub(super) fn end(&mut self) -> Result<()> {
        let count = std::mem::take(&mut self.count);
        let Some(batch) = self.batch else { return Ok(()) };
        self.held[..count].iter().try_for_each(|row| self.one.insert(batch, std::slice::from_ref(row)))
    }
}

impl Statement<'_> {
    fn insert(&mut self, batch: &Batch, rows: &[Row<'_>]) -> Result<()> {
        let statement = &mut self.statement;
        if !self.ready {
            let source = batch.source();
            statement.raw_bind_parameter(1, source.jobid.as_str())?;
            statement.raw_bind_parameter(2, source.domain.as_str())?;
            statement.raw_bind_parameter(3, source.name.as_str())?;
            statement.raw_bind_parameter(4, batch.epoch())?;
            self.ready = true;
        }
        for (n, (id, level, text)) in rows.iter().enumerate() {
            let first = SHARED + 1 + 3 * n;
            statement.raw_bind_parameter(first, id)?;
            statement.raw_bind_parameter(first + 1, level)?;
            statement.raw_bind_parameter(first + 2, text)?;
        }
        statement.raw_execute().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::source;

    #[test]
    fn every_count_of_rows_is_stored_in_its_order() {
        let db = Connection::open_in_memory().unwrap();
        assert!(check(&db).is_err());
        db.execute_batch("CREATE TABLE messages(id, jobid, jobdomain, jobname, epoch, level, data)").unwrap();
        check(&db).unwrap();
        let batches: Vec<Batch> = [0, 1, TOGETHER - 1, TOGETHER, 3 * TOGETHER + 2]
            .into_iter()
            .enumerate()
            .map(|(epoch, count)| {
                let mut batch = Batch::new(&source(), epoch as i64, 10);
                (0..count).for_each(|n| batch.push(1, &format!("{epoch} {n}")));
                batch
            })
            .collect();
        let (mut id, mut want) = (0, Vec::new());
        let mut rows = Rows::new(&db).unwrap();
        for batch in &batches {
            rows.begin(batch);
            for n in 0..batch.len() {
                let (level, text) = batch.message(n).unwrap();
                id += 1;
                rows.add(id, level, text).unwrap();
                want.push((
                    id,
                    "job".to_owned(),
                    "dom".to_owned(),
                    "nam".to_owned(),
                    batch.epoch(),
                    level,
                    text.into(),
                ));
            }
            rows.end().unwrap();
        }
        drop(rows);
        let mut found = db.prepare("SELECT * FROM messages ORDER BY rowid").unwrap();
        let row = |row: &rusqlite::Row<'_>| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?))
        };
        let found: Vec<(u32, String, String, String, i64, u8, String)> =
            found.query_map([], row).unwrap().map(Result::unwrap).collect();
        assert_eq!(found, want);
    }
}

//! The numbers of batches, which a controller must see rise.
//!
//! A number is raised where a batch is split, and where a controller knows higher ones than the file does.

use super::Kind;
use super::storage::Inner;
use anyhow::Result;

impl Inner {
    pub(super) fn next_number(&mut self) -> i64 {
        self.number += 1;
        self.number - 1
    }

    /// The number that the batch `number`, which this controller was given, has by now.
    pub(super) fn current(&self, controller: &str, kind: Kind, number: i64) -> i64 {
        match self.handed.get(&(controller.to_owned(), kind)) {
            Some((given, now)) if *given == number => *now,
            _ => number,
        }
    }

    /// See [`super::UploadQueue::jump`].
    pub(super) fn jump(&mut self, controller: &str, kind: Kind, number: i64, last: i64) -> Result<bool> {
        let number = self.current(controller, kind, number);
        // It has taken or refused some of these numbers, so that an old one is an old batch; but no number was
        // given here that is as high as these.
        let known = self.cursors.contains_key(&(controller.to_owned(), kind)) && last < self.number;
        // Once for each: a controller that always knows better must not keep this one busy.
        let again = self.jumped.contains(&(controller.to_owned(), kind));
        if kind == Kind::Event || known || again || last <= number {
            return Ok(false);
        }
        // Beyond the numbers in use as well, so that old and new ones can be told apart.
        let by = (last + 1).max(self.number) - number;
        self.transaction(|inner| inner.raise(kind, 0, by))?;
        self.raised(kind, 0, by);
        self.jumped.insert((controller.to_owned(), kind));
        Ok(true)
    }

    /// Raises the numbers of shared batches from `first` on by `by` in the file, the cursors too. The
    /// caller does the same in memory by [`Inner::raised`] once this is committed.
    pub(super) fn raise(&self, kind: Kind, first: i64, by: i64) -> Result<()> {
        let sql = "UPDATE items SET batch = batch + ?1 WHERE kind = ?2 AND controller = '' AND batch >= ?3";
        self.db.execute(sql, [by, kind as i64, first])?;
        self.db.execute(
            "UPDATE cursors SET batch = batch + ?1 WHERE kind = ?2 AND batch >= ?3",
            [by, kind as i64, first],
        )?;
        Ok(())
    }

    /// Raises the numbers that are known in memory; see [`Inner::raise`].
    pub(super) fn raised(&mut self, kind: Kind, first: i64, by: i64) {
        let cursors = self.cursors.iter_mut().filter(|((_, of), _)| *of == kind).map(|(_, cursor)| cursor);
        let handed = self.handed.iter_mut().filter(|((_, of), _)| *of == kind).map(|(_, (_, now))| now);
        let open = self.open.iter_mut().filter(|_| kind == Kind::Log).map(|open| &mut open.number);
        cursors.chain(handed).chain(open).filter(|number| **number >= first).for_each(|number| *number += by);
        self.number += by;
    }
}

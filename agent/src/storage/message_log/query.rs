//! Which records are meant: the conditions of a query, and their SQL. Pure.

use jscommon::LevelSet;
use rusqlite::types::Value;

/// Which records are meant; a field that is not given matches every record.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Query {
    /// The job that wrote them.
    pub(crate) jobid: Option<String>,
    /// From this time on, in milliseconds since 1970.
    pub(crate) timefrom: Option<i64>,
    /// Up to this time, itself included.
    pub(crate) timeto: Option<i64>,
    /// Of these levels.
    pub(crate) levels: Option<LevelSet>,
    /// The first so many.
    pub(crate) limit: Option<u64>,
    /// Records that arrived after the one with this id.
    pub(crate) after: Option<u32>,
}

impl Query {
    /// Whether every record of a database is meant, wherever it stands.
    pub(super) fn is_everything(&self) -> bool {
        *self == Query::default()
    }

    /// The conditions on a single row as SQL, with parameters from `?3` on, and the parameters.
    /// Order, limit and `after` are for the caller, who walks through the databases.
    pub(super) fn conditions(&self) -> (String, Vec<Value>) {
        let (mut sql, mut values) = (String::new(), Vec::new());
        let mut add = |condition: &str, value: Value| {
            values.push(value);
            sql.push_str(&format!(" AND {condition} ?{}", values.len() + 2));
        };
        if let Some(jobid) = &self.jobid {
            add("jobid =", jobid.clone().into());
        }
        if let Some(from) = self.timefrom {
            add("epoch >=", from.into());
        }
        if let Some(to) = self.timeto {
            add("epoch <=", to.into());
        }
        if let Some(levels) = self.levels {
            let mask = (0..32).filter(|level| levels.contains(*level)).fold(0i64, |mask, level| mask | 1 << level);
            add("(1 << level) &", mask.into());
        }
        (sql, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_numbered_after_the_range() {
        assert!(Query::default().is_everything());
        assert_eq!(Query::default().conditions(), (String::new(), vec![]));
        let query = Query {
            jobid: Some("j".into()),
            timeto: Some(5),
            levels: Some(LevelSet::parse("1,3").unwrap()),
            ..Query::default()
        };
        let (sql, values) = query.conditions();
        assert_eq!(sql, " AND jobid = ?3 AND epoch <= ?4 AND (1 << level) & ?5");
        assert_eq!(values, [Value::from("j".to_owned()), Value::from(5), Value::from(10)]);
        assert!(!query.is_everything());
    }
}

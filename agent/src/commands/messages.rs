//! `get_msgs`, `del_msgs` and `follow`: records asked for, deleted, or sent as they come, by a query in the command's
//! data.

use super::{Answer, Context};
use crate::job::fields::{Fields, object};
use crate::storage::message_log::{LogReader, Query};
use jscommon::{Command, LevelSet};
use serde_json::{Value, json};

/// `get_msgs`: the first matches in the order of their arrival, as a list of records.
pub(super) fn get(context: &Context, command: &Command) -> Answer {
    let query = parse(&command.data)?;
    let mut records = remote(context)?.get(&query).map_err(|e| format!("{e:#}"))?;
    for record in &mut records {
        (record.gid, record.nid) = (Some(context.config.main.gid), Some(context.config.main.nid));
    }
    serde_json::to_value(records).map_err(|e| e.to_string())
}

/// `del_msgs`: deletes the matches and says how many there were.
pub(super) fn delete(context: &Context, command: &Command) -> Answer {
    let query = parse(&command.data)?;
    let deleted = remote(context)?.delete(&query).map_err(|e| format!("{e:#}"))?;
    Ok(json!({"deleted": deleted}))
}

/// `follow`: opens a watch on the matches; says after which record it begins.
pub(crate) fn follow(context: &Context, controller: &str, command: &Command) -> Answer {
    let query = parse(&command.data)?;
    let streams = context.streams.as_ref().ok_or("this agent sends no live output")?;
    let from = streams.follow(controller, command, remote(context)?, query, context.config.main.node())?;
    Ok(json!({ "from": from }))
}

fn remote(context: &Context) -> Result<&LogReader, String> {
    context.message_log.as_ref().ok_or_else(|| "this agent keeps no records".into())
}

/// Reads a query; no data is the query that everything matches. A field that is no field of a query is
/// refused, for a misspelt one would delete everything.
fn parse(data: &str) -> Result<Query, String> {
    const KNOWN: [&str; 6] = ["jobid", "timefrom", "timeto", "levels", "limit", "after"];
    let given = object(data)?;
    let mut fields = Fields::new(&given);
    for name in given.iter().filter(|(name, value)| !value.is_null() && !KNOWN.contains(&name.as_str())) {
        fields.fault(format!("there is no '{}' here: use {}", name.0, KNOWN.join(", ")));
    }
    let query = Query {
        jobid: fields.text("jobid").map(str::to_owned),
        timefrom: fields.read("timefrom", |value| millis("timefrom", value, f64::ceil)),
        timeto: fields.read("timeto", |value| millis("timeto", value, f64::floor)),
        levels: fields.read("levels", |value| LevelSet::from_json(value).map_err(|why| format!("levels: {why}"))),
        limit: fields.whole("limit", 0..=i64::MAX).map(|limit| limit as u64),
        // Ids begin at 1, so what comes after 0 is everything.
        after: fields.whole("after", 0..=u32::MAX.into()).map(|id| id as u32).filter(|id| *id > 0),
    };
    fields.finish(query)
}

/// A time in milliseconds; of one between two, as clients get by multiplying seconds, `inward` is the
/// one that belongs to the range.
fn millis(name: &str, value: &Value, inward: fn(f64) -> f64) -> Result<i64, String> {
    // The cast keeps to what an i64 can hold, and so does a range that begins or ends beyond it.
    let number = value.as_i64().or_else(|| value.as_f64().map(|time| inward(time) as i64));
    number.ok_or_else(|| format!("{name} must be a time in milliseconds since 1970, not {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_all_optional() {
        assert_eq!(parse(""), Ok(Query::default()));
        assert_eq!(parse(r#"{"after": 0, "jobid": null}"#), Ok(Query::default()));
        let query = parse(
            r#"{"jobid": "a", "timefrom": 5, "timeto": 1766385000123.0, "levels": "1-3", "limit": 10, "after": 4294967295}"#,
        );
        let want = Query {
            jobid: Some("a".into()),
            timefrom: Some(5),
            timeto: Some(1_766_385_000_123),
            levels: LevelSet::parse("1-3").ok(),
            limit: Some(10),
            after: Some(u32::MAX),
        };
        assert_eq!(query, Ok(want));
    }

    #[test]
    fn times_between_two_milliseconds() {
        let query = parse(r#"{"timefrom": 1766385000123.25, "timeto": 1766385000125.75}"#).unwrap();
        assert_eq!((query.timefrom, query.timeto), (Some(1_766_385_000_124), Some(1_766_385_000_125)));
        let query = parse(r#"{"timefrom": -1e300, "timeto": 1e300}"#).unwrap();
        assert_eq!((query.timefrom, query.timeto), (Some(i64::MIN), Some(i64::MAX)));
    }

    #[test]
    fn every_fault_has_its_sentence() {
        for (data, reason) in [
            ("{", "not JSON"),
            ("[]", "must be a JSON object"),
            (r#"{"joib": "a"}"#, "no 'joib'"),
            (r#"{"jobid": 1}"#, "jobid must be"),
            (r#"{"timefrom": "x"}"#, "timefrom must be"),
            (r#"{"timeto": true}"#, "timeto must be"),
            (r#"{"levels": "x"}"#, "levels: "),
            (r#"{"limit": -1}"#, "limit must be"),
            (r#"{"after": 4294967296}"#, "after must be"),
        ] {
            let fault = parse(data).unwrap_err();
            assert!(fault.contains(reason), "{fault} does not say {reason}");
        }
    }
}

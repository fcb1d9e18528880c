//! A command as a client pushes it, and the checks that make it one.

mod read;
mod secret;

use crate::json_size::{MAX_VALUES, has_more_values};
use crate::{NodeId, partial_json};
pub use secret::{hide_secrets, is_secret, shown_args};
use serde_json::{Map, Value};
use std::fmt;

/// Longest job id, in characters.
pub(crate) const MAX_ID: usize = 128;

/// Most targets that `nodes` may name.
pub const MAX_NODES: usize = 10_000;

/// Most seconds that a quiet command may wait for its node.
pub(crate) const MAX_QUIET_EXPIRES: u64 = 60;

/// Longest text of a command, in bytes: what a request may carry. A longer one would come to no node.
pub const MAX_TEXT: usize = 16 << 20;

/// Longest field of a text that is not read as JSON, in bytes, that goes into its answer.
const MAX_SALVAGED: usize = 4096;

/// The field of a command and of a result that holds the controller's ticket.
pub const TICKET: &str = "ticket";

/// A command that has passed every check of its form.
///
/// Whether the node knows `cmd`, and whether `args` suit it, is the node's to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    /// The job's id: 1 to 128 of `A-Z a-z 0-9 . _ : -`.
    pub id: String,
    /// Grid id of the target; 0 is any grid (with roles).
    pub gid: u32,
    /// Node id of the target; 0 means that the roles name it.
    pub nid: u32,
    /// The name of the command: `execute`, `ping`, an extension…
    pub cmd: String,
    /// Its arguments.
    pub args: Map<String, Value>,
    /// A process' stdin, or what a built-in command reads.
    pub data: String,
    /// The targets, where the command lists them; a node's own copy has none.
    pub nodes: Vec<NodeId>,
    /// The roles that a target must have, all of them; `"*"` is any node.
    pub roles: Vec<String>,
    /// Every node that has the roles, and not one at random.
    pub fanout: bool,
    /// Free text that comes back with the result.
    pub tags: String,
    /// Seconds that it may wait for its node; 0 takes the controller's default.
    pub expires: u64,
    /// It is kept out of the list of jobs and of the audit list.
    pub quiet: bool,
    /// Fields that this version does not know; kept and passed on.
    pub extra: Map<String, Value>,
}

/// Why a text is no command.
#[derive(Clone, Debug, PartialEq)]
pub struct BadCommand {
    /// The fault, in one sentence.
    pub reason: String,
    /// The job id, when at least that was there and good: then the client can be answered.
    pub id: Option<String>,
    /// The fields that could be read all the same, for the answer.
    pub partial: Option<Box<Command>>,
}

impl fmt::Display for BadCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for BadCommand {}

impl BadCommand {
    /// A text that is not read as JSON; of its fields it keeps those by which its sender can be answered.
    fn unread(text: &[u8], reason: String) -> BadCommand {
        let mut read = partial_json::fields(text, &["id", "gid", "nid", "cmd", "tags"]);
        // The answer must not be as long as the text.
        read.retain(|_, value| value.as_str().is_none_or(|text| text.len() <= MAX_SALVAGED));
        let found = Command::from_value(Value::Object(read));
        let partial = found.map_or_else(|bad| bad.partial, |command| Some(Box::new(command)));
        BadCommand { reason, id: partial.as_ref().map(|command| command.id.clone()), partial }
    }
}

/// The whole number that `value` is, also where it is written `10.0`, as clients do that count in
/// floating point.
pub fn whole(value: &Value) -> Option<i64> {
    let float = || value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 9e15).map(|f| f as i64);
    value.as_i64().or_else(float)
}

/// Whether `id` may be a job's id: 1 to 128 of `A-Z a-z 0-9 . _ : -`.
pub fn is_job_id(id: &str) -> bool {
    (1..=MAX_ID).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-'))
}

/// Whether a command of this name may be quiet: it only looks, or belongs to a watch.
pub(crate) fn may_be_quiet(cmd: &str) -> bool {
    cmd.starts_with("get_") || matches!(cmd, "ping" | "input" | "resize" | "attach" | "follow" | "get")
}

impl Command {
    /// Reads the JSON text of a command and checks its form: types, id, name and target.
    pub fn parse(text: &[u8]) -> Result<Command, BadCommand> {
        match serde_json::from_slice(text) {
            Ok(value) => Command::from_value(value),
            Err(e) => Err(BadCommand::unread(text, format!("not JSON: {e}"))),
        }
    }

    /// As `parse`, of a text that a client has pushed: one that is too long, or of too many values, is no command, and
    /// is not read whole. Its `ticket` is dropped, for only a controller makes one.
    pub fn received(text: &[u8]) -> Result<Command, BadCommand> {
        if text.len() > MAX_TEXT {
            let reason = format!("it has {} bytes, and the most is {MAX_TEXT}", text.len());
            return Err(BadCommand::unread(text, reason));
        }
        if has_more_values(text, MAX_VALUES) {
            return Err(BadCommand::unread(text, format!("it has more than {MAX_VALUES} JSON values")));
        }
        let mut read = Command::parse(text);
        match &mut read {
            Ok(command) => drop(command.extra.remove(TICKET)),
            Err(bad) => bad.partial.iter_mut().for_each(|command| drop(command.extra.remove(TICKET))),
        }
        read
    }

    /// As `parse`, of a JSON value.
    pub fn from_value(value: Value) -> Result<Command, BadCommand> {
        match value {
            Value::Object(fields) => read::command(fields),
            _ => Err(BadCommand { reason: "a command is a JSON object".into(), id: None, partial: None }),
        }
    }

    /// The controller's ticket, which the node returns with each result.
    pub fn ticket(&self) -> Option<&str> {
        self.extra.get(TICKET).and_then(Value::as_str)
    }

    /// The command as JSON, unknown fields included.
    pub fn to_value(&self) -> Value {
        let mut map = self.extra.clone();
        map.insert("id".into(), self.id.clone().into());
        map.insert("gid".into(), self.gid.into());
        map.insert("nid".into(), self.nid.into());
        map.insert("cmd".into(), self.cmd.clone().into());
        map.insert("args".into(), Value::Object(self.args.clone()));
        map.insert("data".into(), self.data.clone().into());
        map.insert("roles".into(), self.roles.clone().into());
        map.insert("fanout".into(), self.fanout.into());
        map.insert("tags".into(), self.tags.clone().into());
        map.insert("expires".into(), self.expires.into());
        if !self.nodes.is_empty() {
            let pairs: Vec<Value> = self.nodes.iter().map(|node| vec![node.gid, node.nid].into()).collect();
            map.insert("nodes".into(), pairs.into());
        }
        if self.quiet {
            map.insert("quiet".into(), true.into());
        }
        Value::Object(map)
    }
}

/// A value as it stands in an error sentence: never longer than a line.
pub fn shorten(value: &Value) -> String {
    let mut text = value.to_string();
    if text.len() > 60 {
        let end = (0..=57).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn refused(value: Value, reason: &str) {
        let fault = Command::from_value(value).unwrap_err();
        assert!(fault.reason.contains(reason), "{} does not say {reason}", fault.reason);
    }

    #[test]
    fn marked_secret_is_not_shown() {
        let shown = |args: Value| Value::Object(shown_args(args.as_object().unwrap()));
        let open = json!({"env": {"A": "x"}, "secret": false});
        assert_eq!(shown(open.clone()), open);
        let marked = |env: Value| json!({"env": env, "secret": true, "cmd": "c"});
        assert_eq!(shown(marked(json!({"A": "x", "B": 1}))), marked(json!({"A": "***", "B": "***"})));
        assert_eq!(shown(marked(json!("A=x"))), marked(json!("***")));
        assert_eq!(shown(marked(json!(["x"]))), marked(json!("***")));
        assert_eq!(shown(json!({"secret": true})), json!({"secret": true}));
    }

    #[test]
    fn secret_that_is_not_plainly_false_hides() {
        let is_secret = |value: &Value| is_secret(json!({"secret": value}).as_object().unwrap());
        for hides in [json!(true), json!("true"), json!("yes"), json!(1), json!(0.5), json!("0"), json!([]), json!({})]
        {
            assert!(is_secret(&hides), "{hides}");
        }
        for shows in [json!(false), json!(null), json!(0), json!(0.0), json!(""), json!("false")] {
            assert!(!is_secret(&shows), "{shows}");
        }
        assert!(!super::is_secret(&Map::new()));
    }

    #[test]
    fn ticket_of_a_client_is_dropped() {
        let good = json!({"id": "a", "gid": 1, "nid": 2, "cmd": "ping", "ticket": "r.x", "later": 1});
        let read = Command::received(good.to_string().as_bytes()).unwrap();
        assert_eq!((read.ticket(), &read.extra["later"]), (None, &json!(1)));
        assert_eq!(Command::parse(good.to_string().as_bytes()).unwrap().ticket(), Some("r.x"));
        let bad = json!({"id": "a", "gid": 1, "nid": -2, "cmd": "ping", "ticket": "r.x"});
        let partial = Command::received(bad.to_string().as_bytes()).unwrap_err().partial.unwrap();
        assert_eq!(partial.ticket(), None);
    }

    #[test]
    fn command_is_read_back_whole() {
        let value = json!({"id": "a-1", "gid": 1, "nid": 10, "cmd": "execute", "args": {"cmd": "ls"}, "data": "in",
            "roles": [], "fanout": false, "tags": "t", "expires": 5, "later": [1]});
        let command = Command::from_value(value.clone()).unwrap();
        assert_eq!((command.gid, command.nid, command.expires), (1, 10, 5));
        assert_eq!(command.to_value(), value);
    }

    #[test]
    fn omitted_fields_have_defaults() {
        let command = Command::parse(br#"{"id":"a","cmd":"ping","roles":["*"],"data":{"a":1},"args":null}"#).unwrap();
        assert_eq!((command.gid, command.nid, command.data.as_str()), (0, 0, r#"{"a":1}"#));
        assert!(command.args.is_empty());
    }

    #[test]
    fn a_whole_number_may_have_a_point() {
        let command = Command::parse(br#"{"id":"a","cmd":"ping","gid":1.0,"nid":1e1,"expires":5.0}"#).unwrap();
        assert_eq!((command.gid, command.nid, command.expires), (1, 10, 5));
        refused(json!({"id": "a", "cmd": "ping", "gid": 1, "nid": 1.5}), "nid must be");
        refused(json!({"id": "a", "cmd": "ping", "gid": -1.0, "nid": 1}), "gid must be");
        refused(json!({"id": "a", "cmd": "ping", "gid": 1, "nid": 1e300}), "nid must be");
    }

    #[test]
    fn every_fault_has_its_sentence() {
        assert!(Command::parse(b"{").unwrap_err().reason.starts_with("not JSON"));
        assert!(Command::parse(b"\xff").unwrap_err().reason.starts_with("not JSON"));
        refused(json!([]), "JSON object");
        refused(json!({"cmd": "ping", "gid": 1, "nid": 1}), "id is missing");
        refused(json!({"id": "a b", "cmd": "ping", "gid": 1, "nid": 1}), "id must be");
        refused(json!({"id": "x".repeat(129), "cmd": "ping", "gid": 1, "nid": 1}), "id must be");
        refused(json!({"id": 7, "cmd": "ping", "gid": 1, "nid": 1}), "id must be");
        refused(json!({"id": "a", "gid": 1, "nid": 1}), "cmd is missing");
        refused(json!({"id": "a", "cmd": 1, "gid": 1, "nid": 1}), "cmd must be");
        refused(json!({"id": "a", "cmd": "ping", "gid": "1", "nid": 1}), "gid must be");
        refused(json!({"id": "a", "cmd": "ping", "gid": -1, "nid": 1}), "gid must be");
        refused(json!({"id": "a", "cmd": "ping", "gid": 1, "nid": 1, "args": []}), "args must be");
        refused(json!({"id": "a", "cmd": "ping", "gid": 1, "nid": 1, "data": 1}), "data must be");
        refused(json!({"id": "a", "cmd": "ping", "gid": 1, "nid": 1, "roles": "web"}), "roles must be");
        refused(json!({"id": "a", "cmd": "ping", "gid": 1, "nid": 1, "roles": [1]}), "roles must be");
        refused(json!({"id": "a", "cmd": "ping", "gid": 1, "nid": 1, "fanout": 1}), "fanout must be");
        refused(json!({"id": "a", "cmd": "ping", "gid": 1, "nid": 1, "tags": []}), "tags must be");
        refused(json!({"id": "a", "cmd": "ping", "gid": 1, "nid": 1, "expires": 1.5}), "expires must be");
        refused(json!({"id": "a", "cmd": "ping", "gid": 1, "nid": 1, "quiet": 1}), "quiet must be");
        refused(json!({"id": "a", "cmd": "ping"}), "no target");
        refused(json!({"id": "a", "cmd": "ping", "nid": 1}), "needs a gid");
    }

    #[test]
    fn nodes_that_are_no_list_of_distinct_pairs_are_refused() {
        let command = |nodes: Value| json!({"id": "a", "cmd": "ping", "nodes": nodes});
        for bad in [json!([]), json!({}), json!("1.10"), json!(vec![[1, 1]; MAX_NODES + 1])] {
            refused(command(bad), "nodes must be a list of 1 to 10000 pairs");
        }
        for bad in [json!([[1]]), json!([[1, 2, 3]]), json!([[0, 1]]), json!([[1, 0]]), json!([["1", 2]]), json!([7])] {
            refused(command(bad), "nodes must be pairs [gid, nid]");
        }
        refused(command(json!([[1, 10], [1, 11], [1, 10]])), "nodes names [1,10] twice");
        let both = json!({"id": "a", "cmd": "ping", "gid": 1, "nid": 10, "nodes": [[1, 11]]});
        refused(both, "beside nid or roles");
        refused(json!({"id": "a", "cmd": "ping", "roles": ["*"], "nodes": [[1, 11]]}), "beside nid or roles");
    }

    #[test]
    fn nodes_are_read_in_their_order_and_written_back() {
        let pairs: Vec<[u32; 2]> = (1..=MAX_NODES as u32).rev().map(|nid| [1, nid]).collect();
        let command = Command::from_value(json!({"id": "a", "cmd": "ping", "nodes": pairs})).unwrap();
        assert_eq!((command.nodes.len(), command.nodes[0]), (MAX_NODES, NodeId { gid: 1, nid: MAX_NODES as u32 }));
        assert_eq!(command.to_value()["nodes"], json!(pairs));
    }

    #[test]
    fn a_quiet_command_waits_a_minute_at_most() {
        let expires = |cmd: &str, expires: u64| {
            let value = json!({"id": "a", "cmd": cmd, "gid": 1, "nid": 1, "quiet": true, "expires": expires});
            Command::from_value(value)
                .map(|command| (command.quiet, command.expires, command.to_value()["quiet"].clone()))
        };
        for cmd in ["ping", "get_msgs", "input", "resize", "attach", "follow", "get"] {
            assert_eq!(expires(cmd, 0), Ok((true, 60, json!(true))), "{cmd}");
        }
        assert_eq!(expires("ping", 5).unwrap().1, 5);
        assert_eq!(expires("ping", 61).unwrap().1, 60);
        for cmd in ["execute", "kill", "del_msgs", "put", "cancel"] {
            let fault = expires(cmd, 0).unwrap_err();
            assert!(fault.reason.contains("quiet is for commands that only look"), "{}", fault.reason);
            assert!(!fault.partial.unwrap().quiet, "it is kept in the lists");
        }
    }

    #[test]
    fn a_bad_command_with_a_good_id_can_be_answered() {
        let fault = Command::from_value(json!({"id": "a", "gid": 1, "nid": 2, "cmd": 5})).unwrap_err();
        let partial = fault.partial.unwrap();
        assert_eq!((fault.id.as_deref(), partial.gid, partial.nid), (Some("a"), 1, 2));
    }

    #[test]
    fn a_text_that_is_no_json_and_has_an_id_can_be_answered() {
        for rest in
            [r#""args": {"cmd": "cat", "args": ["caf\udce9.txt"]}}"#, r#""args": {"n": NaN}}"#, r#""data": "cut o"#]
        {
            let text = format!(r#"{{"id": "a-1", "gid": 1, "nid": 2, "cmd": "execute", {rest}"#);
            let bad = Command::received(text.as_bytes()).unwrap_err();
            assert!(bad.reason.starts_with("not JSON"), "{}", bad.reason);
            let partial = bad.partial.unwrap();
            assert_eq!((bad.id.as_deref(), partial.gid, partial.nid), (Some("a-1"), 1, 2), "{rest}");
            assert_eq!(partial.cmd, "execute");
        }
        let bad = Command::received(br#"{"id": "a b", "data": NaN}"#).unwrap_err();
        assert_eq!((bad.id, bad.partial), (None, None));
    }

    #[test]
    fn command_that_is_too_long_is_refused_with_a_short_answer() {
        let text = |data: usize, id: &str| {
            json!({"id": id, "gid": 1, "nid": 2, "cmd": "ping", "data": "x".repeat(data)}).to_string().into_bytes()
        };
        assert!(Command::received(&text(1000, "a")).is_ok());
        let bad = Command::received(&text(MAX_TEXT, "a")).unwrap_err();
        assert!(bad.reason.contains("the most is 16777216"), "{}", bad.reason);
        let partial = bad.partial.unwrap();
        assert_eq!((partial.id.as_str(), partial.nid, partial.data.as_str()), ("a", 2, ""));
        assert_eq!(Command::received(&text(MAX_TEXT, "a b")).unwrap_err().partial, None);
    }

    #[test]
    fn command_of_too_many_values_is_refused_with_a_short_answer() {
        let text = |count: usize, tags: &str| {
            let args = json!({"args": vec![0; count]});
            json!({"id": "a", "gid": 1, "nid": 2, "cmd": "ping", "tags": tags, "args": args}).to_string().into_bytes()
        };
        assert!(Command::received(&text(1000, "t")).is_ok());
        for (tags, kept) in [("t", "t"), (&"t".repeat(MAX_SALVAGED + 1), "")] {
            let bad = Command::received(&text(MAX_VALUES, tags)).unwrap_err();
            assert!(bad.reason.contains(&format!("more than {MAX_VALUES} JSON values")), "{}", bad.reason);
            let partial = bad.partial.unwrap();
            assert_eq!((partial.id.as_str(), partial.nid, partial.tags.as_str()), ("a", 2, kept));
        }
    }
}

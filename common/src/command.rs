//! A command as a client pushes it, and the checks that make it one.

use serde_json::{Map, Value};
use std::fmt;

/// Longest job id, in characters.
pub const MAX_ID: usize = 128;

/// Longest text of a command, in bytes: what a request may carry. A longer one would come to no node.
pub const MAX_TEXT: usize = 16 << 20;

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
    /// What to run: `execute`, `ping`, the name of an extension…
    pub cmd: String,
    /// Its arguments.
    pub args: Map<String, Value>,
    /// A process' stdin, or what a built-in command reads.
    pub data: String,
    /// The roles that a target must have, all of them; `"*"` is any node.
    pub roles: Vec<String>,
    /// Every node that has the roles, and not one at random.
    pub fanout: bool,
    /// Free text that comes back with the result.
    pub tags: String,
    /// Seconds that it may wait for its node; 0 takes the controller's default.
    pub expires: u64,
    /// Fields that this version does not know; kept and passed on.
    pub extra: Map<String, Value>,
}

/// Why a text is no command.
#[derive(Clone, Debug, PartialEq)]
pub struct BadCommand {
    /// What is wrong, one sentence.
    pub reason: String,
    /// The job id, when at least that was there and good: then the client can be answered.
    pub id: Option<String>,
    /// What else could be read of it, for the answer.
    pub partial: Option<Box<Command>>,
}

impl fmt::Display for BadCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for BadCommand {}

/// Whether `args` mark the command's `env` and `data` as secret.
pub fn is_secret(args: &Map<String, Value>) -> bool {
    args.get("secret") == Some(&Value::Bool(true))
}

/// The arguments as they may be shown: where they are marked as secret, without what `env` holds.
pub fn shown_args(args: &Map<String, Value>) -> Map<String, Value> {
    let mut shown = args.clone();
    if is_secret(args) {
        match shown.get_mut("env") {
            Some(Value::Object(env)) => env.values_mut().for_each(|value| *value = "***".into()),
            Some(other) => *other = "***".into(),
            None => {}
        }
    }
    shown
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

impl Command {
    /// Reads the JSON text of a command and checks its form: types, id, name and target.
    pub fn parse(text: &[u8]) -> Result<Command, BadCommand> {
        let value: Value = serde_json::from_slice(text).map_err(|e| BadCommand {
            reason: format!("not JSON: {e}"),
            id: None,
            partial: None,
        })?;
        Command::from_value(value)
    }

    /// As `parse`, of a text that a client has pushed: one that is too long is no command.
    pub fn received(text: &[u8]) -> Result<Command, BadCommand> {
        let read = Command::parse(text);
        if text.len() <= MAX_TEXT {
            return read;
        }
        let mut command = match read {
            Ok(command) => command,
            Err(BadCommand { partial: Some(partial), .. }) => *partial,
            Err(other) => return Err(other),
        };
        // The answer must not be as long.
        (command.args, command.data, command.extra) = (Map::new(), String::new(), Map::new());
        Err(BadCommand {
            reason: format!("it has {} bytes, and the most is {MAX_TEXT}", text.len()),
            id: Some(command.id.clone()),
            partial: Some(Box::new(command)),
        })
    }

    /// As `parse`, of a JSON value.
    pub fn from_value(value: Value) -> Result<Command, BadCommand> {
        let Value::Object(mut fields) = value else {
            return Err(BadCommand { reason: "a command is a JSON object".into(), id: None, partial: None });
        };
        // Every field is read even after a fault, so that the answer names as much as can be known.
        let mut fault: Option<String> = None;
        let mut note = |reason: String| {
            fault.get_or_insert(reason);
        };
        let mut take = |name: &str| fields.remove(name).filter(|v| !v.is_null());

        let id = match take("id") {
            Some(Value::String(id)) if is_job_id(&id) => Some(id),
            Some(other) => {
                note(format!("id must be 1 to {MAX_ID} of A-Z a-z 0-9 . _ : -, not {}", shorten(&other)));
                None
            }
            None => {
                note("id is missing".into());
                None
            }
        };
        let mut number = |name: &str, max: u64| match take(name) {
            None => 0,
            Some(v) => whole(&v).and_then(|n| u64::try_from(n).ok()).filter(|n| *n <= max).unwrap_or_else(|| {
                note(format!("{name} must be a whole number from 0 to {max}, not {}", shorten(&v)));
                0
            }),
        };
        let gid = number("gid", u32::MAX.into()) as u32;
        let nid = number("nid", u32::MAX.into()) as u32;
        let expires = number("expires", 10 * 365 * 86400);
        let cmd = match take("cmd") {
            Some(Value::String(cmd)) if !cmd.is_empty() => cmd,
            Some(other) => {
                note(format!("cmd must be the name of a command, not {}", shorten(&other)));
                String::new()
            }
            None => {
                note("cmd is missing".into());
                String::new()
            }
        };
        let args = match take("args") {
            None => Map::new(),
            Some(Value::Object(args)) => args,
            Some(other) => {
                note(format!("args must be an object, not {}", shorten(&other)));
                Map::new()
            }
        };
        let data = match take("data") {
            None => String::new(),
            Some(Value::String(data)) => data,
            Some(object @ Value::Object(_)) => object.to_string(),
            Some(other) => {
                note(format!("data must be a string or an object, not {}", shorten(&other)));
                String::new()
            }
        };
        let roles = match take("roles") {
            None => Vec::new(),
            Some(Value::Array(list)) => {
                let roles: Vec<String> = list.iter().filter_map(|r| r.as_str()).map(str::to_owned).collect();
                if roles.len() != list.len() || roles.iter().any(String::is_empty) {
                    note("roles must be a list of names".into());
                }
                roles
            }
            Some(other) => {
                note(format!("roles must be a list of names, not {}", shorten(&other)));
                Vec::new()
            }
        };
        let fanout = match take("fanout") {
            None => false,
            Some(Value::Bool(fanout)) => fanout,
            Some(other) => {
                note(format!("fanout must be true or false, not {}", shorten(&other)));
                false
            }
        };
        let tags = match take("tags") {
            None => String::new(),
            Some(Value::String(tags)) => tags,
            Some(other) => {
                note(format!("tags must be a string, not {}", shorten(&other)));
                String::new()
            }
        };
        if nid > 0 && gid == 0 {
            note("nid needs a gid beside it".into());
        } else if nid == 0 && roles.is_empty() {
            note("no target: give gid and nid, or roles".into());
        }
        let command = Command {
            id: id.clone().unwrap_or_default(),
            gid,
            nid,
            cmd,
            args,
            data,
            roles,
            fanout,
            tags,
            expires,
            extra: fields,
        };
        match fault {
            None => Ok(command),
            Some(reason) => Err(BadCommand { reason, partial: id.is_some().then(|| Box::new(command)), id }),
        }
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
    fn what_is_marked_as_secret_is_not_shown() {
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
    fn a_whole_command_and_back() {
        let value = json!({"id": "a-1", "gid": 1, "nid": 10, "cmd": "execute", "args": {"cmd": "ls"}, "data": "in",
            "roles": [], "fanout": false, "tags": "t", "expires": 5, "later": [1]});
        let command = Command::from_value(value.clone()).unwrap();
        assert_eq!((command.gid, command.nid, command.expires), (1, 10, 5));
        assert_eq!(command.to_value(), value);
    }

    #[test]
    fn what_is_left_out_has_a_default() {
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
        refused(json!({"id": "a", "cmd": "ping"}), "no target");
        refused(json!({"id": "a", "cmd": "ping", "nid": 1}), "needs a gid");
    }

    #[test]
    fn a_bad_command_with_a_good_id_can_be_answered() {
        let fault = Command::from_value(json!({"id": "a", "gid": 1, "nid": 2, "cmd": 5})).unwrap_err();
        let partial = fault.partial.unwrap();
        assert_eq!((fault.id.as_deref(), partial.gid, partial.nid), (Some("a"), 1, 2));
    }

    #[test]
    fn what_is_too_long_is_no_command_and_is_answered_shortly() {
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
}

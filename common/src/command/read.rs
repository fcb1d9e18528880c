//! The fields of a command, each with a sentence for what it must be.

use super::{BadCommand, Command, MAX_ID, MAX_NODES, MAX_QUIET_EXPIRES, is_job_id, may_be_quiet, shorten, whole};
use crate::NodeId;
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Longest time that a command may wait for its node, in seconds.
const MAX_EXPIRES: u64 = 10 * 365 * 86_400;

/// Fields that are not read yet, and the first fault. Every field is read even after a fault, so that the answer names
/// as much as can be known.
struct Fields {
    left: Map<String, Value>,
    fault: Option<String>,
}

impl Fields {
    fn note(&mut self, reason: String) {
        self.fault.get_or_insert(reason);
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        self.left.remove(name).filter(|value| !value.is_null())
    }

    /// Reads a field that may be missing; a value that `read` gives back is none of the `form`.
    fn read<T: Default>(&mut self, name: &str, form: &str, read: impl FnOnce(Value) -> Result<T, Value>) -> T {
        match self.take(name).map(read) {
            None => T::default(),
            Some(Ok(value)) => value,
            Some(Err(other)) => {
                self.note(format!("{name} must be {form}, not {}", shorten(&other)));
                T::default()
            }
        }
    }

    fn number(&mut self, name: &str, max: u64) -> u64 {
        self.read(name, &format!("a whole number from 0 to {max}"), |value| {
            whole(&value).and_then(|n| u64::try_from(n).ok()).filter(|n| *n <= max).ok_or(value)
        })
    }

    fn boolean(&mut self, name: &str) -> bool {
        self.read(name, "true or false", |value| value.as_bool().ok_or(value))
    }

    fn text(&mut self, name: &str, form: &str, is_good: impl FnOnce(&str) -> bool) -> String {
        self.read(name, form, |value| match value {
            Value::String(text) if is_good(&text) => Ok(text),
            other => Err(other),
        })
    }

    /// As `text`, of a field that may not be missing. It is empty after a fault.
    fn required(&mut self, name: &str, form: &str, is_good: impl FnOnce(&str) -> bool) -> String {
        if self.left.get(name).is_none_or(Value::is_null) {
            self.note(format!("{name} is missing"));
        }
        self.text(name, form, is_good)
    }

    fn roles(&mut self) -> Vec<String> {
        let list = self.read("roles", "a list of names", |value| match value {
            Value::Array(list) => Ok(list),
            other => Err(other),
        });
        let roles: Vec<String> = list.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        if roles.len() != list.len() || roles.iter().any(String::is_empty) {
            self.note("roles must be a list of names".into());
        }
        roles
    }
}

/// Reads a command from its fields. Those that are not known go into `extra`.
pub(super) fn command(fields: Map<String, Value>) -> Result<Command, BadCommand> {
    let mut fields = Fields { left: fields, fault: None };
    let id = fields.required("id", &format!("1 to {MAX_ID} of A-Z a-z 0-9 . _ : -"), is_job_id);
    let gid = fields.number("gid", u32::MAX.into()) as u32;
    let nid = fields.number("nid", u32::MAX.into()) as u32;
    let mut expires = fields.number("expires", MAX_EXPIRES);
    let cmd = fields.required("cmd", "the name of a command", |cmd| !cmd.is_empty());
    let args = fields.read("args", "an object", |value| match value {
        Value::Object(args) => Ok(args),
        other => Err(other),
    });
    let data = fields.read("data", "a string or an object", |value| match value {
        Value::String(data) => Ok(data),
        object @ Value::Object(_) => Ok(object.to_string()),
        other => Err(other),
    });
    let nodes = fields.take("nodes").map(|list| node_pairs(&list)).transpose();
    let has_bad_nodes = nodes.is_err();
    let nodes = nodes.map_err(|reason| fields.note(reason)).ok().flatten().unwrap_or_default();
    let roles = fields.roles();
    let fanout = fields.boolean("fanout");
    let tags = fields.text("tags", "a string", |_| true);
    let mut quiet = fields.boolean("quiet");
    if quiet && !may_be_quiet(&cmd) {
        fields.note(format!(
            "quiet is for commands that only look (ping, get_…) and for input, resize, attach, follow and get; \
             leave it out of {}",
            shorten(&cmd.as_str().into())
        ));
        quiet = false;
    }
    if quiet && (expires == 0 || expires > MAX_QUIET_EXPIRES) {
        expires = MAX_QUIET_EXPIRES;
    }
    if !nodes.is_empty() && (nid > 0 || !roles.is_empty()) {
        fields.note("nodes stands beside nid or roles: give one of them".into());
    } else if nid > 0 && gid == 0 {
        fields.note("nid needs a gid beside it".into());
    } else if nid == 0 && roles.is_empty() && nodes.is_empty() && !has_bad_nodes {
        fields.note("no target: give gid and nid, nodes, or roles".into());
    }
    let Fields { left: extra, fault } = fields;
    let known_id = Some(id.clone()).filter(|id| !id.is_empty());
    let command = Command { id, gid, nid, cmd, args, data, nodes, roles, fanout, tags, expires, quiet, extra };
    match fault {
        None => Ok(command),
        Some(reason) => {
            Err(BadCommand { reason, partial: known_id.is_some().then(|| Box::new(command)), id: known_id })
        }
    }
}

/// Reads `nodes`: a list of 1 to `MAX_NODES` distinct pairs `[gid, nid]`.
fn node_pairs(value: &Value) -> Result<Vec<NodeId>, String> {
    let form = || format!("nodes must be a list of 1 to {MAX_NODES} pairs [gid, nid], not {}", shorten(value));
    let list = value.as_array().filter(|list| (1..=MAX_NODES).contains(&list.len())).ok_or_else(form)?;
    let mut nodes = Vec::with_capacity(list.len());
    let mut seen = HashSet::with_capacity(list.len());
    for pair in list {
        let number = |at: usize| whole(&pair[at]).and_then(|n| u32::try_from(n).ok());
        let node = match pair.as_array().map(Vec::len) {
            Some(2) => number(0).zip(number(1)).and_then(|(gid, nid)| NodeId::new(gid, nid)),
            _ => None,
        };
        let node = node.ok_or_else(|| format!("nodes must be pairs [gid, nid], and {} is none", shorten(pair)))?;
        if !seen.insert(node) {
            return Err(format!("nodes names {} twice", shorten(pair)));
        }
        nodes.push(node);
    }
    Ok(nodes)
}

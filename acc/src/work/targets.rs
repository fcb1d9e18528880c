//! Roles → nodes. Pure.
//!
//! Owns: which live nodes a command means. Does not own: which nodes are live (`node_directory`), or chance
//! itself: the caller brings a random number.

use jscommon::{Command, NodeId};

/// Whether `command` means a node with these roles (the command names no node itself).
pub(crate) fn fits(command: &Command, node: NodeId, roles: &[String]) -> bool {
    (command.gid == 0 || command.gid == node.gid)
        && command.roles.iter().all(|wanted| wanted == "*" || roles.contains(wanted))
}

/// The nodes that `command` means: the one it names; else all live ones that fit, in order, or one of
/// them when it is no fanout. `random` is a uniform draw from 0 to 1 (exclusive).
pub(crate) fn choose<'a>(
    command: &Command,
    live: impl Iterator<Item = (NodeId, &'a [String])>,
    random: f64,
) -> Vec<NodeId> {
    if let Some(node) = named(command) {
        return vec![node];
    }
    let mut nodes: Vec<NodeId> =
        live.filter(|(node, roles)| fits(command, *node, roles)).map(|(node, _)| node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    if command.fanout || nodes.len() < 2 {
        return nodes;
    }
    let index = (random * nodes.len() as f64) as usize;
    vec![nodes[index.min(nodes.len() - 1)]]
}

/// The node that `command` names, if it does.
pub(crate) fn named(command: &Command) -> Option<NodeId> {
    if command.nid == 0 { None } else { NodeId::new(command.gid, command.nid) }
}

/// The sentence for a command that no live node fits.
pub(crate) fn nobody(command: &Command) -> String {
    let place = if command.gid > 0 { format!(" in grid {}", command.gid) } else { String::new() };
    match command.roles.as_slice() {
        [role] if role == "*" => format!("there is no live node{place}"),
        [role] => format!("no live node{place} has the role '{role}'"),
        roles => format!("no live node{place} has all of the roles '{}'", roles.join("', '")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nodes() -> Vec<(NodeId, Vec<String>)> {
        [(1, 1, "web"), (1, 2, "web db"), (2, 1, "db"), (2, 2, "")]
            .iter()
            .map(|(gid, nid, roles)| {
                (NodeId { gid: *gid, nid: *nid }, roles.split_whitespace().map(str::to_owned).collect())
            })
            .collect()
    }

    #[track_caller]
    fn check(mut command: serde_json::Value, random: f64, want: &[&str]) {
        command["id"] = "a".into();
        command["cmd"] = "ping".into();
        let command = Command::from_value(command).unwrap();
        let nodes = nodes();
        let found = choose(&command, nodes.iter().map(|(node, roles)| (*node, roles.as_slice())), random);
        let found: Vec<String> = found.iter().map(NodeId::to_string).collect();
        assert_eq!(found, want, "{command:?}");
    }

    #[test]
    fn targets_are_chosen_by_every_kind_of_address() {
        check(json!({"gid": 7, "nid": 9}), 0.0, &["7:9"]);
        check(json!({"gid": 7, "nid": 9, "roles": ["web"], "fanout": true}), 0.0, &["7:9"]);
        check(json!({"roles": ["web"]}), 0.0, &["1:1"]);
        check(json!({"roles": ["web"]}), 0.99, &["1:2"]);
        check(json!({"roles": ["web"]}), 1.0, &["1:2"]);
        check(json!({"roles": ["web"], "fanout": true}), 0.0, &["1:1", "1:2"]);
        check(json!({"roles": ["web", "db"], "fanout": true}), 0.0, &["1:2"]);
        check(json!({"roles": ["*"], "fanout": true}), 0.0, &["1:1", "1:2", "2:1", "2:2"]);
        check(json!({"gid": 2, "roles": ["*"], "fanout": true}), 0.0, &["2:1", "2:2"]);
        check(json!({"gid": 2, "roles": ["db", "*"], "fanout": true}), 0.0, &["2:1"]);
        check(json!({"roles": ["mail"], "fanout": true}), 0.0, &[]);
        check(json!({"gid": 3, "roles": ["*"]}), 0.5, &[]);
    }

    #[test]
    fn missing_target_is_named() {
        let command = |value| Command::from_value(value).unwrap();
        let one = command(json!({"id": "a", "cmd": "ping", "roles": ["mail"]}));
        assert_eq!(nobody(&one), "no live node has the role 'mail'");
        let two = command(json!({"id": "a", "cmd": "ping", "gid": 4, "roles": ["a", "b"]}));
        assert_eq!(nobody(&two), "no live node in grid 4 has all of the roles 'a', 'b'");
        let any = command(json!({"id": "a", "cmd": "ping", "roles": ["*"]}));
        assert_eq!(nobody(&any), "there is no live node");
    }
}

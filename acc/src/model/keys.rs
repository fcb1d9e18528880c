//! Every name of a key in Redis.
//!
//! Keys that one atomic step touches share a hash tag (the part in braces), so that Redis Cluster
//! keeps them in one slot: `{cmds_queue}` for taking commands, `{gid:nid}` for what belongs to a node,
//! `{cmds_queue_<id>}` for a job's results, `{log.<domain>.<name>}` for a list of records.

use jscommon::NodeId;

/// List: clients LPUSH commands, controllers take them from the right.
pub(crate) const COMMANDS: &str = "cmds_queue";
/// List: ids of the last commands, newest left.
pub(crate) const JOBS: &str = "jsacc:jobs";
/// Sorted set: `gid:nid` by the time it was last seen (ms).
pub(crate) const AGENTS: &str = "jsacc:agents";
/// Sorted set: live controllers by their last beat (ms).
pub(crate) const CONTROLLERS: &str = "jsacc:acs";
/// Sorted set, in the slot of the processing lists: controllers by their last beat (ms), as `CONTROLLERS`.
pub(crate) const TAKERS: &str = "jsacc:{cmds_queue}:acs";
/// Sorted set: controllers that are no more, by the time (ms) since when; their processing lists are looked at for a while.
pub(crate) const GONE: &str = "jsacc:{cmds_queue}:gone";
/// List: startups, alerts, refused nodes, duplicates; newest left.
pub(crate) const EVENTS: &str = "jsacc:events";
/// List: what came in as a command and was none; newest left.
pub(crate) const REJECTED: &str = "jsacc:rejected";
/// List: batches of stats as they came, newest left.
pub(crate) const STATS_QUEUE: &str = "jsacc:stats_queue";
/// Hash beside `STATS_QUEUE`, in its slot: `gid:nid` → number of the last batch in the list.
pub(crate) const STATS_SEEN: &str = "jsacc:seen:{jsacc:stats_queue}";
/// Hash: `gid:nid` → JSON list of roles.
pub(crate) const ROLES: &str = "jsacc:{roles}";
/// Counter: moves with each change of `ROLES`.
pub(crate) const ROLES_VERSION: &str = "jsacc:{roles}:version";
/// Sorted set: `gid:nid:<job id>` of commands that wait, by the time at which they expire (ms).
pub(crate) const EXPIRING: &str = "jsacc:expiring";
/// Hash: `gid:nid` → time (ms) before which its credentials do not hold.
pub(crate) const REVOKED: &str = "jsacc:{revoked}";
/// Counter: moves with each change of `REVOKED`.
pub(crate) const REVOKED_VERSION: &str = "jsacc:{revoked}:version";
/// Hash: `current` and `previous` fingerprint of the node secret, `until` (ms) for the previous one.
pub(crate) const SECRET: &str = "jsacc:secret";
/// String: the key under which tickets are made, 64 hex digits.
pub(crate) const TICKET_KEY: &str = "jsacc:ticket_key";
/// Hash: id → bytes that its stream takes; the field `''` has the sum.
pub(crate) const STREAMS: &str = "jsacc:streams";
/// List: who had which command run; newest left.
pub(crate) const AUDIT: &str = "jsacc:audit";
/// Hash: `<job id> <STATE>` → number of results.
pub(crate) const AUDIT_RESULTS: &str = "jsacc:audit:results";

/// List: what the controller `ac` has taken from `COMMANDS` and not yet passed on.
pub(crate) fn taken(ac: &str) -> String {
    format!("jsacc:{{cmds_queue}}:taken:{ac}")
}

/// List: nodes (`gid:nid`) for which the controller `ac`, which holds their polls, has something to fetch.
pub(crate) fn wakeups(ac: &str) -> String {
    format!("jsacc:bell:{ac}")
}

/// Sorted set: ids of the commands that wait for `node`, by their number.
pub(crate) fn queue(node: NodeId) -> String {
    format!("jsacc:{{{node}}}:queue")
}

/// Hash: id → text of the commands that wait for `node`.
pub(crate) fn waiting(node: NodeId) -> String {
    format!("jsacc:{{{node}}}:cmds")
}

/// Hash: the state of `node`'s queue: `seq`, `ac`, `delivered`, `handed_at`, `instance`, `tickets`…
pub(crate) fn meta(node: NodeId) -> String {
    format!("jsacc:{{{node}}}:meta")
}

/// String: `node` was revoked and not enrolled since, so that no command may wait for it.
pub(crate) fn closed(node: NodeId) -> String {
    format!("jsacc:{{{node}}}:revoked")
}

/// Sorted set: ids of the last commands that were withdrawn from `node`'s queue, by when and why: see `withdraw.lua`.
pub(crate) fn withdrawn(node: NodeId) -> String {
    format!("jsacc:{{{node}}}:withdrawn")
}

/// Number: the last batch of records that was taken whole from `node`.
pub(crate) fn last_log(node: NodeId) -> String {
    format!("jsacc:{{{node}}}:log")
}

/// Sorted set: the lists of records that `node` writes to, by the time (ms) at which it last did, to the hour.
pub(crate) fn lists(node: NodeId) -> String {
    format!("jsacc:{{{node}}}:lists")
}

/// Hash: what is known of `node`.
pub(crate) fn agent(node: NodeId) -> String {
    format!("jsacc:agent:{}:{}", node.gid, node.nid)
}

/// Hash: what is granted to `node`.
pub(crate) fn grant(node: NodeId) -> String {
    format!("jsacc:grant:{}:{}", node.gid, node.nid)
}

/// Hash, in the slot of `grant`: when `node` was enrolled or revoked, what it claims, which kinds of claims were
/// granted at its first start.
pub(crate) fn enrolled(node: NodeId) -> String {
    format!("jsacc:enrolled:{{{}}}", grant(node))
}

/// Hash: the latest stats of `node`.
pub(crate) fn stats(node: NodeId) -> String {
    format!("jsacc:stats:{}:{}", node.gid, node.nid)
}

/// Number, in the slot of `stats`: the last batch that was written whole into it.
pub(crate) fn stats_written(node: NodeId) -> String {
    format!("jsacc:seen:{{{}}}", stats(node))
}

/// List: results of a job; clients BRPOP.
pub(crate) fn results(job: &str) -> String {
    format!("cmds_queue_{job}")
}

/// Hash, in the slot of `results`: per target what was delivered as its final answer.
pub(crate) fn done(job: &str) -> String {
    format!("jsacc:done:{{cmds_queue_{job}}}")
}

/// Sorted set, in the slot of `results`: the last runs of a recurring job that `node` has brought, by when (ms).
pub(crate) fn done_runs(job: &str, node: NodeId) -> String {
    format!("jsacc:done:{{cmds_queue_{job}}}:{node}")
}

/// String, in the slot of `results`: this run of a recurring job was delivered, by a controller of 0.1.0.
pub(crate) fn done_run(job: &str, node: NodeId, starttime: i64) -> String {
    format!("jsacc:done:{{cmds_queue_{job}}}:{node}:{starttime}")
}

/// Hash: a job, its targets and where it stands on each.
pub(crate) fn job(job: &str) -> String {
    format!("jsacc:job:{job}")
}

/// String: a client watches the job or command `id`; the id of the entry up to which it has read, or `1`.
pub(crate) fn watch(id: &str) -> String {
    format!("jsacc:watch:{id}")
}

/// Stream: the frames of a watch.
pub(crate) fn stream(id: &str) -> String {
    format!("jsacc:stream:{id}")
}

/// Hash, in the slot of `stream`: the last id, and per `gid:nid` how much was taken of it.
pub(crate) fn stream_state(id: &str) -> String {
    format!("jsacc:streamstate:{{{}}}", stream(id))
}

/// Hash, in the slot of the list of records `list`: `gid:nid` → number of its last batch in there.
pub(crate) fn seen(list: &str) -> String {
    format!("jsacc:seen:{{{list}}}")
}

/// String: the source of a script.
pub(crate) fn script(hash: &str) -> String {
    format!("jsacc:script:{hash}")
}

/// String: a piece of a large file.
pub(crate) fn blob(hash: &str, piece: u32) -> String {
    format!("jsacc:blob:{hash}:{piece}")
}

/// Counter: uses of an enrolment token.
pub(crate) fn enrolment(id: &str) -> String {
    format!("jsacc:enroll:{id}")
}

/// String, in the slot of `enrolment`: this use of the token was counted.
pub(crate) fn enrolment_use(id: &str, request: &str) -> String {
    format!("jsacc:seen:{{{}}}:{request}", enrolment(id))
}

/// `gid:nid:<job id>`, a member of `EXPIRING`.
pub(crate) fn expiring(node: NodeId, job: &str) -> String {
    format!("{node}:{job}")
}

/// The node and the job of a member of `EXPIRING`.
pub(crate) fn parse_expiring(member: &str) -> Option<(NodeId, &str)> {
    let nid_at = member.find(':')? + 1;
    let job_at = nid_at + member.get(nid_at..)?.find(':')? + 1;
    Some((member.get(..job_at - 1)?.parse().ok()?, member.get(job_at..)?))
}

/// The type that a key must be of, as `TYPE` names it; where there are two, both; nothing where it is not known.
pub(crate) fn kind(key: &str) -> &'static str {
    // Behind the braces stands what it is of what they name.
    let (head, tail) = key.split_once('}').map_or((key, ""), |(head, tail)| (head, tail));
    match (head, tail) {
        _ if key.starts_with("jsacc:streamstate:{") || key == STREAMS => "hash",
        _ if key.starts_with("jsacc:stream:") => "stream",
        _ if key.starts_with("jsacc:watch:") => "string",
        _ if head.starts_with("jsacc:done:{") => match tail.split(':').count() {
            1 => "hash",
            3 => "zset",
            _ => "string",
        },
        (_, ":queue" | ":withdrawn" | ":lists" | ":acs" | ":gone") => "zset",
        (_, ":cmds" | ":meta") => "hash",
        (_, ":log" | ":version" | ":revoked") => "string",
        _ if tail.starts_with(":taken:") => "list",
        _ if head.starts_with("jsacc:seen:{jsacc:stats:") => "string",
        _ if ["jsacc:seen:{", "jsacc:enrolled:{"].iter().any(|start| head.starts_with(start)) => "hash",
        ("jsacc:{roles" | "jsacc:{revoked", "") => "hash",
        (AGENTS | CONTROLLERS | EXPIRING, _) => "zset",
        (SECRET | AUDIT_RESULTS, _) => "hash",
        (TICKET_KEY, _) => "string",
        (JOBS | EVENTS | REJECTED | AUDIT | STATS_QUEUE, _) => "list",
        _ if ["cmds_queue", "log.", "jsacc:bell:"].iter().any(|start| head.starts_with(start)) => "list",
        _ if ["jsacc:job:", "jsacc:agent:", "jsacc:stats:", "jsacc:grant:"]
            .iter()
            .any(|start| head.starts_with(start)) =>
        {
            "hash"
        }
        _ if ["jsacc:script:", "jsacc:blob:", "jsacc:enroll:"].iter().any(|start| head.starts_with(start)) => "string",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_one_step_share_their_tag() {
        let node = NodeId { gid: 1, nid: 10 };
        for key in [queue(node), waiting(node), meta(node), closed(node)] {
            assert!(key.starts_with("jsacc:{1:10}:"), "{key}");
        }
        assert_eq!(taken("x"), "jsacc:{cmds_queue}:taken:x");
        assert!([TAKERS, GONE].iter().all(|key| key.starts_with("jsacc:{cmds_queue}:")));
        assert_eq!(done("a"), "jsacc:done:{cmds_queue_a}");
        assert_eq!(done_runs("a", node), "jsacc:done:{cmds_queue_a}:1:10");
        assert_eq!(done_run("a", node, 5), "jsacc:done:{cmds_queue_a}:1:10:5");
        assert_eq!(seen("log.a.b"), "jsacc:seen:{log.a.b}");
        assert_eq!(stream_state("a"), "jsacc:streamstate:{jsacc:stream:a}");
        assert_eq!(stats_written(node), "jsacc:seen:{jsacc:stats:1:10}");
        assert_eq!(enrolled(node), "jsacc:enrolled:{jsacc:grant:1:10}");
        assert_eq!(enrolment_use("ab", "7"), "jsacc:seen:{jsacc:enroll:ab}:7");
    }

    #[test]
    fn every_key_has_its_type() {
        let node = NodeId { gid: 1, nid: 10 };
        for (want, keys) in [
            (
                "list",
                vec![
                    COMMANDS.to_owned(),
                    taken("h:1:x"),
                    wakeups("h:1:x"),
                    results("a"),
                    "log.a.b".into(),
                    JOBS.into(),
                ],
            ),
            ("list", vec![EVENTS.to_owned(), REJECTED.into(), AUDIT.into(), STATS_QUEUE.into()]),
            ("zset", vec![AGENTS.to_owned(), CONTROLLERS.into(), TAKERS.into(), GONE.into(), EXPIRING.into()]),
            ("zset", vec![queue(node), lists(node), done_runs("a", node)]),
            ("hash", vec![waiting(node), meta(node), agent(node), stats(node), job("a:b"), done("a"), seen("log.a.b")]),
            ("hash", vec![grant(node), enrolled(node), stream_state("a"), STREAMS.to_owned()]),
            ("stream", vec![stream("a}:queue")]),
            ("string", vec![watch("a")]),
            ("hash", vec![ROLES.to_owned(), REVOKED.into(), SECRET.into(), AUDIT_RESULTS.into(), STATS_SEEN.into()]),
            (
                "string",
                vec![
                    closed(node),
                    last_log(node),
                    stats_written(node),
                    done_run("a", node, 5),
                    script("x"),
                    blob("x", 7),
                    enrolment("x"),
                ],
            ),
            ("string", vec![ROLES_VERSION.to_owned(), REVOKED_VERSION.into(), TICKET_KEY.into()]),
        ] {
            for key in keys {
                assert_eq!(kind(&key), want, "{key}");
            }
        }
        assert_eq!(kind("else"), "");
    }

    #[test]
    fn expiring_members_are_read_back() {
        let node = NodeId { gid: 1, nid: 10 };
        assert_eq!(parse_expiring(&expiring(node, "a:b:c")), Some((node, "a:b:c")));
        for bad in ["", "1", "1:2", "x:1:y"] {
            assert_eq!(parse_expiring(bad), None, "{bad}");
        }
    }
}

//! The rules for each command once all is quiet: one answer for each target, each effect at most once. Pure.

use crate::load::{Kind, Sent, Targets};
use serde_json::Value;
use std::collections::BTreeMap;

/// The records of one command.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// The list of results.
    pub(crate) list: Vec<Value>,
    /// The job's hash.
    pub(crate) hash: BTreeMap<String, String>,
    /// How often its effect is written down at each node.
    pub(crate) effects: BTreeMap<u32, usize>,
}

/// The other commands of the load that were about this one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Touched {
    pub(crate) cancelled: bool,
    pub(crate) killed: bool,
}

/// A rule that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    Lost,
    Doubled,
    Unexplained,
}

/// How one command ended: its answers by reason, and what is wrong.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    pub(crate) reasons: Vec<&'static str>,
    pub(crate) faults: Vec<(Fault, String)>,
}

/// Judges one command.
pub(crate) fn judge(sent: &Sent, seen: &Seen, touched: Touched) -> Judged {
    let mut judged = Judged::default();
    let mut fault = |fault, what: String| judged.faults.push((fault, format!("{}: {what}", sent.id)));
    let mut by_target: BTreeMap<(u64, u64), Vec<&Value>> = BTreeMap::new();
    for result in &seen.list {
        let number = |key: &str| result[key].as_u64().unwrap_or(0);
        by_target.entry((number("gid"), number("nid"))).or_default().push(result);
    }
    for ((gid, nid), results) in &by_target {
        if results.len() > 1 {
            fault(Fault::Doubled, format!("{} answers of {gid}.{nid}: {results:?}", results.len()));
        }
        let is_target = match &sent.targets {
            Targets::Nodes(nodes) => *gid == 1 && nodes.iter().any(|node| u64::from(*node) == *nid),
            Targets::OneOfRole => *gid == 1 && *nid > 0,
            Targets::Own => (*gid, *nid) == (0, 0),
        };
        if !is_target {
            fault(Fault::Unexplained, format!("{gid}.{nid} was not asked: {results:?}"));
        }
        let hashed = seen.hash.get(&format!("{gid}:{nid}")).and_then(|text| serde_json::from_str::<Value>(text).ok());
        if hashed.as_ref() != results.first().copied() {
            fault(Fault::Unexplained, format!("the list has {:?} and the hash {hashed:?}", results[0]));
        }
    }
    if by_target.len() < sent.targets.count() {
        let missing = sent.targets.count() - by_target.len();
        fault(Fault::Lost, format!("{missing} of {} answers; the hash has {:?}", sent.targets.count(), seen.hash));
    } else if by_target.len() > sent.targets.count() {
        fault(Fault::Doubled, format!("answers of {} targets, and not {}", by_target.len(), sent.targets.count()));
    }
    let mut reasons = Vec::new();
    for ((_, nid), results) in &by_target {
        let (reason, runs) = match reason(sent, results[0], touched) {
            Some(known) => known,
            None => {
                fault(Fault::Unexplained, format!("{}", results[0]));
                ("unexplained", Runs::Perhaps)
            }
        };
        reasons.push(reason);
        let effects = seen.effects.get(&(*nid as u32)).copied().unwrap_or(0);
        match runs {
            Runs::Once if effects == 0 => fault(Fault::Lost, format!("{reason} at node {nid}, and no effect")),
            Runs::Never if effects > 0 => fault(Fault::Unexplained, format!("{reason} at node {nid}, and it ran")),
            _ => {}
        }
    }
    for (nid, effects) in &seen.effects {
        if *effects > 1 {
            fault(Fault::Doubled, format!("{effects} effects at node {nid}"));
        }
        if !by_target.contains_key(&(1, u64::from(*nid))) && by_target.len() >= sent.targets.count() {
            fault(Fault::Unexplained, format!("node {nid} was not asked, and it ran there"));
        }
    }
    judged.reasons = reasons;
    judged
}

/// Whether the effect must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runs {
    Once,
    Perhaps,
    Never,
}

/// Why a command ended so, and whether it ran; nothing where that is no reason.
fn reason(sent: &Sent, result: &Value, touched: Touched) -> Option<(&'static str, Runs)> {
    let data = result["data"].as_str().unwrap_or_default();
    let is_job = matches!(sent.kind, Kind::Effect | Kind::Expiring);
    Some(match result["state"].as_str()? {
        "OK" if is_job => ("OK", Runs::Once),
        "OK" if sent.kind != Kind::Nobody => ("OK", Runs::Perhaps),
        "ERROR" if data.contains("the agent died while") => ("the agent died while it ran", Runs::Perhaps),
        "ERROR" if sent.kind == Kind::Expiring && data.starts_with("expired: ") => ("expired", Runs::Perhaps),
        "ERROR" if sent.kind == Kind::Nobody && data.starts_with("no live node ") => ("for no node", Runs::Never),
        "ERROR" if matches!(sent.kind, Kind::Cancel(_) | Kind::Kill(_)) && is_too_late(data) => {
            ("too early or too late for it", Runs::Never)
        }
        "KILLED" if touched.cancelled && data.starts_with("cancelled ") => ("cancelled", Runs::Never),
        "KILLED" if touched.killed && data.contains("on request") => ("killed", Runs::Perhaps),
        "KILLED" if data.contains("the agent was told to stop") => ("the agent was stopped", Runs::Perhaps),
        _ => return None,
    })
}

/// Whether a `cancel` or `kill` says that there is no such job, or no longer.
fn is_too_late(data: &str) -> bool {
    ["already with node", "has ended", "no such job", "no job"].iter().any(|part| data.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sent(kind: Kind, nodes: &[u32]) -> Sent {
        let targets = if nodes.is_empty() { Targets::Own } else { Targets::Nodes(nodes.to_vec()) };
        Sent { id: "a".into(), kind, targets }
    }

    fn result(nid: u32, state: &str, data: &str) -> Value {
        json!({"gid": nid.min(1), "nid": nid, "state": state, "data": data})
    }

    /// The records where list and hash agree.
    fn seen(results: &[Value], effects: &[(u32, usize)]) -> Seen {
        let field = |result: &Value| (format!("{}:{}", result["gid"], result["nid"]), result.to_string());
        let hash = results.iter().map(field).collect();
        Seen { list: results.to_vec(), hash, effects: effects.iter().copied().collect() }
    }

    #[track_caller]
    fn check(sent: &Sent, seen: &Seen, touched: Touched, expected: &[Fault]) {
        let judged = judge(sent, seen, touched);
        let faults: Vec<Fault> = judged.faults.iter().map(|(fault, _)| *fault).collect();
        assert_eq!(faults, expected, "{judged:?}");
    }

    #[test]
    fn correct_outcomes_have_no_fault() {
        let none = Touched::default();
        let job = sent(Kind::Effect, &[1]);
        check(&job, &seen(&[result(1, "OK", "")], &[(1, 1)]), none, &[]);
        for effects in [&[][..], &[(1, 1)]] {
            check(&job, &seen(&[result(1, "ERROR", "the agent died while the job ran")], effects), none, &[]);
            let expired = result(1, "ERROR", "expired: node 1:1 did not come");
            check(&sent(Kind::Expiring, &[1]), &seen(&[expired], effects), none, &[]);
        }
        let both = [result(1, "OK", ""), result(2, "OK", "")];
        check(&sent(Kind::Effect, &[1, 2]), &seen(&both, &[(1, 1), (2, 1)]), none, &[]);
        check(&sent(Kind::Nobody, &[]), &seen(&[result(0, "ERROR", "no live node has")], &[]), none, &[]);
        let cancelled = Touched { cancelled: true, killed: false };
        check(&job, &seen(&[result(1, "KILLED", "cancelled before its node took it")], &[]), cancelled, &[]);
    }

    #[test]
    fn every_fault_is_found() {
        let (none, job) = (Touched::default(), sent(Kind::Effect, &[1]));
        let ok = || result(1, "OK", "");
        check(&job, &seen(&[], &[]), none, &[Fault::Lost]);
        check(&job, &seen(&[ok(), ok()], &[(1, 1)]), none, &[Fault::Doubled]);
        check(&job, &seen(&[ok()], &[]), none, &[Fault::Lost]);
        check(&job, &seen(&[ok()], &[(1, 2)]), none, &[Fault::Doubled]);
        check(&job, &seen(&[ok()], &[(1, 1), (2, 1)]), none, &[Fault::Unexplained]);
        check(&job, &seen(&[result(2, "OK", "")], &[(2, 1)]), none, &[Fault::Unexplained]);
        check(&sent(Kind::Effect, &[1, 2]), &seen(&[ok()], &[(1, 1)]), none, &[Fault::Lost]);
        for (state, data) in [("ERROR", "lost: it never reached"), ("ERROR", "expired: "), ("KILLED", "cancelled ")] {
            check(&job, &seen(&[result(1, state, data)], &[]), none, &[Fault::Unexplained]);
        }
        let cancelled = Touched { cancelled: true, killed: false };
        let ran = seen(&[result(1, "KILLED", "cancelled before its node took it")], &[(1, 1)]);
        check(&job, &ran, cancelled, &[Fault::Unexplained]);
        let mut other = seen(&[ok()], &[(1, 1)]);
        other.hash.insert("1:1".into(), r#"{"state":"RUNNING"}"#.into());
        check(&job, &other, none, &[Fault::Unexplained]);
    }
}

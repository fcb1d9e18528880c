//! `POST /{gid}/{nid}/event`: starts and stops, alerts, what an agent noticed.

use super::{ENTRY_BYTES, Fault, Outcome, bad, bytes, expect_room, json, refuse, revoked, spend};
use crate::api::context::Context;
use crate::api::rate_limiter::{Charge, Resource};
use crate::http::{Reply, Request};
use crate::model::claims::{self, MAX_CLAIMS, is_host};
use crate::model::events;
use crate::model::events::RESERVED;
use crate::model::grants::{self, Claims, Compared, Standing};
use crate::model::{nodes, polls};
use crate::redis::Batch;
use crate::redis::errors::{describe, is_away, is_spoilt};
use jscommon::NodeId;
use jscommon::node::{MAX_ROLE, is_role};
use serde_json::{Map, Value};

/// Longest text of an event that is kept, in bytes.
const MAX_DATA_BYTES: usize = 64 << 10;

/// Roles that are told when they are refused, at most.
const MAX_REFUSED_ROLES: usize = 10;

pub(super) fn post(context: &Context, node: NodeId, request: &mut Request) -> Outcome {
    let body = std::mem::take(&mut request.body);
    expect_room(context, node, &[Charge::new(Resource::Events, 1)])?;
    // As JSON a text may be six times as long as it is.
    if body.len() > 8 * MAX_DATA_BYTES {
        return Err(refuse(413, format!("an event's 'data' has at most {MAX_DATA_BYTES} bytes")));
    }
    let mut body = json(&context.values, &context.metrics, node, body)?;
    let mut data = body.value.get_mut("data").map_or(Value::Object(Map::new()), Value::take);
    let name = body
        .value
        .get("name")
        .and_then(Value::as_str)
        .filter(|name| is_role(name))
        .map(str::to_owned)
        .ok_or_else(|| bad("'name' must be the event's name, 1 to 64 of A-Z a-z 0-9 . _ : / -"))?;
    drop(body);
    let name = name.as_str();
    if RESERVED.contains(&name) {
        return Err(bad(format!("the event '{name}' is the controller's own: a node cannot tell it")));
    }
    let length = data.to_string().len();
    if length > MAX_DATA_BYTES {
        return Err(bad(format!("'data' is longer than {MAX_DATA_BYTES} bytes")));
    }
    let stored = length + name.len() + ENTRY_BYTES;
    spend(
        context,
        node,
        &[Charge::new(Resource::Events, 1), Charge::new(Resource::EventBytes, stored), bytes(stored)],
    )?;
    let now = context.clock.now();
    let mut facts: Vec<(&str, String)> = Vec::new();
    let (mut claims, mut faults) = (Claims::default(), Vec::new());
    if name == "startup" {
        for field in ["os", "version", "instance"] {
            if let Some(value) = data.get(field).and_then(Value::as_str) {
                facts.push((field, value.chars().filter(|c| !c.is_control()).take(256).collect()));
            }
        }
        (claims, faults) = claims_of(&mut data);
    }
    let claimed = if claims == Claims::default() { None } else { Some(compare(context, request, node, now, &claims)?) };
    context.pool.with(|conn| {
        // Last what is not to happen twice when the node sends it again.
        let (mut known, mut event) = (Batch::new(), Batch::new());
        nodes::describe(&mut known, node, &facts);
        if let Some((standing, _)) = &claimed {
            grants::show(&mut known, node, standing);
        }
        if let ("shutdown", Some(instance)) = (name, data.get("instance").and_then(Value::as_str)) {
            nodes::stopped(&mut known, node, instance, now);
            let mut left = Batch::new();
            polls::left(&mut left, node, instance);
            match conn.run(&left) {
                // The end of the agent is told all the same.
                Err(e) if is_away(&e) || is_spoilt(&e) => ::log::debug!("an agent's end: {}", describe(&e)),
                outcome => drop(outcome?),
            }
        }
        if let Some((standing, true)) = &claimed {
            claims::report(&mut event, node, now, standing);
        }
        events::add(&mut event, name, Some(node), now, &data);
        conn.run_in_turn(known, event).map(drop)
    })?;
    if let Some((standing, _)) = &claimed {
        context.claims.note(node, None, standing);
    }
    // Once a start: an agent whose event was not taken sends it again.
    faults.iter().for_each(|fault| ::log::warn!("node {node} has {fault}"));
    Ok(Reply::json("{}"))
}

/// Returns what a `startup` event claims, and what is wrong with it; what cannot be claimed is taken out of it.
fn claims_of(data: &mut Value) -> (Claims, Vec<String>) {
    let (mut claims, mut faults) = (Claims::default(), Vec::new());
    let Some(data) = data.as_object_mut() else { return (claims, faults) };
    if let Some((roles, refused)) = data.get("roles").and_then(Value::as_array).map(|roles| sorted_out(roles)) {
        if !refused.is_empty() {
            faults.push(format!("roles that are none and are passed over: {}", Value::from(refused.clone())));
            data.insert("roles".into(), roles.clone().into());
            data.insert("refused_roles".into(), refused.into());
        }
        claims.roles = Some(roles);
    }
    if let Some((labels, refused)) = data.get("labels").and_then(Value::as_object).map(claims::labels) {
        if refused > 0 {
            faults.push(format!("{refused} labels that are none, or too many, and are passed over"));
            data.insert("refused_labels".into(), refused.into());
        }
        claims.labels = Some(labels);
    }
    claims.host = data.get("hostname").and_then(Value::as_str).filter(|host| is_host(host)).map(str::to_owned);
    (claims, faults)
}

/// Compares claims with what `node` is granted; the answer is that, and whether claims beyond are to be told.
fn compare(
    context: &Context,
    request: &Request,
    node: NodeId,
    now: u64,
    claims: &Claims,
) -> Result<(Standing, bool), Fault> {
    if context.config.insecure_no_auth {
        return Ok((Standing::all_of(claims), false));
    }
    let compared = context.pool.with(|conn| {
        let mut batch = Batch::new();
        grants::claim(&mut batch, node, now, request.issued(), claims);
        grants::compared(conn.run(&batch)?.pop().unwrap_or(redis::Value::Nil))
    })?;
    match compared {
        Compared::Known(standing, tell) => Ok((standing, tell)),
        Compared::Revoked => Err(Fault::Reply(revoked(node))),
        Compared::Unknown => Ok((Standing::default(), false)),
    }
}

/// The roles that are good, and the beginnings of some that are not, for people.
fn sorted_out(roles: &[Value]) -> (Vec<String>, Vec<String>) {
    let (mut good, mut refused) = (Vec::new(), Vec::new());
    for role in roles {
        match role.as_str().filter(|role| is_role(role)) {
            Some(role) if good.len() < MAX_CLAIMS => good.push(role.to_owned()),
            _ if refused.len() < MAX_REFUSED_ROLES => {
                let text = role.as_str().map_or_else(|| role.to_string(), str::to_owned);
                refused.push(text.escape_debug().take(MAX_ROLE).collect());
            }
            _ => {}
        }
    }
    (good, refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn roles_of_other_characters_are_sorted_out() {
        let roles = json!(["web", "x;touch y", 7, "a\nb", "", "db/1", "\u{1b}[1m"]);
        let (good, refused) = sorted_out(roles.as_array().unwrap());
        assert_eq!(good, ["web", "db/1"]);
        assert_eq!(refused, ["x;touch y", "7", "a\\nb", "", "\\u{1b}[1m"]);
        let many = vec![json!("x".repeat(1000)); 1000];
        let (good, refused) = sorted_out(&many);
        assert!(
            good.is_empty() && refused.len() == MAX_REFUSED_ROLES && refused.iter().all(|role| role.len() == MAX_ROLE)
        );
        assert_eq!(sorted_out(&vec![json!("web"); 1000]).0.len(), MAX_CLAIMS);
    }

    #[test]
    fn bad_claims_become_an_event() {
        let mut data = json!({"roles": ["web", "a b"], "labels": {"site": "ams", "x y": "z"}});
        let (claims, faults) = claims_of(&mut data);
        assert_eq!((claims.roles, claims.labels), (Some(vec!["web".into()]), Some(vec!["site=ams".into()])));
        let want = [r#"roles that are none and are passed over: ["a b"]"#, "1 labels that are none, or too many"];
        assert!(
            faults.len() == 2 && faults.iter().zip(want).all(|(fault, want)| fault.starts_with(want)),
            "{faults:?}"
        );
        assert_eq!((&data["roles"], &data["refused_roles"]), (&json!(["web"]), &json!(["a b"])));
        assert_eq!(claims_of(&mut json!({"roles": ["web"]})).1, Vec::<String>::new());
    }
}

//! A node that has credentials, and an enrolment token for it.

use jstests::{
    Acc, AccOptions, Action, Agent, AgentOptions, Client, FakeNode, LONG, Proxy, Redis, Reply, run, wait_until,
};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn site() -> (Redis, Acc, Client) {
    jstests::site(AccOptions::with_auth())
}

#[track_caller]
fn token(acc: &Acc, more: &[&str]) -> String {
    let output = acc.command(&[&["token"], more].concat());
    assert_eq!(output.code, 0, "{output:?}");
    output.stdout.trim().to_owned()
}

fn enroll(acc: &Acc, token: &str, nid: u32, request: Option<&str>) -> Reply {
    let mut body = json!({"gid": 1, "nid": nid});
    request.iter().for_each(|request| body["request"] = json!(request));
    acc.anonymous().with_token(Some(token)).post_text("/enroll", &body.to_string())
}

fn node(acc: &Acc, reply: &Reply) -> FakeNode {
    assert_eq!(reply.status, 200, "{reply:?}");
    let node = FakeNode::new(&acc.url(), None, 1, 1, None);
    node.with_token(Some(reply.json()["token"].as_str().expect("a token")))
}

fn polls(node: &FakeNode) -> u16 {
    node.get("/1/1/cmd?wait=0").status
}

fn jsagent(acc: &Acc, url: &str, token: &str, nid: &str, out: &Path) -> jstests::Output {
    assert!(!acc.url().starts_with("https"));
    let out = out.to_str().expect("a path in UTF-8");
    run("jsagent", &["enroll", "--controller", url, "--token", token, "--gid", "1", "--nid", nid, "--out", out])
}

#[test]
fn node_that_has_credentials_is_enrolled_again_only_to_replace_them() {
    let (_redis, acc, mut client) = site();
    let old = node(&acc, &enroll(&acc, &token(&acc, &["--role", "web"]), 1, None));
    assert_eq!(polls(&old), 204);
    let another = token(&acc, &[]);
    let refused = enroll(&acc, &another, 1, None);
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(refused.error().contains("jsacc token --node 1.1 --replace"), "{refused:?}");
    assert_eq!(polls(&old), 204);
    assert_eq!(enroll(&acc, &another, 2, None).status, 200, "the refusal has spent nothing");

    let replacing = token(&acc, &["--node", "1.1", "--replace"]);
    assert_eq!(enroll(&acc, &replacing, 2, None).status, 403, "it is for another node");
    let new = node(&acc, &enroll(&acc, &replacing, 1, None));
    assert_eq!(polls(&new), 204);
    wait_until("the old credentials are refused", LONG, || polls(&old) == 401);
    assert_eq!(polls(&new), 204);
    assert!(client.redis::<bool>(&["HEXISTS", "jsacc:grant:1:1", "role:web"]), "it keeps its grants");
    assert_eq!(enroll(&acc, &replacing, 1, None).status, 403, "it is spent");
    assert_eq!(polls(&new), 204);
}

#[test]
fn jsagent_says_what_to_do_for_a_node_that_has_credentials() {
    let (_redis, acc, _client) = site();
    let _ = acc.enroll(1, 1);
    let home = tempfile::tempdir().expect("a folder");
    let out = home.path().join("node");
    let output = jsagent(&acc, &acc.url(), &token(&acc, &[]), "1", &out);
    assert_eq!(output.code, 1, "{output:?}");
    for word in ["has credentials that hold", "--node 1.1 --replace", "jsacc revoke 1 1"] {
        assert!(output.stderr.contains(word), "{output:?}");
    }
    assert!(!output.stderr.contains("busy") && output.stderr.trim().lines().count() == 1, "{output:?}");
    assert!(!out.exists(), "a refusal leaves nothing behind");
}

#[test]
fn revoked_node_is_enrolled_by_any_token_and_one_of_an_earlier_version_by_none() {
    let (_redis, acc, mut client) = site();
    let _ = acc.enroll(1, 1);
    let any = token(&acc, &[]);
    assert_eq!(enroll(&acc, &any, 1, None).status, 409);
    assert_eq!(acc.command(&["revoke", "1", "1"]).code, 0);
    assert_eq!(polls(&node(&acc, &enroll(&acc, &any, 1, None))), 204);

    // An earlier version has seen this one, and kept no record of its enrolment.
    let now = jstests::now_ms().to_string();
    let _: i64 = client.redis(&["ZADD", "jsacc:agents", &now, "1:3"]);
    assert_eq!(enroll(&acc, &token(&acc, &[]), 3, None).status, 409);
    let _: i64 = client.redis(&["HSET", "jsacc:{revoked}", "1:3", &now]);
    assert_eq!(enroll(&acc, &token(&acc, &[]), 3, None).status, 200, "it was revoked since it was seen");
}

#[test]
fn enrolment_whose_answer_was_lost_is_asked_for_again() {
    let (_redis, acc, mut client) = site();
    let once = token(&acc, &[]);
    let lost = node(&acc, &enroll(&acc, &once, 1, Some("a-1")));
    let again = node(&acc, &enroll(&acc, &once, 1, Some("a-1")));
    assert_eq!((polls(&lost), polls(&again)), (204, 204));
    // The controller died when it had counted the use, and before anything else.
    let _: i64 = client.redis(&["DEL", "jsacc:enrolled:{jsacc:grant:1:1}", "jsacc:agents"]);
    assert_eq!(polls(&node(&acc, &enroll(&acc, &once, 1, Some("a-1")))), 204);

    for (nid, request) in [(1, Some("a-2")), (1, None), (2, Some("a-1"))] {
        let refused = enroll(&acc, &once, nid, request);
        assert!(refused.status == 403 && refused.error().contains("spent"), "{nid} {request:?}: {refused:?}");
    }
    let long = "x".repeat(65);
    for bad in ["", "a b", "a/b", &long] {
        assert_eq!(enroll(&acc, &once, 1, Some(bad)).status, 400, "{bad}");
    }
    // A node that knows that use does not come back by it.
    assert_eq!(acc.command(&["revoke", "1", "1"]).code, 0);
    let refused = enroll(&acc, &once, 1, Some("a-1"));
    assert!(refused.status == 403 && refused.error().contains("spent"), "{refused:?}");
    let _ = acc.enroll(1, 1);
    assert_eq!(enroll(&acc, &once, 1, Some("a-1")).status, 409);
    // The same for a token that replaces.
    let replacing = token(&acc, &["--node", "1.1", "--replace"]);
    let lost = node(&acc, &enroll(&acc, &replacing, 1, Some("b-1")));
    let again = node(&acc, &enroll(&acc, &replacing, 1, Some("b-1")));
    assert_eq!(polls(&again), 204);
    wait_until("what was lost is replaced too", LONG, || polls(&lost) == 401);
    let _ = acc.enroll(1, 1);
    assert_eq!(enroll(&acc, &replacing, 1, Some("b-1")).status, 403, "it was enrolled otherwise since");
}

#[test]
fn jsagent_enrols_with_the_same_token_when_its_answer_was_lost() {
    let (_redis, acc, mut client) = site();
    let proxy = Proxy::start(acc.port());
    proxy.rule(|request| if request.nth == 0 { Action::Swallow } else { Action::Forward });
    let home = tempfile::tempdir().expect("a folder");
    let out = home.path().join("node");
    let once = token(&acc, &[]);
    let first = jsagent(&acc, &proxy.url(), &once, "1", &out);
    assert!(first.code == 1 && !out.join("token").exists(), "{first:?}");
    assert!(client.redis::<bool>(&["HEXISTS", "jsacc:enrolled:{jsacc:grant:1:1}", "issued"]), "its use was counted");
    let second = jsagent(&acc, &proxy.url(), &once, "1", &out);
    assert_eq!(second.code, 0, "{second:?}");
    let files: Vec<String> = std::fs::read_dir(&out)
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("enroll"))
        .collect();
    assert!(files.is_empty(), "{files:?}");
    let text = std::fs::read_to_string(out.join("token")).expect("the token");
    let node = FakeNode::new(&acc.url(), None, 1, 1, Some(text.trim().to_owned()));
    assert_eq!(polls(&node), 204);
    let third = jsagent(&acc, &proxy.url(), &once, "1", &home.path().join("other"));
    assert!(third.code == 1 && third.stderr.contains("spent"), "{third:?}");
    let bodies: Vec<Value> =
        proxy.seen().iter().map(|(request, _)| serde_json::from_slice(&request.body).expect("JSON")).collect();
    assert!(bodies[0] == bodies[1] && bodies[1] != bodies[2], "{bodies:?}");
}

#[test]
fn running_agent_that_is_enrolled_again_says_who_it_is() {
    let (_redis, acc, mut client) = site();
    let agent = Agent::start(&acc, AgentOptions::default());
    let host = |client: &mut Client| client.redis::<Option<String>>(&["HGET", "jsacc:agent:1:10", "hostname"]);
    wait_until("its host name is known", LONG, || host(&mut client).is_some());
    let name = host(&mut client);
    assert_eq!(acc.command(&["revoke", "1", "10"]).code, 0);
    wait_until("it is refused", LONG, || agent.output().contains("were revoked"));
    assert_eq!(host(&mut client), None);
    fs::write(agent.scratch().join("main.token"), acc.enroll(1, 10).token).expect("its new token");
    wait_until("its host name is known again", LONG, || host(&mut client) == name);
    assert!(client.redis::<bool>(&["HEXISTS", "jsacc:agent:1:10", "version"]));
    let starts: Vec<_> = client.events().into_iter().filter(|event| event["name"] == "startup").collect();
    let instances: Vec<_> = starts.iter().map(|event| &event["data"]["instance"]).collect();
    assert!(instances.len() == 2 && instances[0] == instances[1], "{starts:?}");
    assert_eq!(starts.iter().filter(|event| event["data"]["again"].is_string()).count(), 1, "{starts:?}");
}

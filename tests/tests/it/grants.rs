//! The claims of a node, and the grants to it.

use jstests::redis_cluster::Cluster;
use jstests::{Acc, AccOptions, Client, FakeNode, LONG, Redis, wait_for, wait_until};
use serde_json::{Value, json};

fn site() -> (Redis, Acc, Client) {
    jstests::site(AccOptions::with_auth())
}

/// A field of what is known of node 1:1, as JSON where it is.
fn known(client: &mut Client, field: &str) -> Value {
    let text: Option<String> = client.redis(&["HGET", "jsacc:agent:1:1", field]);
    text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

fn told(client: &mut Client) -> Vec<Value> {
    client.events().into_iter().filter(|event| event["name"] == "not_granted").collect()
}

/// Whether a command for this role finds a node.
#[track_caller]
fn reaches(client: &mut Client, role: &str) -> bool {
    let id = client.push(json!({"roles": [role], "fanout": true, "cmd": "ping"}));
    let targets = wait_for("the job is known", LONG, || client.job(&id).remove("targets"));
    targets != "[]"
}

#[track_caller]
fn grant(client: &mut Client, claim: &str) {
    let _: i64 = client.redis(&["HSET", "jsacc:grant:1:1", claim, r#"{"by":"alice","at":1}"#]);
}

fn startup(node: &FakeNode, data: Value) {
    let reply = node.post("event", &json!({"name": "startup", "data": data}));
    assert_eq!(reply.status, 200, "{reply:?}");
}

#[test]
fn role_claimed_after_the_first_start_is_no_target_until_it_is_granted() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 1);
    assert!(node.poll_as(&["web"], 0, None).is_none());
    assert!(client.redis::<bool>(&["HEXISTS", "jsacc:grant:1:1", "role:web"]));
    assert!(reaches(&mut client, "web"));
    for _ in 0..5 {
        let _ = node.poll_as(&["vault", "web"], 0, None);
    }
    assert_eq!((known(&mut client, "roles"), known(&mut client, "claims")), (json!(["web"]), json!(["role:vault"])));
    assert!(reaches(&mut client, "web") && !reaches(&mut client, "vault"));
    let events = told(&mut client);
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((&events[0]["nid"], &events[0]["data"]["claims"]), (&json!(1), &json!(["role:vault"])));

    // The node says nothing meanwhile.
    grant(&mut client, "role:vault");
    wait_until("the grant has come to the controller", LONG, || known(&mut client, "roles") == json!(["vault", "web"]));
    assert_eq!(known(&mut client, "claims"), Value::Null);
    assert!(reaches(&mut client, "vault"));

    let _: i64 = client.redis(&["HDEL", "jsacc:grant:1:1", "role:vault"]);
    wait_until("the grant is taken back", LONG, || known(&mut client, "roles") == json!(["web"]));
    assert!(!reaches(&mut client, "vault"));
    let _ = node.poll_as(&["web"], 0, None);
    assert_eq!(known(&mut client, "claims"), Value::Null, "it does not claim it any more");
}

#[test]
fn grant_reaches_a_node_whose_poll_waits() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 1);
    assert!(node.poll_as(&["web"], 0, None).is_none());
    let waiting = {
        let node = node.clone();
        std::thread::spawn(move || node.poll_as(&["vault", "web"], 60, None))
    };
    wait_until("it claims more", LONG, || known(&mut client, "claims") == json!(["role:vault"]));
    grant(&mut client, "role:vault");
    wait_until("the grant has come to the controller", LONG, || known(&mut client, "claims") == Value::Null);
    let id = client.push(json!({"roles": ["vault"], "cmd": "ping"}));
    let batch = waiting.join().expect("the poll").expect("a command");
    assert_eq!(batch.cmds[0]["id"], json!(id));
}

#[test]
fn node_without_roles_at_its_first_start_is_granted_none_later() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 1);
    assert_eq!(node.get("/1/1/cmd?wait=0&instance=a").status, 204);
    assert_eq!(known(&mut client, "roles"), json!([]));
    assert_eq!(node.get("/1/1/cmd?wait=0&instance=b&role=vault").status, 204);
    startup(&node, json!({"instance": "b", "roles": ["vault"]}));
    assert_eq!((known(&mut client, "roles"), known(&mut client, "claims")), (json!([]), json!(["role:vault"])));
    assert!(!reaches(&mut client, "vault"));
    assert!(!client.redis::<bool>(&["EXISTS", "jsacc:grant:1:1"]));
}

#[test]
fn labels_and_the_host_name_are_claims_as_roles_are() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 1);
    // An agent that knows no labels yet.
    startup(&node, json!({"hostname": "h1", "os": "linux", "instance": "a", "roles": ["web"]}));
    assert_eq!((known(&mut client, "hostname"), known(&mut client, "os")), (json!("h1"), json!("linux")));
    let labels = json!({"site": "ams", "a b": "x"});
    startup(&node, json!({"hostname": "h1", "instance": "b", "roles": ["web"], "labels": labels}));
    assert_eq!((known(&mut client, "label.site"), known(&mut client, "claims")), (json!("ams"), Value::Null));
    assert_eq!(client.events()[0]["data"]["refused_labels"], json!(1));

    let labels = json!({"site": "fra", "rack": "a1"});
    startup(&node, json!({"hostname": "h2", "instance": "c", "roles": ["web", "vault"], "labels": labels}));
    let beyond = json!(["role:vault", "label:rack=a1", "label:site=fra", "host:h2"]);
    assert_eq!((known(&mut client, "claims"), known(&mut client, "roles")), (beyond, json!(["web"])));
    for field in ["label.site", "label.rack", "hostname"] {
        assert_eq!(known(&mut client, field), Value::Null, "{field}");
    }
    // The roles in a poll leave the other claims as they are.
    let _ = node.poll_as(&["web"], 0, None);
    assert_eq!(known(&mut client, "claims"), json!(["label:rack=a1", "label:site=fra", "host:h2"]));
    grant(&mut client, "label:rack=a1");
    grant(&mut client, "host:h2");
    wait_until("the grants have come", LONG, || known(&mut client, "claims") == json!(["label:site=fra"]));
    assert_eq!((known(&mut client, "label.rack"), known(&mut client, "hostname")), (json!("a1"), json!("h2")));
    assert_eq!(known(&mut client, "label.site"), Value::Null);
}

#[test]
fn enrolment_that_names_roles_grants_these_alone() {
    let (_redis, acc, mut client) = site();
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("node");
    let out = out.to_str().expect("a path in UTF-8");
    let args = ["enroll", "1", "1", "--url", &acc.url(), "--out", out, "--role", "web", "--label", "site=ams"];
    let done = acc.command(&args);
    assert_eq!(done.code, 0, "{done:?}");
    let token = std::fs::read_to_string(std::path::Path::new(out).join("token")).expect("the token");
    let node = FakeNode::new(&acc.url(), None, 1, 1, Some(token.trim().to_owned()));
    let labels = json!({"site": "ams", "rack": "a"});
    startup(&node, json!({"hostname": "h", "instance": "a", "roles": ["vault", "web"], "labels": labels}));
    let _ = node.poll_as(&["vault", "web"], 0, None);
    assert_eq!((known(&mut client, "roles"), known(&mut client, "label.site")), (json!(["web"]), json!("ams")));
    assert_eq!(known(&mut client, "claims"), json!(["role:vault", "label:rack=a"]));
    assert_eq!(known(&mut client, "hostname"), json!("h"), "no enrolment names a host");
    // Enrolled again without a revocation: what was granted stays, and what is named is added.
    let args = ["enroll", "1", "1", "--url", &acc.url(), "--out", out, "--role", "vault"];
    assert_eq!(acc.command(&args).code, 0);
    wait_until("both are granted", LONG, || known(&mut client, "roles") == json!(["vault", "web"]));
}

#[test]
fn enrolment_token_grants_what_it_names_and_is_for_its_node() {
    let (_redis, acc, mut client) = site();
    let token = acc.command(&["token", "--node", "1.1", "--role", "web"]);
    assert_eq!(token.code, 0, "{token:?}");
    let bearer = acc.anonymous().with_token(Some(token.stdout.trim()));
    let other = bearer.post_text("/enroll", &json!({"gid": 1, "nid": 2}).to_string());
    assert!(other.status == 403 && other.error().contains("1:1"), "{other:?}");
    let reply = bearer.post_text("/enroll", &json!({"gid": 1, "nid": 1}).to_string());
    assert_eq!(reply.status, 200, "{reply:?}");
    let node = acc.anonymous().with_token(reply.json()["token"].as_str());
    let _ = node.poll_as(&["vault", "web"], 0, None);
    assert_eq!((known(&mut client, "roles"), known(&mut client, "claims")), (json!(["web"]), json!(["role:vault"])));
    let by: String = client.redis(&["HGET", "jsacc:grant:1:1", "role:web"]);
    assert!(by.contains("jsacc token "), "{by}");
}

#[test]
fn changing_claims_are_told_once_a_minute() {
    let (_redis, acc, mut client) = site();
    let node = acc.node(1, 1);
    assert!(node.poll_as(&["web"], 0, None).is_none());
    for i in 0..40 {
        let role = format!("r{i}");
        let _ = node.poll_as(&[&role], 0, None);
        let _ = node.poll_as(&["web"], 0, None);
    }
    assert_eq!(told(&mut client).len(), 1);
    // Its last claim is told when the minute is over.
    let _ = node.poll_as(&["last"], 0, None);
    let _: i64 = client.redis(&["HSET", "jsacc:enrolled:{jsacc:grant:1:1}", "told_at", "1"]);
    wait_until("the last claim is told", LONG, || {
        told(&mut client).first().is_some_and(|event| event["data"]["claims"] == json!(["role:last"]))
    });
    assert_eq!(told(&mut client).len(), 2);
}

#[test]
fn node_enrolled_by_an_earlier_version_keeps_what_it_claims_first() {
    let (_redis, mut acc, mut client) = site();
    let node = acc.node(1, 1);
    assert!(node.poll_as(&["web"], 0, None).is_none());
    acc.stop();
    // An earlier version wrote neither.
    let _: i64 = client.redis(&["DEL", "jsacc:grant:1:1", "jsacc:enrolled:{jsacc:grant:1:1}"]);
    let _: i64 = client.redis(&["HSET", "jsacc:agent:1:1", "hostname", "h"]);
    acc.resume();
    let _ = node.poll_as(&["db", "web"], 0, None);
    assert_eq!(known(&mut client, "roles"), json!(["db", "web"]));
    assert_eq!(known(&mut client, "hostname"), json!("h"), "it has not said yet what it is called");
    let _ = node.poll_as(&["vault"], 0, None);
    assert_eq!((known(&mut client, "roles"), known(&mut client, "claims")), (json!([]), json!(["role:vault"])));
}

#[test]
fn grants_hold_on_a_cluster_and_have_no_end() {
    let cluster = Cluster::start(false);
    let acc = Acc::start_at(&cluster.address(), AccOptions::with_auth());
    let mut conn = cluster.connect().expect("a connection to the cluster");
    let mut get = |words: &[&str]| -> Option<String> {
        redis::cmd(words[0]).arg(&words[1..]).query(&mut conn).expect("an answer of the cluster")
    };
    let node = acc.node(1, 1);
    assert!(node.poll_as(&["web"], 0, None).is_none());
    assert!(node.poll_as(&["vault", "web"], 0, None).is_none());
    assert_eq!(get(&["HGET", "jsacc:agent:1:1", "roles"]).as_deref(), Some("[\"web\"]"));
    assert_eq!(get(&["HGET", "jsacc:agent:1:1", "claims"]).as_deref(), Some("[\"role:vault\"]"));
    get(&["HSET", "jsacc:grant:1:1", "role:vault", "{}"]);
    wait_until("the grant has come", LONG, || {
        get(&["HGET", "jsacc:{roles}", "1:1"]).as_deref() == Some("[\"vault\",\"web\"]")
    });
    for key in ["jsacc:grant:1:1", "jsacc:enrolled:{jsacc:grant:1:1}"] {
        assert_eq!(get(&["TTL", key]).as_deref(), Some("-1"), "{key}");
    }
}

#[test]
fn without_credentials_claims_are_taken_as_they_come() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let mut client = Client::new(&redis);
    let node = acc.node(1, 1);
    for role in ["web", "vault"] {
        assert!(node.poll_as(&[role], 0, None).is_none());
        assert_eq!(known(&mut client, "roles"), json!([role]));
    }
    startup(&node, json!({"hostname": "h", "instance": "a", "roles": ["db"], "labels": {"site": "ams"}}));
    assert_eq!((known(&mut client, "roles"), known(&mut client, "label.site")), (json!(["db"]), json!("ams")));
    let keys: Vec<String> = client.redis(&["KEYS", "jsacc:*grant*"]);
    assert!(keys.is_empty(), "{keys:?}");
}

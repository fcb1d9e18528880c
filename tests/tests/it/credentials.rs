//! The requests that each kind of credentials opens at the controller, and the refusals of all others.

use jstests::{Acc, AccOptions, Client, FakeNode, LONG, Redis, wait_until};
use serde_json::json;

#[test]
fn without_good_credentials_every_node_path_is_401() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions { auth: true, ..AccOptions::default() });
    let good = acc.enroll(1, 10).token;
    let anonymous = FakeNode::new(&acc.url(), None, 1, 10, None);
    let mut spoilt = good.clone().into_bytes();
    let last = spoilt.len() - 2;
    spoilt[last] = if spoilt[last] == b'A' { b'B' } else { b'A' };
    let spoilt = String::from_utf8(spoilt).expect("a token is ASCII");
    let claimed = good.replacen("1.10.", "1.11.", 1);
    for token in [None, Some(""), Some("nonsense"), Some(spoilt.as_str()), Some(claimed.as_str())] {
        let node = anonymous.with_token(token);
        for path in ["/1/10/cmd?wait=0", "/1/10/script?hash=00"] {
            let reply = node.get(path);
            assert_eq!(reply.status, 401, "{path} with {token:?}: {reply:?}");
            assert!(!reply.error().is_empty());
        }
        for path in ["result", "log", "stats", "event"] {
            let reply = node.post(path, &json!([]));
            assert_eq!(reply.status, 401, "{path} with {token:?}: {reply:?}");
            assert!(!reply.error().is_empty());
        }
    }
    assert_eq!(anonymous.with_token(Some(&good)).get("/1/10/cmd?wait=0").status, 204);
}

#[test]
fn another_nodes_path_is_403() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions { auth: true, ..AccOptions::default() });
    let node = acc.node(1, 10);
    for path in ["/1/11/cmd?wait=0", "/2/10/cmd?wait=0", "/1/11/script?hash=00"] {
        let reply = node.get(path);
        assert_eq!(reply.status, 403, "{path}: {reply:?}");
        assert!(!reply.error().is_empty());
    }
    for path in ["/1/11/result", "/1/11/log", "/1/11/stats", "/1/11/event"] {
        let reply = node.post_text(path, "[]");
        assert_eq!(reply.status, 403, "{path}: {reply:?}");
    }
    let mut client = Client::new(&redis);
    wait_until("an event tells of it", LONG, || client.events().iter().any(|event| event["name"] == "refused"));
}

#[test]
fn a_result_that_names_another_node_is_403_and_goes_nowhere() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions { auth: true, ..AccOptions::default() });
    let mut client = Client::new(&redis);
    let node = acc.node(1, 10);
    let id = client.push(json!({"gid": 1, "nid": 11, "cmd": "ping"}));
    wait_until("the command is queued", LONG, || client.state(&id, "1:11").as_deref() == Some("QUEUED"));
    let command = json!({"id": id, "cmd": "ping", "args": {}, "tags": ""});
    let mut result = node.result_of(&command, "OK", "\"pong\"");
    result["nid"] = json!(11);
    let reply = node.post("result", &json!([result]));
    assert_eq!(reply.status, 403, "{reply:?}");
    // The same under its own name: that job was not for this node.
    let reply = node.post("result", &json!([node.result_of(&command, "OK", "\"pong\"")]));
    assert_eq!(reply.status, 403, "{reply:?}");
    assert_eq!(client.results(&id), 0);
    assert_eq!(client.state(&id, "1:11").as_deref(), Some("QUEUED"));
}

#[test]
fn health_is_open_and_tells_of_redis() {
    let mut redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    assert_eq!(acc.anonymous().get("/health").status, 200);
    redis.kill();
    wait_until("health is 503", LONG, || acc.anonymous().get("/health").status == 503);
    redis.resume();
    wait_until("health is 200 again", LONG, || acc.anonymous().get("/health").status == 200);
}

#[test]
fn errors_are_json_with_the_right_status() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let node = acc.node(1, 10);
    let check = |reply: jstests::Reply, status: u16, what: &str| {
        assert_eq!(reply.status, status, "{what}: {reply:?}");
        assert!(!reply.error().is_empty(), "{what}");
    };
    check(node.get("/no/such/path"), 404, "an unknown path of words");
    check(node.get("/1/10/nothing"), 404, "an unknown resource");
    check(node.get("/"), 404, "the root");
    check(node.get("/1/10/result"), 405, "GET of result");
    check(node.post_text("/1/10/cmd", "{}"), 405, "POST of cmd");
    check(node.post_text("/health", "{}"), 405, "POST of health");
    check(node.post_text("/1/10/result", "{not json"), 400, "a result that is not JSON");
    check(node.post_text("/1/10/result", "{}"), 400, "a result that is no list");
    check(node.post_text("/1/10/result", "[{\"id\": 5}]"), 400, "a result without its fields");
    check(node.post_text("/1/10/log", "[]"), 400, "a batch of records that is no object");
    check(node.post_text("/1/10/stats", "[]"), 400, "stats that are no object");
    check(node.post_text("/1/10/event", "[]"), 400, "an event that is no object");
    check(node.get("/1/10/cmd?wait=61"), 400, "a wait above 60");
    check(node.get("/1/10/cmd?wait=x"), 400, "a wait that is no number");
    check(node.get("/1/10/script?hash=zz"), 400, "a hash that is none");
    let missing = "0".repeat(64);
    check(node.get(&format!("/1/10/script?hash={missing}")), 404, "a script that is not there");
    assert_eq!(node.get("/1/10/cmd?wait=0").status, 204);
}

#[test]
fn metrics_are_for_loopback_or_with_their_token() {
    let redis = Redis::start();
    let open = Acc::start(&redis, AccOptions::default());
    let reply = open.anonymous().get("/metrics");
    assert_eq!(reply.status, 200);
    assert!(reply.body.contains("# TYPE "), "{}", reply.body);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "let-me-in\n").expect("write the token");
    let args = vec!["--metrics-token-file".to_owned(), file.path().display().to_string()];
    let state_dir = Some(open.state_dir());
    let closed = Acc::start(&redis, AccOptions { args, state_dir, ..AccOptions::default() });
    for path in ["/metrics", "/metrics/nodes"] {
        assert_eq!(closed.anonymous().get(path).status, 401, "{path}");
        assert_eq!(closed.anonymous().with_token(Some("wrong")).get(path).status, 401, "{path}");
        assert_eq!(closed.anonymous().with_token(Some("let-me-in")).get(path).status, 200, "{path}");
    }
}

#[test]
fn nodes_token_opens_the_nodes_figures_alone() {
    let redis = Redis::start();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "nodes-only\n").expect("write the token");
    let args = vec!["--nodes-token-file".to_owned(), file.path().display().to_string()];
    let acc = Acc::start(&redis, AccOptions { args, ..AccOptions::default() });
    let get = |path: &str, token: Option<&str>| acc.anonymous().with_token(token).get(path).status;
    assert_eq!(get("/metrics/nodes", None), 401);
    assert_eq!(get("/metrics/nodes", Some("wrong")), 401);
    assert_eq!(get("/metrics/nodes", Some("nodes-only")), 200);
    assert_eq!(get("/metrics", None), 200, "loopback may read what is not of the nodes");
}

#[test]
fn a_script_comes_by_its_hash() {
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    let source = "print('hello')\n";
    let hash = jscommon::token::sha256_hex(source.as_bytes());
    let _: () = Client::new(&redis).redis(&["SET", &format!("jsacc:script:{hash}"), source]);
    let reply = acc.node(1, 10).get(&format!("/1/10/script?hash={hash}"));
    assert_eq!((reply.status, reply.body.as_str()), (200, source));
}

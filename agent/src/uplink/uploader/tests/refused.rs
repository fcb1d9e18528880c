//! Tests requests that a controller or a proxy refuses.

use super::*;

#[test]
fn one_that_is_too_much_does_not_hold_up_the_others() {
    let stage = Stage::new(|asked| match asked.body.contains("\"bad\"") {
        true => refused(413, json!({"error": "too large"})),
        false => ok(),
    });
    stage.results(&ids(&["a", "b", "bad", "c", "d"]));
    // The poller has met this controller.
    stage.controller.post("event", b"{}").unwrap();
    let sender = stage.start();
    stage.until_nothing_waits();
    drop(sender);
    let posted = stage.posted();
    // Once whole and once cut short, and then never again.
    let alone = posted.iter().filter(|ids| ids.contains(&"bad".to_owned()) && ids.len() == 1).count();
    assert_eq!(alone, 2, "{posted:?}");
    for id in ["a", "b", "c", "d"] {
        let taken = posted.iter().filter(|ids| ids.contains(&id.to_owned()) && !ids.contains(&"bad".to_owned()));
        assert_eq!(taken.count(), 1, "{id}: {posted:?}");
    }
}

#[test]
fn of_a_result_that_is_too_large_its_end_is_told() {
    let stage = Stage::new(|asked| match asked.body.len() > 1000 {
        true => refused(413, json!({"error": "too large"})),
        false => ok(),
    });
    let large = "x".repeat(2000);
    stage.results(&[
        json!({"id": "big", "gid": 1, "nid": 10, "cmd": "get_msgs", "state": "OK", "data": large, "starttime": 7}),
        json!({"id": "killed", "gid": 1, "nid": 10, "cmd": "x", "state": "KILLED", "code": 137, "args": {"a": large},
            "ticket": "r5.x", "tags": "t", "critical": "disk full", "level": 20, "streams": ["a", large]}),
        json!({"id": "c"}),
        json!({"id": "huge", "state": "OK", "args": {"recurring_period": 5, "x": "x".repeat(17 << 20)}}),
    ]);
    stage.controller.post("event", b"{}").unwrap();
    let sender = stage.start();
    stage.until_nothing_waits();
    drop(sender);
    let seen = stage.seen.lock().unwrap();
    let taken = seen.iter().filter(|asked| asked.line.ends_with("/result") && asked.body.len() <= 1000);
    let taken: Vec<Value> = taken.flat_map(|asked| serde_json::from_str::<Vec<Value>>(&asked.body).unwrap()).collect();
    let of = |id: &str| taken.iter().find(|result| result["id"] == id).unwrap();
    assert_eq!(taken.len(), 4, "{taken:?}");
    // A body that no controller takes is never sent.
    assert!(seen.iter().all(|asked| asked.body.len() <= 16 << 20));
    assert_eq!(of("huge")["args"], json!({"recurring_period": 5}));
    let killed = of("killed");
    assert_eq!(
        (&killed["ticket"], &killed["tags"], &killed["critical"]),
        (&json!("r5.x"), &json!("t"), &json!("disk full"))
    );
    // Every field that a client reads is there.
    assert_eq!((&killed["level"], &killed["streams"], &of("big")["tags"]), (&json!(0), &json!(["", ""]), &json!("")));
    let big = of("big");
    assert_eq!((&big["state"], &big["nid"], &big["starttime"]), (&json!("ERROR"), &json!(10), &json!(7)));
    let said = big["data"].as_str().unwrap();
    assert!(said.starts_with("the job ended OK, and its result of 2083 bytes") && said.contains("too large"), "{said}");
    assert_eq!((&of("killed")["state"], &of("killed")["code"]), (&json!("KILLED"), &json!(137)));
}

#[test]
fn refused_ids_are_over_with_the_rest() {
    let stage = Stage::new(|_| refused(403, json!({"error": "not this node's", "refused": ["b"]})));
    stage.results(&ids(&["a", "b", "c"]));
    let sender = stage.start();
    stage.until_nothing_waits();
    drop(sender);
    assert_eq!(stage.posted(), [vec!["a", "b", "c"]]);
}

/// One result is refused as `refusal` says while `bad` is set; series are taken.
fn one_result_refused(refusal: impl Fn() -> Answer + Send + Sync + 'static) {
    let bad = Arc::new(AtomicBool::new(true));
    let shared = bad.clone();
    let stage = Stage::new(move |asked| match asked.body.contains("\"bad\"") && asked.line.ends_with("/result") {
        true if shared.load(Ordering::Relaxed) => refusal(),
        _ if asked.line.starts_with("GET") => (204, String::new(), String::new()),
        _ => ok(),
    });
    stage.results(&ids(&["a", "b", "bad", "c"]));
    stage.controller.post("event", b"{}").unwrap();
    let sender = stage.start();
    let taken = |id: &str| stage.posted().iter().any(|ids| ids.len() < 4 && ids.contains(&id.to_owned()));
    while !["a", "b", "c"].iter().all(|id| taken(id)) {
        stage.post_another();
        thread_yield();
    }
    // Later ones go as well, and by those the culprit is known.
    stage.results(&ids(&["d"]));
    let _ = sender.waker().try_send(());
    let event = loop {
        if let Some(event) = stage.events("delivery_refused").pop().filter(|_| taken("d")) {
            break event;
        }
        stage.post_another();
        thread_yield();
    };
    assert!(event["item"].as_str().unwrap().starts_with("the result of bad"), "{event}");
    assert_eq!((&event["kind"], &event["dropped"]), (&json!("result"), &json!(false)));
    assert!(stage.job_store.unsent_bytes() > 0, "it is kept");
    drop(sender);
    // The next start tries it again.
    bad.store(false, Ordering::Relaxed);
    let sender = stage.start();
    stage.until_nothing_waits();
    drop(sender);
}

#[test]
fn result_that_a_proxy_forbids_holds_up_no_other() {
    one_result_refused(|| page(403));
}

#[test]
fn result_that_a_proxy_answers_with_a_page_holds_up_no_other() {
    one_result_refused(|| page(200));
}

#[test]
fn result_that_a_controller_fails_at_holds_up_no_other() {
    one_result_refused(|| refused(500, json!({"error": "the controller failed at this request", "time": 1})));
}

#[test]
fn result_that_a_controller_cannot_store_holds_up_no_other() {
    one_result_refused(|| {
        (503, "retry-after: 0\r\n".into(), json!({"error": "redis: WRONGTYPE", "time": 1}).to_string())
    });
}

#[test]
fn result_at_which_a_proxy_cuts_the_connection_holds_up_no_other() {
    one_result_refused(|| (0, String::new(), String::new()));
}

#[test]
fn record_that_was_deferred_and_is_stored_without_an_answer_is_stored_once() {
    // First it is forbidden, then stored without an answer, then all is well.
    let phase = Arc::new(std::sync::atomic::AtomicU8::new(0));
    let shared = phase.clone();
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    let stage = Stage::new(move |asked| match (asked.body.contains("attack"), shared.load(Ordering::Relaxed)) {
        (true, 0) if asked.line.ends_with("/log") => page(403),
        (true, 1) if asked.line.ends_with("/log") => {
            taker.take(asked);
            page(504)
        }
        _ => taker.take(asked),
    });
    let record = |n: u64| json!({"id": n, "jobid": "j", "data": if n == 0 { "attack" } else { "x" }});
    push_records(&stage, (0..2).map(record));
    stage.poll();
    let sender = stage.start();
    let deferred = || stage.upload_queue.deferred("main", Kind::Log).unwrap().len();
    while deferred() == 0 || taking.has().is_empty() {
        thread_yield();
    }
    drop(sender);
    phase.store(1, Ordering::Relaxed);
    // A new start tries it at once.
    let sender = stage.start();
    while taking.has().len() < 2 {
        thread_yield();
    }
    // Newer ones must not take their turn before it.
    push_records(&stage, (2..4).map(record));
    let _ = sender.waker().try_send(());
    let before = stage.seen.lock().unwrap().len();
    while stage.seen.lock().unwrap().len() < before + 2 {
        thread_yield();
    }
    phase.store(2, Ordering::Relaxed);
    stage.until_sent(Kind::Log);
    while deferred() > 0 {
        thread_yield();
    }
    drop(sender);
    let ids: Vec<u64> = taking.has().iter().filter_map(|entry| entry["id"].as_u64()).collect();
    assert_eq!(ids, [1, 0, 2, 3]);
}

#[test]
fn proxy_that_refuses_all_results_and_relents_gets_all() {
    let open = Arc::new(AtomicBool::new(false));
    let shared = open.clone();
    let stage = Stage::new(move |asked| match asked.line.ends_with("/result") && !shared.load(Ordering::Relaxed) {
        true => page(403),
        false if asked.line.starts_with("GET") => (204, String::new(), String::new()),
        false => ok(),
    });
    stage.results(&ids(&["a", "b", "c", "d", "e", "f", "g", "h"]));
    stage.poll();
    let sender = stage.start();
    let event = stage.until_event("delivery_refused");
    assert_eq!((&event["by"], &event["status"]), (&json!("proxy"), &json!(403)));
    while stage.posted().len() < 6 {
        thread_yield();
    }
    assert_eq!(stage.events("delivery_refused").len(), 1, "one event for all");
    open.store(true, Ordering::Relaxed);
    stage.until_nothing_waits();
    drop(sender);
}

#[test]
fn record_batch_that_is_too_large_for_a_proxy_loses_only_the_culprit() {
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    let stage = Stage::new(move |asked| if asked.body.len() > 2000 { page(413) } else { taker.take(asked) });
    let record = |n: u64| json!({"id": n, "jobid": "j", "data": format!("a, \"{n}\" [{{\\")});
    let large = json!({"id": 250, "jobid": "culprit", "data": "x".repeat(3000)});
    push_records(&stage, (0..500).map(|n| if n == 250 { large.clone() } else { record(n) }));
    stage.upload_queue.push_stats(7, &(0..200).map(|n| (format!("1.10.d.n.key{n}"), 1.0)).collect::<Vec<_>>());
    push_records(&stage, (500..510).map(record));
    stage.poll();
    let sender = stage.start();
    [Kind::Log, Kind::Stats].into_iter().for_each(|kind| stage.until_sent(kind));
    let (event, dropped) = (stage.until_event("delivery_refused"), stage.until_event("dropped"));
    drop(sender);
    let taken = taking.has();
    let ids: Vec<u64> = taken.iter().filter_map(|entry| entry["id"].as_u64()).collect();
    assert_eq!(ids, (0..510).filter(|n| *n != 250).collect::<Vec<_>>(), "in order, each once");
    assert_eq!(taken.iter().filter(|entry| entry.is_array()).count(), 200);
    assert!(event["item"].as_str().unwrap().starts_with("a record of job culprit"), "{event}");
    assert_eq!((&event["by"], &event["dropped"]), (&json!("proxy"), &json!(true)));
    assert_eq!(dropped, json!({"kind": "log", "count": 1}));
}

#[test]
fn proxy_that_calls_everything_too_large_loses_nothing() {
    let open = Arc::new(AtomicBool::new(false));
    let shared = open.clone();
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    let stage = Stage::new(move |asked| if shared.load(Ordering::Relaxed) { taker.take(asked) } else { page(413) });
    stage.results(&[json!({"id": "a", "state": "OK", "data": "x".repeat(5000)}), json!({"id": "b", "state": "OK"})]);
    push_records(&stage, std::iter::once(json!({"id": 1, "jobid": "j", "data": "x"})));
    stage.upload_queue.push_event(None, "startup", json!({}));
    open.store(true, Ordering::Relaxed);
    stage.poll();
    open.store(false, Ordering::Relaxed);
    let sender = stage.start();
    // The result that is larger is tried cut short, the others as they are.
    while !(stage.posted().iter().any(|ids| *ids == ["b"]) && stage.events("startup").len() > 1) {
        thread_yield();
    }
    assert!(stage.job_store.unsent_bytes() > 5000, "both results wait");
    open.store(true, Ordering::Relaxed);
    stage.until_nothing_waits();
    while taking.has().is_empty() {
        thread_yield();
    }
    drop(sender);
    assert_eq!(taking.has().len(), 1);
    assert!(stage.events("dropped").is_empty());
    let seen = stage.seen.lock().unwrap();
    let last = seen.iter().rev().find(|asked| asked.line.ends_with("/result") && asked.body.contains("\"a\""));
    assert!(last.unwrap().body.len() > 5000, "whole, and not cut short");
}

#[test]
fn record_that_a_proxy_forbids_is_deferred_and_taken_later() {
    let bad = Arc::new(AtomicBool::new(true));
    let shared = bad.clone();
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    let stage = Stage::new(move |asked| match shared.load(Ordering::Relaxed) && asked.body.contains("attack") {
        true if !asked.line.ends_with("/event") => page(403),
        _ => taker.take(asked),
    });
    let record = |n: u64| json!({"id": n, "jobid": "j", "data": if n == 5 { "attack" } else { "x" }});
    push_records(&stage, (0..20).map(record));
    stage.upload_queue.push_stats(7, &[("1.10.d.n.a".into(), 1.0), ("1.10.d.n.attack".into(), 1.0)]);
    stage.poll();
    let sender = stage.start();
    let mut said = Vec::new();
    while said.len() < 2 {
        said = stage.events("delivery_refused");
        thread_yield();
    }
    push_records(&stage, (20..30).map(record));
    stage.until_sent(Kind::Log);
    assert!(said.iter().any(|event| event["item"].as_str().unwrap().starts_with("a record of job j")), "{said:?}");
    assert!(said.iter().any(|event| event["item"].as_str().unwrap().starts_with("the series 1.10.d.n.attack")));
    drop(sender);
    bad.store(false, Ordering::Relaxed);
    let sender = stage.start();
    while [Kind::Log, Kind::Stats]
        .into_iter()
        .any(|kind| !stage.upload_queue.deferred("main", kind).unwrap().is_empty())
    {
        thread_yield();
    }
    push_records(&stage, (30..40).map(record));
    stage.until_sent(Kind::Log);
    drop(sender);
    let mut ids: Vec<u64> = taking.has().iter().filter_map(|entry| entry["id"].as_u64()).collect();
    assert_eq!(
        ids.iter().filter(|n| **n != 5).copied().collect::<Vec<_>>(),
        (0..40).filter(|n| *n != 5).collect::<Vec<_>>()
    );
    ids.sort_unstable();
    assert_eq!(ids, (0..40).collect::<Vec<_>>(), "each once");
    assert_eq!(taking.has().iter().filter(|entry| entry.is_array()).count(), 2);
}

#[test]
fn record_that_was_deferred_is_sent_again_under_a_number_that_is_high_enough() {
    // The upload queue was lost, and the clock is behind.
    let taking = Arc::new(Taking::default());
    taking.last.lock().unwrap().insert("POST /1/10/log".into(), 1 << 60);
    let (taker, bad) = (taking.clone(), Arc::new(AtomicBool::new(true)));
    let shared = bad.clone();
    let stage = Stage::new(move |asked| match shared.load(Ordering::Relaxed) && asked.line.ends_with("/log") {
        true => page(403),
        false => taker.take(asked),
    });
    push_records(&stage, std::iter::once(json!({"id": 1, "jobid": "j", "data": "x"})));
    stage.poll();
    let sender = stage.start();
    while stage.upload_queue.deferred("main", Kind::Log).unwrap().is_empty() {
        thread_yield();
    }
    bad.store(false, Ordering::Relaxed);
    while !stage.upload_queue.deferred("main", Kind::Log).unwrap().is_empty() {
        thread_yield();
    }
    drop(sender);
    assert_eq!(taking.has().len(), 1);
}

#[test]
fn event_that_a_proxy_forbids_holds_up_no_other() {
    let stage = Stage::new(|asked| match asked.body.contains("attack") && !asked.body.contains("delivery_refused") {
        true => page(403),
        _ if asked.line.starts_with("GET") => (204, String::new(), String::new()),
        _ => ok(),
    });
    stage.upload_queue.push_event(None, "attack", json!({}));
    stage.upload_queue.push_event(None, "startup", json!({}));
    stage.poll();
    let sender = stage.start();
    stage.until_event("startup");
    assert!(stage.until_event("delivery_refused")["item"].as_str().unwrap().starts_with("the event attack"));
    drop(sender);
}

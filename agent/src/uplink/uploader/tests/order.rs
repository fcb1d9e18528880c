//! Tests what is sent, in which order, and how often.

use super::*;

#[test]
fn waiting_results_go_in_one_request_and_are_marked() {
    let stage = Stage::new(|_| ok());
    stage.results(&ids(&["a", "b", "c"]));
    stage.upload_queue.push_event(None, "startup", json!({}));
    let sender = stage.start();
    stage.until_nothing_waits();
    stage.results(&ids(&["d"]));
    sender.waker().try_send(()).unwrap();
    stage.until_nothing_waits();
    drop(sender);
    assert_eq!(stage.posted(), [vec!["a", "b", "c"], vec!["d"]]);
    let lines: Vec<String> = stage.seen.lock().unwrap().iter().map(|asked| asked.line.clone()).collect();
    assert_eq!(lines.iter().filter(|line| *line == "POST /1/10/event").count(), 1, "{lines:?}");
    assert_eq!(*stage.fake.connections.lock().unwrap(), 1);
}

#[test]
fn answer_of_no_controller_loses_no_data() {
    let stage = Stage::new(|_| refused(400, json!({"error": "this port speaks HTTPS"})));
    stage.results(&ids(&["a"]));
    stage.upload_queue.push_event(None, "startup", json!({}));
    let sender = stage.start();
    while !stage.seen.lock().unwrap().iter().any(|asked| asked.line.ends_with("/event")) {
        thread_yield();
    }
    drop(sender);
    assert!(stage.job_store.unsent_bytes() > 0);
    assert!(stage.upload_queue.next("main", Kind::Event).is_some());
}

#[test]
fn a_node_that_is_refused_keeps_its_results_and_sends_what_it_may() {
    let open = Arc::new(AtomicBool::new(false));
    let shared = open.clone();
    let stage = Stage::new(move |asked| match asked.line.ends_with("/result") && !shared.load(Ordering::Relaxed) {
        true => refused(401, json!({"error": "who are you"})),
        false => ok(),
    });
    stage.results(&ids(&["a"]));
    stage.upload_queue.push_event(None, "startup", json!({}));
    let sender = stage.start();
    while !stage.seen.lock().unwrap().iter().any(|asked| asked.line.ends_with("/event")) {
        thread_yield();
    }
    assert!(stage.job_store.unsent_bytes() > 0);
    open.store(true, Ordering::Relaxed);
    stage.until_nothing_waits();
    drop(sender);
}

#[test]
fn a_busy_controller_gets_all_of_it_later() {
    let tries = AtomicBool::new(false);
    let stage = Stage::new(move |_| match tries.swap(true, Ordering::Relaxed) {
        false => refused(503, json!({"error": "Redis is away"})),
        true => ok(),
    });
    stage.results(&ids(&["a", "b"]));
    let sender = stage.start();
    stage.until_nothing_waits();
    drop(sender);
    assert_eq!(stage.posted(), [vec!["a", "b"], vec!["a", "b"]]);
}

#[test]
fn a_controller_that_answers_the_poller_is_back_for_the_sender_too() {
    let away = Arc::new(AtomicBool::new(true));
    let shared = away.clone();
    let stage = Stage::new(move |asked| match shared.load(Ordering::Relaxed) {
        true => (503, "retry-after: 3600\r\n".into(), String::new()),
        false if asked.line.starts_with("GET") => (204, String::new(), String::new()),
        false => ok(),
    });
    stage.results(&ids(&["a"]));
    let sender = stage.start();
    while stage.posted().is_empty() {
        thread_yield();
    }
    away.store(false, Ordering::Relaxed);
    while stage.job_store.unsent_bytes() > 0 {
        // The poller does this when it is answered again.
        let _ = stage.controller.poll(Duration::ZERO, None);
        let _ = sender.waker().try_send(());
        thread_yield();
    }
}

#[test]
fn a_stop_sends_once_more_and_does_not_wait_for_a_dead_controller() {
    let stage = Stage::new(|_| refused(503, json!({"error": "later"})));
    let sender = stage.start();
    stage.results(&ids(&["a"]));
    let begun = Instant::now();
    drop(sender);
    assert!(begun.elapsed() < LAST_ROUND);
    assert!(stage.job_store.unsent_bytes() > 0);
    assert!(stage.posted().len() <= 2);
}

#[test]
fn answers_of_no_controller_mark_nothing_as_sent() {
    let foreign = Arc::new(AtomicBool::new(true));
    let shared = foreign.clone();
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    let stage = Stage::new(move |asked| if shared.load(Ordering::Relaxed) { page(200) } else { taker.take(asked) });
    stage.results(&ids(&["a"]));
    stage.upload_queue.push_event(None, "startup", json!({}));
    stage.upload_queue.push_stats(5, &[("k".into(), 1.5)]);
    push_records(&stage, [json!({"jobid": "a", "data": "x"})].into_iter());
    let sender = stage.start();
    while stage.seen.lock().unwrap().len() < 4 {
        thread_yield();
    }
    assert!(stage.job_store.unsent_bytes() > 0);
    for kind in [Kind::Event, Kind::Log, Kind::Stats] {
        assert!(stage.upload_queue.next("main", kind).is_some(), "{kind:?}");
    }
    foreign.store(false, Ordering::Relaxed);
    stage.until_nothing_waits();
    [Kind::Event, Kind::Log, Kind::Stats].into_iter().for_each(|kind| stage.until_sent(kind));
    drop(sender);
    assert_eq!(taking.has().len(), 2);
}

#[test]
fn requests_stay_whole_while_only_polls_are_answered() {
    let away = Arc::new(AtomicBool::new(true));
    let shared = away.clone();
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    let stage = Stage::new(move |asked| match shared.load(Ordering::Relaxed) && asked.line.starts_with("POST") {
        true => (503, "retry-after: 0\r\n".into(), json!({"error": "Redis is away", "time": 1}).to_string()),
        false if asked.line.ends_with("/result") => ok(),
        false => taker.take(asked),
    });
    stage.results(&ids(&["a", "b", "c", "d"]));
    push_records(&stage, (0..20).map(|n| json!({"id": n, "jobid": "j", "data": "x"})));
    stage.upload_queue.push_event(None, "startup", json!({}));
    stage.poll();
    let sender = stage.start();
    let logs = || stage.seen.lock().unwrap().iter().filter(|asked| asked.line.ends_with("/log")).count();
    while stage.posted().len() < 8 || logs() < 8 {
        stage.poll();
        let _ = sender.waker().try_send(());
        thread_yield();
    }
    away.store(false, Ordering::Relaxed);
    stage.until_nothing_waits();
    [Kind::Event, Kind::Log].into_iter().for_each(|kind| stage.until_sent(kind));
    drop(sender);
    assert!(stage.posted().iter().all(|ids| ids.len() == 4), "{:?}", stage.posted());
    assert_eq!((taking.has().len(), stage.events("delivery_refused").len()), (20, 0));
    let seen = stage.seen.lock().unwrap();
    assert!(seen.iter().filter(|asked| asked.line.ends_with("/log")).all(|asked| asked.body.contains("\"id\":19")));
}

#[test]
fn records_that_are_stored_and_not_acknowledged_are_stored_once() {
    let silent = Arc::new(AtomicBool::new(true));
    let shared = silent.clone();
    let taking = Arc::new(Taking::default());
    let taker = taking.clone();
    // The answer is lost, as at the time limit of a proxy; everything else is taken.
    let stage = Stage::new(move |asked| match taker.take(asked) {
        _ if asked.line.ends_with("/log") && shared.load(Ordering::Relaxed) => page(504),
        answer => answer,
    });
    push_records(&stage, (0..20).map(|n| json!({"id": n, "jobid": "j", "data": "x"})));
    let sender = stage.start();
    let logs = || stage.seen.lock().unwrap().iter().filter(|asked| asked.line.ends_with("/log")).count();
    while logs() < 6 {
        stage.poll();
        stage.post_another();
        thread_yield();
    }
    silent.store(false, Ordering::Relaxed);
    stage.until_sent(Kind::Log);
    drop(sender);
    let ids: Vec<u64> = taking.has().iter().filter_map(|entry| entry["id"].as_u64()).collect();
    assert_eq!(ids, (0..20).collect::<Vec<_>>());
}

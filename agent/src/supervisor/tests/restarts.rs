//! Tests the supervisor after a run: restarts and recurrence.

use super::*;

#[test]
fn restarts_are_counted_and_end_in_an_alert() {
    let node = Node::new();
    let life = node.live();
    let script = format!("echo x >> {}; exit 7", node.path("runs").display());
    life.shell("a", &script, json!({"max_restart": 2, "name": "n"}));
    let result = life.result("a");
    assert_eq!((result.state, result.code), (State::Error, 7));
    assert!(result.critical.contains("failed 3 times"), "{}", result.critical);
    assert_eq!(node.read("runs"), "x\nx\nx\n");
    assert_eq!(life.event("critical")["id"], "a");
}

#[test]
fn recurring_jobs_are_listed_between_their_runs() {
    let node = Node::new();
    let life = node.live();
    life.shell("a", "true", json!({"recurring_period": 3600, "domain": "d", "name": "n"}));
    life.shell("b", "true", json!({"max_time": -1}));
    let started = life.result("a").starttime;
    let mut next = started + 3_600_000;
    let life = {
        let listed = life.schedules();
        let (mut it, told) = (listed[0].clone(), listed[0]["next"].as_i64().unwrap());
        assert!((next - 60_000..next + 60_000).contains(&told), "{it}");
        it["next"] = json!(0);
        let rest = json!({"id": "a", "domain": "d", "name": "n", "schedule": null, "period": 3600, "next": 0,
            "last_start": started, "last_state": "OK", "paused": false});
        assert_eq!((listed.len(), &it), (1, &rest));
        next = told;
        life.stop();
        node.live()
    };
    let listed = life.schedules();
    let told = listed[0]["next"].as_i64().unwrap();
    assert!((next - 60_000..next + 60_000).contains(&told), "{listed:?}");
    assert_eq!((&listed[0]["id"], &listed[0]["last_start"]), (&json!("a"), &json!(started)));
    assert_eq!(life.ask("u", "unschedule", json!({"id": "a"})).state, State::Ok);
    assert_eq!(life.schedules(), Vec::<serde_json::Value>::new());
}

#[test]
fn recurrence() {
    let node = Node::new();
    let life = node.live();
    let runs = node.path("runs").display().to_string();
    let script =
        format!("echo x >> {runs}; n=$(wc -l < {runs}); [ $n = 3 ] && exit 3; [ $n = 2 ] && echo 20::two; true");
    life.shell("a", &script, json!({"recurring_period": 1}));
    let (first, second, third) = (life.result("a"), life.result("a"), life.result("a"));
    assert_eq!((first.state, first.quiet, first.level), (State::Ok, false, 0));
    assert_eq!((second.data.as_str(), second.quiet), ("two", false));
    assert_eq!((third.state, third.code), (State::Error, 3));
    for (earlier, later) in [(&first, &second), (&second, &third)] {
        let gap = later.starttime - earlier.starttime;
        assert!((900..2500).contains(&gap), "{gap}");
    }
    assert!(life.result("a").quiet);
    assert_eq!(life.ask("u", "unschedule", json!({"id": "a"})).state, State::Ok);
    assert!(life.remote().process("a").is_none_or(|entry| entry.state == "RUNNING"));
}

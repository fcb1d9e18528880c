//! Tests what is stored, found and forwarded, and its ids.

use super::*;

#[test]
fn an_answer_fits_into_a_result_whatever_the_bytes() {
    let bench = Bench::start(|_| ());
    // A NUL is seven bytes once it is JSON within JSON.
    let binary = "\0".repeat(700_000);
    for _ in 0..5 {
        bench.push(&source("a", "*", ""), 1, &[(20, &binary)]);
    }
    let (mut found, mut after) = (0, None);
    loop {
        let records = bench.get(&Query { after, ..Query::default() });
        let Some(last) = records.last() else { break };
        (found, after) = (found + records.len(), Some(last.id));
        let answer = serde_json::to_string(&records).unwrap();
        let travels = serde_json::to_string(&answer).unwrap().len();
        assert!(travels < 12 << 20, "{travels} bytes of {} records", records.len());
    }
    assert_eq!(found, 5);
}

#[test]
fn records_are_stored_filtered_and_found() {
    let bench = Bench::start(|_| ());
    bench.push(&source("a", "1-9", "8"), 100, &[(1, "one"), (10, "no"), (8, "bad")]);
    bench.push(&source("b", "*", "30"), 200, &[(2, "two"), (30, "{}")]);
    let all = bench.get(&Query::default());
    let want = Record {
        id: 1,
        jobid: "a".into(),
        jobdomain: "dom".into(),
        jobname: "nam".into(),
        epoch: 100,
        level: 1,
        data: "one".into(),
        gid: None,
        nid: None,
    };
    assert_eq!(all[0], want);
    assert_eq!(all.iter().map(|r| r.data.as_str()).collect::<Vec<_>>(), ["one", "bad", "two", "{}"]);
    assert!(ids(&all).windows(2).all(|pair| pair[0] < pair[1]));
    let query = Query { jobid: Some("b".into()), ..Query::default() };
    assert_eq!(bench.texts(&query), ["two", "{}"]);
    let query = Query { levels: Some(LevelSet::parse("2,8").unwrap()), ..Query::default() };
    assert_eq!(bench.texts(&query), ["bad", "two"]);
    let query = Query { timefrom: Some(101), timeto: Some(200), limit: Some(1), ..Query::default() };
    assert_eq!(bench.texts(&query), ["two"]);
    let query = Query { after: Some(all[1].id), ..Query::default() };
    assert_eq!(bench.texts(&query), ["two", "{}"]);
    let query = Query { after: Some(all[3].id), ..Query::default() };
    assert_eq!(bench.texts(&query), Vec::<String>::new());
    assert_eq!(bench.get(&Query { limit: Some(0), ..Query::default() }), []);
    let forwarded = bench.forwarded();
    assert_eq!(forwarded.iter().map(|r| r.data.as_str()).collect::<Vec<_>>(), ["bad", "{}"]);
    assert_eq!((forwarded[0].gid, forwarded[0].nid, forwarded[0].id), (Some(3), Some(4), all[1].id));
}

#[test]
fn the_agents_own_records_follow_what_came_before() {
    let bench = Bench::start(|_| ());
    let source = source("a", "1,30", "30");
    bench.push(&source, 1, &[(1, "x")]);
    bench.handle.as_ref().unwrap().inlet().write(&source, 30, "done");
    bench.handle.as_ref().unwrap().inlet().write(&source, 9, "filtered");
    assert_eq!(bench.texts(&Query::default()), ["x", "done"]);
}

#[test]
fn ids_go_on_over_restarts_and_begin_again_after_four_bytes() {
    let mut bench = Bench::start(|_| ());
    let source = source("a", "*", "");
    bench.push(&source, 1, &[(1, "1"), (1, "2")]);
    bench.restart();
    bench.push(&source, 1, &[(1, "3")]);
    assert_eq!(ids(&bench.get(&Query::default())), [1, 2, 3]);
    // Deleted rows do not bring ids back.
    assert_eq!(bench.remote().delete(&Query { after: Some(1), ..Query::default() }).unwrap(), 2);
    bench.restart();
    bench.push(&source, 1, &[(1, "4")]);
    assert_eq!(ids(&bench.get(&Query::default())), [1, 4]);
    bench.stop();
    sql(&bench.current(), "UPDATE messages SET id = 4294967294 WHERE id = 4");
    bench.upload_queue.set_mark(crate::storage::upload_queue::IdCheckpoint { last: 4294967294, next: 4294967295 });
    bench.restart();
    bench.push(&source, 1, &[(1, "5"), (1, "6"), (1, "7")]);
    let all = bench.get(&Query::default());
    assert_eq!(ids(&all), [1, 4294967294, 4294967295, 1, 2]);
    let after = |id| bench.texts(&Query { after: Some(id), ..Query::default() });
    assert_eq!(after(4294967295), ["6", "7"]);
    assert_eq!(after(4294967294), ["5", "6", "7"]);
    assert_eq!(after(1), ["7"]);
    assert_eq!(after(2), Vec::<String>::new());
    bench.restart();
    bench.push(&source, 1, &[(1, "8")]);
    assert_eq!(ids(&bench.get(&Query::default()))[5], 3);
}

#[test]
fn everything_handed_over_is_committed_when_the_handle_goes() {
    let mut bench = Bench::start(|_| ());
    let source = source("a", "*", "");
    let inlet = bench.handle.as_ref().unwrap().inlet();
    for n in 0..500 {
        bench.push(&source, n, &[(1, "x"); 100]);
    }
    bench.stop();
    let db = Connection::open(bench.current()).unwrap();
    let count: i64 = db.query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap();
    assert_eq!(count, 50_000);
    // A reader that outlives the message log does not hang.
    let mut late = Batch::new(&source, 1, 0);
    late.push(1, &"x".repeat(3 << 20));
    inlet.push(late.clone());
    inlet.push(late);
    drop(db);
    std::thread::sleep(Duration::ZERO);
}

#[test]
fn ids_go_on_after_what_was_forwarded_and_not_stored() {
    let mut bench = Bench::start(|_| ());
    let source = source("a", "*", "");
    bench.push(&source, 1, &[(1, "1"), (1, "2")]);
    bench.stop();
    // The agent died between the two commits.
    bench.upload_queue.set_mark(crate::storage::upload_queue::IdCheckpoint { last: 5, next: 6 });
    bench.restart();
    bench.push(&source, 1, &[(1, "3")]);
    assert_eq!(ids(&bench.get(&Query::default())), [1, 2, 6]);
}

//! Tests of what an interval makes of its lines.

use super::*;
use std::collections::BTreeMap;

fn flush(aggregate: &mut Aggregate, lives: bool) -> (BTreeMap<String, f64>, Faults) {
    let mut found = BTreeMap::new();
    let faults = aggregate.flush(10, |_| lives).series(10, &mut |group, key, end, value| {
        found.insert(format!("{group}.{key}{end}"), value);
    });
    (found, faults)
}

#[track_caller]
fn check(lines: &str, want: &[(&str, f64)]) {
    let mut aggregate = Aggregate::default();
    aggregate.lines(Origin::Job, "d.n", lines.as_bytes());
    let want = want.iter().map(|(key, value)| (format!("d.n.{key}"), *value)).collect();
    assert_eq!(flush(&mut aggregate, false), (want, Faults::default()), "{lines}");
}

#[test]
fn counters_gauges_sets_and_plain_values() {
    check("a:1|c\na:2|c|@0.5\r\n\n", &[("a", 5.0), ("a.rate", 0.5)]);
    check("a:5|g\na:+3|g\na:-1|g", &[("a", 7.0)]);
    check("a:-3|g", &[("a", -3.0)]);
    check("a:x|s\na:y|s\na:x|s", &[("a", 2.0)]);
    check("a:5|kv\na:4|kv", &[("a", 4.0)]);
    check("a b/c:1|kv", &[("a_b-c", 1.0)]);
}

#[test]
fn timers() {
    let lines: String = (1..=100).map(|n| format!("t:{n}|ms\n")).collect();
    check(
        &lines,
        &[
            ("t.count", 100.0),
            ("t.lower", 1.0),
            ("t.mean", 50.5),
            ("t.median", 50.5),
            ("t.p95", 95.0),
            ("t.p99", 99.0),
            ("t.sum", 5050.0),
            ("t.upper", 100.0),
        ],
    );
    check(
        "t:4|h|@0.5",
        &[
            ("t.count", 2.0),
            ("t.lower", 4.0),
            ("t.mean", 4.0),
            ("t.median", 4.0),
            ("t.p95", 4.0),
            ("t.p99", 4.0),
            ("t.sum", 8.0),
            ("t.upper", 4.0),
        ],
    );
}

#[test]
fn beyond_the_bound_a_timer_is_sampled_and_its_sums_stay_exact() {
    let mut aggregate = Aggregate::default();
    for n in 0..200_000 {
        aggregate.lines(Origin::Job, "d.n", format!("t:{}|ms", n % 1000).as_bytes());
    }
    assert_eq!(aggregate.used.kept, MAX_VALUES);
    let (found, _) = flush(&mut aggregate, false);
    assert_eq!((found["d.n.t.count"], found["d.n.t.mean"], found["d.n.t.upper"]), (200_000.0, 499.5, 999.0));
    assert!((found["d.n.t.median"] - 500.0).abs() < 40.0, "{}", found["d.n.t.median"]);
    assert!((found["d.n.t.p95"] - 950.0).abs() < 15.0, "{}", found["d.n.t.p95"]);
}

#[test]
fn bounds_and_bad_lines_are_counted() {
    let mut aggregate = Aggregate::default();
    aggregate.lines(Origin::Job, "d.n", b"rubbish\nk:1|c\nk:x|c\n");
    let lines: String = (0..MAX_MEMBERS + 10).map(|n| format!("s:{n}|s\n")).collect();
    aggregate.lines(Origin::Job, "d.n", lines.as_bytes());
    let (found, faults) = flush(&mut aggregate, false);
    assert_eq!(found["d.n.s"], MAX_MEMBERS as f64);
    assert_eq!(faults, Faults { bad_lines: 2, dropped: 0, full_sets: 1 });
    let lines: String = (0..MAX_SERIES + 5).map(|n| format!("k{n}:1|kv\n")).collect();
    aggregate.lines(Origin::Job, "d.n", lines.as_bytes());
    let mut count = 0;
    let faults = aggregate.flush(10, |_| false).series(10, &mut |_, _, _, _| count += 1);
    assert_eq!((count, faults.dropped), (MAX_SERIES, 5));
    assert_eq!(aggregate.used.series, 0);
}

#[test]
fn datagrams_leave_room_for_jobs() {
    let mut aggregate = Aggregate::default();
    // Gauges stay for a day, so they fill up over the flushes.
    for flush in 0..3 {
        let from = flush * MAX_SERIES;
        for kind in ["g", "c", "kv"] {
            let lines: String = (from..from + MAX_SERIES).map(|n| format!("u{n}:1|{kind}\n")).collect();
            aggregate.lines(Origin::Datagram, "unknown.unknown", lines.as_bytes());
        }
        assert_eq!(aggregate.used.datagram_series, MAX_DATAGRAM_SERIES);
        let lines: String = (0..MAX_SERIES).map(|n| format!("k{n}:1|kv\n")).collect();
        aggregate.lines(Origin::Job, "d.n", lines.as_bytes());
        let mut jobs = 0;
        let faults =
            aggregate.flush(10, |_| false).series(10, &mut |group, _, _, _| jobs += usize::from(group == "d.n"));
        assert_eq!(jobs, MAX_SERIES - MAX_DATAGRAM_SERIES);
        assert!(faults.dropped as usize >= MAX_DATAGRAM_SERIES);
    }
    let members: String = (0..20 * MAX_MEMBERS).map(|n| format!("s{}:{n}|s\n", n % 20)).collect();
    let mut aggregate = Aggregate::default();
    aggregate.lines(Origin::Datagram, "unknown.unknown", members.as_bytes());
    assert_eq!(aggregate.used.kept, MAX_DATAGRAM_KEPT);
    aggregate.lines(Origin::Job, "d.n", b"s:1|s\ns:2|s\n");
    assert_eq!(aggregate.used.kept, MAX_DATAGRAM_KEPT + 2);
}

#[test]
fn key_without_a_usable_character_is_a_bad_line() {
    let mut aggregate = Aggregate::default();
    aggregate.lines(Origin::Job, "d.n", "ä:1|c:2|c\n?!:2|g\nk:1|kv".as_bytes());
    let (found, faults) = flush(&mut aggregate, false);
    assert_eq!(found, BTreeMap::from([("d.n.k".into(), 1.0)]));
    assert_eq!(faults, Faults { bad_lines: 2, ..Faults::default() });
}

#[test]
fn a_gauge_stays_while_its_job_lives() {
    let mut aggregate = Aggregate::default();
    aggregate.lines(Origin::Job, "d.n", b"g:5|g\nk:1|kv\nc:1|c");
    assert_eq!(flush(&mut aggregate, true).0.len(), 4);
    aggregate.lines(Origin::Job, "d.n", b"g:+1|g");
    assert_eq!(flush(&mut aggregate, true).0, BTreeMap::from([("d.n.g".into(), 6.0)]));
    // The last flush after its end still has it.
    assert_eq!(flush(&mut aggregate, false).0.len(), 1);
    assert_eq!(flush(&mut aggregate, false).0.len(), 0);
    // That of a datagram stays for a day, whatever jobs do.
    aggregate.lines(Origin::Datagram, "d.n", b"g:5|g");
    aggregate.lines(Origin::Job, "d.n", b"other:1|g");
    assert_eq!(flush(&mut aggregate, false).0.len(), 2);
    aggregate.lines(Origin::Datagram, "d.n", b"g:+0|g");
    let flushes = (0..20_000).take_while(|_| !flush(&mut aggregate, false).0.is_empty()).count();
    assert_eq!(flushes as u64, GAUGE_AGE / 10);
}

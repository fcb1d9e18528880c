use super::*;
use crate::storage::message_log::{Follower, Next, Place};
use crossbeam_channel::{Receiver, bounded};
use jscommon::NodeId;

/// The followed ids of records; a pair of 0 and a count stands for records that are missing.
struct Following {
    follower: Follower,
    place: Place,
    woken: Receiver<()>,
}

impl Following {
    fn start(bench: &Bench, query: &Query) -> Following {
        let (wake, woken) = bounded(1);
        let node = NodeId { gid: 3, nid: 4 };
        let follower = bench.remote().follow(query.clone(), node, wake).unwrap();
        let place = follower.start();
        Following { follower, place, woken }
    }

    /// Reads one page of at most so many.
    fn page(&mut self, most: usize) -> Vec<Result<Record, u32>> {
        let mut found = Vec::new();
        let mut take = |next| {
            let has_room = found.len() < most;
            if has_room {
                found.push(match next {
                    Next::Record(record) => Ok(record),
                    Next::Missing(count) => Err(count),
                });
            }
            has_room
        };
        self.place = self.follower.read(self.place, &mut take).unwrap();
        found
    }

    /// Reads to the end, in pages of at most so many.
    fn all(&mut self, most: usize) -> Vec<Result<Record, u32>> {
        let mut found = Vec::new();
        while self.follower.is_pending() {
            found.extend(self.page(most));
        }
        found
    }

    fn texts(&mut self, most: usize) -> Vec<String> {
        self.all(most).into_iter().map(|next| next.map_or_else(|n| format!("-{n}"), |record| record.data)).collect()
    }
}

fn fill(bench: &Bench, from: usize, count: usize) {
    let label = source("fill", "*", "");
    for n in from..from + count {
        bench.push(&label, 5, &[(1, &format!("{n} {}", "x".repeat(1000)))]);
    }
    bench.remote().on_writer(|_| ()).unwrap();
}

#[test]
fn records_are_those_that_a_query_finds_and_then_new_ones() {
    let bench = Bench::start(|_| ());
    let (a, b) = (source("a", "*", ""), source("b", "*", ""));
    bench.push(&a, 5, &[(1, "a1"), (7, "a2"), (1, "a3")]);
    bench.push(&b, 6, &[(7, "b1")]);
    let queries = [
        Query::default(),
        by_level("7"),
        Query { jobid: Some("a".into()), ..Query::default() },
        Query { after: Some(2), ..Query::default() },
        Query { timefrom: Some(6), levels: LevelSet::parse("7").ok(), ..Query::default() },
        Query { jobid: Some("none".into()), ..Query::default() },
    ];
    for query in &queries {
        for most in [1, 2, 100] {
            let mut following = Following::start(&bench, query);
            let mut found = following.all(most);
            let before = bench.get(query);
            assert_eq!(found, before.iter().cloned().map(with_node).map(Ok).collect::<Vec<_>>());
            bench.push(&b, 6, &[(7, "new"), (1, "other")]);
            bench.push(&a, 6, &[(7, "last")]);
            until("the wake-up", || following.woken.try_recv().is_ok());
            let want: Vec<_> = bench.get(query).into_iter().map(|r| Ok(with_node(r))).collect();
            until("the new records", || {
                found.extend(following.all(most));
                found.len() >= want.len()
            });
            assert_eq!(found, want, "{query:?}");
            assert!(following.all(most).is_empty() && !following.follower.is_pending());
        }
    }
}

fn with_node(record: Record) -> Record {
    Record { gid: Some(3), nid: Some(4), ..record }
}

#[test]
fn limit_bounds_what_was_there_at_first_and_no_more() {
    let bench = Bench::start(|_| ());
    let label = source("a", "*", "");
    for (limit, after, want, from) in [
        (0, None, vec!["new"], 4),
        (2, None, vec!["a1", "a2", "new"], 0),
        (1, Some(2), vec!["a3", "new"], 2),
        (9, None, vec!["a1", "a2", "a3", "a4", "new"], 0),
        (9, Some(1000), vec!["new"], 4),
    ] {
        bench.remote().delete(&Query::default()).unwrap();
        bench.push(&label, 5, &[(1, "a1"), (7, "a2"), (1, "a3"), (1, "a4")]);
        let first = bench.get(&Query::default())[0].id - 1;
        let query = Query { limit: Some(limit), after: after.map(|after| first + after), ..Query::default() };
        let mut following = Following::start(&bench, &query);
        assert_eq!(following.place.id(), first + from, "{query:?}");
        bench.push(&label, 6, &[(7, "new")]);
        bench.remote().on_writer(|_| ()).unwrap();
        assert_eq!(following.texts(1), want, "{query:?}");
    }
}

#[test]
fn page_is_read_again_as_it_was() {
    let bench = Bench::start(|_| ());
    fill(&bench, 0, 50);
    let query = Query { limit: Some(30), ..Query::default() };
    let mut following = Following::start(&bench, &query);
    following.page(7);
    let place = following.place;
    let (some, more) = (following.page(5), following.page(5));
    fill(&bench, 50, 10);
    following.place = place;
    let again = following.page(10);
    assert_eq!(again, [some, more].concat());
    let rest = following.texts(9);
    let rest: Vec<&str> = rest.iter().filter_map(|text| text.split(' ').next()).collect();
    let want: Vec<String> = (17..30).chain(50..60).map(|n| n.to_string()).collect();
    assert_eq!(rest, want);
}

#[test]
fn rotation_hides_no_record_and_dropped_databases_are_a_gap() {
    let bench = Bench::start(|config| (config.logging.db.max_size_mb, config.logging.db.keep) = (1, 2));
    let mut following = Following::start(&bench, &Query::default());
    let mut found = Vec::new();
    for n in 0..30 {
        fill(&bench, n * 100, 100);
        found.extend(following.all(64));
    }
    let ids: Vec<u32> = found.iter().map(|next| next.as_ref().unwrap().id).collect();
    assert_eq!(ids, (1..=3000).collect::<Vec<u32>>());
    assert_eq!(databases(&bench.logs()).len(), 3, "some were dropped");
    // More than all databases hold, while nothing is read.
    let (mut last, from) = (3000, following.place);
    fill(&bench, 3000, 5000);
    let found = following.all(64);
    let gap = *found[0].as_ref().unwrap_err();
    assert!(gap > 1000, "{gap}");
    for next in &found {
        last += next.as_ref().map_or_else(|missing| *missing, |_| 1);
        assert!(next.as_ref().map_or(true, |record| record.id == last));
    }
    assert_eq!((last, found.iter().filter(|next| next.is_err()).count()), (8000, 1));
    // The gap is no record, and comes again as the same.
    following.place = from;
    let again = std::iter::repeat_with(|| following.page(1)).find(|page| !page.is_empty());
    assert_eq!(again, Some(vec![Err(gap)]));
}

#[test]
fn deleted_rows_whose_numbers_are_given_anew_hide_nothing() {
    let bench = Bench::start(|_| ());
    fill(&bench, 0, 10);
    let mut following = Following::start(&bench, &Query::default());
    assert_eq!(following.all(100).len(), 10);
    bench.remote().delete(&Query { after: Some(5), ..Query::default() }).unwrap();
    fill(&bench, 10, 20);
    assert_eq!(
        ids(&following.all(7).into_iter().map(Result::unwrap).collect::<Vec<_>>()),
        (11..31).collect::<Vec<_>>()
    );
    bench.remote().delete(&Query::default()).unwrap();
    assert!(following.all(7).is_empty());
    fill(&bench, 30, 50);
    assert_eq!(
        ids(&following.all(7).into_iter().map(Result::unwrap).collect::<Vec<_>>()),
        (31..81).collect::<Vec<_>>()
    );
}

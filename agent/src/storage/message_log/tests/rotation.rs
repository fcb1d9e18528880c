//! Tests the rotation and the deletion of databases.

use super::*;

fn size(dir: &Path, name: &str) -> u64 {
    ["", "-wal"].iter().map(|end| dir.join(format!("{name}{end}")).metadata().map_or(0, |m| m.len())).sum()
}

#[test]
fn databases_rotate_below_their_limit_and_nothing_is_lost() {
    let bench = Bench::start(|config| {
        config.logging.db.max_size_mb = 1;
        config.logging.db.keep = 100;
    });
    let source = source("a", "*", "");
    let mut most = 0;
    let mut count = 0;
    for n in 0..300 {
        let text = format!("{n} {}", "x".repeat(n * 3701 % 30_000));
        bench.push(&source, n as i64, &[(1, &text), (2, "short"), (1, "")]);
        count += 3;
        if n % 10 == 0 {
            bench.get(&Query { limit: Some(1), ..Query::default() });
            for name in databases(&bench.logs()) {
                most = most.max(size(&bench.logs(), &name));
            }
        }
    }
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let some = bench.get(&Query { after, limit: Some(100), ..Query::default() });
        let Some(last) = some.last() else { break };
        after = Some(last.id);
        found.extend(ids(&some));
    }
    assert_eq!(found, (1..=count).collect::<Vec<u32>>());
    assert!(databases(&bench.logs()).len() > 4, "{:?}", databases(&bench.logs()));
    assert!(most <= 1_000_000, "{most}");
}

#[test]
fn only_so_many_databases_are_kept() {
    let mut bench = Bench::start(|config| {
        config.logging.db.max_size_mb = 1;
        config.logging.db.keep = 2;
    });
    let source = source("a", "*", "");
    let text = "y".repeat(20_000);
    for _ in 0..300 {
        bench.push(&source, 1, &[(1, &text)]);
    }
    bench.get(&Query::default());
    assert_eq!(databases(&bench.logs()).len(), 3);
    bench.config.logging.db.keep = 0;
    bench.restart();
    assert_eq!(databases(&bench.logs()), ["current.db"]);
}

#[test]
fn deleting_gives_the_space_back() {
    let bench = Bench::start(|config| {
        config.logging.db.max_size_mb = 1;
        config.logging.db.keep = 100;
    });
    let (a, b) = (source("a", "*", ""), source("b", "*", ""));
    let text = "z".repeat(3000);
    for n in 0..1000 {
        bench.push(if n % 10 == 0 { &b } else { &a }, n, &[(1, &text)]);
    }
    let all = |dir: &Path| databases(dir).iter().map(|name| size(dir, name)).sum::<u64>();
    let job = |id: &str| Query { jobid: Some(id.into()), ..Query::default() };
    assert_eq!(bench.remote().delete(&Query { limit: Some(7), ..job("a") }).unwrap(), 7);
    let before = all(&bench.logs());
    assert_eq!(bench.remote().delete(&job("a")).unwrap(), 893);
    assert!(all(&bench.logs()) < before / 4, "{} of {before}", all(&bench.logs()));
    assert_eq!((bench.get(&job("a")).len(), bench.get(&job("b")).len()), (0, 100));
    assert_eq!(bench.remote().delete(&Query::default()).unwrap(), 100);
    assert_eq!(databases(&bench.logs()), ["current.db"]);
    bench.push(&a, 1, &[(1, "on")]);
    assert_eq!(ids(&bench.get(&Query::default())), [1001]);
}

#[test]
fn database_that_another_program_holds_grows_and_is_rotated_later() {
    let bench = Bench::start(|config| config.logging.db.max_size_mb = 1);
    let hold = |held: bool| {
        let set = move |store: &mut Store| {
            let mut layout = store.log_files().write();
            layout.held = held;
            layout.tried
        };
        bench.remote().on_writer(set).unwrap()
    };
    hold(true);
    let source = source("a", "*", "");
    let text = "y".repeat(1000);
    let push = |count: i64| {
        for n in 0..count {
            bench.push(&source, n, &[(1, &text)]);
            if n % 20 == 0 {
                // As many transactions, each of which would try to rotate.
                bench.get(&Query { limit: Some(0), ..Query::default() });
            }
        }
        bench.get(&Query { limit: Some(0), ..Query::default() });
    };
    let count = || -> i64 {
        let db = Connection::open(bench.current()).unwrap();
        db.query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap()
    };
    push(6000);
    assert_eq!(count(), 6000);
    // The limit is the size of all databases together.
    push(8000);
    let size = std::fs::metadata(bench.current()).unwrap().len();
    assert!((10_000_000..12_000_000).contains(&size), "{size}");
    assert!(count() < 12_000, "{}", count());
    let tried = hold(false);
    assert!((1..20).contains(&tried), "{tried}");
    until("the rotation", || {
        bench.push(&source, 1, &[(1, "more")]);
        bench.get(&Query { limit: Some(1), ..Query::default() });
        databases(&bench.logs()).len() == 2
    });
}

#[cfg(target_os = "linux")]
#[test]
fn rotation_without_inodes_goes_on_once_there_are_some() {
    let root = TempDir::new().unwrap();
    let dir = root.path().to_owned();
    on_tmpfs(root.path(), "size=64m,nr_inodes=60", move || {
        let bench = Bench::start(|config| {
            config.logging.db.max_size_mb = 1;
            config.logging.db.keep = 100;
            config.main.data_dir = dir.clone();
        });
        let (logs, source) = (dir.join("logs"), source("a", "*", "9"));
        bench.push(&source, 1, &[(9, "first")]);
        bench.get(&Query::default());
        let mut taken = Vec::new();
        while let Ok(file) = tempfile::NamedTempFile::new_in(&dir) {
            taken.push(file);
        }
        // More than fits into one database.
        let text = "z".repeat(10_000);
        for n in 0..150 {
            bench.push(&source, n, &[(1, &text), (9, "alarm")]);
        }
        let mut forwarded = Vec::new();
        until("the alerts at the controller", || {
            forwarded.extend(bench.forwarded());
            forwarded.len() == 151
        });
        let told = events(&bench);
        assert!(told.iter().any(|event| event["name"] == "critical"), "the next database could be made: {told:?}");
        drop(taken);
        until("the alerts on the node", || bench.get(&by_level("9")).len() == 151);
        assert_eq!(ids(&bench.get(&by_level("9"))), ids(&forwarded));
        assert!(databases(&logs).iter().all(|name| !name.starts_with("damaged")), "{:?}", databases(&logs));
        bench.push(&source, 1, &[(1, "after")]);
        until("what comes after", || bench.texts(&by_level("1")).last().is_some_and(|text| text == "after"));
    });
}

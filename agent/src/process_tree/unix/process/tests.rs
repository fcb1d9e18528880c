//! Tests of children: their surroundings, their ends, and starts that fail.

use super::*;
use crate::platform::{Identity, Limit, UMASK};
use nix::sys::resource::RLIM_INFINITY;
use nix::unistd::{Gid, Uid};
use serde_json::json;
use std::os::unix::fs::MetadataExt;

#[test]
fn folder_that_a_user_may_not_pass_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let (shut, inner) = (dir.path().join("shut"), dir.path().join("shut/inner"));
    std::fs::create_dir_all(&inner).unwrap();
    let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    set(dir.path(), 0o711);
    let owner = shut.metadata().unwrap();
    let identity = |uid, gid| Identity {
        uid: Uid::from_raw(uid),
        gid: Gid::from_raw(gid),
        groups: Vec::new(),
        name: String::new(),
        home: String::new(),
    };
    let (other, member) = (identity(4_000_000, 4_000_000), identity(4_000_000, owner.gid()));
    let (o, g) = (Some("o+x"), Some("g+x"));
    for (mode, others, members) in [(0o700, o, g), (0o710, o, None), (0o701, None, g)] {
        set(&shut, mode);
        let barred = |identity: &Identity| {
            let (step, change) = identity.barred_by(&inner.join("leaf"))?;
            (step == shut).then_some(change)
        };
        assert_eq!((barred(&other), barred(&member)), (others, members), "{mode:o}");
    }
    set(&inner, 0o700);
    set(&shut, 0o711);
    assert_eq!(other.barred_by(&inner), Some((inner, "o+x")));
    assert_eq!(identity(0, 0).barred_by(&shut), None);
}

#[test]
fn limits_are_read_or_refused() {
    assert_eq!(Limit::new("nofile", &json!(64)).unwrap().hard, 64);
    assert_eq!(Limit::new("core", &json!("unlimited")).unwrap().soft, RLIM_INFINITY);
    assert_eq!(Limit::new("cpu", &json!([1, 2])).unwrap().hard, 2);
    for (name, value) in [("x", json!(1)), ("nofile", json!("a")), ("nofile", json!([2, 1])), ("as", json!(-2))] {
        assert!(Limit::new(name, &value).is_err(), "{name} {value}");
    }
}

#[test]
fn child_that_is_not_wanted_any_more_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let children = Children::start(|_, _| ()).unwrap();
    let spawn = |run: u64, is_wanted: bool| {
        let mut command = Command::new("touch");
        command.arg(dir.path().join(run.to_string()));
        children.spawn(run, &mut command, false, &Settings::default(), None, &|| is_wanted)
    };
    assert!(spawn(1 << 40, false).is_err_and(|fault| fault.error.to_string().contains("ended before its start")));
    // A later child has ended, so an earlier one would have run.
    assert!(spawn(2 << 40, true).is_ok());
    let begin = std::time::Instant::now();
    while !dir.path().join((2_u64 << 40).to_string()).exists() {
        assert!(begin.elapsed().as_secs() < 30);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(!dir.path().join((1_u64 << 40).to_string()).exists());
}

#[test]
fn ends_are_told_by_wait() {
    let (tell, told) = crossbeam_channel::unbounded();
    let children = Children::start(move |run, code| {
        let _ = tell.send((run, code));
    })
    .unwrap();
    let spawn = |run: u64, script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let settings = Settings { nice: Some(1), ..Settings::default() };
        children.spawn(run, &mut command, false, &settings, None, &|| true).unwrap().pid
    };
    spawn(1, "exit 7");
    assert_eq!(told.recv_timeout(std::time::Duration::from_secs(20)), Ok((1, 7)));
    // A real-time signal has no name in nix, and its child must be reaped all the same.
    spawn(2, "kill -40 $$");
    assert_eq!(told.recv_timeout(std::time::Duration::from_secs(20)), Ok((2, 168)));
    let pid = spawn(3, "sleep 1000");
    assert!(children.signal_group(3, pid, Signal::KILL));
    assert_eq!(told.recv_timeout(std::time::Duration::from_secs(20)), Ok((3, 137)));
    assert!(!children.signal_group(3, pid, Signal::KILL));
    // Each end is told once, to the waiter of that child or to all.
    for run in 4..12 {
        let pid = spawn(run, "exit 9");
        let by_waiter = || told.recv_timeout(std::time::Duration::from_secs(20)).ok();
        assert_eq!(wait_child(run, pid).map(|code| (run, code)).or_else(by_waiter), Some((run, 9)));
        assert_eq!(wait_child(run, pid), None);
    }
    assert!(told.is_empty());
}

/// Returns the output and the exit code of a child with these settings.
#[track_caller]
fn said(call: Call, command: &mut Command, settings: &Settings) -> Result<(String, i32), StartError> {
    use std::io::Read;
    let (tell, told) = crossbeam_channel::unbounded();
    let exited = move |_: u64, code: i32| tell.send(code).unwrap_or_default();
    let children = Children { call, ..Children::start(exited).unwrap() };
    let mut spawned = children.spawn(7, command, false, settings, None, &|| true)?;
    let mut text = String::new();
    spawned.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    Ok((text, told.recv_timeout(std::time::Duration::from_secs(20)).unwrap()))
}

#[test]
fn a_child_inherits_no_signals_descriptors_umask_or_session() {
    use nix::sys::signal::{SigSet, Signal as Name};
    // A descriptor that a child would get, and a signal that it would never hear.
    let left = std::fs::File::open("/dev/full").unwrap();
    nix::fcntl::fcntl(&left, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let mut blocked = SigSet::empty();
    blocked.add(Name::SIGUSR1);
    blocked.thread_block().unwrap();
    let script = "grep -c '^Sig\\(Blk\\|Ign\\):.0*$' /proc/self/status; umask; cat /proc/self/oom_score_adj
        ls -l /proc/self/fd | grep -c /dev/full; cut -d ' ' -f 6 /proc/$$/stat; echo $$";
    // Only root may go below what this process was started with.
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap_or(0);
    let above = (own + 100).min(1000);
    for call in [Call::Best, Call::Fork, Call::Older] {
        for (umask, score) in [(UMASK, None), (0o077, Some(above))] {
            let settings = Settings { umask, oom_score_adj: score, ..Settings::default() };
            let (text, code) = said(call, Command::new("sh").args(["-c", script]), &settings).unwrap();
            let lines: Vec<&str> = text.lines().collect();
            let [masks, mask, adj, descriptors, session, pid] = lines[..] else { panic!("{text}") };
            assert_eq!((masks, code), ("2", 0), "{text}");
            assert_eq!(u32::from_str_radix(mask, 8), Ok(umask));
            let defaults = [0, own.max(0)].map(|adj: i32| adj.to_string());
            assert!(score.map_or(defaults.contains(&adj.to_owned()), |score| adj == score.to_string()), "{text}");
            assert_eq!(descriptors, "0", "{text}");
            assert_eq!(session, pid, "it leads a session of its own");
        }
    }
    blocked.thread_unblock().unwrap();
}

#[test]
fn both_calls_tell_the_step_that_failed() {
    let limits = |value| vec![Limit::new("core", &json!(0)).unwrap(), Limit::new("nofile", &value).unwrap()];
    let beyond = Settings { limits: limits(json!(1u64 << 40)), ..Settings::default() };
    let few = Settings { limits: limits(json!(3)), oom_score_adj: Some(1000), ..Settings::default() };
    let plain = Settings::default();
    for call in [Call::Best, Call::Fork, Call::Older] {
        let step = |command: &mut Command, settings| said(call, command, settings).unwrap_err().step;
        assert_eq!(step(&mut Command::new("/no/such"), &plain), crate::process_tree::Step::Program);
        assert_eq!(step(Command::new("true").current_dir("/no"), &plain), crate::process_tree::Step::WorkingDir);
        assert_eq!(step(&mut Command::new("true"), &beyond), crate::process_tree::Step::Limit(1));
        assert_eq!(step(&mut Command::new("a\0b"), &plain), crate::process_tree::Step::Program);
        // A limit that leaves no room for another descriptor is no fault of an earlier step.
        assert!(said(call, &mut Command::new("/bin/true"), &few).is_ok());
    }
}

#[test]
fn an_end_that_somebody_else_took_is_told() {
    let (tell, told) = crossbeam_channel::unbounded();
    let children = Children::start(move |run, code| {
        let _ = tell.send((run, code));
    })
    .unwrap();
    let mut command = Command::new("cat");
    let child = children.spawn(u64::MAX, &mut command, true, &Settings::default(), None, &|| true).unwrap();
    {
        let _nobody_else = lock(&SHARED.table);
        drop(child.stdin);
        assert_eq!(wait_for(Some(child.pid), nix::libc::WEXITED), Ok(Some((child.pid, 0))));
    }
    let by_waiter = || told.recv_timeout(std::time::Duration::from_secs(20)).ok().map(|(_, code)| code);
    assert_eq!(wait_child(u64::MAX, child.pid).or_else(by_waiter), Some(LOST));
    assert!(!children.signal_group(u64::MAX, child.pid, Signal::KILL));
}

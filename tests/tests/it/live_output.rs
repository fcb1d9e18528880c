//! Live output from end to end: a real agent, real controllers, and a reader of the stream.

use jstests::{Acc, AccOptions, Agent, AgentOptions, Redis, Stage, Watch};

#[test]
fn output_of_a_job_comes_byte_for_byte() {
    let mut stage = Stage::start();
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("bytes");
    let line = format!("head -c 50000000 /dev/urandom > {0}; cat {0}; printf 'to \\377 stderr' >&2", file.display());
    let mut watch = Watch::open(&stage.redis, &line);
    let [stdout, stderr] = watch.finish();
    assert!(stdout == std::fs::read(&file).expect("the file"), "{} bytes differ", stdout.len());
    assert_eq!(stderr, b"to \xff stderr");
    assert_eq!(stage.client.pop(&watch.id)["state"], "OK");
}

#[test]
fn output_comes_while_the_job_runs() {
    let stage = Stage::start();
    let dir = tempfile::tempdir().expect("a folder");
    let go = dir.path().join("go");
    let line = format!("echo first; while ! test -e {}; do sleep 0.02; done; echo second", go.display());
    let mut watch = Watch::open(&stage.redis, &line);
    watch.read_beyond(0);
    assert_eq!(watch.outputs[0], b"first\n");
    std::fs::write(&go, "").expect("the file");
    assert_eq!(watch.finish()[0], b"first\nsecond\n");
}

#[test]
fn output_survives_the_kill_of_controllers() {
    let redis = Redis::start();
    let mut acc = Acc::start(&redis, AccOptions::default());
    let _agent = Agent::start(&acc, AgentOptions::default());
    let line = "i=0; while test $i -lt 300; do i=$((i+1)); echo line $i; seq 2000; sleep 0.01; done";
    let mut watch = Watch::open(&redis, line);
    for megabytes in 0..2 {
        watch.read_beyond(megabytes * 1_000_000);
        acc.kill();
        acc.resume();
    }
    let [stdout, _] = watch.finish();
    let mut want = Vec::new();
    for i in 1..=300 {
        want.extend(format!("line {i}\n").into_bytes());
        (1..=2000).for_each(|n| want.extend(format!("{n}\n").into_bytes()));
    }
    assert!(stdout == want, "{} bytes, and {} were written", stdout.len(), want.len());
}

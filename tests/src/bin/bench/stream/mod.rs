//! Live output from a job's write to a reader of the stream: the delay of a line, and the speed of a large file.

mod peers;

use self::peers::Sshd;
use crate::Options;
use crate::measure::quantile;
use crate::table::{Table, number};
use anyhow::{Context, Result, ensure};
use jscommon::frame::{self, Kind};
use jstests::swarm::{Swarm, SwarmOptions};
use jstests::{Acc, AccOptions, Client, Redis, Stage, fresh_id, proc};
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest time without anything new.
const SILENCE: Duration = Duration::from_secs(60);

type Read = Option<Vec<(String, Vec<(String, HashMap<String, Vec<u8>>)>)>>;

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut stage = Stage::start_secure();
    let lines = if options.quick { 20 } else { 200 };
    let megabytes = if options.quick { 50 } else { 1000 };

    let mut delays = Vec::new();
    let line = format!("i=0; while test $i -lt {lines}; do date +%s%N; i=$((i+1)); sleep 0.03; done");
    read(&mut stage.client, &line, |bytes| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        for line in String::from_utf8_lossy(bytes).lines() {
            // A line that comes in two parts is no number of this length.
            if let Some(written) = line.parse::<u128>().ok().filter(|_| line.len() == 19) {
                delays.push(now.saturating_sub(written) as f64 / 1e6);
            }
        }
    })?;
    ensure!(delays.len() + 5 > lines, "{} of {lines} lines came", delays.len());

    let dir = tempfile::tempdir()?;
    let file = dir.path().join("bytes");
    let data: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(1 << 20).collect();
    let mut out = std::fs::File::create(&file)?;
    for _ in 0..megabytes {
        std::io::Write::write_all(&mut out, &data)?;
    }
    let bytes = megabytes << 20;
    let pids = [("agent", stage.agent.pid()), ("jsacc", stage.acc.pid()), ("Redis", stage.redis.pid())];
    let memory =
        pids.map(|(_, pid)| proc::memory(pid).and_then(|memory| proc::reset_peak_memory(pid).map(|()| memory)));
    let mut speeds = Vec::new();
    for _ in 0..options.rounds.min(3) {
        let (start, mut count) = (Instant::now(), 0);
        read(&mut stage.client, &format!("cat {}", file.display()), |bytes| count += bytes.len())?;
        ensure!(count == megabytes << 20, "{count} bytes came");
        speeds.push(count as f64 / 1e6 / start.elapsed().as_secs_f64());
    }

    let mut table = Table::new(&["live output", "median", "p99"]);
    let path = file.display().to_string();
    let (mut of_jsctl, mut of_ssh) = (Vec::new(), Vec::new());
    let sshd = Sshd::start()?;
    for _ in 0..options.rounds.min(3) {
        if let Some(jsctl) = peers::jsctl(stage.acc.redis_url(), &["exec", "1.10", "--", "cat", &path]) {
            of_jsctl.push(peers::speed(jsctl, bytes)?);
        }
        if let Some(sshd) = &sshd {
            of_ssh.push(peers::speed(sshd.command(&["cat", &path]), bytes)?);
        }
    }
    let of_get = peers::jsctl(stage.acc.redis_url(), &["get", "1.10", &path, "-"]);
    let of_get = of_get.map(|jsctl| peers::speed(jsctl, bytes)).transpose()?;
    let echo = peers::echo(stage.acc.redis_url(), "1.10", if options.quick { 30 } else { 300 })?;
    table.row([
        "a line, ms from its write".to_owned(),
        number(quantile(&delays, 0.5)),
        number(quantile(&delays, 0.99)),
    ]);
    if let Some(echo) = echo {
        let shown = [number(quantile(&echo, 0.5)), number(quantile(&echo, 0.99))];
        table.row(["a key in jsctl shell, ms until it is shown".to_owned(), shown[0].clone(), shown[1].clone()]);
    }
    let mut row = |name: String, values: &[f64]| {
        if !values.is_empty() {
            table.row([name, number(quantile(values, 0.5)), String::new()]);
        }
    };
    row(format!("cat of {megabytes} MiB, MB/s"), &speeds);
    row("  through jsctl exec".to_owned(), &of_jsctl);
    row("  through jsctl get".to_owned(), of_get.as_slice());
    row("  through ssh".to_owned(), &of_ssh);
    for ((name, pid), before) in pids.into_iter().zip(memory) {
        row(
            format!("  most memory of {name} more than before, MB"),
            &[proc::peak_memory(pid)?.saturating_sub(before?) as f64 / 1e6],
        );
    }
    drop(stage);
    many_nodes(options, &mut table)?;
    table.print();
    println!("\naim: a line within 10 ms, 60 MB/s; jsctl below half a core, and no line lost");
    Ok(())
}

/// Measures one `jsctl` that shows the lines of many simulated nodes.
fn many_nodes(options: &Options, table: &mut Table) -> Result<()> {
    let (nodes, seconds) = if options.quick { (100, 3) } else { (1000, 20) };
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::secure());
    let address = SocketAddr::from(([127, 0, 0, 1], acc.port()));
    let swarm = SwarmOptions { spread: Duration::from_secs(1), ..SwarmOptions::new(address, nodes) };
    let swarm = Swarm::start(swarm.secured_by(&acc.state_dir())?)?;
    swarm.wait_polling(Duration::from_secs(60))?;
    let before = proc::cpu(acc.pid())?;
    let start = Instant::now();
    let lines = (10 * seconds).to_string();
    let words = ["exec", "@swarm", "--no-fold", "--timeout", "120", "--", "lines", &lines];
    let Some(mut command) = peers::jsctl(acc.redis_url(), &words) else { return Ok(()) };
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut lines = HashSet::new();
    let mut cpu = 0.0;
    for line in BufReader::new(child.stdout.take().context("a pipe")?).lines() {
        lines.insert(line?.split(' ').nth(2).unwrap_or_default().to_owned());
        if lines.len() % 100 == 0 {
            cpu = proc::cpu(child.id()).unwrap_or(cpu);
        }
    }
    let status = child.wait()?;
    let elapsed = start.elapsed().as_secs_f64();
    let all = (nodes * 10 * seconds) as usize;
    ensure!(status.success() && lines.len() == all, "{} of {all} lines came, and jsctl: {status}", lines.len());
    let share = |seconds: f64| number(100.0 * seconds / elapsed);
    table.row([format!("{nodes} nodes, 10 lines a second each: jsctl, % of a core"), share(cpu), String::new()]);
    table.row(["  jsacc, % of a core".to_owned(), share(proc::cpu(acc.pid())? - before), String::new()]);
    table.row([
        "  requests of a node a second".to_owned(),
        {
            let requests = swarm.tally.live.load(std::sync::atomic::Ordering::Relaxed) as f64;
            number(requests / elapsed / f64::from(nodes))
        },
        String::new(),
    ]);
    table.row([format!("  all lines, s of {seconds}"), number(elapsed), String::new()]);
    Ok(())
}

/// Runs a shell line on the node, and gives the bytes of its stdout to `took` as they come.
fn read(client: &mut Client, line: &str, mut took: impl FnMut(&[u8])) -> Result<()> {
    let id = fresh_id();
    let (watch, stream) = (format!("jsacc:watch:{id}"), format!("jsacc:stream:{id}"));
    let mut last = "0-0".to_owned();
    let _: String = client.redis(&["SET", &watch, &last, "EX", "30"]);
    let args = json!({"cmd": "/bin/sh", "args": ["-c", line], "stream": true});
    client.push(json!({"id": id, "gid": 1, "nid": 10, "cmd": "execute", "args": args}));
    let mut since = Instant::now();
    while since.elapsed() < SILENCE {
        let read: Read = client.redis(&["XREAD", "COUNT", "8", "BLOCK", "500", "STREAMS", &stream, &last]);
        for (at, fields) in read.into_iter().flatten().flat_map(|(_, entries)| entries) {
            (last, since) = (at, Instant::now());
            for frame in frame::frames(fields.get("d").context("an entry has frames")?) {
                match frame.map(|frame| (frame.kind, frame.payload))? {
                    (Kind::Stdout, bytes) => took(bytes),
                    (Kind::End, _) => {
                        let _: i64 = client.redis(&["DEL", &watch, &stream]);
                        return Ok(());
                    }
                    (kind, payload) => anyhow::bail!("a frame of kind {kind:?}: {}", String::from_utf8_lossy(payload)),
                }
            }
        }
        let _: String = client.redis(&["SET", &watch, &last, "EX", "30"]);
    }
    anyhow::bail!("nothing came for {} s", SILENCE.as_secs())
}

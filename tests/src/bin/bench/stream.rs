//! Live output from a job's write to a reader of the stream: the delay of a line, and the speed of a large file.

use crate::Options;
use crate::measure::quantile;
use crate::table::{Table, number};
use anyhow::{Context, Result, ensure};
use jscommon::frame::{self, Kind};
use jstests::{Client, Stage, fresh_id};
use serde_json::json;
use std::collections::HashMap;
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
    let mut speeds = Vec::new();
    for _ in 0..options.rounds.min(3) {
        let (start, mut count) = (Instant::now(), 0);
        read(&mut stage.client, &format!("cat {}", file.display()), |bytes| count += bytes.len())?;
        ensure!(count == megabytes << 20, "{count} bytes came");
        speeds.push(count as f64 / 1e6 / start.elapsed().as_secs_f64());
    }

    let mut table = Table::new(&["live output", "median", "p99"]);
    table.row([
        "a line, ms from its write".to_owned(),
        number(quantile(&delays, 0.5)),
        number(quantile(&delays, 0.99)),
    ]);
    table.row([format!("cat of {megabytes} MiB, MB/s"), number(quantile(&speeds, 0.5)), String::new()]);
    table.print();
    println!("\naim: a line within 10 ms, 60 MB/s");
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

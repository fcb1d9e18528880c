//! Other statsd servers, each ready to be sent to: statsd (npm) and collectd's plugin.
//!
//! Neither flushes anywhere: what it has counted is asked of statsd's own admin port, and of the file
//! that collectd's csv plugin writes each second.

use anyhow::{Context, Result, ensure};
use jstests::{LONG, wait_until};
use nix::sys::signal::Signal;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A statsd server that runs.
pub(crate) struct Other {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
    process: jstests::process::Process,
    kind: Kind,
    _dir: tempfile::TempDir,
}

enum Kind {
    Npm { admin: u16 },
    Collectd { csv: PathBuf },
}

/// The servers that this machine has; the others are named on stdout.
pub(crate) fn others() -> Result<Vec<Other>> {
    let mut found = Vec::new();
    match std::env::var_os("JS_STATSD").map(PathBuf::from).filter(|file| file.exists()) {
        Some(file) => found.push(npm(&file)?),
        None => println!("statsd (npm) is not here: scripts/bench installs it where npm is"),
    }
    match ["/usr/sbin/collectd", "/usr/bin/collectd"].iter().map(Path::new).find(|file| file.exists()) {
        Some(file) => found.push(collectd(file)?),
        None => println!("collectd is not installed (Debian: collectd-core): left out"),
    }
    Ok(found)
}

/// A UDP port that is free now.
pub(crate) fn free_port() -> Result<u16> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn npm(file: &Path) -> Result<Other> {
    let dir = tempfile::tempdir()?;
    let (port, admin) = (free_port()?, TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
    // It counts from flush to flush, and none comes while this measures.
    let config = format!(
        "{{port: {port}, mgmt_port: {admin}, address: '127.0.0.1', mgmt_address: '127.0.0.1', \
         flushInterval: 86400000, backends: []}}"
    );
    let path = dir.path().join("config.js");
    fs::write(&path, config)?;
    let mut command = Command::new("node");
    let process = jstests::process::Process::spawn(command.arg(file).arg(&path), "statsd", dir.path(), Signal::SIGKILL);
    wait_until("statsd listens", LONG, || TcpStream::connect(("127.0.0.1", admin)).is_ok());
    Ok(Other { name: "statsd (npm)", port, process, kind: Kind::Npm { admin }, _dir: dir })
}

fn collectd(file: &Path) -> Result<Other> {
    // Its csv plugin writes into no hidden folder.
    let dir = tempfile::Builder::new().prefix("js-collectd-").tempdir()?;
    let port = free_port()?;
    let csv = dir.path().join("csv");
    let base = dir.path().display();
    let config = format!(
        "Hostname \"bench\"\nFQDNLookup false\nInterval 1\nBaseDir \"{base}\"\nPIDFile \"{base}/pid\"\n\
         LoadPlugin csv\nLoadPlugin statsd\n\
         <Plugin csv>\n DataDir \"{}\"\n StoreRates false\n</Plugin>\n\
         <Plugin statsd>\n Host \"127.0.0.1\"\n Port \"{port}\"\n</Plugin>\n",
        csv.display()
    );
    let path = dir.path().join("collectd.conf");
    fs::write(&path, config)?;
    let mut command = Command::new(file);
    command.arg("-f").arg("-C").arg(&path);
    let process = jstests::process::Process::spawn(&mut command, "collectd", dir.path(), Signal::SIGKILL);
    let other = Other { name: "collectd", port, process, kind: Kind::Collectd { csv }, _dir: dir };
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    wait_until("collectd counts", LONG, || {
        let _ = socket.send_to(b"warm:1|c", ("127.0.0.1", port));
        other.count("warm").is_ok_and(|count| count > 0.0)
    });
    Ok(other)
}

impl Other {
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The value of the counter `key`; 0 while nothing is known of it.
    pub(crate) fn count(&self, key: &str) -> Result<f64> {
        match &self.kind {
            Kind::Npm { admin } => {
                let mut admin = TcpStream::connect(("127.0.0.1", *admin))?;
                admin.write_all(b"counters\n")?;
                let mut value = 0.0;
                for line in BufReader::new(admin).lines() {
                    let line = line?;
                    if let Some((name, rest)) = line.trim().split_once(':')
                        && name.trim_matches(['\'', '"', ' ']) == key
                    {
                        value = rest.trim().trim_end_matches(',').parse().context("a number")?;
                    }
                    if line.trim() == "END" {
                        return Ok(value);
                    }
                }
                anyhow::bail!("statsd's admin port closed")
            }
            Kind::Collectd { csv } => {
                let dir = csv.join("bench").join("statsd");
                let mut last = 0.0;
                for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                    let name = entry.file_name();
                    if name.to_string_lossy().starts_with(&format!("derive-{key}-")) {
                        let text = fs::read_to_string(entry.path())?;
                        let value = text.lines().last().and_then(|line| line.rsplit(',').next()?.parse().ok());
                        last = f64::max(last, value.unwrap_or(0.0));
                    }
                }
                Ok(last)
            }
        }
    }
}

/// Sends to one server without losing anything: what waits in its socket is kept below its buffer.
pub(crate) struct Pump {
    socket: UdpSocket,
    /// As `/proc/net/udp` writes the port.
    mark: String,
    /// Bytes that may wait.
    room: u64,
    /// Datagrams since the last look.
    sent: u64,
}

impl Pump {
    /// To a port whose receive buffer holds at least `room` bytes.
    pub(crate) fn new(port: u16, room: u64) -> Result<Pump> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(("127.0.0.1", port))?;
        Ok(Pump { socket, mark: format!(":{port:04X} 00000000:0000 "), room, sent: 0 })
    }

    /// Sends a datagram, and waits before whenever too much is on its way.
    pub(crate) fn send(&mut self, datagram: &[u8]) -> Result<()> {
        // A short datagram takes more than 2 KiB of a receive buffer at the most.
        if self.sent >= self.room / 2 / 2304 {
            while self.waiting()? > self.room / 2 {
                // Spinning would take the processor from the receiver.
                std::thread::sleep(Duration::from_micros(50));
            }
            self.sent = 0;
        }
        self.sent += 1;
        self.socket.send(datagram).context("send")?;
        Ok(())
    }

    /// Waits until all was received.
    pub(crate) fn drain(&self) -> Result<()> {
        while self.waiting()? > 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    /// Bytes that wait in the server's socket.
    fn waiting(&self) -> Result<u64> {
        let text = fs::read_to_string("/proc/net/udp")?;
        let line = text.lines().find(|line| line.contains(&self.mark)).context("nobody listens any more")?;
        let queue = line.split_whitespace().nth(4).and_then(|queues| queues.split(':').nth(1));
        let bytes = u64::from_str_radix(queue.context("a queue")?, 16)?;
        ensure!(bytes < 1 << 40, "no size: {line}");
        Ok(bytes)
    }
}

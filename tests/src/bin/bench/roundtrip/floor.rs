//! The least possible cost of a command: a ping-pong through Redis, a process, a durable commit.

use anyhow::{Context, Result};
use jstests::{Redis, fresh_id};
use redis::Connection;
use rusqlite::Connection as Sqlite;
use std::path::Path;
use std::process::{Child, Command, Stdio};

const IN: &str = "floor.in";
const OUT: &str = "floor.out";

/// The name under which this program is the second process.
pub(crate) const PONG: &str = "--pong";

/// Starts `/bin/true` as a supervisor has to: stdin closed, stdout and stderr through pipes.
pub(super) fn spawn_true() -> Result<()> {
    let mut command = Command::new("/bin/true");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("start /bin/true")?.wait().context("wait for /bin/true")?;
    Ok(())
}

/// One ping-pong through Redis.
pub(crate) fn bounce(conn: &mut Connection, what: &str) -> Result<()> {
    redis::cmd("LPUSH").arg(IN).arg(what).exec(conn)?;
    redis::cmd("BRPOP").arg(OUT).arg(10).query::<(String, String)>(conn).context("the other process answers")?;
    Ok(())
}

/// Makes a table for `commit`.
pub(super) fn commit_table(dir: &Path) -> Result<Sqlite> {
    let disk = Sqlite::open(dir.join("commit.db"))?;
    disk.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
         CREATE TABLE jobs(id TEXT PRIMARY KEY, command TEXT)",
    )?;
    Ok(disk)
}

/// Commits one row.
pub(super) fn commit(disk: &Sqlite) -> Result<()> {
    disk.execute("INSERT INTO jobs VALUES(?1, ?2)", (fresh_id(), "x".repeat(200)))?;
    Ok(())
}

/// The second process of the ping-pong: this program again.
pub(crate) struct Pong(Child);

impl Pong {
    pub(crate) fn start(redis: &Redis) -> Result<Pong> {
        let program = std::env::current_exe()?;
        Ok(Pong(Command::new(program).args([PONG, &redis.url()]).stdin(Stdio::null()).spawn()?))
    }
}

impl Drop for Pong {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Answers until Redis goes away, or it is killed.
pub(crate) fn pong(url: &str) -> Result<()> {
    let mut conn = redis::Client::open(url)?.get_connection()?;
    loop {
        let asked: Option<(String, String)> = redis::cmd("BRPOP").arg(IN).arg(2).query(&mut conn)?;
        match asked.as_ref().map(|(_, what)| what.as_str()) {
            Some("spawn") => spawn_true()?,
            Some(_) => {}
            None => continue,
        }
        redis::cmd("LPUSH").arg(OUT).arg("done").exec(&mut conn)?;
    }
}

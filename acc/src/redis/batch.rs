//! Calls that travel together.

use super::scripts::Script;
use redis::{Cmd, ToRedisArgs};

/// Room for the arguments of a script behind its keys, and for the bytes of all of them, so that a usual call does not
/// grow step by step.
const SCRIPT_ARGUMENTS: usize = 16;
const SCRIPT_BYTES: usize = 512;

/// A command with its arguments.
pub(crate) fn command(name: &'static str, args: impl ToRedisArgs) -> Cmd {
    let mut cmd = redis::cmd(name);
    cmd.arg(args);
    cmd
}

/// Calls that travel together, in order, in one round trip; each is atomic, all of them are not.
#[derive(Default)]
pub struct Batch {
    pub(crate) calls: Vec<Cmd>,
    /// There is a script among them.
    pub(crate) scripted: bool,
}

impl Batch {
    /// None yet.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Adds a command.
    pub(crate) fn call(&mut self, cmd: Cmd) -> &mut Batch {
        self.calls.push(cmd);
        self
    }

    /// Adds a call of `script` with its keys and, behind them, its arguments.
    pub(crate) fn script(&mut self, script: &Script, keys: &[String], args: impl ToRedisArgs) -> &mut Batch {
        let mut cmd = Cmd::with_capacity(keys.len() + SCRIPT_ARGUMENTS, SCRIPT_BYTES);
        cmd.arg("EVALSHA").arg(script.hash()).arg(keys.len()).arg(keys).arg(args);
        self.scripted = true;
        self.call(cmd)
    }

    /// Adds all calls of `other` behind its own.
    pub(crate) fn append(&mut self, other: Batch) -> &mut Batch {
        self.calls.extend(other.calls);
        self.scripted |= other.scripted;
        self
    }

    /// How many calls are in it.
    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there is no call in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }
}

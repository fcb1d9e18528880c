//! The programs, the proxies between them, and what is done to them.

use crate::load::ROLE;
use crate::schedule::{Failure, Link, Program};
use jstests::redis_server::free_port;
use jstests::{Acc, AccOptions, Agent, AgentOptions, Client, LONG, Redis, TcpProxy};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rusqlite::{Connection, OpenFlags};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Controllers and Redis; the agents are of two roles.
pub(crate) const CONTROLLERS: usize = 2;

/// A program that may be down because of a failure.
struct Running<T> {
    program: T,
    down: bool,
}

/// The whole system. The parts are dropped from the nodes to Redis.
pub(crate) struct World {
    agents: Vec<Running<Agent>>,
    /// Of each agent to each controller.
    to_controllers: Vec<Vec<TcpProxy>>,
    controllers: Vec<Running<Acc>>,
    to_redis: Vec<TcpProxy>,
    pub(crate) redis: Redis,
    redis_down: bool,
    _state: tempfile::TempDir,
}

impl World {
    /// Starts all of it, and waits until every node has been seen.
    pub(crate) fn start(agents: usize) -> World {
        let port = free_port();
        let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"], Some(port));
        let state = tempfile::Builder::new().prefix("js-chaos-").tempdir().expect("a temporary folder");
        let to_redis: Vec<TcpProxy> = (0..CONTROLLERS).map(|_| TcpProxy::start(port)).collect();
        let quiet = || vec!["--log-level".to_owned(), "info".to_owned()];
        let start = |proxy: &TcpProxy| {
            let options =
                AccOptions { state_dir: Some(state.path().to_owned()), args: quiet(), ..AccOptions::secure() };
            Running { program: Acc::start_at(&format!("redis://127.0.0.1:{}", proxy.port()), options), down: false }
        };
        let controllers: Vec<Running<Acc>> = to_redis.iter().map(start).collect();
        let mut world = World {
            agents: Vec::new(),
            to_controllers: Vec::new(),
            controllers,
            to_redis,
            redis,
            redis_down: false,
            _state: state,
        };
        for agent in 0..agents {
            let proxies: Vec<TcpProxy> =
                world.controllers.iter().map(|acc| TcpProxy::start(acc.program.port())).collect();
            let nid = agent as u32 + 1;
            let acc = &world.controllers[0].program;
            let enrolled = acc.enroll(1, nid);
            // Half of them ask the second controller first.
            let mut urls: Vec<String> =
                proxies.iter().map(|proxy| format!("\"https://127.0.0.1:{}\"", proxy.port())).collect();
            if agent % 2 == 1 {
                urls.reverse();
            }
            let config = format!(
                "[controllers.main]\nurl = [{}]\ntoken_file = \"{}\"\nca = \"{}\"",
                urls.join(", "),
                enrolled.dir.join("token").display(),
                enrolled.ca.display()
            );
            let roles: &[&str] = if agent % 2 == 0 { &[ROLE] } else { &["other"] };
            let options = AgentOptions { args: quiet(), ..AgentOptions::nid(nid) }.roles(roles).config(&config);
            world.agents.push(Running { program: Agent::start_of(&[], options), down: false });
            world.to_controllers.push(proxies);
        }
        let mut client = world.client();
        (1..=agents).for_each(|nid| client.wait_seen(&format!("1:{nid}")));
        world
    }

    /// A client of Redis, which must be there.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.redis)
    }

    /// Begins a failure; false where it cannot happen now.
    pub(crate) fn begin(&mut self, failure: Failure) -> bool {
        match failure {
            Failure::Kill(program) => self.down(program, Signal::SIGKILL),
            Failure::Stop(program) => self.down(program, Signal::SIGTERM),
            Failure::Pause(program) => self.signal(program, Signal::SIGSTOP),
            Failure::Cut(link) => self.proxy(link).cut() > 0,
            Failure::Stall(link) => {
                self.proxy(link).stall(true);
                true
            }
        }
    }

    /// Ends a failure.
    pub(crate) fn end(&mut self, failure: Failure) {
        match failure {
            Failure::Kill(program) | Failure::Stop(program) => self.up(program),
            Failure::Pause(program) => drop(self.signal(program, Signal::SIGCONT)),
            Failure::Cut(_) => {}
            Failure::Stall(link) => self.proxy(link).stall(false),
        }
    }

    fn proxy(&self, link: Link) -> &TcpProxy {
        match link {
            Link::Redis(controller) => &self.to_redis[controller],
            Link::Node(agent, controller) => &self.to_controllers[agent][controller],
        }
    }

    fn is_down(&self, program: Program) -> bool {
        match program {
            Program::Redis => self.redis_down,
            Program::Controller(i) => self.controllers[i].down,
            Program::Agent(i) => self.agents[i].down,
        }
    }

    fn pid(&self, program: Program) -> u32 {
        match program {
            Program::Redis => self.redis.pid(),
            Program::Controller(i) => self.controllers[i].program.pid(),
            Program::Agent(i) => self.agents[i].program.pid(),
        }
    }

    fn signal(&self, program: Program, signal: Signal) -> bool {
        // One that is down has no process, and its number may be another's.
        !self.is_down(program) && kill(Pid::from_raw(self.pid(program) as i32), signal).is_ok()
    }

    fn down(&mut self, program: Program, signal: Signal) -> bool {
        if self.is_down(program) {
            return false;
        }
        if signal == Signal::SIGTERM {
            self.signal(program, signal);
        }
        match program {
            Program::Redis => {
                self.redis.kill();
                self.redis_down = true;
            }
            Program::Controller(i) => {
                let running = &mut self.controllers[i];
                if signal == Signal::SIGKILL {
                    running.program.kill();
                }
                running.down = true;
            }
            Program::Agent(i) => {
                let running = &mut self.agents[i];
                if signal == Signal::SIGKILL {
                    running.program.kill();
                }
                running.down = true;
            }
        }
        true
    }

    fn up(&mut self, program: Program) {
        if !self.is_down(program) {
            return;
        }
        match program {
            Program::Redis => {
                self.redis.resume();
                self.redis_down = false;
            }
            Program::Controller(i) => {
                let running = &mut self.controllers[i];
                // One that was asked to stop has had its time.
                running.program.kill();
                running.program.resume_unready();
                running.down = false;
            }
            Program::Agent(i) => {
                let running = &mut self.agents[i];
                running.program.kill();
                running.program.resume();
                running.down = false;
            }
        }
    }

    /// Programs that have ended by themselves, with the end of what they wrote.
    pub(crate) fn ended(&mut self) -> Vec<String> {
        let tail = |name: String, output: &str| {
            let lines: Vec<&str> = output.lines().rev().take(5).collect();
            format!("{name} ended by itself: {}", lines.into_iter().rev().collect::<Vec<_>>().join(" | "))
        };
        let mut ended = Vec::new();
        for (i, running) in self.controllers.iter_mut().enumerate().filter(|(_, running)| !running.down) {
            if running.program.ended() {
                ended.push(tail(format!("controller {i}"), &running.program.output()));
                running.down = true;
                self.up(Program::Controller(i));
                return ended;
            }
        }
        for (i, running) in self.agents.iter_mut().enumerate().filter(|(_, running)| !running.down) {
            if running.program.ended() {
                ended.push(tail(format!("agent {}", i + 1), &running.program.output()));
                running.down = true;
                self.up(Program::Agent(i));
                return ended;
            }
        }
        ended
    }

    /// How often each id is written down as an effect of each node.
    pub(crate) fn effects(&self) -> BTreeMap<String, BTreeMap<u32, usize>> {
        let mut effects: BTreeMap<String, BTreeMap<u32, usize>> = BTreeMap::new();
        for (i, agent) in self.agents.iter().enumerate() {
            let text = fs::read_to_string(agent.program.data_dir().join("effects")).unwrap_or_default();
            for id in text.lines() {
                *effects.entry(id.to_owned()).or_default().entry(i as u32 + 1).or_default() += 1;
            }
        }
        effects
    }

    /// The remains that should not exist once all is answered: in Redis, in the nodes' databases, as processes.
    pub(crate) fn left_over(&self) -> Vec<String> {
        let mut left = Vec::new();
        let mut client = self.client();
        let mut note = |what: String, count: u64| {
            if count > 0 {
                left.push(format!("{what}: {count}"));
            }
        };
        note("cmds_queue".into(), client.redis(&["LLEN", "cmds_queue"]));
        note("jsacc:expiring".into(), client.redis(&["ZCARD", "jsacc:expiring"]));
        note("jsacc:rejected".into(), client.redis(&["LLEN", "jsacc:rejected"]));
        for key in client.redis::<Vec<String>>(&["KEYS", "jsacc:{cmds_queue}:taken:*"]) {
            note(key.clone(), client.redis(&["LLEN", &key]));
        }
        for nid in 1..=self.agents.len() {
            let (queue, texts) = (format!("jsacc:{{1:{nid}}}:queue"), format!("jsacc:{{1:{nid}}}:cmds"));
            note(queue.clone(), client.redis(&["ZCARD", &queue]));
            note(texts.clone(), client.redis(&["HLEN", &texts]));
        }
        for (i, agent) in self.agents.iter().enumerate() {
            let home = agent.program.data_dir();
            match unsent(&home) {
                Ok(count) => note(format!("results and jobs of node {}", i + 1), count),
                Err(error) => note(format!("the database of node {} cannot be read ({error})", i + 1), 1),
            }
            note(format!("processes of node {}", i + 1), processes_below(&home));
        }
        left
    }

    /// Everything is told to run again.
    pub(crate) fn calm(&mut self) {
        self.up(Program::Redis);
        self.signal(Program::Redis, Signal::SIGCONT);
        for i in 0..self.controllers.len() {
            self.up(Program::Controller(i));
            self.signal(Program::Controller(i), Signal::SIGCONT);
        }
        for i in 0..self.agents.len() {
            self.up(Program::Agent(i));
            self.signal(Program::Agent(i), Signal::SIGCONT);
        }
        self.to_redis.iter().chain(self.to_controllers.iter().flatten()).for_each(|proxy| proxy.stall(false));
    }

    /// Writes what the programs have logged into a folder.
    pub(crate) fn keep_logs(&self, dir: &Path) -> std::io::Result<()> {
        fs::create_dir_all(dir)?;
        for (i, running) in self.controllers.iter().enumerate() {
            fs::write(dir.join(format!("controller-{i}.log")), running.program.output())?;
        }
        for (i, running) in self.agents.iter().enumerate() {
            fs::write(dir.join(format!("agent-{}.log", i + 1)), running.program.output())?;
        }
        Ok(())
    }

    /// Stops the agents, and returns the exit codes of those that did not end well.
    pub(crate) fn stop_agents(&mut self) -> Vec<String> {
        let mut bad = Vec::new();
        for (i, running) in self.agents.iter_mut().enumerate() {
            let code = running.program.stop();
            if code != Some(0) {
                bad.push(format!("agent {} ended with {code:?} within {LONG:?} of TERM", i + 1));
            }
            running.down = true;
        }
        bad
    }
}

/// Rows of a node's `state.db` that are neither sent nor of a job that is remembered.
fn unsent(home: &Path) -> rusqlite::Result<u64> {
    let db = Connection::open_with_flags(home.join("state.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    db.busy_timeout(LONG)?;
    let count: i64 = db.query_row("SELECT count(*) FROM jobs WHERE state <> 3", [], |row| row.get(0))?;
    Ok(count.unsigned_abs())
}

/// Processes of jobs of this node.
fn processes_below(home: &Path) -> u64 {
    let wanted = format!("AGENT_HOME={}", home.display()).into_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    let has = |environ: Vec<u8>| environ.split(|byte| *byte == 0).any(|var| var == wanted);
    entries.flatten().filter(|entry| fs::read(entry.path().join("environ")).is_ok_and(has)).count() as u64
}

//! The running controller: what is started, in which order, and how it ends.
//!
//! Owns: wiring and shutdown. The order of the end is that of work: no more commands are taken, no more
//! wake-ups are read, the proxy closes its connections, tiny_http finishes, and the controller deregisters.
//!
//! **A thread that fails ends the whole**, with status 1: a controller that beats and takes no commands is
//! worse than none, for its service manager would start it again, and others would reclaim its work.

use crate::api::context::Context;
use crate::api::delivered_batches::DeliveredBatches;
use crate::api::rate_limiter::RateLimiter;
use crate::api::script_cache::ScriptCache;
use crate::api::server;
use crate::api::{Handlers, HeldValues};
use crate::auth::authenticator::{Authenticator, Rules};
use crate::auth::shared_secrets;
use crate::auth::state_dir::StateDir;
use crate::auth::tickets::{TicketKeys, Tickets};
use crate::auth::tls::TlsSource;
use crate::auth::trusted_paths;
use crate::clock::{self, Clock};
use crate::config::Config;
use crate::critical_thread;
use crate::metrics::Metrics;
use crate::model::claims::Claimed;
use crate::model::{SCHEMA, nodes, wakeups};
use crate::proxy::{self, Limits, ProxyConfig, Seen};
use crate::redis::errors::{is_broken, is_too_old};
use crate::redis::{Address, Pool, describe};
use crate::work::Stop;
use crate::work::dispatcher::Dispatcher;
use crate::work::periodic::PeriodicTasks;
use crate::work::shared_changes::DeadControllers;
use anyhow::{Context as _, bail};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use jscommon::lock::lock;
use jscommon::notify;
use jscommon::worker::Worker;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Stack of a thread of our own, in bytes.
const STACK_BYTES: usize = 512 << 10;
/// A polite stop ends by then.
const STOP_TIMEOUT: Duration = Duration::from_millis(4500);
/// Threads that handle requests. Each waits on Redis, not on the processor.
const HANDLER_THREADS: usize = 4;

/// Everything that `jsacc` and its subcommands (`is_task`) need before they differ. Only a controller makes a CA: one
/// that was made in the wrong place signs what nobody takes.
pub fn prepare(config: Config, is_task: bool) -> anyhow::Result<Context> {
    trusted_paths::check(&config, is_task)?;
    // Rustls wants one provider for the process; a second start in a test finds it there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let open = if is_task { StateDir::find } else { StateDir::open };
    let state_dir = open(&config.state_dir, clock::local_ms())?;
    // Somebody may have made the directory a moment before.
    trusted_paths::check(&config, is_task)?;
    let secrets = state_dir.secrets()?;
    let ticket_keys = match state_dir.ticket_keys()? {
        Some(keys) => keys,
        None => TicketKeys { current: StateDir::new_ticket_key()?, previous: None },
    };
    let metrics_token = config.metrics_token_file.as_deref().map(token).transpose()?;
    let nodes_token = config.nodes_token_file.as_deref().map(token).transpose()?;
    let (no_auth, require_cert) = (config.insecure_no_auth, config.require_client_cert);
    let rules = Rules { no_auth, require_cert, metrics_token, nodes_token };
    let metrics = Arc::new(Metrics::new());
    let ca = match &config.redis_ca {
        Some(file) => Some(jscommon::file::read(file).with_context(|| format!("{} cannot be read", file.display()))?),
        None => None,
    };
    let pool = Pool::new(Address::new(config.redis.clone(), ca, &SCHEMA), metrics.clone());
    Ok(Context {
        me: name(config.port),
        authenticator: Arc::new(Authenticator::new(rules, secrets, clock::local_ms)),
        state_dir,
        pool,
        metrics,
        clock: Clock::default(),
        scripts: ScriptCache::default(),
        claims: Claimed::default(),
        delivered: DeliveredBatches::default(),
        rate_limiter: RateLimiter::new(config.max_records),
        values: HeldValues::default(),
        tickets: Tickets::new(ticket_keys),
        forgotten: AtomicBool::new(false),
        epoch: AtomicU64::new(0),
        config,
    })
}

fn token(file: &Path) -> anyhow::Result<String> {
    let what = || format!("{} cannot be read", file.display());
    let text = jscommon::text::decode(jscommon::file::read(file).with_context(what)?).with_context(what)?;
    let token = text.trim();
    if token.is_empty() || token.contains(char::is_whitespace) {
        bail!("{} must hold one token, a word without blanks", file.display());
    }
    if token.len() < 16 {
        log::warn!("the token in {} is short: whoever guesses it may read what it opens", file.display());
    }
    Ok(token.to_owned())
}

/// Runs a controller until a signal ends it.
pub fn run(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be caught")?;
    config.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    let context = Arc::new(prepare(config, false)?);
    agree_with_redis(&context)?;
    let (fatal_in, fatal) = crossbeam_channel::unbounded::<String>();
    let (seen_in, seen) = crossbeam_channel::unbounded();
    let (server, proxy, tls) = serve(&context, seen_in, &fatal_in)?;

    let (refused_in, refused) = crossbeam_channel::bounded(256);
    context.authenticator.report_refusals(refused_in);
    let (dead_in, dead) = crossbeam_channel::unbounded();
    let (stop_periodic, periodic_stop) = crossbeam_channel::bounded(0);
    let periodic = PeriodicTasks {
        context: context.clone(),
        proxy: proxy.remote(),
        tls,
        seen,
        refused,
        dead: DeadControllers(dead_in),
        fatal: fatal_in.clone(),
        stop: Stop::new(periodic_stop),
    };
    let periodic = critical_thread::spawn("periodic", STACK_BYTES, fatal_in.clone(), move || periodic.run())
        .context("no thread for the periodic tasks")?;

    let (stop_work, work_stop) = crossbeam_channel::bounded(0);
    let stop = Stop::new(work_stop);
    let dispatcher = Dispatcher::new(context.clone(), proxy.remote(), dead, stop.clone());
    let dispatcher = critical_thread::spawn("dispatcher", STACK_BYTES, fatal_in.clone(), move || dispatcher.run())
        .context("no thread for the dispatcher")?;
    let (shared, remote) = (context.clone(), proxy.remote());
    let wakeups = critical_thread::spawn("wakeups", STACK_BYTES, fatal_in, move || {
        crate::work::wakeups::run(&shared, &remote, &stop)
    })
    .context("no thread for the wake-up reader")?;

    // The main thread waits for a signal; a fatal fault ends that wait as a signal would.
    let reason: Arc<Mutex<Option<String>>> = Arc::default();
    let (handle, told) = (signals.handle(), reason.clone());
    let watcher = Worker::spawn("fatal", 64 << 10, move || {
        if let Ok(why) = fatal.recv() {
            *lock(&told) = Some(why);
            handle.close();
        }
    })
    .context("no thread to watch for faults")?;
    let (stop_watchdog, watchdog_stop) = crossbeam_channel::bounded(0);
    let watchdog = match notify::watchdog() {
        Some(every) => {
            let remote = proxy.remote();
            let run = move || beat(every, &remote, &watchdog_stop);
            Some(Worker::spawn("watchdog", 64 << 10, run).context("no thread for the watchdog")?)
        }
        None => None,
    };
    notify::ready();
    if let Some(signal) = signals.forever().next() {
        log::info!("ending on signal {signal}");
    }
    notify::stopping();
    drop(stop_watchdog);
    drop(watchdog);

    drop(stop_work);
    // A second signal ends at once.
    let _ = signal_hook::flag::register_conditional_shutdown(
        SIGTERM,
        1,
        Arc::new(std::sync::atomic::AtomicBool::new(true)),
    );
    // A stop ends in time also while Redis is away: a controller may die at any moment and nothing is lost.
    let failed = lock(&reason).is_some();
    let (stopped, over) = crossbeam_channel::bounded::<()>(0);
    let deadline = Worker::spawn("deadline", 64 << 10, move || {
        if over.recv_timeout(STOP_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            log::warn!("redis does not answer: what is under way there is left to the other controllers");
            std::process::exit(i32::from(failed));
        }
    })
    .context("no thread to watch over the stop")?;
    drop(proxy);
    // The read of wake-ups may last some seconds.
    if let Err(e) = context.pool.with(|conn| wakeups::wake(conn, &context.me)) {
        log::debug!("the wake-up reader is not woken: {e}");
    }
    drop(dispatcher);
    drop(wakeups);
    drop(server);
    drop(stop_periodic);
    drop(periodic);
    drop(watcher);
    drop(stopped);
    drop(deadline);
    let why = lock(&reason).take();
    match why {
        Some(why) => bail!(why),
        None => Ok(()),
    }
}

/// Compares what this controller shares with others with what Redis has. A fault of that is told before anything
/// listens; when Redis is away, the heartbeat and the periodic tasks do it later.
fn agree_with_redis(context: &Context) -> anyhow::Result<()> {
    let config = &context.config;
    match context.pool.with(nodes::fingerprint) {
        Ok(Some(theirs)) => shared_secrets::check_fingerprint(&context.authenticator, &config.state_dir, &theirs)
            .map_err(anyhow::Error::msg)?,
        Err(e) if is_too_old(&e) => return Err(redis_fault(config, &e)),
        _ => {}
    }
    // No node is admitted before both are known.
    let agreed =
        context.pool.with(|conn| shared_secrets::agree_on_ticket_key(&context.tickets, &context.state_dir, conn));
    if let Err(e) = &agreed
        && !is_broken(e)
    {
        log::error!("the ticket key is not compared with the one in redis yet: {}", describe(e));
    }
    if context.tickets.is_agreed()
        && let Err(e) = context.pool.with(|conn| {
            shared_secrets::admit_nodes(&context.tickets, &context.state_dir, &context.authenticator, conn)
        })
    {
        log::debug!("the revocations are not read yet: {}", describe(&e));
    }
    Ok(())
}

/// Starts the web server and the proxy before it; also returns the proxy's certificate, when it has one.
fn serve(
    context: &Arc<Context>,
    seen: Sender<Seen>,
    fatal: &Sender<String>,
) -> anyhow::Result<(server::Handle, proxy::Handle, Option<TlsSource>)> {
    let config = &context.config;
    let tls = match config.insecure_http {
        true => None,
        false => Some(TlsSource::new(context.state_dir.tls(config, clock::local_ms())?)),
    };
    let server = server::Handle::start(HANDLER_THREADS, Arc::new(Handlers::new(context.clone())), fatal)?;
    let proxy_config = ProxyConfig {
        listen: SocketAddr::new(config.bind, config.port),
        tls: tls.clone(),
        backend: server.backend(),
        limits: Limits { max_records: config.max_records, ..Limits::default() },
    };
    let (authenticator, metrics) = (context.authenticator.clone(), context.metrics.clone());
    let proxy = proxy::Handle::start(proxy_config, authenticator, metrics, seen, fatal.clone())?;
    let scheme = if config.insecure_http { "http" } else { "https" };
    log::info!("listening on {scheme}://{}, redis at {}", proxy.addr(), config.redis);
    Ok((server, proxy, tls))
}

/// Tells the service manager every so often that the proxy lives, as long as the proxy says so.
fn beat(every: Duration, proxy: &proxy::Remote, stop: &Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = stop.recv_timeout(every) {
        if proxy.ping().recv_timeout(every).is_ok() {
            notify::alive();
        }
    }
}

/// Redis' error as one for people.
pub(crate) fn redis_fault(config: &Config, error: &redis::RedisError) -> anyhow::Error {
    anyhow::anyhow!("redis at {}: {}", config.redis, describe(error))
}

/// A name for this start of the controller: `host:port:random`.
pub(crate) fn name(port: u16) -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let host: String = host
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        .take(64)
        .collect();
    format!("{}:{port}:{:08x}", if host.is_empty() { "jsacc" } else { &host }, fastrand::u32(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_file_holds_one_word() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            token(&file)
        };
        assert_eq!(read("s3cret\n").unwrap(), "s3cret");
        assert!(read(" \n").is_err() && read("two words").is_err());
        assert!(token(&dir.path().join("none")).unwrap_err().to_string().contains("cannot be read"));
    }
}

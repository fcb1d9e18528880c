//! Where scripts come from: the node's folder, the cache, and behind it the controllers.

use super::cache::Cache;
use super::fetches::Fetches;
use super::{Language, MAX_SOURCE, Script, Wanted, find};
use crate::config::Config;
use crate::process_tree::NotStarted;
use crate::uplink::{Controller, Failure};
use jscommon::backoff::Backoff;
use jscommon::lock::lock;
use jscommon::token::sha256_hex;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Most sources that are kept.
const MAX_FILES: usize = 1000;
/// Most bytes of all sources that are kept.
const MAX_BYTES: u64 = 128 * 1024 * 1024;
/// How long no piece of a large file may come.
const MAX_SILENCE: Duration = Duration::from_secs(600);
/// A controller that is away for so long is not asked again.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Something that can be asked for a source: a controller.
pub(crate) trait ScriptSource: Send + Sync {
    /// The source of this SHA-256 (lower-case hex), or nothing when it knows none.
    fn source(&self, hash: &str) -> Result<Option<Vec<u8>>, FetchError>;

    /// A piece of the file of this SHA-256, or nothing when it is not there.
    fn piece(&self, hash: &str, piece: u32) -> Result<Option<Vec<u8>>, FetchError>;
}

/// Why an origin could not say.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FetchError {
    /// One sentence.
    pub(crate) reason: String,
    /// Whether it may be over in a moment.
    pub(crate) retryable: bool,
}

impl ScriptSource for Controller {
    fn source(&self, hash: &str) -> Result<Option<Vec<u8>>, FetchError> {
        self.script(hash).map_err(|failure| fetch_error(self, &failure))
    }

    fn piece(&self, hash: &str, piece: u32) -> Result<Option<Vec<u8>>, FetchError> {
        self.blob(hash, piece).map_err(|failure| fetch_error(self, &failure))
    }
}

fn fetch_error(controller: &Controller, failure: &Failure) -> FetchError {
    FetchError {
        reason: format!("controller {}: {failure}", controller.name()),
        retryable: matches!(failure, Failure::Away(_) | Failure::Busy { .. } | Failure::Foreign { .. }),
    }
}

/// The scripts that this node can run, and files on their way.
pub(crate) struct Store {
    root: PathBuf,
    cache: Cache,
    pub(super) origins: Vec<Arc<dyn ScriptSource>>,
    /// Scripts of the folder that other accounts can change are taken too.
    insecure_paths: bool,
    /// One lock a hash that is being fetched, so that jobs of one new script fetch it once.
    fetching: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    pub(super) timeout: Duration,
    /// The folder of large files on their way.
    pub(super) blobs: PathBuf,
    pub(super) fetches: Fetches,
    /// How long no piece of one may come.
    pub(super) max_silence: Duration,
}

impl Store {
    /// The scripts of this configuration; what is not here is asked of these controllers, in this order.
    pub(crate) fn new(config: &Config, origins: Vec<Arc<dyn ScriptSource>>) -> Store {
        let cache = Cache::new(config.main.data_dir.join("scripts"), MAX_FILES, MAX_BYTES);
        let (root, insecure_paths) = (config.script_path(), config.main.insecure_paths);
        Store {
            root,
            cache,
            origins,
            insecure_paths,
            fetching: Mutex::default(),
            timeout: FETCH_TIMEOUT,
            blobs: config.main.data_dir.join("blobs"),
            fetches: Fetches::default(),
            max_silence: MAX_SILENCE,
        }
    }

    /// The script that is wanted; the error says why there is none.
    pub(super) fn find(&self, wanted: &Wanted, language: Language) -> Result<Script, NotStarted> {
        match wanted {
            Wanted::Named(domain, name) => {
                let script = find::find(&self.root, domain, name, language)?;
                match find::fault(&script).filter(|_| !self.insecure_paths) {
                    Some(fault) => Err(format!("script {} is not taken: {fault}", script.label).into()),
                    None => Ok(script),
                }
            }
            Wanted::Hash(hash, name) => {
                let ending = language.ending();
                let source = self.by_hash(hash, ending)?;
                let stem = if name.is_empty() { &hash[..12] } else { name };
                Ok(Script {
                    path: self.cache.path(hash, ending).to_string_lossy().into_owned(),
                    folder: String::new(),
                    label: format!("{stem}.{ending}"),
                    source,
                })
            }
        }
    }

    /// The bytes of this SHA-256 (lower-case hex), asked of the controllers and not kept here.
    pub(crate) fn content(&self, hash: &str) -> Result<Vec<u8>, String> {
        self.fetch(hash).map_err(|fault| fault.why)
    }

    /// Ends the fetch of a large file for this command, where there is one.
    pub(crate) fn cancel_fetch(&self, id: &str) {
        self.fetches.cancel(id);
    }

    fn by_hash(&self, hash: &str, ending: &str) -> Result<Vec<u8>, NotStarted> {
        if let Some(source) = self.cache.get(hash, ending) {
            return Ok(source);
        }
        let fetch = Arc::clone(lock(&self.fetching).entry(hash.to_owned()).or_default());
        let guard = lock(&fetch);
        // The thread that held the lock before may have fetched it.
        let source = match self.cache.get(hash, ending) {
            Some(source) => Ok(source),
            None => self.fetch(hash).inspect(|source| {
                // A full disk is no reason not to run it.
                if let Err(error) = self.cache.put(hash, ending, source) {
                    log::warn!("script {hash} cannot be kept: {error}");
                }
            }),
        };
        drop(guard);
        let mut fetching = lock(&self.fetching);
        // This one and the map's own; more are those who wait.
        if Arc::strong_count(&fetch) <= 2 {
            fetching.remove(hash);
        }
        source
    }

    /// Asks each controller in turn, and again while one of them is only away for a moment.
    fn fetch(&self, hash: &str) -> Result<Vec<u8>, NotStarted> {
        let deadline = Instant::now() + self.timeout;
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(3));
        loop {
            let (mut trouble, mut retryable) = (None, false);
            for origin in &self.origins {
                match origin.source(hash) {
                    Ok(Some(source)) if source.len() as u64 > MAX_SOURCE => {
                        trouble = Some(format!("script {hash} is too large: the most is {MAX_SOURCE} bytes"));
                    }
                    Ok(Some(source)) if sha256_hex(&source) == hash => return Ok(source),
                    Ok(Some(_)) => trouble = Some(format!("what the controller has for script {hash} is another one")),
                    Ok(None) => {}
                    Err(fault) => {
                        retryable |= fault.retryable;
                        trouble = Some(format!("script {hash} cannot be fetched: {}", fault.reason));
                    }
                }
            }
            let wait = backoff.fail(fastrand::f64());
            if !retryable || Instant::now() + wait >= deadline {
                return Err(trouble.map_or_else(
                    || {
                        NotStarted::not_found(format!(
                            "no script with hash {hash}: the controller does not know it, or no longer; send it again"
                        ))
                    },
                    NotStarted::from,
                ));
            }
            std::thread::sleep(wait);
        }
    }
}

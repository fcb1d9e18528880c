//! Large files: fetched in pieces into a partial file, and handed over once the whole matches its hash.
//!
//! **Owns** the folder `data_dir/blobs`, the order of the pieces, and the wait for a controller that is away.
//! **Does not own** HTTP (an origin of the store is asked for a piece), or where the file goes.
//!
//! The pieces that have come outlive the agent: the fetch goes on at the first piece that is missing.

use super::fetches::Fetch;
use super::store::{FetchError, Store};
use crate::platform;
use jscommon::backoff::Backoff;
use jscommon::blob::PIECE_BYTES;
use jscommon::failpoint;
use jscommon::lock::lock;
use ring::digest::{Context, SHA256};
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// A partial file that nobody has gone on with for so long is removed.
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// A file that is here whole. It goes with this.
pub(crate) struct Fetched {
    pub(crate) file: File,
    path: PathBuf,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Store {
    /// Fetches the file of this SHA-256 (lower-case hex) and size in pieces for the command `id`, and does `work` with
    /// it.
    pub(crate) fn with_large(
        &self,
        id: &str,
        hash: &str,
        size: u64,
        work: &dyn Fn(&File) -> Result<bool, String>,
    ) -> Result<bool, String> {
        let listed = self.fetches.begin(id, hash)?;
        let fetch = &listed.1;
        let _turn = lock(&fetch.turn);
        self.remove_old();
        let fetched = self.fetch_large(fetch, size)?;
        fetch.check()?;
        work(&fetched.file)
    }

    fn fetch_large(&self, fetch: &Fetch, size: u64) -> Result<Fetched, String> {
        let hash = &fetch.hash;
        let path = self.blobs.join(format!("{hash}.part"));
        let fault = |fault: io::Error| format!("cannot keep the pieces of the file in {}: {fault}", path.display());
        platform::make_private_dir(&self.blobs).map_err(fault)?;
        let mut file = platform::open_private(&path).map_err(fault)?;
        loop {
            let mut digest = Context::new(&SHA256);
            let before = take_up(&mut file, size, &mut digest).map_err(fault)?;
            let mut at = before;
            while at < size {
                let length = (size - at).min(PIECE_BYTES as u64) as usize;
                let bytes = self.piece(fetch, (at / PIECE_BYTES as u64) as u32, length)?;
                file.write_all(&bytes).map_err(|why| {
                    // A disk that is full is not to stay so.
                    let _ = fs::remove_file(&path);
                    fault(why)
                })?;
                digest.update(&bytes);
                at += length as u64;
                failpoint::hit("agent.piece");
            }
            if jscommon::token::hex(digest.finish().as_ref()) == *hash {
                return Ok(Fetched { file, path });
            }
            file.set_len(0).map_err(fault)?;
            // What was here from before may be what is wrong: its disk may have lost power.
            if before == 0 {
                let _ = fs::remove_file(&path);
                return Err(format!(
                    "the pieces of the file do not match its hash {hash}: send all of them again, and put it again"
                ));
            }
        }
    }

    /// Asks each controller in turn, and again while one of them is away.
    fn piece(&self, fetch: &Fetch, piece: u32, length: usize) -> Result<Vec<u8>, String> {
        let hash = &fetch.hash;
        let began = Instant::now();
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(3));
        loop {
            fetch.check()?;
            let (mut trouble, mut retryable) = (None, false);
            for origin in &self.origins {
                match origin.piece(hash, piece) {
                    Ok(Some(bytes)) if bytes.len() == length => return Ok(bytes),
                    Ok(Some(bytes)) => {
                        let has = bytes.len();
                        trouble = Some(format!("has {has} bytes and not {length}: size and the pieces must agree"));
                    }
                    Ok(None) => {}
                    Err(FetchError { reason, retryable: again }) => {
                        retryable |= again;
                        trouble = Some(format!("cannot be fetched: {reason}"));
                    }
                }
            }
            let wait = backoff.fail(fastrand::f64());
            if !retryable || began.elapsed() + wait >= self.max_silence {
                let why = trouble.unwrap_or_else(|| "is not there, or no longer: send the pieces again".to_owned());
                return Err(format!(
                    "piece {piece} of the file {hash} {why}; what has come is kept for a day, and a put goes on there"
                ));
            }
            std::thread::sleep(wait);
        }
    }

    /// Removes partial files that nobody has gone on with.
    fn remove_old(&self) {
        for entry in fs::read_dir(&self.blobs).into_iter().flatten().flatten() {
            let is_old = |entry: &fs::DirEntry| {
                let age = SystemTime::now().duration_since(entry.metadata().ok()?.modified().ok()?).ok()?;
                (age > MAX_AGE).then_some(())
            };
            let name = entry.file_name();
            let hash = Path::new(&name).file_stem().unwrap_or_default().to_string_lossy();
            if is_old(&entry).is_some() && !self.fetches.has(&hash) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Goes on behind the whole pieces of a partial file, and adds them to the digest; returns their bytes.
fn take_up(file: &mut File, size: u64, digest: &mut Context) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let whole = if length == size { size } else { length.min(size) / PIECE_BYTES as u64 * PIECE_BYTES as u64 };
    file.set_len(whole)?;
    file.rewind()?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(whole),
            length => digest.update(&buffer[..length]),
        }
    }
}

#[cfg(test)]
#[path = "blob_tests.rs"]
mod tests;

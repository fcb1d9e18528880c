use crate::config::Config;
use crate::script::{FetchError, ScriptSource, Store};
use jscommon::blob::PIECE_BYTES;
use jscommon::token::sha256_hex;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Answer = Result<Option<Vec<u8>>, FetchError>;

/// A controller with the pieces of one file; `before` may answer in its place, and sees how many were asked for before.
struct Pieces {
    file: Vec<u8>,
    asked: Mutex<Vec<u32>>,
    before: Box<dyn Fn(usize, u32) -> Option<Answer> + Send + Sync>,
}

impl ScriptSource for Pieces {
    fn source(&self, _hash: &str) -> Answer {
        Ok(None)
    }

    fn piece(&self, _hash: &str, piece: u32) -> Answer {
        let mut asked = self.asked.lock().unwrap();
        asked.push(piece);
        let answer = (self.before)(asked.len() - 1, piece);
        answer.unwrap_or_else(|| Ok(self.file.chunks(PIECE_BYTES).nth(piece as usize).map(<[u8]>::to_vec)))
    }
}

struct Bench {
    dir: tempfile::TempDir,
    file: Vec<u8>,
    pieces: Arc<Pieces>,
    store: Store,
}

impl Bench {
    fn new(before: impl Fn(usize, u32) -> Option<Answer> + Send + Sync + 'static) -> Bench {
        let file: Vec<u8> = (0..3 * PIECE_BYTES as u32 + 77).map(|n| (n / 1000) as u8).collect();
        let pieces = Arc::new(Pieces { file: file.clone(), asked: Mutex::default(), before: Box::new(before) });
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.main.data_dir = dir.path().to_owned();
        let mut store = Store::new(&config, vec![pieces.clone()]);
        store.max_silence = Duration::from_millis(1);
        Bench { dir, file, pieces, store }
    }

    fn fetch(&self) -> Result<(), String> {
        let work = |mut file: &fs::File| {
            let mut bytes = Vec::new();
            std::io::Seek::rewind(&mut file).and_then(|()| file.read_to_end(&mut bytes)).unwrap();
            assert!(bytes == self.file, "other bytes");
            Ok(true)
        };
        self.store.with_large("put", &sha256_hex(&self.file), self.file.len() as u64, &work).map(drop)
    }

    fn asked(&self) -> Vec<u32> {
        std::mem::take(&mut *self.pieces.asked.lock().unwrap())
    }

    fn part(&self) -> PathBuf {
        self.dir.path().join(format!("blobs/{}.part", sha256_hex(&self.file)))
    }
}

fn away() -> Option<Answer> {
    Some(Err(FetchError { reason: "it is away".into(), retryable: true }))
}

#[test]
fn fetch_goes_on_at_the_first_missing_piece() {
    let is_away = AtomicBool::new(true);
    let bench = Bench::new(move |_, piece| match piece {
        2 if is_away.swap(false, Ordering::Relaxed) => away(),
        _ => None,
    });
    let fault = bench.fetch().unwrap_err();
    assert!(fault.contains("piece 2 of the file") && fault.contains("it is away"), "{fault}");
    assert_eq!(bench.asked(), [0, 1, 2]);
    let meta = fs::metadata(bench.part()).unwrap();
    assert_eq!(meta.len(), 2 * PIECE_BYTES as u64);
    #[cfg(unix)]
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o7777, 0o600);
    // What was cut off within a piece is fetched again.
    let mut part = fs::read(bench.part()).unwrap();
    part.truncate(PIECE_BYTES + 5);
    fs::write(bench.part(), part).unwrap();
    bench.fetch().unwrap();
    assert_eq!(bench.asked(), [1, 2, 3]);
    assert!(!bench.part().exists());
}

#[test]
fn controller_that_is_away_for_a_moment_is_asked_again() {
    let mut bench = Bench::new(|n, _| if n == 1 { away() } else { None });
    bench.store.max_silence = Duration::from_secs(60);
    bench.fetch().unwrap();
    assert_eq!(bench.asked(), [0, 1, 1, 2, 3]);
}

#[test]
fn piece_that_has_expired_is_told_and_what_came_is_kept() {
    let bench = Bench::new(|_, piece| (piece == 3).then_some(Ok(None)));
    let fault = bench.fetch().unwrap_err();
    assert!(fault.contains("piece 3 of the file") && fault.contains("send the pieces again"), "{fault}");
    assert_eq!(fs::metadata(bench.part()).unwrap().len(), 3 * PIECE_BYTES as u64);
}

#[test]
fn wrong_pieces_are_thrown_away() {
    let bench = Bench::new(|n, piece| (n < 4 && piece == 1).then(|| Ok(Some(vec![9; PIECE_BYTES]))));
    let fault = bench.fetch().unwrap_err();
    assert!(fault.contains("do not match its hash"), "{fault}");
    assert!(!bench.part().exists());
    bench.fetch().unwrap();
}

#[test]
fn partial_file_with_other_bytes_is_fetched_anew() {
    let bench = Bench::new(|_, _| None);
    fs::create_dir(bench.dir.path().join("blobs")).unwrap();
    fs::write(bench.part(), vec![0; 2 * PIECE_BYTES]).unwrap();
    bench.fetch().unwrap();
    assert_eq!(bench.asked(), [2, 3, 0, 1, 2, 3]);
    // A whole one, of an agent that ended before it was in its place.
    fs::write(bench.part(), &bench.file).unwrap();
    bench.fetch().unwrap();
    assert_eq!(bench.asked(), Vec::<u32>::new());
}

#[test]
fn old_partial_files_are_removed() {
    let bench = Bench::new(|_, _| None);
    fs::create_dir(bench.dir.path().join("blobs")).unwrap();
    let of = |name: &str| bench.dir.path().join("blobs").join(name);
    let day = Duration::from_secs(24 * 3600);
    for (name, age) in [("old.part", day + day), ("new.part", day / 2)] {
        let file = fs::File::create(of(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    }
    bench.fetch().unwrap();
    assert!(!of("old.part").exists() && of("new.part").exists());
}

#[test]
fn only_so_many_are_fetched_at_one_time_and_each_can_be_cancelled() {
    let mut bench = Bench::new(|_, _| away());
    bench.store.max_silence = Duration::from_secs(60);
    let file = (sha256_hex(&bench.file), bench.file.len() as u64);
    std::thread::scope(|scope| {
        let fetches: Vec<_> = (0..8)
            .map(|n| {
                let (store, (hash, size)) = (&bench.store, &file);
                // Two of them wait for each other.
                let hash = format!("{}{}", &hash[1..], n / 2);
                scope.spawn(move || store.with_large(&format!("put{n}"), &hash, *size, &|_| Ok(true)))
            })
            .collect();
        while bench.store.fetches.count() < 8 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let fault = bench.fetch().unwrap_err();
        assert!(fault.contains("8 large files"), "{fault}");
        (0..8).for_each(|n| bench.store.cancel_fetch(&format!("put{n}")));
        for fetch in fetches {
            assert_eq!(fetch.join().unwrap(), Err("it was killed".into()));
        }
    });
    assert_eq!(bench.store.fetches.count(), 0);
}

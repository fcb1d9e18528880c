//! `put`: a file that the controller holds by its hash, written to this node whole or not at all.
//!
//! Owns the command's arguments and what it answers. The bytes come by way of the scripts' store, those of a large file
//! in pieces, and it checks them against the hash; how a file is replaced is the operating system's file.

use super::{Answer, Context};
use crate::job::fields::Fields;
use crate::platform::{self, Content, Owner};
use crate::process_tree::PathVars;
use crate::script::MAX_SOURCE;
use jscommon::Command;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// The parsed arguments of the command.
#[derive(Debug, PartialEq)]
struct Order {
    path: PathBuf,
    hash: String,
    mode: Option<u32>,
    owner: Option<String>,
    mkdir: bool,
    size: Option<u64>,
}

impl Order {
    fn parse(args: &Map<String, Value>, path_vars: &PathVars) -> Result<Order, String> {
        let mut args = Fields::new(args);
        let text = |args: &mut Fields, name| args.text(name).unwrap_or_default().to_owned();
        let (path, hash) = (text(&mut args, "path"), text(&mut args, "hash"));
        let (mode, owner) = (text(&mut args, "mode"), text(&mut args, "owner"));
        let path_given = !path.is_empty();
        let path = PathBuf::from(path_vars.expand(&path));
        if !path_given {
            args.fault("path is missing: it names the file to write");
        } else if !path.is_absolute() || path.file_name().is_none() {
            args.fault(format!("path must name a file from the root on, not {}", path.display()));
        }
        if hash.is_empty() {
            args.fault("hash is missing: it is the SHA-256 of the file's content");
        } else if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            args.fault("hash must be a SHA-256: 64 hexadecimal digits");
        }
        let octal = u32::from_str_radix(&mode, 8).ok().filter(|mode| *mode <= 0o7777);
        if !mode.is_empty() && octal.is_none() {
            args.fault(format!("mode must be octal, 0644 say, not {mode}"));
        }
        let mkdir = args.flag("mkdir");
        let size = args.whole("size", 0..=jscommon::blob::MAX_BYTES as i64).map(|size| size as u64);
        let owner = Some(owner).filter(|owner| !owner.is_empty());
        args.finish(Order { path, hash: hash.to_ascii_lowercase(), mode: octal, owner, mkdir, size })
    }
}

/// Whether this is the order for a file that comes in pieces: it goes on after the agent's end.
pub(super) fn is_large(command: &Command) -> bool {
    command.cmd == "put" && command.args.get("size").and_then(Value::as_u64).is_some_and(|size| size > MAX_SOURCE)
}

/// Answers `{path, size, changed}`; `changed` is false when the file stood so already.
pub(super) fn put(context: &Context, command: &Command) -> Answer {
    let order = Order::parse(&command.args, &PathVars::new(&context.config.main.data_dir))?;
    let owner = order.owner.as_deref().map(Owner::find).transpose()?;
    let path = &order.path;
    // Looked at before the bytes travel: a fault here needs no bandwidth to be found.
    platform::check_place(path, owner.as_ref(), order.mkdir)?;
    let replace = |content: Content<'_>| {
        platform::replace(path, content, order.mode, owner.as_ref(), order.mkdir)
            .map_err(|fault| format!("cannot write {}: {fault}", path.display()))
    };
    let (size, changed) = match order.size {
        Some(size) if size > MAX_SOURCE => {
            (size, context.scripts.with_large(&command.id, &order.hash, size, &|file| replace(Content::File(file)))?)
        }
        size => {
            let bytes = context.scripts.content(&order.hash)?;
            if let Some(size) = size.filter(|size| *size != bytes.len() as u64) {
                return Err(format!("size is {size}, and the file of this hash has {} bytes", bytes.len()));
            }
            (bytes.len() as u64, replace(Content::Bytes(&bytes))?)
        }
    };
    Ok(json!({"path": path.to_string_lossy(), "size": size, "changed": changed}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::script::{FetchError, ScriptSource, Store};
    use jscommon::token::sha256_hex;
    use std::path::Path;
    use std::sync::Arc;

    const CONTENT: &[u8] = b"\x00binary\xff\n";

    struct Shelf;

    impl ScriptSource for Shelf {
        fn source(&self, hash: &str) -> Result<Option<Vec<u8>>, FetchError> {
            Ok((hash == sha256_hex(CONTENT)).then(|| CONTENT.to_vec()))
        }

        fn piece(&self, hash: &str, piece: u32) -> Result<Option<Vec<u8>>, FetchError> {
            let large = large();
            Ok(large.chunks(1 << 20).nth(piece as usize).filter(|_| hash == sha256_hex(&large)).map(<[u8]>::to_vec))
        }
    }

    fn large() -> Vec<u8> {
        (0..(16 << 20) + 5_u32).map(|n| (n / 1000) as u8).collect()
    }

    fn ask(dir: &Path, args: Value) -> Answer {
        let mut config = Config::default();
        config.main.data_dir = dir.to_path_buf();
        let config = Arc::new(config);
        let scripts = Arc::new(Store::new(&config, vec![Arc::new(Shelf)]));
        let context = Context { scripts, ..Context::new(config) };
        let command = json!({"id": "a", "gid": 1, "nid": 1, "cmd": "put", "args": args});
        put(&context, &Command::from_value(command).unwrap())
    }

    #[test]
    fn a_file_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let hash = sha256_hex(CONTENT);
        let path = dir.path().join("a/b.bin");
        let order = json!({"path": "$agentroot/a/b.bin", "hash": hash, "mode": "0640", "mkdir": true});
        let answer = ask(dir.path(), order.clone()).unwrap();
        assert_eq!(answer, json!({"path": path.to_string_lossy(), "size": CONTENT.len(), "changed": true}));
        assert_eq!(std::fs::read(&path).unwrap(), CONTENT);
        assert_eq!(ask(dir.path(), order).unwrap()["changed"], false);
        // Other content under the same name is replaced, and nothing else is left in the folder.
        std::fs::write(&path, "old").unwrap();
        assert_eq!(ask(dir.path(), json!({"path": path, "hash": hash})).unwrap()["changed"], true);
        assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 1);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(mode(&path), 0o640, "what was set before stays");
            assert_eq!(ask(dir.path(), json!({"path": path, "hash": hash, "mode": "600"})).unwrap()["changed"], true);
            assert_eq!(mode(&path), 0o600);
        }
    }

    #[test]
    fn large_file_comes_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let (large, path) = (large(), dir.path().join("large"));
        let order = |size: usize| json!({"path": path, "hash": sha256_hex(&large), "size": size, "mode": "0640"});
        let fault = ask(dir.path(), order(large.len() + 1)).unwrap_err();
        assert!(fault.contains("piece 16") && fault.contains("size and the pieces must agree"), "{fault}");
        let answer = ask(dir.path(), order(large.len())).unwrap();
        assert_eq!(answer, json!({"path": path, "size": large.len(), "changed": true}));
        assert!(std::fs::read(&path).unwrap() == large);
        assert_eq!(ask(dir.path(), order(large.len())).unwrap()["changed"], false);
        assert_eq!(std::fs::read_dir(dir.path().join("blobs")).unwrap().count(), 0, "nothing is left");
        let command = |size: u64| {
            let command = json!({"id": "a", "gid": 1, "nid": 1, "cmd": "put", "args": {"size": size}});
            Command::from_value(command).unwrap()
        };
        assert!(is_large(&command(MAX_SOURCE + 1)) && !is_large(&command(MAX_SOURCE)));
    }

    #[cfg(unix)]
    #[test]
    fn a_path_that_is_no_file_is_left_as_it_is() {
        use std::os::unix::fs::FileTypeExt;
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&of("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(of("socket")).unwrap();
        std::os::unix::fs::symlink("/dev/null", of("link")).unwrap();
        std::os::unix::fs::symlink(of("nothing"), of("dangling")).unwrap();
        let hash = sha256_hex(CONTENT);
        for path in [of("pipe"), of("socket"), of("link")] {
            let fault = ask(dir.path(), json!({"path": path, "hash": hash})).unwrap_err();
            assert!(fault.contains("no regular file"), "{fault}");
        }
        assert!(std::fs::symlink_metadata(of("pipe")).unwrap().file_type().is_fifo());
        assert!(std::fs::symlink_metadata(of("socket")).unwrap().file_type().is_socket());
        assert!(std::fs::symlink_metadata(of("link")).unwrap().file_type().is_symlink());
        // Nothing lies behind a dangling link that could be lost.
        assert_eq!(ask(dir.path(), json!({"path": of("dangling"), "hash": hash})).unwrap()["changed"], true);
    }

    #[test]
    fn every_fault_has_its_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let hash = sha256_hex(CONTENT);
        let path = dir.path().join("x");
        for (args, reason) in [
            (json!({"hash": hash}), "path is missing"),
            (json!({"path": "relative", "hash": hash}), "from the root on"),
            (json!({"path": path}), "hash is missing"),
            (json!({"path": path, "hash": "abc"}), "64 hexadecimal digits"),
            (json!({"path": path, "hash": hash, "mode": "999"}), "octal"),
            (json!({"path": path, "hash": hash, "mkdir": 1}), "mkdir must be"),
            (json!({"path": path, "hash": hash, "size": -1}), "size must be"),
            (json!({"path": path, "hash": sha256_hex(CONTENT), "size": 5}), "size is 5"),
            (json!({"path": path, "hash": hash, "owner": "nobody-of-this-name"}), "nobody-of-this-name"),
            (json!({"path": path.join("y"), "hash": hash}), "there is no folder"),
            (json!({"path": dir.path(), "hash": hash}), "is a folder"),
            (json!({"path": path, "hash": "0".repeat(64)}), "0000"),
        ] {
            let fault = ask(dir.path(), args.clone()).unwrap_err();
            assert!(fault.contains(reason), "{args}: {fault}");
        }
        assert!(!path.exists());
    }
}

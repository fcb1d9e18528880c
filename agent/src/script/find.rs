//! Finds a script of the node by domain and name.
//!
//! Whatever a command names, nothing outside of the folder of scripts is opened.

use super::{Language, MAX_SOURCE, Script};
use crate::platform;
use crate::process_tree::NotStarted;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

/// The fault of a path that is not below the folder of scripts.
const OUTSIDE: &str = "lead out of the folder of scripts";

/// Most files beside a script that are looked at.
const MAX_BESIDE: usize = 1000;

/// Reads `<root>/<domain>/<name>.<ending>`. Both names may have folders in them.
pub(super) fn find(root: &Path, domain: &str, name: &str, language: Language) -> Result<Script, NotStarted> {
    let ending = language.ending();
    // Somebody who gives the whole name of the file means that file.
    let stem = name.strip_suffix(&format!(".{ending}")).filter(|stem| !stem.is_empty()).unwrap_or(name);
    let label = format!("{domain}/{stem}.{ending}");
    let relative = inside(&label).map_err(|what| format!("domain '{domain}' and name '{name}' {what}"))?;
    let path = root.join(&relative);
    let unreadable = |error: std::io::Error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => NotStarted::not_found(format!(
            "no script {label} in {}: put it there, or send a file of yours with it: jsctl script run NODE FILE",
            root.display()
        )),
        _ => format!("script {} cannot be read: {error}", path.display()).into(),
    };
    // A link may lead elsewhere within the folder, not out of it.
    let (real_root, real) = (root.canonicalize().map_err(unreadable)?, path.canonicalize().map_err(unreadable)?);
    if !real.starts_with(&real_root) {
        return Err(format!("domain '{domain}' and name '{name}' {OUTSIDE}").into());
    }
    let source = read(&real).map_err(unreadable)?;
    if source.len() as u64 > MAX_SOURCE {
        return Err(format!("script {} is too large: the most is {MAX_SOURCE} bytes", path.display()).into());
    }
    let folder = path.parent().unwrap_or(root);
    Ok(Script {
        path: path.to_string_lossy().into_owned(),
        folder: folder.to_string_lossy().into_owned(),
        label,
        source,
    })
}

/// Returns how other accounts could change a script of the node, or a module beside it.
pub(super) fn fault(script: &Script) -> Option<String> {
    platform::path_fault(script.path.as_ref()).or_else(|| {
        let beside = fs::read_dir(&script.folder).ok()?.flatten().take(MAX_BESIDE);
        beside.map(|entry| entry.path()).find_map(|path| platform::path_fault(&path))
    })
}

/// Returns a file's bytes, at most one more than a source may have. It opens only regular files, for a pipe would
/// never be ready.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    if !path.metadata()?.is_file() {
        return Err(std::io::Error::other("it is no file"));
    }
    let mut source = Vec::new();
    File::open(path)?.take(MAX_SOURCE + 1).read_to_end(&mut source)?;
    Ok(source)
}

/// Returns the path that a text names, when it has nothing but folders and a file below where it begins;
/// else what is wrong with it.
fn inside(text: &str) -> Result<PathBuf, &'static str> {
    let path = Path::new(text);
    // These mean something on one system alone.
    if text.contains(['\0', '\\', ':']) {
        return Err("must not hold a backslash, a colon or a NUL character: write folders with /");
    }
    if path.components().any(|part| matches!(part, Component::ParentDir | Component::RootDir)) {
        return Err(OUTSIDE);
    }
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    match plain && !text.contains("//") {
        true => Ok(path.to_owned()),
        false => Err("name a folder that is empty or '.': write folders with one / between them"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_inside_is_a_script() {
        for good in ["a/b.py", "a.b/c-d_e.py", "a/b/c.py", "é/b.py", "a/..b.py"] {
            assert!(inside(good).is_ok(), "{good}");
        }
        for (bad, why) in [
            ("../b.py", OUTSIDE),
            ("a/../../b.py", OUTSIDE),
            ("a/../b.py", OUTSIDE),
            ("/etc/b.py", OUTSIDE),
            ("a//etc/b.py", "name a folder that is empty"),
            ("./b.py", "name a folder that is empty or '.'"),
            ("a/b\0.py", "must not hold"),
            ("..\\a/b.py", "must not hold a backslash"),
            ("d\\sub/b.py", "must not hold a backslash"),
            ("c:/b.py", "must not hold a backslash, a colon"),
        ] {
            assert!(inside(bad).is_err_and(|said| said.starts_with(why)), "{bad}");
        }
    }

    #[test]
    fn by_domain_and_name() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("ops/deep")).unwrap();
        fs::write(root.path().join("ops/disk.py"), "a").unwrap();
        fs::write(root.path().join("ops/deep/x.lua"), "b").unwrap();
        let found = find(root.path(), "ops", "disk", Language::Python).unwrap();
        assert_eq!((found.source.as_slice(), found.label.as_str()), (b"a".as_slice(), "ops/disk.py"));
        assert!(found.path.ends_with("ops/disk.py") && found.folder.ends_with("ops"));
        assert_eq!(find(root.path(), "ops", "disk.py", Language::Python).unwrap(), found);
        assert_eq!(find(root.path(), "ops/deep", "x", Language::Lua).unwrap().source, b"b");
        let missing = find(root.path(), "ops", "disk", Language::Lua).unwrap_err();
        assert!(missing.why.starts_with("no script ops/disk.lua in ") && missing.code == 127, "{missing:?}");
        assert!(missing.why.ends_with(": jsctl script run NODE FILE"), "{missing:?}");
        assert!(find(&root.path().join("none"), "a", "b", Language::Lua).unwrap_err().why.starts_with("no script"));
        fs::create_dir(root.path().join("ops/folder.py")).unwrap();
        let folder = find(root.path(), "ops", "folder", Language::Python).unwrap_err();
        assert!(folder.why.contains("it is no file") && folder.code == 126, "{folder:?}");
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_inside() {
        let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(root.path().join("ops")).unwrap();
        fs::write(root.path().join("ops/disk.py"), "a").unwrap();
        fs::write(other.path().join("secret.py"), "b").unwrap();
        std::os::unix::fs::symlink("disk.py", root.path().join("ops/link.py")).unwrap();
        std::os::unix::fs::symlink(other.path(), root.path().join("out")).unwrap();
        assert_eq!(find(root.path(), "ops", "link", Language::Python).unwrap().source, b"a");
        assert!(find(root.path(), "out", "secret", Language::Python).unwrap_err().why.contains("lead out"));
        assert!(find(root.path(), "..", "etc/x", Language::Python).unwrap_err().why.contains("lead out"));
        // The folder itself may be a link.
        let link = other.path().join("root");
        std::os::unix::fs::symlink(root.path(), &link).unwrap();
        assert_eq!(find(&link, "ops", "disk", Language::Python).unwrap().source, b"a");
    }
}

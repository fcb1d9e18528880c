//! Whether other accounts can change what this controller trusts, or read its secrets.
//!
//! Owns: which path is judged how, and who may own the state directory. How a path is judged is
//! `jscommon::ownership`'s.

use super::state_files::{CA_CERTIFICATE, CA_KEY, NODE_SECRET, TICKET_KEY, service_account};
use crate::config::Config;
use anyhow::bail;
use jscommon::ownership::{Guard, Trust};
use nix::unistd::Uid;
use std::path::{Path, PathBuf};

/// Files of the state directory; what they are called is `identity`'s affair.
const STATE: [(&str, Guard); 7] = [
    ("lock", Guard::Change),
    (CA_KEY, Guard::Read),
    (CA_CERTIFICATE, Guard::Change),
    (NODE_SECRET, Guard::Read),
    (TICKET_KEY, Guard::Read),
    ("server.key", Guard::Read),
    ("server.pem", Guard::Change),
];

/// Refuses what other accounts can change or read. `is_task`: this is no controller but `jsacc rotate` or the like,
/// which root may run in a state directory that belongs to the account of the service.
pub(crate) fn check(config: &Config, is_task: bool) -> anyhow::Result<()> {
    let own = Uid::effective();
    let mut trust = Trust::new(own.as_raw());
    if let Some(owner) = service_account(&config.state_dir).filter(|_| is_task && own.is_root()) {
        trust = trust.and(owner);
    }
    let mut faults = Vec::new();
    if let Some(file) = config.file.as_deref().filter(|_| !config.insecure_file) {
        let guard = if config.file_is_secret { Guard::Read } else { Guard::Change };
        faults.extend(trust.fault(file, guard));
    }
    if !config.insecure_paths {
        let secrets = [&config.tls_key, &config.metrics_token_file, &config.nodes_token_file];
        let others = [&config.tls_cert, &config.client_ca, &config.redis_ca];
        let look = |files: [&Option<PathBuf>; 3], guard| {
            let fault = |file: &Option<PathBuf>| file.as_deref().and_then(|file| trust.fault(file, guard));
            files.into_iter().filter_map(fault).collect::<Vec<_>>()
        };
        faults.extend(look(secrets, Guard::Read));
        faults.extend(look(others, Guard::Change));
        let dir = &config.state_dir;
        let in_it = || STATE.iter().find_map(|(name, guard)| trust.entry_fault(&dir.join(name), *guard));
        faults.extend(trust.fault(dir, Guard::Change).or_else(in_it));
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("; "));
    }
    Ok(())
}

/// Refuses a folder for credentials that other accounts can change, or reach only by a link of theirs.
pub(crate) fn check_out(config: &Config, folder: &Path) -> anyhow::Result<()> {
    let fault = Trust::new(Uid::effective().as_raw()).fault(folder, Guard::Change);
    match fault.filter(|_| !config.insecure_paths) {
        Some(fault) => bail!("{fault}; or give --out another folder"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    const NOBODY: u32 = 65534;

    fn check_dir(dir: &Path, is_task: bool) -> Result<(), String> {
        check(&Config { state_dir: dir.to_owned(), ..Config::default() }, is_task).map_err(|fault| fault.to_string())
    }

    #[test]
    fn foreign_state_directory_is_refused() {
        if !Uid::effective().is_root() {
            return; // Only root can make files of another account.
        }
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("state");
        assert_eq!(check_dir(&dir, false), Ok(()), "it is yet to be made");
        fs::create_dir(&dir).unwrap();
        for (name, whose) in [("ca.key", NOBODY), ("ca.pem", NOBODY), ("node.secret", 0)] {
            fs::write(dir.join(name), "").unwrap();
            chown(dir.join(name), Some(whose), None).unwrap();
            fs::set_permissions(dir.join(name), Permissions::from_mode(0o600)).unwrap();
        }
        // Somebody has put a key into a directory that was open then.
        let told = check_dir(&dir, false).unwrap_err();
        assert!(told.contains("ca.key belongs to nobody") && told.contains("chown root"), "{told}");
        chown(&dir, Some(NOBODY), None).unwrap();
        assert!(check_dir(&dir, false).unwrap_err().contains("state belongs to nobody"));
        assert!(check_dir(&dir, true).is_err(), "not all of it is that account's");
        chown(dir.join("node.secret"), Some(NOBODY), None).unwrap();
        assert_eq!(check_dir(&dir, true), Ok(()), "the service's own");
        assert!(check_dir(&dir, false).is_err(), "and no controller of root's");
        fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
        assert!(check_dir(&dir, true).unwrap_err().contains("chmod go-w"));
    }

    #[test]
    fn open_files_of_an_open_state_directory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        for name in ["ca.key", "ca.pem", "node.secret", "ticket.key", "server.key"] {
            fs::write(dir.path().join(name), "").unwrap();
            mode(&dir.path().join(name), 0o600);
        }
        for (name, wide, wrong) in [
            ("ca.key", 0o644, true),
            ("node.secret", 0o644, true),
            ("ticket.key", 0o666, true),
            ("server.key", 0o604, true),
            ("ca.pem", 0o666, true),
            ("ca.pem", 0o644, false),
            ("ca.key", 0o640, false),
        ] {
            let file = dir.path().join(name);
            mode(&file, wide);
            mode(dir.path(), 0o755);
            let told = check_dir(dir.path(), false);
            assert_eq!(told.is_err(), wrong, "{name} {wide:o}: {told:?}");
            assert!(!wrong || told.unwrap_err().contains(name));
            mode(dir.path(), 0o700);
            assert_eq!(check_dir(dir.path(), false), Ok(()), "nobody else reaches {name}");
            mode(&file, 0o600);
        }
    }

    #[test]
    fn folder_for_credentials_is_of_the_own_account() {
        if !Uid::effective().is_root() {
            return; // Only root can make files of another account.
        }
        let dir = tempfile::tempdir().unwrap();
        let (out, link) = (dir.path().join("out"), dir.path().join("link"));
        fs::create_dir(&out).unwrap();
        let config = Config::default();
        check_out(&config, &out).unwrap();
        check_out(&config, &dir.path().join("none yet")).unwrap();
        std::os::unix::fs::symlink(&out, &link).unwrap();
        check_out(&config, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(NOBODY), None).unwrap();
        assert!(check_out(&config, &link).is_err(), "a link of another account");
        chown(&out, Some(NOBODY), None).unwrap();
        assert!(check_out(&config, &out).unwrap_err().to_string().contains("chown"));
        check_out(&Config { insecure_paths: true, ..Config::default() }, &out).unwrap();
    }

    #[test]
    fn open_secrets_are_refused_unless_told_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let file = dir.path().join("file");
        let state_dir = dir.path().join("state");
        let with = |mode: u32, change: fn(&mut Config, PathBuf)| {
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
            let mut config = Config { state_dir: state_dir.clone(), ..Config::default() };
            change(&mut config, file.clone());
            check(&config, false).map_err(|fault| fault.to_string())
        };
        assert!(with(0o644, |c, f| c.tls_key = Some(f)).unwrap_err().contains("chmod o-rwx"));
        assert!(with(0o644, |c, f| c.metrics_token_file = Some(f)).is_err());
        assert!(with(0o646, |c, f| c.client_ca = Some(f)).unwrap_err().contains("chmod go-w"));
        assert!(
            with(0o646, |c, f| (c.file, c.insecure_paths) = (Some(f), true)).is_err(),
            "it cannot speak for itself"
        );
        assert_eq!(with(0o646, |c, f| (c.file, c.insecure_file) = (Some(f), true)), Ok(()));
        assert_eq!(with(0o646, |c, f| (c.tls_key, c.insecure_paths) = (Some(f), true)), Ok(()));
        assert_eq!(with(0o640, |c, f| c.tls_key = Some(f)), Ok(()));
        assert_eq!(with(0o644, |c, f| c.file = Some(f)), Ok(()));
        let password = |c: &mut Config, f| (c.file, c.file_is_secret) = (Some(f), true);
        assert!(with(0o644, password).unwrap_err().contains("every account can read that secret"));
        assert_eq!(with(0o640, password), Ok(()));
    }
}

//! The state directory of a family of controllers: its CA, server certificate and node
//! secret, and what is made from them for nodes.
//!
//! Owns: the directory (mode 0700), its files (keys 0600), and their making on the first start.
//! Does not own: who is let in (`authenticator`), what was revoked (Redis), the wire (handlers, proxy).
//!
//! **A file is written whole or not at all** (a new one takes its place), so that controllers that
//! share a directory, and `jsacc` commands beside a running controller, never read half a key.

use super::ca::Ca;
use super::secrets::Secrets;
use super::state_files::{CA_CERTIFICATE, CA_KEY, NODE_SECRET, TICKET_KEY, lock, write_state};
use super::tls::{self, PeerCert};
use super::{dates, secrets, server_certificate};
use crate::auth::tickets::{TicketKey, TicketKeys};
use crate::config::Config;
use anyhow::{Context, anyhow, bail};
use jscommon::{NodeId, file};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, ServerConfig};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Days that a server certificate holds.
const SERVER_DAYS: i64 = 397;
/// Days before its end at which a new one is made.
const SERVER_RENEW_DAYS: i64 = 60;
/// Days that a node's certificate holds.
pub(crate) const CLIENT_DAYS: i64 = 365;

/// The state directory, complete.
pub(crate) struct StateDir {
    dir: PathBuf,
    ca: Ca,
}

/// The credentials of one node.
#[derive(Clone)]
pub(crate) struct Credentials {
    /// Its token.
    pub(crate) token: String,
    /// PEM of the CA by which it knows the controller; empty where that is a public one.
    pub(crate) ca: String,
    /// PEM of its client certificate; empty where only another CA's certificates count.
    pub(crate) client_cert: String,
    /// PEM of the key to it, or empty.
    pub(crate) client_key: String,
}

impl StateDir {
    /// Opens a state directory that a controller has made.
    pub(crate) fn find(dir: &Path, now: u64) -> anyhow::Result<StateDir> {
        let mut missing = vec![CA_CERTIFICATE, CA_KEY, NODE_SECRET];
        // A directory that may not be looked at is reported below.
        missing.retain(|name| !dir.join(name).try_exists().unwrap_or(true));
        if !missing.is_empty() {
            bail!(
                "there is no controller's state in {} (no {}): give the --state-dir of the controller, or start \
                 jsacc with it first; as root the default is {}, as another user it is in that user's data folder",
                dir.display(),
                missing.join(", no "),
                crate::config::ROOT_STATE_DIR,
            );
        }
        StateDir::open(dir, now)
    }

    /// Opens the state directory and makes what is missing; `now` is in milliseconds since 1970.
    pub(crate) fn open(dir: &Path, now: u64) -> anyhow::Result<StateDir> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| {
            format!("the state directory {} cannot be made; give another --state-dir", dir.display())
        })?;
        let shown = dir.display();
        let meta = fs::metadata(dir).with_context(|| format!("the state directory {shown} cannot be read"))?;
        if !meta.is_dir() {
            bail!("the state directory {shown} is no folder");
        }
        if meta.mode() & 0o077 != 0 && meta.uid() == nix::unistd::geteuid().as_raw() {
            fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
                .with_context(|| format!("the mode of {shown} cannot be set to 0700"))?;
        }
        let _lock = lock(dir)?;
        let ca = Ca::open(dir, now)?;
        if !dir.join(NODE_SECRET).exists() {
            Secrets::generate()?.write(dir)?;
        }
        Ok(StateDir { dir: dir.to_owned(), ca })
    }

    /// The node secrets as they stand in the directory now.
    pub(crate) fn secrets(&self) -> anyhow::Result<Secrets> {
        Secrets::read(&self.dir)
    }

    /// Makes a new node secret; the old one holds for another day. `publish` is given its fingerprint once
    /// it lies on the disk: a fingerprint whose secret nobody has would lock every controller out, while
    /// a Redis that has not heard of it is told by the next one that starts.
    pub(crate) fn rotate(&self, now: u64, publish: impl FnOnce(&str) -> anyhow::Result<()>) -> anyhow::Result<Secrets> {
        let _lock = lock(&self.dir)?;
        let secrets = Secrets::read(&self.dir)?.rotated(now)?;
        secrets.write(&self.dir)?;
        publish(secrets.current.fingerprint())?;
        Ok(secrets)
    }

    /// The ticket keys as they lie in the directory; nothing before they were first agreed on with Redis.
    pub(crate) fn ticket_keys(&self) -> anyhow::Result<Option<TicketKeys>> {
        let file = self.dir.join(TICKET_KEY);
        let text = match file::read_text(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.with_context(|| format!("{} cannot be read", file.display()))?,
        };
        let keys = TicketKeys::parse(&text);
        keys.map(Some).with_context(|| format!("{} is damaged: remove it, and it is read from redis", file.display()))
    }

    /// Keeps these ticket keys in the directory.
    pub(crate) fn keep_ticket_keys(&self, keys: &TicketKeys) -> anyhow::Result<()> {
        let _lock = lock(&self.dir)?;
        write_state(&self.dir.join(TICKET_KEY), keys.text().as_bytes(), 0o600)
    }

    /// A new ticket key, which is kept nowhere yet.
    pub(crate) fn new_ticket_key() -> anyhow::Result<TicketKey> {
        let bytes = secrets::random(32)?;
        Ok(TicketKey::new(bytes.as_slice().try_into().context("32 random bytes")?))
    }

    /// Issues the credentials of `node` at `now` (milliseconds since 1970).
    pub(crate) fn issue(
        &self,
        config: &Config,
        secrets: &Secrets,
        node: NodeId,
        now: u64,
    ) -> anyhow::Result<Credentials> {
        let name = PeerCert { node, issued: Some(now) }.dns_name();
        let (client_cert, client_key) = match config.trusts_own_ca() {
            true => self.ca.client(&name, now, CLIENT_DAYS)?,
            false => Default::default(),
        };
        Ok(Credentials { token: secrets.current.issue(node, now), ca: self.trust(config)?, client_cert, client_key })
    }

    /// PEM of the certificate by which a node knows the controller.
    pub(crate) fn trust(&self, config: &Config) -> anyhow::Result<String> {
        match &config.tls_cert {
            None => Ok(self.ca.pem.clone()),
            Some(file) => {
                let last = chain(file)?.pop().with_context(|| format!("{} holds no certificate", file.display()))?;
                let config = ::pem::EncodeConfig::new().set_line_ending(::pem::LineEnding::LF);
                Ok(::pem::encode_config(&::pem::Pem::new("CERTIFICATE", last.to_vec()), config))
            }
        }
    }

    /// SHA-256 of that certificate, as an enrolment token carries it.
    pub(crate) fn fingerprint(&self, config: &Config) -> anyhow::Result<String> {
        let pem = self.trust(config)?;
        let cert = CertificateDer::from_pem_slice(pem.as_bytes()).ok().context("the CA certificate is not readable")?;
        Ok(jscommon::token::sha256_hex(&cert))
    }

    /// The TLS configuration as the files stand now; a server certificate of our own is made anew when
    /// it is near its end, or lacks one of the names.
    pub(crate) fn tls(&self, config: &Config, now: u64) -> anyhow::Result<Arc<ServerConfig>> {
        let (chain, key) = match (&config.tls_cert, &config.tls_key) {
            (Some(cert), Some(key)) => {
                let (certs, private) = (chain(cert)?, private_key(key)?);
                server_certificate::check(cert, key, &certs, &private, now).map_err(anyhow::Error::msg)?;
                (certs, private)
            }
            _ => {
                self.renew_server(config, now)?;
                (chain(&self.dir.join("server.pem"))?, private_key(&self.dir.join("server.key"))?)
            }
        };
        let mut roots = RootCertStore::empty();
        let mut trusted = config.client_ca.as_deref().map(self::chain).transpose()?.unwrap_or_default();
        if config.trusts_own_ca() {
            trusted
                .push(CertificateDer::from_pem_slice(self.ca.pem.as_bytes()).ok().context("ca.pem is not readable")?);
        }
        for cert in trusted {
            roots
                .add(cert)
                .context("a client CA certificate is not usable: --client-ca takes certificates of CAs in PEM")?;
        }
        tls::server_config(chain, key, Some(roots))
    }

    /// The files whose change means that TLS must be made anew.
    pub(crate) fn tls_files(&self, config: &Config) -> Vec<PathBuf> {
        let own = || vec![self.dir.join("server.pem"), self.dir.join("server.key")];
        let mut files = match (&config.tls_cert, &config.tls_key) {
            (Some(cert), Some(key)) => vec![cert.clone(), key.clone()],
            _ => own(),
        };
        files.extend(config.client_ca.clone());
        files
    }

    /// Where the node secrets lie.
    pub(crate) fn secret_file(&self) -> PathBuf {
        self.dir.join(NODE_SECRET)
    }

    fn renew_server(&self, config: &Config, now: u64) -> anyhow::Result<()> {
        let _lock = lock(&self.dir)?;
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        names.extend(host.filter(|host| rustls_pki_types::DnsName::try_from(host.as_str()).is_ok()));
        names.extend(config.hosts.iter().cloned());
        names.sort();
        names.dedup();
        let file = self.dir.join("server.pem");
        if let Ok(text) = file::read_text(&file)
            && self.dir.join("server.key").exists()
        {
            // The purpose of a certificate stands in lines before it, so that nothing here must
            // understand certificates.
            let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
            let until: u64 = line("until: ").and_then(|value| value.parse().ok()).unwrap_or(0);
            let covered: Vec<&str> = line("names: ").map(|value| value.split(' ').collect()).unwrap_or_default();
            let ours = line("ca: ") == Some(jscommon::token::sha256_hex(self.ca.pem.as_bytes()).as_str());
            let renew_at = until.saturating_sub(dates::days(SERVER_RENEW_DAYS));
            // Names that only another start asked for stay covered.
            if ours && now < renew_at && names.iter().all(|name| covered.contains(&name.as_str())) {
                return Ok(());
            }
            if ours {
                names.extend(covered.into_iter().map(str::to_owned));
                names.sort();
                names.dedup();
            }
        }
        let (cert, key) = self.ca.server(&names, now, SERVER_DAYS)?;
        let until = now + dates::days(SERVER_DAYS);
        let text = format!(
            "names: {}\nuntil: {until}\nca: {}\n{cert}{}",
            names.join(" "),
            jscommon::token::sha256_hex(self.ca.pem.as_bytes()),
            self.ca.pem
        );
        // The key first: a reader between the two finds a pair that does not fit, and reads again.
        write_state(&self.dir.join("server.key"), key.as_bytes(), 0o600)?;
        write_state(&file, text.as_bytes(), 0o644)
    }
}

fn chain(file: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let pem = read_pem(file)?;
    let certs: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} is no PEM file of certificates", file.display()))?;
    if certs.is_empty() {
        bail!("{} holds no certificate: give a PEM file that has one (`-----BEGIN CERTIFICATE-----`)", file.display());
    }
    Ok(certs)
}

fn private_key(file: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    let pem = read_pem(file)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|e| match e {
        pem::Error::NoItemsFound if is_encrypted(&pem) => anyhow!(
            "the key {} is encrypted: write it without a password (`openssl pkey -in {0} -out FILE`)",
            file.display()
        ),
        pem::Error::NoItemsFound => {
            anyhow!(
                "{} holds no private key: give a PEM file that has one (`-----BEGIN PRIVATE KEY-----`)",
                file.display()
            )
        }
        e => anyhow!(e).context(format!("the key {} cannot be read", file.display())),
    })
}

fn is_encrypted(pem: &[u8]) -> bool {
    let text = String::from_utf8_lossy(pem);
    ["BEGIN ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"].iter().any(|mark| text.contains(mark))
}

/// Reads a PEM file without its byte order mark.
fn read_pem(file: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = file::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    jscommon::text::check_utf16(&bytes).map_err(|e| anyhow!("{}: {e}", file.display()))?;
    Ok(jscommon::text::without_bom(&bytes).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_780_000_000_000;
    const NODE: NodeId = NodeId { gid: 1, nid: 10 };

    fn config(dir: &Path) -> Config {
        Config { state_dir: dir.to_owned(), ..Config::default() }
    }

    #[test]
    fn state_directory_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let first = StateDir::open(&dir, NOW).unwrap();
        first.tls(&config(&dir), NOW).unwrap();
        let token = first.secrets().unwrap().current.issue(NODE, NOW);
        let again = StateDir::open(&dir, NOW).unwrap();
        assert_eq!(first.ca.pem, again.ca.pem);
        assert!(again.secrets().unwrap().check(&token, NOW).is_ok());
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o700);
        for name in ["ca.key", "server.key", "node.secret"] {
            assert_eq!(fs::metadata(dir.join(name)).unwrap().mode() & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn pem_with_a_byte_order_mark_is_read_and_unfit_files_are_refused_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file.pem");
        let made = rcgen::generate_simple_self_signed(["ac.example".to_owned()]).unwrap();
        let key = made.signing_key.serialize_pem();
        fs::write(&file, format!("\u{feff}{}", made.cert.pem())).unwrap();
        assert_eq!(chain(&file).unwrap(), [made.cert.der().clone()]);
        fs::write(&file, format!("\u{feff}{key}")).unwrap();
        private_key(&file).unwrap();
        let cert = made.cert.pem();
        let utf16: Vec<u8> = key.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let cases: [(&[u8], &str); 4] = [
            (
                b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
                "without a password",
            ),
            (&utf16, "save it as UTF-8"),
            (cert.as_bytes(), "holds no private key: give"),
            (b"\x30\x82\x01\x01", "holds no private key: give"),
        ];
        for (content, advice) in cases {
            fs::write(&file, content).unwrap();
            let told = format!("{:#}", private_key(&file).unwrap_err());
            assert!(told.contains(advice), "{told}");
        }
        fs::write(&file, made.cert.der()).unwrap();
        let told = format!("{:#}", chain(&file).unwrap_err());
        assert!(told.contains("holds no certificate: give a PEM file"), "{told}");
    }

    #[test]
    fn ticket_keys_are_kept_and_survive_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path(), NOW).unwrap();
        assert_eq!(state_dir.ticket_keys().unwrap(), None);
        let keys = TicketKeys { current: StateDir::new_ticket_key().unwrap(), previous: None };
        state_dir.keep_ticket_keys(&keys).unwrap();
        state_dir.rotate(NOW, |_| Ok(())).unwrap();
        assert_eq!(StateDir::open(dir.path(), NOW).unwrap().ticket_keys().unwrap(), Some(keys));
        let file = dir.path().join(TICKET_KEY);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        fs::write(&file, "x").unwrap();
        assert!(state_dir.ticket_keys().unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn the_server_certificate_follows_names_and_time() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path(), NOW).unwrap();
        let mut config = config(dir.path());
        let read = || fs::read_to_string(dir.path().join("server.pem")).unwrap();
        state_dir.tls(&config, NOW).unwrap();
        let first = read();
        state_dir.tls(&config, NOW + dates::days(300)).unwrap();
        assert_eq!(read(), first);
        config.hosts = vec!["ac.example".into()];
        state_dir.tls(&config, NOW).unwrap();
        let second = read();
        assert!(second.contains("ac.example") && second != first);
        config.hosts.clear();
        state_dir.tls(&config, NOW).unwrap();
        assert_eq!(read(), second, "a name that was covered once stays so");
        state_dir.tls(&config, NOW + dates::days(350)).unwrap();
        assert_ne!(read(), second);
    }

    #[test]
    fn a_fingerprint_is_published_once_its_secret_is_safe() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path(), NOW).unwrap();
        let old = state_dir.secrets().unwrap().current.fingerprint().to_owned();
        let failed = state_dir.rotate(NOW, |fresh| {
            let there = state_dir.secrets()?;
            assert_eq!(there.current.fingerprint(), fresh);
            assert_eq!(there.previous.unwrap().0.fingerprint(), old, "Redis still belongs to this family");
            bail!("redis went away")
        });
        assert!(failed.is_err());
    }

    #[test]
    fn a_node_gets_a_certificate_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(dir.path(), NOW).unwrap();
        let secrets = state_dir.secrets().unwrap();
        let credentials = state_dir.issue(&config(dir.path()), &secrets, NODE, NOW).unwrap();
        let cert = CertificateDer::from_pem_slice(credentials.client_cert.as_bytes()).unwrap();
        assert_eq!(PeerCert::read(&cert), Some(PeerCert { node: NODE, issued: Some(NOW) }));
        assert_eq!(secrets.check(&credentials.token, NOW).unwrap().claims.node, NODE);
        let ca = CertificateDer::from_pem_slice(credentials.ca.as_bytes()).unwrap();
        assert_eq!(state_dir.fingerprint(&config(dir.path())).unwrap(), jscommon::token::sha256_hex(&ca));
    }
}

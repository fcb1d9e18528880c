//! `jsagent enroll`: one line on a new node fetches its own credentials.
//!
//! Owns the exchange of an enrolment token for a node's files. Trust begins with the token: it carries
//! the fingerprint of the controller's CA, [`pin`] finds the certificate with that fingerprint in what
//! the controller presents, and the request itself then trusts that certificate alone.

mod pin;

use crate::config::{Config, Overrides};
use crate::flags::Enroll;
use crate::platform;
use crate::uplink::{self, Enrolled, Failure, credential_set};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// The file of the node's token, beside which the journal of the set lies.
const TOKEN: &str = "token";
/// The file with the name of this use of the token, until it has brought credentials: one whose answer was lost is
/// asked for again under that name, and costs no other use.
const USE: &str = "enroll.use";

/// Exchanges the token, writes the files; the answer is what to tell the user.
pub(crate) fn run(what: &Enroll) -> Result<String> {
    let url = what.controller.as_str();
    let token = match what.token.as_str() {
        "-" => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).context("cannot read the token from stdin")?;
            // PowerShell begins what it pipes with a byte order mark.
            line.trim_start_matches('\u{feff}').trim().to_owned()
        }
        token => token.trim().to_owned(),
    };
    let trusted = match (&what.ca, pin::fingerprint(&token)) {
        _ if url.starts_with("http://") => Vec::new(),
        (Some(ca), _) => uplink::read_certificates(ca)?,
        (None, Some(fingerprint)) => vec![pin::find(url, &fingerprint)?],
        (None, None) => bail!("the enrolment token is not complete: give all that jsacc token printed, or --ca FILE"),
    };
    // A CA that is named is the one that presents itself there, as that of a proxy: the agent will meet it as
    // well, and not the controller's own.
    let named = what.ca.as_ref().map(|ca| jscommon::file::read_any(ca).context("cannot read --ca")).transpose()?;
    // A comment beside the certificates may be of any code page.
    let named = named.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let out = std::path::absolute(&what.out).context("--out is no path")?;
    // A token is spent by asking, so there must be a place for what it buys.
    let is_new = !out.exists();
    if let Some(fault) = platform::path_fault(&out).filter(|_| !what.insecure_paths) {
        bail!("{fault}; the token was not used");
    }
    prepare(&out).with_context(|| format!("cannot write into {}; the token was not used", out.display()))?;
    // An enrolment that was interrupted once it had its credentials has spent its token.
    credential_set::finish(&out.join(TOKEN));
    let name =
        use_name(&out).with_context(|| format!("cannot write into {}; the token was not used", out.display()))?;
    let mut issued = uplink::client::enroll(url, &token, what.gid, what.nid, &name, &trusted).map_err(|failure| {
        // A controller that has refused it has counted nothing.
        if matches!(failure, Failure::Refused { .. }) {
            let _ = fs::remove_file(out.join(USE));
        }
        if is_new {
            // A refusal leaves an empty folder that this command made; one that is not empty stays.
            let _ = fs::remove_dir(&out);
        }
        anyhow::Error::new(failure).context(format!("{url} does not enroll this node"))
    })?;
    if let Some(ca) = named {
        issued.ca = ca;
    }
    let config = write(&out, url, what, &issued).with_context(|| format!("cannot fill {}", out.display()))?;
    let _ = fs::remove_file(out.join(USE));
    let config = platform::shell_word(&config);
    Ok(format!("node {}:{} is enrolled; start it with: jsagent -c {config}\n", what.gid, what.nid))
}

/// Makes the folder and tries whether files can be written there.
fn prepare(out: &Path) -> Result<()> {
    platform::make_private_dir(out)?;
    let probe = out.join(format!(".enroll-{}", std::process::id()));
    platform::write_private(&probe, b"?")?;
    fs::remove_file(&probe)?;
    Ok(())
}

/// The name of this use of the token.
fn use_name(out: &Path) -> Result<String> {
    let file = out.join(USE);
    if let Ok(name) = jscommon::file::read_text(&file) {
        return Ok(name);
    }
    let name = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    platform::write_private(&file, name.as_bytes())?;
    Ok(name)
}

fn write(out: &Path, url: &str, what: &Enroll, issued: &Enrolled) -> Result<PathBuf> {
    let file = |name: &str| out.join(name);
    let (token, ca, cert, key) = (file(TOKEN), file("ca.pem"), file("client.pem"), file("client.key"));
    let mut files = vec![(token.as_path(), format!("{}\n", issued.token)), (&ca, issued.ca.clone())];
    let has_cert = !issued.client_cert.is_empty();
    if has_cert {
        files.extend([(key.as_path(), issued.client_key.clone()), (&cert, issued.client_cert.clone())]);
    }
    let config = file("agent.toml");
    if is_of_this_node(&config, what) {
        credential_set::replace(&token, &files)?;
        return Ok(config);
    }
    let quoted = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    let mut text = format!(
        "[main]\ngid = {}\nnid = {}\nroles = []\ndata_dir = {}\n\n[controllers.main]\nurl = {}\ntoken_file = {}\n",
        what.gid,
        what.nid,
        quoted(&file("data")),
        serde_json::Value::from(url),
        quoted(&token),
    );
    if url.starts_with("https://") {
        text.push_str(&format!("ca = {}\n", quoted(&ca)));
        if has_cert {
            text.push_str(&format!("client_cert = {}\nclient_key = {}\n", quoted(&cert), quoted(&key)));
        }
    }
    files.push((&config, text));
    credential_set::replace(&token, &files)?;
    Ok(config)
}

/// Whether somebody has set up this very node there before: then the file may hold settings of theirs.
fn is_of_this_node(path: &Path, what: &Enroll) -> bool {
    let Some(text) = jscommon::file::read(path).ok().and_then(|bytes| jscommon::text::decode(bytes).ok()) else {
        return false;
    };
    Config::parse(&text, &Overrides::default())
        .is_ok_and(|config| (config.main.gid, config.main.nid) == (what.gid, what.nid))
}

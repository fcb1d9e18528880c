//! `jsacc enroll`, `revoke`, `rotate`, `token`: one thing, then the end.
//!
//! Owns: the files that a new node gets, and what is printed. Does not own: credentials (`auth`).

use crate::api::context::Context;
use crate::app::cli::Task;
use crate::app::daemon::{prepare, redis_fault};
use crate::auth::enrolment::{Enrolment, Terms};
use crate::auth::state_dir::Credentials;
use crate::auth::{dates, revocation, secrets, shared_secrets, state_files, trusted_paths};
use crate::clock;
use crate::config::Config;
use crate::model::grants::{self, Enrolling};
use crate::model::{nodes, queue};
use anyhow::Context as _;
use jscommon::NodeId;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Does `task` and says what was done.
pub fn run(config: &Config, task: Task) -> anyhow::Result<String> {
    let context = prepare(config.clone(), true)?;
    if let Ok(Some(theirs)) = context.pool.with(nodes::fingerprint) {
        shared_secrets::check_fingerprint(&context.authenticator, &context.config.state_dir, &theirs)
            .map_err(anyhow::Error::msg)?;
    }
    match task {
        Task::Enroll { node, url, out, named } => enroll(&context, node, url, out, &named),
        Task::Revoke(node) => revoke(&context, node),
        Task::Rotate => rotate(&context),
        Task::Token { uses, ttl, terms } => token(&context, uses, ttl, terms),
    }
}

fn enroll(
    context: &Context,
    node: NodeId,
    url: Option<String>,
    out: Option<PathBuf>,
    named: &[String],
) -> anyhow::Result<String> {
    let config = &context.config;
    let out = out.unwrap_or_else(|| PathBuf::from(format!("node-{}-{}", node.gid, node.nid)));
    trusted_paths::check_out(config, &out)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&out)
        .with_context(|| format!("the folder {} cannot be made; give another --out", out.display()))?;
    let out = fs::canonicalize(&out).with_context(|| format!("the folder {} cannot be read", out.display()))?;
    // Newer than a revocation, and not newer than the next one: by Redis' clock, where Redis can be
    // asked; it need not run for this.
    let issued = context
        .pool
        .with(|conn| Ok(nodes::time(conn)?.max(nodes::revoked_until(conn, node)?.map_or(0, |until| until + 1))))
        .unwrap_or_else(|_| clock::local_ms());
    let new = Enrolling { issued, token_use: "", replace: true, named, by: "jsacc enroll" };
    let known = context.pool.with(|conn| {
        revoker(context).finish(conn, node, "")?;
        grants::enrolled(conn, node, &new)?;
        queue::open(conn, node)
    });
    if let Err(e) = &known
        && !named.is_empty()
    {
        return Err(redis_fault(config, e).context("what --role and --label grant cannot be written down"));
    }
    let secrets = context.state_dir.secrets()?;
    let credentials = context.state_dir.issue(config, &secrets, node, issued)?;
    let local = url.is_none();
    let url = url.unwrap_or_else(|| {
        let scheme = if config.insecure_http { "http" } else { "https" };
        format!("{scheme}://localhost:{}", config.port)
    });
    write_node(&out, node, &url, named, &credentials)?;
    let config = out.join("agent.toml");
    let config = jscommon::text::posix_word(&config.to_string_lossy()).into_owned();
    let mut said = format!("node {node} is enrolled: start it with  jsagent -c {config}\n");
    if let Err(e) = known {
        let e = redis_fault(&context.config, &e);
        said += &format!("{e}; if the node was revoked before, do this again once redis answers\n");
    }
    if local {
        said += &format!("it looks for the controller at {url}; give --url for a node on another machine\n");
    }
    Ok(said)
}

/// The files of one node, in `out` (an absolute path).
fn write_node(out: &Path, node: NodeId, url: &str, named: &[String], credentials: &Credentials) -> anyhow::Result<()> {
    let file = |name: &str| out.join(name);
    state_files::write(&file("token"), format!("{}\n", credentials.token).as_bytes(), 0o600)?;
    state_files::write(&file("ca.pem"), credentials.ca.as_bytes(), 0o644)?;
    let has_cert = !credentials.client_cert.is_empty();
    if has_cert {
        state_files::write(&file("client.pem"), credentials.client_cert.as_bytes(), 0o644)?;
        state_files::write(&file("client.key"), credentials.client_key.as_bytes(), 0o600)?;
    }
    state_files::write(&file("agent.toml"), agent_toml(out, node, url, named, has_cert).as_bytes(), 0o644)
}

fn agent_toml(out: &Path, node: NodeId, url: &str, named: &[String], has_cert: bool) -> String {
    // JSON's strings are TOML's too.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let path = |name: &str| quoted(&out.join(name).to_string_lossy());
    let client = |name: &str| if has_cert { path(name) } else { quoted("") };
    // A granted role or label makes a node a target only where it claims it as well. Agents know no labels.
    let roles: Vec<String> = named.iter().filter_map(|name| name.strip_prefix("role:")).map(quoted).collect();
    format!(
        "[main]\ngid = {}\nnid = {}\nroles = [{}]\ndata_dir = {}\n\n[controllers.main]\nurl = {}\ntoken_file = {}\n\
         ca = {}\nclient_cert = {}\nclient_key = {}\n",
        node.gid,
        node.nid,
        roles.join(", "),
        path("data"),
        quoted(url),
        path("token"),
        path("ca.pem"),
        client("client.pem"),
        client("client.key"),
    )
}

fn revoker(context: &Context) -> revocation::Revoker<'_> {
    revocation::Revoker { deliverer: context.deliverer(), max_queue: context.config.max_queue }
}

fn revoke(context: &Context, node: NodeId) -> anyhow::Result<String> {
    let revoked = context.pool.with(|conn| revoker(context).revoke(conn, node, clock::local_ms()));
    let fault = |e| redis_fault(&context.config, &e).context("not all of it is done: do it again");
    let revoked = revoked.map_err(fault)?;
    let waited = match revoked.waited {
        0 => "no command waited for it".to_owned(),
        1 => "1 command waited for it and was answered with ERROR".to_owned(),
        many => format!("{many} commands waited for it and were answered with ERROR"),
    };
    Ok(format!(
        "every controller of this Redis refuses within seconds the credentials of node {node} that were issued until {}\n\
         {waited}\n\
         its grants are deleted, and commands for it are answered with ERROR until it is enrolled again\n\
         `jsacc enroll {} {}` gives it new credentials\n",
        dates::shown(revoked.until),
        node.gid,
        node.nid
    ))
}

fn rotate(context: &Context) -> anyhow::Result<String> {
    let now = clock::local_ms();
    let fault = |e: redis::RedisError| redis_fault(&context.config, &e);
    context.pool.with(nodes::fingerprint).map_err(|e| fault(e).context("nothing was changed"))?;
    let before = context.state_dir.secrets()?.previous.filter(|(_, until)| now < *until);
    let secrets = context.state_dir.rotate(now, |fingerprint| {
        context.pool.with(|conn| nodes::set_fingerprint(conn, fingerprint)).map_err(|e| {
            fault(e).context("the new secret holds; redis hears of it from the next controller that starts")
        })
    })?;
    let until = secrets.previous.as_ref().map_or(now, |(_, until)| *until);
    let mut said = format!(
        "a new node secret lies in {0}; the old one holds until {1}\n\
         nodes fetch new tokens by themselves; copy {0} to controllers on other machines now\n",
        context.state_dir.secret_file().display(),
        dates::shown(until)
    );
    if before.is_some() {
        said += "the one before them holds no longer: a node that was away since the last rotation must be enrolled again\n";
    }
    Ok(said)
}

fn token(context: &Context, uses: u64, ttl: u64, terms: Terms) -> anyhow::Result<String> {
    let id: String = secrets::random(8)?.iter().map(|byte| format!("{byte:02x}")).collect();
    let enrolment = Enrolment {
        id,
        uses,
        expires: clock::local_ms() + ttl * 1000,
        fingerprint: context.state_dir.fingerprint(&context.config)?,
        terms,
    };
    enrolment.check_length().map_err(anyhow::Error::msg)?;
    Ok(format!("{}\n", enrolment.sign(&context.state_dir.secrets()?.current)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_file_has_the_granted_roles_and_paths() {
        let named = ["role:web", "label:site=ams", "role:a/b"].map(str::to_owned);
        let text = agent_toml(Path::new("/x/\"y\""), NodeId { gid: 1, nid: 10 }, "https://h:1", &named, true);
        let table: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(table["main"]["nid"].as_integer(), Some(10));
        let roles = table["main"]["roles"].as_array().unwrap();
        assert_eq!(roles.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>(), ["web", "a/b"]);
        assert!(!table.contains_key("labels"));
        assert_eq!(table["main"]["data_dir"].as_str(), Some("/x/\"y\"/data"));
        assert_eq!(table["controllers"]["main"]["token_file"].as_str(), Some("/x/\"y\"/token"));
    }
}

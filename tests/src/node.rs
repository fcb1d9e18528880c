//! A node of a few lines: the HTTP side of the contract, and no more.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};

/// A node that speaks to a controller and runs nothing.
#[derive(Clone, Debug)]
pub struct FakeNode {
    agent: ureq::Agent,
    url: String,
    /// Grid id in its paths.
    pub gid: u32,
    /// Node id in its paths.
    pub nid: u32,
    token: Option<String>,
}

/// The batch that a poll brought.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The number to acknowledge.
    pub batch: String,
    /// The commands.
    pub cmds: Vec<Value>,
}

/// An answer: its status and its body.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status; 0 when there was no answer at all.
    pub status: u16,
    /// The body as text; of no answer the error.
    pub body: String,
    /// The `Retry-After` header.
    pub retry_after: Option<String>,
}

impl Reply {
    /// The body as JSON; null when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// The sentence of an error; fails the test when the body has none.
    #[track_caller]
    pub fn error(&self) -> String {
        let json = self.json();
        json["error"].as_str().unwrap_or_else(|| panic!("no error sentence in {self:?}")).to_owned()
    }
}

impl FakeNode {
    /// A node of the controller at `url`, with or without credentials.
    pub fn new(url: &str, ca: Option<&Path>, gid: u32, nid: u32, token: Option<String>) -> FakeNode {
        FakeNode::with_cert(url, ca, gid, nid, token, None)
    }

    /// As `new`, with a client certificate: the files of the chain and of its key.
    pub fn with_cert(
        url: &str,
        ca: Option<&Path>,
        gid: u32,
        nid: u32,
        token: Option<String>,
        client: Option<(&Path, &Path)>,
    ) -> FakeNode {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(90)))
            .max_idle_connections_per_host(8);
        if let Some(ca) = ca {
            let ca: Vec<Certificate<'static>> = CertificateDer::pem_file_iter(ca)
                .expect("the CA file")
                .map(|der| Certificate::from_der(&der.expect("a certificate in PEM")).to_owned())
                .collect();
            let mut tls = TlsConfig::builder()
                .provider(TlsProvider::Rustls)
                .root_certs(RootCerts::Specific(Arc::new(ca)))
                .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()));
            if let Some((cert, key)) = client {
                let read = |path: &Path| std::fs::read(path).expect("a file of the client certificate");
                let chain = vec![Certificate::from_pem(&read(cert)).expect("a certificate")];
                let key = PrivateKey::from_pem(&read(key)).expect("a private key");
                tls = tls.client_cert(Some(ClientCert::new_with_certs(&chain, key)));
            }
            config = config.tls_config(tls.build());
        }
        FakeNode { agent: config.build().into(), url: url.to_owned(), gid, nid, token }
    }

    /// The same connection settings with another token.
    pub fn with_token(&self, token: Option<&str>) -> FakeNode {
        FakeNode { token: token.map(str::to_owned), ..self.clone() }
    }

    /// The path of one of its resources: `/{gid}/{nid}/{what}`.
    pub fn path(&self, what: &str) -> String {
        format!("/{}/{}/{what}", self.gid, self.nid)
    }

    /// GET of any path.
    pub fn get(&self, path: &str) -> Reply {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        reply(request.call())
    }

    /// POST of a text to any path.
    pub fn post_text(&self, path: &str, body: &str) -> Reply {
        let mut request = self.agent.post(format!("{}{path}", self.url));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        reply(request.header("Content-Type", "application/json").send(body))
    }

    /// POST of bytes to one of its resources.
    pub fn post_bytes(&self, what: &str, body: &[u8]) -> Reply {
        let mut request = self.agent.post(format!("{}{}", self.url, self.path(what)));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        reply(request.header("Content-Type", "application/octet-stream").send(body))
    }

    /// POST of JSON to one of its resources.
    pub fn post(&self, what: &str, body: &Value) -> Reply {
        self.post_text(&self.path(what), &body.to_string())
    }

    /// Polls for `wait` seconds with these roles, acknowledging `ack`; nothing on 204.
    #[track_caller]
    pub fn poll_as(&self, roles: &[&str], wait: u32, ack: Option<&str>) -> Option<Batch> {
        let mut query = format!("cmd?wait={wait}");
        roles.iter().for_each(|role| query.push_str(&format!("&role={role}")));
        ack.iter().for_each(|ack| query.push_str(&format!("&ack={ack}")));
        let reply = self.get(&self.path(&query));
        match reply.status {
            204 => None,
            200 => {
                let json = reply.json();
                let cmds = json["cmds"].as_array().expect("cmds is a list").clone();
                Some(Batch { batch: json["batch"].as_str().expect("batch is a string").to_owned(), cmds })
            }
            _ => panic!("a poll was answered {reply:?}"),
        }
    }

    /// Polls without a role.
    #[track_caller]
    pub fn poll(&self, wait: u32, ack: Option<&str>) -> Option<Batch> {
        self.poll_as(&[], wait, ack)
    }

    /// The result of a command as a node would send it, with the command's ticket.
    pub fn result_of(&self, command: &Value, state: &str, data: &str) -> Value {
        json!({"id": command["id"], "gid": self.gid, "nid": self.nid, "cmd": command["cmd"],
            "args": command["args"], "data": data, "level": 20, "state": state, "code": 0, "time": 1,
            "starttime": crate::now_ms(), "streams": ["", ""], "critical": "", "tags": command["tags"],
            "ticket": command["ticket"]})
    }

    /// The same as an agent of 0.1.0 sends it, which knows no tickets.
    pub fn old_result_of(&self, command: &Value, state: &str, data: &str) -> Value {
        let mut result = self.result_of(command, state, data);
        result["ticket"] = Value::Null;
        result
    }
}

fn reply(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Reply {
    match answer {
        Ok(mut response) => {
            let retry_after = response.headers().get("retry-after");
            let retry_after = retry_after.and_then(|value| value.to_str().ok()).map(str::to_owned);
            let status = response.status().as_u16();
            match response.body_mut().with_config().limit(64 << 20).read_to_string() {
                Ok(body) => Reply { status, body, retry_after },
                Err(error) => Reply { status: 0, body: error.to_string(), retry_after: None },
            }
        }
        Err(error) => Reply { status: 0, body: error.to_string(), retry_after: None },
    }
}

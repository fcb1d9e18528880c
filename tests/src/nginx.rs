//! A private nginx as a reverse proxy in front of a controller.

use crate::process::Process;
use crate::redis_server::free_port;
use crate::wait::{LONG, wait_for};
use nix::sys::signal::Signal;
use std::fs;
use std::net::TcpStream;
use std::process::Command;
use tempfile::TempDir;

/// A running nginx with a folder and a loopback port of its own.
#[derive(Debug)]
pub struct Nginx {
    // Declared before the folder: nginx ends before its files go.
    process: Process,
    port: u16,
    _dir: TempDir,
}

impl Nginx {
    /// Starts nginx in front of the controller on loopback port `upstream`; `server` holds further
    /// directives of its `server` block. Everything else has nginx's defaults.
    #[track_caller]
    pub fn start(upstream: u16, server: &str) -> Nginx {
        // Another process may take the port between the look and the bind; then the next one is tried.
        for _ in 0..5 {
            let dir = tempfile::Builder::new().prefix("js-nginx-").tempdir().expect("a temporary folder");
            let (home, port) = (dir.path().display(), free_port());
            let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
                .iter()
                .map(|what| format!("    {what}_temp_path {home}/{what};\n"))
                .collect();
            let text = format!(
                "daemon off;\nmaster_process off;\npid {home}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n{temporary}    \
                 access_log off;\n    server {{\n        listen 127.0.0.1:{port};\n        {server}\n        location / {{\n            \
                 proxy_pass http://127.0.0.1:{upstream};\n            proxy_http_version 1.1;\n        }}\n    }}\n}}\n"
            );
            fs::write(dir.path().join("nginx.conf"), text).expect("write nginx.conf");
            // Debian has it where only root's PATH leads.
            let program = ["/usr/sbin/nginx", "/usr/local/sbin/nginx"]
                .into_iter()
                .find(|path| fs::exists(path).is_ok_and(|is| is));
            let mut command = Command::new(program.unwrap_or("nginx"));
            command.arg("-p").arg(dir.path()).arg("-c").arg(dir.path().join("nginx.conf")).args(["-e", "stderr"]);
            let mut process = Process::spawn(&mut command, "nginx", dir.path(), Signal::SIGKILL);
            let up = wait_for("nginx listens", LONG, || match process.try_wait() {
                Some(_) => Some(false),
                None => TcpStream::connect(("127.0.0.1", port)).ok().map(|_| true),
            });
            if up {
                return Nginx { process, port, _dir: dir };
            }
            let output = process.output();
            process.quiet = true;
            assert!(output.contains("in use"), "nginx ended at its start: {output}");
        }
        panic!("no free port after five tries");
    }

    /// Returns its address, for `url` of an agent.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns everything that it has logged.
    pub fn output(&self) -> String {
        self.process.output()
    }
}

//! The files of the state directory, which `jsacc rotate` and others change while the controller runs.
//!
//! Owns: noticing a change. Does not own: reading the files (`auth::state_dir`), or when to look (`periodic`).

use crate::api::context::Context;
use crate::auth::tls::TlsSource;
use crate::clock::local_ms;
use std::path::PathBuf;
use std::time::SystemTime;

/// The files as they were last read.
pub(crate) struct StateFiles {
    stamps: Vec<(PathBuf, Option<SystemTime>)>,
    /// The day of the last look: once a day the files are read anyway, for certificates end.
    day: Option<u64>,
}

impl StateFiles {
    /// The files as they are now.
    pub(crate) fn new(context: &Context) -> StateFiles {
        StateFiles { stamps: stamps(context), day: None }
    }

    /// Takes over certificates and secrets that were changed; whether the node secret was rotated.
    pub(crate) fn reload(&mut self, context: &Context, tls: Option<&TlsSource>) -> bool {
        let mut rotated = false;
        let now = local_ms();
        let changed = stamps(context);
        let day = now / 86_400_000;
        if changed != self.stamps || self.day.is_some_and(|last| last != day) {
            match context.state_dir.secrets() {
                Ok(secrets) => {
                    if secrets.current.fingerprint() != context.authenticator.secrets().current.fingerprint() {
                        log::info!("the node secret was rotated; the old one holds for another day");
                        rotated = true;
                    }
                    context.authenticator.set_secrets(secrets);
                }
                Err(e) => log::error!("the node secret stays as it was: {e:#}"),
            }
            if let Some(tls) = tls {
                match context.state_dir.tls(&context.config, now) {
                    Ok(config) => {
                        tls.replace(config);
                        log::info!("new connections take the server certificate as it lies there now");
                    }
                    // Perhaps only one of certificate and key is there yet; the next look finds both.
                    Err(e) => log::warn!("the server certificate stays as it was: {e:#}"),
                }
            }
            self.stamps = stamps(context);
        }
        self.day = Some(day);
        rotated
    }
}

/// When each of the files was changed.
fn stamps(context: &Context) -> Vec<(PathBuf, Option<SystemTime>)> {
    let mut files = context.state_dir.tls_files(&context.config);
    files.push(context.state_dir.secret_file());
    files
        .into_iter()
        .map(|file| {
            let changed = std::fs::metadata(&file).and_then(|meta| meta.modified()).ok();
            (file, changed)
        })
        .collect()
}

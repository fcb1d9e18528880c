//! Everything that `/metrics` says about this controller.
//!
//! Owns: the counters' names and their text form. Each module gets the whole by `Arc` and moves its own.
//! Does not own: figures of nodes (`/metrics/nodes` is read from Redis).
//! Labels take few values each, so that no client can grow this.

use prometheus::{Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// The counters of one controller. Cheap to move from any thread.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    /// Connections that are open now.
    pub(crate) connections: IntGauge,
    /// Connections accepted since the start.
    pub(crate) accepted: IntCounter,
    /// TLS handshakes that were completed, by kind: `full`, or `resumed` from a ticket.
    pub(crate) handshakes: IntCounterVec,
    /// Most connections that are taken at once.
    pub(crate) connections_max: IntGauge,
    /// Polls that are parked now.
    pub(crate) polls_parked: IntGauge,
    /// Polls that were parked without asking a handler.
    pub(crate) polls_shortcut: IntCounter,
    /// Requests answered, by path (a route's label) and status.
    pub(crate) requests: IntCounterVec,
    /// Connections and requests refused, by reason.
    pub(crate) refusals: IntCounterVec,
    /// Requests that are with a handler or wait for one.
    pub(crate) requests_waiting: IntGauge,
    /// Bytes of request and answer bodies held now.
    pub(crate) body_bytes: IntGauge,
    /// Commands that wait in nodes' queues, by the last look at them.
    pub(crate) queued_commands: IntGauge,
    /// Commands that clients have pushed and no controller has taken, by the last look.
    pub(crate) pending_commands: IntGauge,
    /// Errors that Redis or the way to it gave.
    pub(crate) redis_errors: IntCounter,
    /// 1 while Redis answers.
    pub(crate) redis_up: IntGauge,
    /// Commands taken from the queue, by what became of them.
    pub(crate) commands: IntCounterVec,
    /// Results taken from nodes, by what became of them.
    pub(crate) results: IntCounterVec,
    /// Seconds from a command's LPUSH (as near as it is known) to its hand-over to the node.
    pub(crate) handover_seconds: Histogram,
    /// Seconds from a command's LPUSH (as near as it is known) to its result.
    pub(crate) result_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new() -> Metrics {
        let registry = Registry::new();
        let m = Make(&registry);
        Metrics {
            connections: m.gauge("jsacc_connections", "connections open now"),
            accepted: m.counter("jsacc_connections_accepted_total", "connections accepted"),
            handshakes: m.counters("jsacc_tls_handshakes_total", "TLS handshakes, full or resumed", &["kind"]),
            connections_max: m.gauge("jsacc_connections_max", "most connections taken at once"),
            polls_parked: m.gauge("jsacc_polls_parked", "polls that wait for a command now"),
            polls_shortcut: m.counter("jsacc_polls_shortcut_total", "polls parked without asking a handler"),
            requests: m.counters("jsacc_requests_total", "requests answered, by path and status", &["path", "status"]),
            refusals: m.counters("jsacc_refusals_total", "connections and requests refused, by reason", &["reason"]),
            requests_waiting: m.gauge("jsacc_requests_waiting", "requests with a handler or waiting for one"),
            body_bytes: m.gauge("jsacc_body_bytes", "bytes of request and answer bodies held now"),
            queued_commands: m.gauge("jsacc_queued_commands", "commands waiting in the queues of nodes"),
            pending_commands: m.gauge("jsacc_pending_commands", "commands pushed and not yet taken by a controller"),
            redis_errors: m.counter("jsacc_redis_errors_total", "errors of Redis or the way to it"),
            redis_up: m.gauge("jsacc_redis_up", "1 while Redis answers"),
            commands: m.counters("jsacc_commands_total", "commands taken, by what became of them", &["outcome"]),
            results: m.counters("jsacc_results_total", "results taken, by what became of them", &["outcome"]),
            handover_seconds: m.histogram("jsacc_handover_seconds", "seconds from LPUSH to hand-over to the node"),
            result_seconds: m.histogram("jsacc_result_seconds", "seconds from LPUSH to the result"),
            registry,
        }
    }

    /// The Prometheus text form.
    pub(crate) fn text(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Err(e) = TextEncoder::new().encode(&self.registry.gather(), &mut out) {
            log::error!("metrics could not be written: {e}");
        }
        out
    }

    /// Counts a refusal.
    pub(crate) fn refused(&self, label: &str) {
        self.refusals.with_label_values(&[label]).inc();
    }
}

/// Makes and registers. Names and help texts are constants of this file, so a failure is a mistake
/// that the first test finds: hence the expects.
struct Make<'a>(&'a Registry);

impl Make<'_> {
    fn add<C: prometheus::core::Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("a metric has a good name");
        self.0.register(Box::new(collector.clone())).expect("a metric's name is used once");
        collector
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.add(IntGauge::new(name, help))
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.add(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.add(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str) -> Histogram {
        let buckets = vec![0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0];
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_the_counters_that_moved() {
        let metrics = Metrics::new();
        metrics.refused("head-too-long");
        metrics.requests.with_label_values(&["cmd", "200"]).inc();
        let text = String::from_utf8(metrics.text()).unwrap();
        assert!(text.contains("jsacc_refusals_total{reason=\"head-too-long\"} 1"), "{text}");
        assert!(text.contains("jsacc_requests_total{path=\"cmd\",status=\"200\"} 1"), "{text}");
        assert!(text.contains("jsacc_polls_parked 0"), "{text}");
    }
}

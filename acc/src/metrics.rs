//! Everything that `/metrics` says about this controller.
//!
//! Owns: the counters' names and their text form. Each module gets the whole by `Arc` and moves its own.
//! Does not own: figures of nodes (`/metrics/nodes` is read from Redis).
//! Labels take few values each, so that no client can grow this.

use prometheus::{Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// Declares the metrics: the field and its type, how it is made, its name, its help text, its labels.
macro_rules! metrics {
    ($($field:ident: $type:ty = $make:ident($name:literal, $help:literal $(, $labels:expr)?);)+) => {
        /// The counters of one controller. Cheap to move from any thread.
        #[derive(Clone)]
        pub struct Metrics {
            registry: Registry,
            $(#[doc = $help] pub(crate) $field: $type,)+
        }

        impl Metrics {
            /// All at zero.
            pub(crate) fn new() -> Metrics {
                let registry = Registry::new();
                let make = Make(&registry);
                Metrics { $($field: make.$make($name, $help $(, $labels)?),)+ registry }
            }
        }
    };
}

metrics! {
    connections: IntGauge = gauge("jsacc_connections", "connections open now");
    accepted: IntCounter = counter("jsacc_connections_accepted_total", "connections accepted");
    handshakes: IntCounterVec = counters("jsacc_tls_handshakes_total", "TLS handshakes, full or resumed", &["kind"]);
    connections_max: IntGauge = gauge("jsacc_connections_max", "most connections taken at once");
    polls_parked: IntGauge = gauge("jsacc_polls_parked", "polls that wait for a command now");
    polls_shortcut: IntCounter = counter("jsacc_polls_shortcut_total", "polls parked without asking a handler");
    requests: IntCounterVec = counters("jsacc_requests_total", "requests answered, by path and status", &["path", "status"]);
    refusals: IntCounterVec = counters("jsacc_refusals_total", "connections and requests refused, by reason", &["reason"]);
    requests_waiting: IntGauge = gauge("jsacc_requests_waiting", "requests with a handler or waiting for one");
    request_seconds: Histogram = histogram("jsacc_request_seconds", "seconds from a whole request to its handler's answer");
    body_bytes: IntGauge = gauge("jsacc_body_bytes", "bytes of request and answer bodies held now");
    queued_commands: IntGauge = gauge("jsacc_queued_commands", "commands waiting in the queues of nodes");
    pending_commands: IntGauge = gauge("jsacc_pending_commands", "commands pushed and not yet taken by a controller");
    redis_errors: IntCounter = counter("jsacc_redis_errors_total", "errors of Redis or the way to it");
    redis_up: IntGauge = gauge("jsacc_redis_up", "1 while Redis answers");
    commands: IntCounterVec = counters("jsacc_commands_total", "commands taken, by what became of them", &["outcome"]);
    results: IntCounterVec = counters("jsacc_results_total", "results taken, by what became of them", &["outcome"]);
    stream_bytes: IntCounter = counter("jsacc_stream_bytes_total", "bytes of live output taken from nodes");
    stream_entries: IntCounter = counter("jsacc_stream_entries_total", "entries of live output written");
    stream_refused: IntCounterVec = counters("jsacc_stream_refused_total", "requests with live output that were not taken, by reason", &["reason"]);
    streams: IntGauge = gauge("jsacc_streams", "streams of live output in Redis, of all controllers");
    stream_memory: IntGauge = gauge("jsacc_stream_memory_bytes", "bytes that those streams take");
    handover_seconds: Histogram = histogram("jsacc_handover_seconds", "seconds from LPUSH to hand-over to the node");
    result_seconds: Histogram = histogram("jsacc_result_seconds", "seconds from LPUSH to the result");
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
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
        // From 50 us: a command may take well below a millisecond.
        let mut buckets = vec![0.000_05, 0.000_1, 0.000_25, 0.000_5];
        buckets.extend([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0]);
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
        metrics.request_seconds.observe(0.000_06);
        let text = String::from_utf8(metrics.text()).unwrap();
        assert!(text.contains("jsacc_refusals_total{reason=\"head-too-long\"} 1"), "{text}");
        assert!(text.contains("jsacc_requests_total{path=\"cmd\",status=\"200\"} 1"), "{text}");
        assert!(text.contains("jsacc_polls_parked 0"), "{text}");
        for bucket in ["0.00005\"} 0", "0.0001\"} 1", "0.001\"} 1"] {
            assert!(text.contains(&format!("jsacc_request_seconds_bucket{{le=\"{bucket}\n")), "{text}");
        }
    }
}

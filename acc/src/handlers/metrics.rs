//! `GET /metrics` (this controller) and `GET /metrics/nodes` (the nodes' latest stats).

use super::Outcome;
use crate::context::Context;
use crate::process_metrics;
use crate::server::Reply;
use crate::store::nodes;
use jscommon::NodeId;
use std::collections::BTreeMap;
use std::fmt::Write;

/// The type of Prometheus' text form.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Nodes asked for in one round trip.
const TOGETHER: usize = 200;

pub(super) fn own(context: &Context) -> Reply {
    let mut text = context.metrics.text();
    text.extend_from_slice(process_metrics::text().as_bytes());
    Reply::text(TEXT, text)
}

pub(super) fn nodes(context: &Context) -> Outcome {
    let since = context.clock.now().saturating_sub(86_400_000);
    let series = context.pool.with(|conn| {
        let mut series = Series::default();
        let live = nodes::live(conn, since)?;
        for some in live.chunks(TOGETHER) {
            for (node, stats) in some.iter().zip(nodes::all_stats(conn, some)?) {
                for (key, value) in stats {
                    series.add(*node, &key, &value);
                }
            }
        }
        Ok(series)
    })?;
    Ok(Reply::text(TEXT, series.text()))
}

/// Metric name → lines.
#[derive(Default)]
struct Series(BTreeMap<String, Vec<String>>);

impl Series {
    /// Adds the series `key` of `node`; `value` is `[value, seconds]`.
    fn add(&mut self, node: NodeId, key: &str, value: &str) {
        let Ok(serde_json::Value::Array(pair)) = serde_json::from_str(value) else { return };
        let Some(number) = pair.first().and_then(serde_json::Value::as_f64) else { return };
        let prefix = format!("{}.{}.", node.gid, node.nid);
        let key = key.strip_prefix(&prefix).unwrap_or(key);
        // domain.name.key, or node.key for the node's own.
        let (domain, name, key) = match key.split_once('.') {
            Some(("node", rest)) => ("node", "", rest),
            Some((domain, rest)) => match rest.split_once('.') {
                Some((name, rest)) => (domain, name, rest),
                None => ("", "", key),
            },
            None => ("", "", key),
        };
        let lines = self.0.entry(metric(key)).or_default();
        let mut line = format!("{{gid=\"{}\",nid=\"{}\"", node.gid, node.nid);
        let _ = write!(line, ",domain=\"{}\",name=\"{}\"}} {number}", escape(domain), escape(name));
        lines.push(line);
    }

    fn text(mut self) -> String {
        let mut text = String::new();
        for (metric, lines) in &mut self.0 {
            lines.sort_unstable();
            lines.dedup_by(|a, b| a.rsplit_once(' ').map(|p| p.0) == b.rsplit_once(' ').map(|p| p.0));
            let _ = writeln!(text, "# HELP {metric} the latest value that a node has sent\n# TYPE {metric} gauge");
            for line in lines {
                let _ = writeln!(text, "{metric}{line}");
            }
        }
        text
    }
}

/// The name of a metric for the key of a series. Prometheus keeps the endings `_count`, `_sum`,
/// `_bucket` and `_total` for types that these are not.
fn metric(key: &str) -> String {
    let mut name = String::from("js_");
    let mut last = '_';
    for c in key.chars() {
        let c = if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
        if c != '_' || last != '_' {
            name.push(c);
        }
        last = c;
    }
    for ending in ["_count", "_sum", "_bucket", "_total", "_info"] {
        if name.ends_with(ending) {
            name.push_str("_value");
        }
    }
    name
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_become_metrics() {
        let mut series = Series::default();
        let node = NodeId { gid: 1, nid: 10 };
        series.add(node, "1.10.web.nginx.requests", "[1.5, 100]");
        series.add(node, "1.10.web.nginx.latency.count", "[3, 100]");
        series.add(node, "1.10.node.load", "[0.25, 100]");
        series.add(node, "key", "[2, 100]");
        series.add(node, "1.10.web.nginx.text", "[\"x\", 100]");
        let text = series.text();
        for want in [
            "js_requests{gid=\"1\",nid=\"10\",domain=\"web\",name=\"nginx\"} 1.5\n",
            "js_latency_count_value{gid=\"1\",nid=\"10\",domain=\"web\",name=\"nginx\"} 3\n",
            "js_load{gid=\"1\",nid=\"10\",domain=\"node\",name=\"\"} 0.25\n",
            "js_key{gid=\"1\",nid=\"10\",domain=\"\",name=\"\"} 2\n",
            "# TYPE js_load gauge\n",
        ] {
            assert!(text.contains(want), "{want} in {text}");
        }
        assert!(!text.contains("js_text"), "{text}");
    }
}

//! The nodes' series in the text form of Prometheus. Pure.
//!
//! Owns: the names and labels that come of a series' key, cleaned at this one place, and how many names there may be.
//! Does not own: the values (Redis has them).

use jscommon::NodeId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;

/// Most names of metrics that the series of one node make.
const MAX_NODE_NAMES: usize = 1000;
/// Most names of metrics in all.
const MAX_NAMES: usize = 10_000;
/// Most characters of a name's or a label's part that a node has chosen.
const MAX_WORD: usize = 200;

/// Metric name → lines.
#[derive(Default)]
pub(super) struct Series(BTreeMap<String, Metric>);

#[derive(Default)]
struct Metric {
    /// The nodes that have such a series, and its lines.
    lines: Vec<(NodeId, String)>,
    nodes: usize,
}

impl Series {
    /// Adds the series `key` of `node`; `value` is `[value, seconds]`. All of one node's follow each other.
    pub(super) fn add(&mut self, node: NodeId, key: &str, value: &str) {
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
        let metric = self.0.entry(metric(key)).or_default();
        let mut line = format!("{{gid=\"{}\",nid=\"{}\"", node.gid, node.nid);
        let _ = write!(line, ",domain=\"{}\",name=\"{}\"}} {number}", clean(domain), clean(name));
        metric.nodes += usize::from(metric.lines.last().is_none_or(|(last, _)| *last != node));
        metric.lines.push((node, line));
    }

    /// The text. Where there are too many names, those that more nodes have stay.
    pub(super) fn text(mut self) -> String {
        let left_out = self.bound(MAX_NODE_NAMES, MAX_NAMES);
        let mut text = String::new();
        for (metric, Metric { lines, .. }) in &mut self.0 {
            lines.sort_unstable_by(|a, b| a.1.cmp(&b.1));
            lines.dedup_by(|a, b| a.1.rsplit_once(' ').map(|p| p.0) == b.1.rsplit_once(' ').map(|p| p.0));
            let _ = writeln!(text, "# HELP {metric} the latest value that a node has sent\n# TYPE {metric} gauge");
            for (_, line) in lines {
                let _ = writeln!(text, "{metric}{line}");
            }
        }
        let name = "jsacc_left_out_series";
        let _ = writeln!(text, "# HELP {name} series of nodes that have too many names\n# TYPE {name} gauge");
        let _ = writeln!(text, "{name} {left_out}");
        text
    }

    /// Drops the series of names that are too many of one node, or in all; answers how many series.
    fn bound(&mut self, of_a_node: usize, in_all: usize) -> usize {
        let mut names: Vec<(usize, &String)> = self.0.iter().map(|(name, metric)| (metric.nodes, name)).collect();
        names.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
        let mut by_node: HashMap<NodeId, usize> = HashMap::new();
        let (mut kept, mut dropped): (usize, HashSet<(String, NodeId)>) = (0, HashSet::new());
        for (_, name) in names {
            let Some(metric) = self.0.get(name) else { continue };
            let (mut any, mut last) = (false, None);
            for (node, _) in &metric.lines {
                if last.replace(*node) == Some(*node) {
                    continue;
                }
                let count = by_node.entry(*node).or_default();
                if kept < in_all && *count < of_a_node {
                    *count += 1;
                    any = true;
                } else {
                    dropped.insert((name.clone(), *node));
                }
            }
            kept += usize::from(any);
        }
        if dropped.is_empty() {
            return 0;
        }
        let mut left_out = 0;
        self.0.retain(|name, metric| {
            let before = metric.lines.len();
            metric.lines.retain(|(node, _)| !dropped.contains(&(name.clone(), *node)));
            left_out += before - metric.lines.len();
            !metric.lines.is_empty()
        });
        left_out
    }
}

/// The name of a metric for the key of a series. Prometheus keeps the endings `_count`, `_sum`,
/// `_bucket` and `_total` for types that these are not.
fn metric(key: &str) -> String {
    let mut name = String::from("js_");
    let mut last = '_';
    for c in clean(key).chars() {
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

/// Cleans a text that a node has sent: the only way of one into this page. Of another character than
/// `A-Z a-z 0-9 _ - .` an underscore is left, which is what agents do themselves.
fn clean(text: &str) -> String {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    text.chars().take(MAX_WORD).map(|c| if is_good(c) { c } else { '_' }).collect()
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
        assert!(text.ends_with("jsacc_left_out_series 0\n"), "{text}");
    }

    #[test]
    fn no_byte_of_a_node_is_more_than_a_word() {
        let mut series = Series::default();
        let node = NodeId { gid: 1, nid: 10 };
        let bad = "a\"} 1\njs_forged{x=\"\\\u{1b}[1m\u{0}\r\u{85}ä";
        for key in [format!("1.10.{bad}.{bad}.{bad}"), format!("{bad}.x.y"), bad.to_owned(), "x".repeat(5000)] {
            series.add(node, &key, "[1, 100]");
        }
        let text = series.text();
        for line in text.lines() {
            let good = |c: char| c.is_ascii_alphanumeric() || " _-.{}=\",#".contains(c);
            assert!(line.chars().all(good) && line.len() < 1000, "{line:?}");
            assert!(
                line.starts_with("js_a_")
                    || line.starts_with("js_x")
                    || line.starts_with("js_y")
                    || line.starts_with("# ")
                    || line.starts_with("jsacc_left_out_series "),
                "{line:?}"
            );
        }
    }

    #[test]
    fn names_beyond_the_bounds_are_left_out_and_reported() {
        let node = |nid| NodeId { gid: 1, nid };
        let mut series = Series::default();
        for nid in 1..=3 {
            for key in ["1.load", "own.load", "z.load"] {
                series.add(node(nid), &format!("d.n.{key}"), "[1, 100]");
            }
        }
        // Two nodes make up names, all of which sort before the others.
        for nid in [4, 5] {
            for n in 0..20 {
                series.add(node(nid), &format!("d.n.a{nid}{n:02}"), "[1, 100]");
                series.add(node(nid), &format!("d.m.a{nid}{n:02}"), "[1, 100]");
            }
        }
        assert_eq!(
            series.bound(5, 10),
            2 * 13 + 2 * 20,
            "of 80 series ten are of the five names of the one, four of the other"
        );
        let names: Vec<&str> = series.0.keys().map(String::as_str).collect();
        assert_eq!(names.len(), 10);
        for (name, nodes) in [("js_1_load", 3), ("js_own_load", 3), ("js_z_load", 3), ("js_a400", 1), ("js_a404", 1)] {
            assert_eq!(series.0[name].nodes, nodes, "{name}");
        }
        let mut few = Series::default();
        few.add(node(1), "d.n.x", "[1, 100]");
        assert_eq!(few.bound(1, 1), 0);
    }

    #[test]
    fn made_up_names_of_two_nodes_leave_those_of_others() {
        let mut series = Series::default();
        for nid in 1..=2 {
            for n in 0..9500 {
                series.add(NodeId { gid: 1, nid }, &format!("d.n.a{nid}x{n}"), "[1, 100]");
            }
        }
        series.add(NodeId { gid: 1, nid: 3 }, "d.n.zz", "[1, 100]");
        let text = series.text();
        assert!(text.contains("js_zz{"), "a third node keeps its own");
        assert_eq!(text.matches("# TYPE js_").count(), 2 * MAX_NODE_NAMES + 1);
        assert!(text.ends_with("jsacc_left_out_series 17000\n"));
    }
}

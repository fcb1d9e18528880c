//! `GET /metrics` (this controller) and `GET /metrics/nodes` (the nodes' latest stats).

use super::Outcome;
use super::node_series::Series;
use crate::api::context::Context;
use crate::api::process_metrics;
use crate::http::Reply;
use crate::model::nodes;

/// The type of Prometheus' text form.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Nodes asked for in one round trip.
const MAX_NODES_A_CALL: usize = 200;

pub(super) fn own(context: &Context) -> Reply {
    let mut text = context.metrics.text();
    text.extend_from_slice(process_metrics::text().as_bytes());
    Reply::text(CONTENT_TYPE, text)
}

pub(super) fn nodes(context: &Context) -> Outcome {
    let since = context.clock.now().saturating_sub(86_400_000);
    let series = context.pool.with(|conn| {
        let mut series = Series::default();
        let live = nodes::live(conn, since)?;
        for some in live.chunks(MAX_NODES_A_CALL) {
            for (node, stats) in some.iter().zip(nodes::all_stats(conn, some)?) {
                for (key, value) in stats {
                    series.add(*node, &key, &value);
                }
            }
        }
        Ok(series)
    })?;
    Ok(Reply::text(CONTENT_TYPE, series.text()))
}

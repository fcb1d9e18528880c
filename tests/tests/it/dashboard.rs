//! The dashboard in `docs/` asks for nothing that a controller does not tell.

use jstests::{Acc, AccOptions, Redis};
use serde_json::Value;

#[test]
fn every_figure_of_the_dashboard_is_there() {
    let text = include_str!("../../../docs/grafana.json");
    let dashboard: Value = serde_json::from_str(text).expect("the dashboard is JSON");
    let redis = Redis::start();
    let acc = Acc::start(&redis, AccOptions::default());
    // Something of everything that is counted by label.
    acc.anonymous().get("/nothing");
    let told = acc.anonymous().get("/metrics").body;
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = target["expr"].as_str().expect("an expression");
            let words = expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for name in words.filter(|word| word.starts_with("jsacc_")) {
                let family = name.strip_suffix("_bucket").unwrap_or(name);
                // A family without a label's value yet has no line at all.
                let by_label = ["jsacc_commands_total", "jsacc_results_total"].contains(&family);
                assert!(by_label || told.contains(&format!("# TYPE {family} ")), "{family} of '{expr}'");
                asked += 1;
            }
        }
    }
    assert!(asked >= 12, "{asked}");
}

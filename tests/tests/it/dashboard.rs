//! The dashboard in `docs/` asks for nothing that a controller or a node does not tell.

use jstests::{AccOptions, AgentOptions, LONG, Stage, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Every name of a metric in `docs/grafana.json`, in panels and in the choices above them.
fn asked() -> BTreeSet<String> {
    let dashboard: Value =
        serde_json::from_str(include_str!("../../../docs/grafana.json")).expect("the dashboard is JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let exprs = targets.map(|target| target["expr"].as_str().expect("an expression"));
    let choices = dashboard["templating"]["list"].as_array().expect("choices");
    let queries = choices.iter().filter_map(|choice| choice["query"].as_str());
    let is_name = |word: &&str| ["jsacc_", "js_", "process_"].iter().any(|prefix| word.starts_with(prefix));
    exprs
        .chain(queries)
        .flat_map(|text| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .filter(is_name)
        .map(|name| name.strip_suffix("_bucket").unwrap_or(name).to_owned())
        .collect()
}

#[test]
fn every_figure_of_the_dashboard_is_there() {
    let config = "[stats]\ninterval = 1\n[monitor]\ninterval = 1\n";
    let mut stage = Stage::start_with(AccOptions::default(), AgentOptions::default().config(config));
    // Something of everything that is counted by label: a command with its result, a refusal, a job's figures.
    stage.client.run("ping", json!({}));
    let job = stage.client.send("execute", json!({"cmd": "/bin/sleep", "args": ["600"], "domain": "d", "name": "n"}));
    assert_eq!(stage.acc.anonymous().get("/nothing").status, 404);
    let asked = asked();
    assert!(asked.len() >= 25, "{asked:?}");
    let missing = || {
        let told = stage.acc.anonymous().get("/metrics").body + &stage.acc.anonymous().get("/metrics/nodes").body;
        let there: BTreeSet<&str> =
            told.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        asked.iter().filter(|name| !there.contains(name.as_str())).cloned().collect::<Vec<String>>()
    };
    wait_until("every figure is told", LONG, || missing().is_empty());
    stage.client.ask("kill", json!({"id": job}));
}

//! Method and path → what is asked for. Pure.
//!
//! Owns: the list of paths, which methods each takes, and the sentence for everything else.
//! Does not own: whether the request is allowed (`auth`), or what is answered (`api`).
//! Asked by the proxy, once for each request, before credentials are looked at.

use jscommon::NodeId;
use std::fmt;

/// The path of a request, with its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// `GET /{gid}/{nid}/cmd`: the long poll.
    Cmd(NodeId),
    /// `POST /{gid}/{nid}/result`
    Result(NodeId),
    /// `POST /{gid}/{nid}/log`
    Log(NodeId),
    /// `POST /{gid}/{nid}/stats`
    Stats(NodeId),
    /// `POST /{gid}/{nid}/event`
    Event(NodeId),
    /// `POST /{gid}/{nid}/stream`: frames of live output.
    Stream(NodeId),
    /// `GET /{gid}/{nid}/script`
    Script(NodeId),
    /// `GET /{gid}/{nid}/blob`: a piece of a large file.
    Blob(NodeId),
    /// `POST /{gid}/{nid}/renew`: new credentials for a node whose own are good.
    Renew(NodeId),
    /// `POST /enroll`
    Enroll,
    /// `GET /health`
    Health,
    /// `GET /metrics`
    Metrics,
    /// `GET /metrics/nodes`
    NodeMetrics,
}

/// Why a method and a path are no route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RouteError {
    /// 400: the path has the form of a node's path, but names no node.
    BadNode,
    /// 404: there is nothing at this path.
    NotFound,
    /// 405: the path is there, for the method that is named here.
    Method(&'static str),
}

impl RouteError {
    /// The status to answer with.
    pub(crate) fn status(&self) -> u16 {
        match self {
            RouteError::BadNode => 400,
            RouteError::NotFound => 404,
            RouteError::Method(_) => 405,
        }
    }
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteError::BadNode => {
                f.write_str("a node's path is /{gid}/{nid}/..., two whole numbers from 1 to 4294967295")
            }
            RouteError::NotFound => f.write_str("there is nothing at this path"),
            RouteError::Method(allow) => write!(f, "this path takes {allow} only"),
        }
    }
}

impl std::error::Error for RouteError {}

impl Route {
    /// The route's label, its method, and the node that its path names.
    fn row(&self) -> (&'static str, &'static str, Option<NodeId>) {
        match *self {
            Route::Cmd(node) => ("cmd", "GET", Some(node)),
            Route::Result(node) => ("result", "POST", Some(node)),
            Route::Log(node) => ("log", "POST", Some(node)),
            Route::Stats(node) => ("stats", "POST", Some(node)),
            Route::Event(node) => ("event", "POST", Some(node)),
            Route::Stream(node) => ("stream", "POST", Some(node)),
            Route::Script(node) => ("script", "GET", Some(node)),
            Route::Blob(node) => ("blob", "GET", Some(node)),
            Route::Renew(node) => ("renew", "POST", Some(node)),
            Route::Enroll => ("enroll", "POST", None),
            Route::Health => ("health", "GET", None),
            Route::Metrics => ("metrics", "GET", None),
            Route::NodeMetrics => ("metrics_nodes", "GET", None),
        }
    }

    /// The node that the path names.
    pub(crate) fn node(&self) -> Option<NodeId> {
        self.row().2
    }

    /// The route's name in metrics: one of thirteen, whatever is asked.
    pub(crate) fn label(&self) -> &'static str {
        self.row().0
    }

    /// The method that the route is asked with; where that is GET, HEAD will do too.
    pub(crate) fn method(&self) -> &'static str {
        self.row().1
    }

    /// Whether the request comes with a body (it is a POST).
    pub(crate) fn takes_body(&self) -> bool {
        self.method() == "POST"
    }
}

/// The path, which `route` reads back.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row() {
            (label, _, Some(node)) => write!(f, "/{}/{}/{label}", node.gid, node.nid),
            ("metrics_nodes", ..) => f.write_str("/metrics/nodes"),
            (label, ..) => write!(f, "/{label}"),
        }
    }
}

/// The route of `method` and `path` (the path alone, without its query).
///
/// HEAD is taken where GET is, but for polls: an answer without a body would lose what it hands over.
pub(crate) fn route(method: &str, path: &str) -> Result<Route, RouteError> {
    let route = match path {
        "/enroll" => Route::Enroll,
        "/health" => Route::Health,
        "/metrics" => Route::Metrics,
        "/metrics/nodes" => Route::NodeMetrics,
        _ => node_route(path)?,
    };
    let wanted = route.method();
    let head = method == "HEAD" && wanted == "GET" && !matches!(route, Route::Cmd(_));
    if method == wanted || head { Ok(route) } else { Err(RouteError::Method(wanted)) }
}

fn node_route(path: &str) -> Result<Route, RouteError> {
    let mut parts = path.strip_prefix('/').ok_or(RouteError::NotFound)?.split('/');
    let (Some(gid), Some(nid), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(RouteError::NotFound);
    };
    let make = match name {
        "cmd" => Route::Cmd,
        "result" => Route::Result,
        "log" => Route::Log,
        "stats" => Route::Stats,
        "event" => Route::Event,
        "stream" => Route::Stream,
        "script" => Route::Script,
        "blob" => Route::Blob,
        "renew" => Route::Renew,
        _ => return Err(RouteError::NotFound),
    };
    let node: NodeId = format!("{gid}:{nid}").parse().map_err(|_| RouteError::BadNode)?;
    Ok(make(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId { gid: 1, nid: 10 };

    #[track_caller]
    fn check(method: &str, path: &str, want: Result<Route, RouteError>) {
        if let Ok(route) = want {
            assert_eq!(route.to_string(), path);
        }
        assert_eq!(route(method, path), want, "{method} {path}");
    }

    #[test]
    fn every_route_has_its_method() {
        check("GET", "/1/10/cmd", Ok(Route::Cmd(NODE)));
        check("POST", "/1/10/result", Ok(Route::Result(NODE)));
        check("POST", "/1/10/log", Ok(Route::Log(NODE)));
        check("POST", "/1/10/stats", Ok(Route::Stats(NODE)));
        check("POST", "/1/10/event", Ok(Route::Event(NODE)));
        check("POST", "/1/10/stream", Ok(Route::Stream(NODE)));
        check("GET", "/1/10/script", Ok(Route::Script(NODE)));
        check("GET", "/1/10/blob", Ok(Route::Blob(NODE)));
        check("POST", "/1/10/renew", Ok(Route::Renew(NODE)));
        check("POST", "/enroll", Ok(Route::Enroll));
        check("GET", "/health", Ok(Route::Health));
        check("HEAD", "/health", Ok(Route::Health));
        check("GET", "/metrics", Ok(Route::Metrics));
        check("GET", "/metrics/nodes", Ok(Route::NodeMetrics));
    }

    #[test]
    fn other_methods_are_told_the_right_one() {
        check("POST", "/1/10/cmd", Err(RouteError::Method("GET")));
        check("HEAD", "/1/10/cmd", Err(RouteError::Method("GET")));
        check("GET", "/1/10/result", Err(RouteError::Method("POST")));
        check("HEAD", "/enroll", Err(RouteError::Method("POST")));
        check("DELETE", "/health", Err(RouteError::Method("GET")));
        check("get", "/health", Err(RouteError::Method("GET")));
    }

    #[test]
    fn other_paths_are_not_there() {
        for path in ["", "/", "//", "/1", "/1/10", "/1/10/", "/1/10/cmd/", "/1/10/cmdx", "/1/10/cmd/x", "/health/", "x"]
        {
            check("GET", path, Err(RouteError::NotFound));
        }
    }

    #[test]
    fn a_node_is_two_numbers_of_one_or_more() {
        for path in ["/0/1/cmd", "/1/0/cmd", "/a/1/cmd", "/1/-1/cmd", "/1/+1/cmd", "/01/1/cmd", "/1/4294967296/cmd"] {
            check("GET", path, Err(RouteError::BadNode));
        }
        check("GET", "///cmd", Err(RouteError::BadNode));
        check("GET", "/1:2/3/cmd", Err(RouteError::BadNode));
    }

    /// The answers of a route that stand with it in docs/openapi.yaml: its own, and those that follow from what it is.
    fn answers(route: Route) -> Vec<u16> {
        let mut answers = vec![200, 503];
        if route.node().is_some() {
            // The proxy: credentials, the node that they are for, how much of it.
            answers.extend([400, 401, 403, 429]);
        }
        if route.takes_body() {
            answers.extend([400, 411, 413]);
        }
        answers.extend(match route {
            Route::Cmd(_) => &[204, 409][..],
            Route::Renew(_) => &[204],
            Route::Script(_) | Route::Blob(_) => &[404],
            Route::Stream(_) => &[409, 410],
            Route::Enroll => &[401, 403, 409],
            Route::Metrics | Route::NodeMetrics => &[401, 403],
            Route::Result(_) | Route::Log(_) | Route::Stats(_) | Route::Event(_) | Route::Health => &[],
        });
        answers.sort_unstable();
        answers.dedup();
        answers
    }

    #[test]
    fn openapi_has_every_route_with_its_answers() {
        let text = include_str!("../../docs/openapi.yaml");
        assert!(text.contains(concat!("\n  version: ", env!("CARGO_PKG_VERSION"), "\n")), "it is of another version");
        let (_, text) = text.split_once("\npaths:\n").unwrap();
        let (text, _) = text.split_once("\ncomponents:\n").unwrap();
        let mut paths: Vec<(&str, &str, Vec<u16>)> = Vec::new();
        for line in text.lines() {
            if let Some(path) = line.strip_prefix("  /") {
                paths.push((path.trim_end_matches(':'), "", Vec::new()));
            } else if let Some(method @ ("get:" | "post:")) = line.strip_prefix("    ") {
                paths.last_mut().unwrap().1 = method.trim_end_matches(':');
            } else if let Some(code) = line.strip_prefix("        \"") {
                paths.last_mut().unwrap().2.push(code[..3].parse().unwrap());
            }
        }
        let mut named = std::collections::BTreeSet::new();
        for (path, method, told) in paths {
            let path = format!("/{}", path.replace("{gid}", "1").replace("{nid}", "10"));
            let route = route(&method.to_uppercase(), &path).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
            assert_eq!(told, answers(route), "{method} {path}");
            named.insert(route.label());
        }
        assert_eq!(named.len(), 13, "{named:?}");
    }
}

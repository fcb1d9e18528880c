//! Files that other programs have open while the agent replaces them.

use super::{Stage, drive};
use jstests::{LONG, wait_until};
use serde_json::json;
use std::fs;
use std::path::Path;

/// Has `path` open until `release` exists.
const HOLDER: &str = "local path, held, release = ...\n\
    local file = assert(io.open(path, 'r'))\n\
    assert(io.open(held, 'w')):close()\n\
    while not io.open(release, 'r') do end\n\
    file:close()\n";

/// Whether a new version of the file waits beside it.
fn waits_beside(folder: &Path) -> bool {
    let names = fs::read_dir(folder).expect("a folder").flatten();
    names.filter_map(|entry| entry.file_name().into_string().ok()).any(|name| name.ends_with(".part"))
}

#[test]
fn open_file_is_replaced_when_it_is_closed_and_named_when_it_is_not() {
    let mut stage = Stage::with("");
    let folder = stage.node.folder().join("files");
    let (target, held, release) = (folder.join("target"), folder.join("held"), folder.join("release"));
    fs::create_dir(&folder).expect("a folder");
    fs::write(&target, "old").expect("a file");
    let scripts = stage.node.home().join("jumpscripts/tests");
    fs::create_dir_all(&scripts).expect("the folder of scripts");
    fs::write(scripts.join("hold.lua"), HOLDER).expect("a script");
    let content = "new";
    let hash = jscommon::token::sha256_hex(content.as_bytes());
    stage.client.redis::<()>(&["SET", &format!("jsacc:script:{hash}"), content]);

    let args = json!({
        "domain": "tests", "name": "hold", "args": [drive(&target), drive(&held), drive(&release)],
    });
    let holder = stage.client.send("execute_js_lua", args);
    wait_until("the file is open", LONG, || held.exists());
    let order = json!({"path": drive(&target), "hash": hash});
    let result = stage.client.run("put", order.clone());
    let said = result["data"].as_str().unwrap_or_default();
    assert!(result["state"] == "ERROR" && said.contains("open in another program"), "{result}");
    assert_eq!((fs::read_to_string(&target).ok().as_deref(), waits_beside(&folder)), (Some("old"), false));

    let put = stage.client.send("put", order);
    wait_until("the new file waits", LONG, || waits_beside(&folder));
    fs::write(&release, "").expect("a file");
    assert_eq!(stage.client.pop(&put)["state"], "OK");
    assert_eq!(fs::read_to_string(&target).ok().as_deref(), Some("new"));
    assert_eq!(stage.client.pop(&holder)["state"], "OK");
}

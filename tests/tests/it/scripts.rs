//! Scripts in Python and Lua: by name and by hash, with one interface for both, under the rules of
//! every other job; and the examples that come with the agent.

use jscommon::token::sha256_hex;
use jstests::{AccOptions, AgentOptions, Client, FakeNode, Stage};
use serde_json::{Value, json};
use std::fs;

/// Puts a source where nodes fetch it from; answers its hash.
pub(crate) fn offer(client: &mut Client, source: &str) -> String {
    let hash = sha256_hex(source.as_bytes());
    let _: () = client.redis(&["SET", &format!("jsacc:script:{hash}"), source, "EX", "3600"]);
    hash
}

/// Runs a source on node 1:10 and answers the result.
fn run(client: &mut Client, language: &str, source: &str, data: Value) -> Value {
    run_with(client, language, source, data, json!({}))
}

pub(crate) fn run_with(client: &mut Client, language: &str, source: &str, data: Value, mut args: Value) -> Value {
    args["hash"] = offer(client, source).into();
    let cmd = format!("execute_js_{language}");
    let id = client.push(json!({"gid": 1, "nid": 10, "cmd": cmd, "args": args, "data": data}));
    client.pop(&id)
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The JSON that a result's data is.
pub(crate) fn data(result: &Value) -> Value {
    serde_json::from_str(text(&result["data"])).unwrap_or_else(|e| panic!("{e}: {result}"))
}

#[test]
fn a_script_lies_on_the_node_or_travels_by_its_hash() {
    let mut stage = Stage::start_secure();
    let folder = stage.agent.data_dir().join("jumpscripts/ops");
    fs::create_dir_all(&folder).expect("the folder of scripts");
    fs::write(folder.join("helper.py"), "def twice(n):\n    return 2 * n\n").expect("a module");
    fs::write(folder.join("calc.py"), "import helper\ndef action(n):\n    return helper.twice(n)\n").expect("a script");
    fs::write(folder.join("calc.lua"), "function action(data) return 3 * data.n end\n").expect("a script");
    for (cmd, want) in [("execute_js_py", 14), ("execute_js_lua", 21)] {
        let args = json!({"domain": "ops", "name": "calc"});
        let id = stage.client.push(json!({"gid": 1, "nid": 10, "cmd": cmd, "args": args, "data": {"n": 7}}));
        let result = stage.client.pop(&id);
        assert_eq!((&result["state"], &result["level"]), (&json!("OK"), &json!(20)), "{result}");
        assert_eq!(data(&result), json!(want));
    }
    for (args, reason) in [
        (json!({"domain": "ops", "name": "none"}), "no script ops/none.py in "),
        (json!({"domain": "..", "name": "state"}), "lead out of the folder"),
        (json!({"domain": "ops", "name": "../../../etc/passwd"}), "lead out of the folder"),
        (json!({"domain": "/etc", "name": "passwd"}), "lead out of the folder"),
        (json!({"hash": "0".repeat(64)}), "no script with hash 0000"),
        (json!({"hash": "x"}), "64 hexadecimal digits"),
        (json!({}), "which script?"),
    ] {
        let result = stage.client.run("execute_js_py", args);
        assert_eq!(result["state"], "ERROR", "{result}");
        assert!(text(&result["data"]).contains(reason), "{result} does not say {reason}");
    }
    // By hash it is fetched and kept: once Redis has lost it, it still runs here.
    let source = "print('from afar')";
    let result = run(&mut stage.client, "py", source, json!(""));
    assert_eq!(text(&result["streams"][0]).trim_end(), "from afar", "{result}");
    let hash = sha256_hex(source.as_bytes());
    let _: i64 = stage.client.redis(&["DEL", &format!("jsacc:script:{hash}")]);
    assert!(stage.agent.data_dir().join(format!("scripts/{hash}.py")).is_file());
    assert_eq!(stage.client.run("execute_js_py", json!({"hash": hash}))["state"], "OK");
}

/// The same interface in both languages, and in a configured Lua.
fn one_interface(client: &mut Client, language: &str, lua: bool) {
    let pick = |py: &str, in_lua: &str| if lua { in_lua.to_owned() } else { py.to_owned() };
    // A plain script has the data on stdin, as it is.
    let plain = pick(
        "import sys\nprint(sys.stdin.read() + '!')\nsys.exit(3 if __name__ == '__main__' else 4)",
        "print(io.read('a') .. '!')\nos.exit(3)",
    );
    let result = run(client, language, &plain, json!("{\"not\": parsed"));
    assert_eq!((&result["state"], &result["code"], &result["level"]), (&json!("ERROR"), &json!(3), &json!(0)));
    assert_eq!(text(&result["streams"][0]).trim_end(), "{\"not\": parsed!", "{result}");
    // An object becomes arguments, what is returned is the result.
    let action = pick(
        "def action(a, b=5, **more):\n    return {'sum': a + b, 'more': more, 'text': 'é\\n\"'}",
        "function action(d) return {sum = d.a + (d.b or 5), more = d.more, text = 'é\\n\"'} end",
    );
    let result = run(client, language, &action, json!({"a": 2}));
    assert_eq!(
        (&result["state"], &result["level"], &result["code"]),
        (&json!("OK"), &json!(20), &json!(0)),
        "{result}"
    );
    assert_eq!((&data(&result)["sum"], &data(&result)["text"]), (&json!(7), &json!("é\n\"")));
    // Data that is no object is the one argument; without data there is none.
    let echo = pick("def action(x=None):\n    return [x]", "function action(x) return {x} end");
    assert_eq!(data(&run(client, language, &echo, json!("[1, 2]"))), json!([[1, 2]]));
    assert_eq!(data(&run(client, language, &echo, json!("\"text\""))), json!(["text"]));
    // A script that returns nothing has no result.
    let quiet = pick("def action():\n    pass", "function action() end");
    let result = run(client, language, &quiet, json!(""));
    assert_eq!(
        (&result["state"], &result["level"], &result["data"]),
        (&json!("OK"), &json!(0), &json!("")),
        "{result}"
    );
    // Helpers need no import; a message begins a line of its own whatever was written before.
    let helpers = pick(
        "import sys\nsys.stdout.write('half a line')\nlog(9, 'one\\ntwo')\nlog(7, ':x')\nstat('t', -5)\n\
         stat('n', 3, 'c')\nresult('a: 1\\nb: 2', 'yaml')",
        "io.write('half a line')\nlog(9, 'one\\ntwo')\nlog(7, ':x')\nstat('t', -5)\n\
         stat('n', 3, 'c')\nresult('a: 1\\nb: 2', 'yaml')",
    );
    let result = run(client, language, &helpers, json!(""));
    assert_eq!((&result["level"], &result["data"]), (&json!(21), &json!("a: 1\nb: 2")), "{result}");
    assert_eq!((&result["critical"], &result["streams"][0]), (&json!("one\ntwo"), &json!("half a line")), "{result}");
    let id = text(&result["id"]).to_owned();
    let records = client.ask("get_msgs", json!({"jobid": id, "levels": "7,9-10,21"}));
    let records = records.as_array().expect("a list of records");
    let found: Vec<(&Value, &str)> = records.iter().map(|r| (&r["level"], text(&r["data"]))).collect();
    // Level 10 is not stored by default.
    assert_eq!(found, [(&json!(9), "one\ntwo"), (&json!(7), ":x"), (&json!(21), "a: 1\nb: 2")]);
    // An exception is a critical message that says where.
    let failing = pick(
        "def inner():\n    raise ValueError('broken')\ndef action():\n    inner()",
        "local function inner() error('broken') end\nfunction action() inner() return 1 end",
    );
    let result = run(client, language, &failing, json!(""));
    assert_eq!(
        (&result["state"], &result["code"], &result["level"]),
        (&json!("ERROR"), &json!(1), &json!(0)),
        "{result}"
    );
    let critical = text(&result["critical"]);
    let (head, frame) = if lua { ("broken", "stack traceback") } else { ("ValueError: broken", "in inner") };
    assert!(critical.contains(head) && critical.contains(frame), "{critical}");
    assert!(!critical.contains("<string>") && !critical.contains("jsagent"), "frames of the runner: {critical}");
    // So is a source that is none, and data that is none.
    let result = run(client, language, &pick("def x(:\n", "x = = 1"), json!(""));
    assert_eq!((&result["state"], &result["code"]), (&json!("ERROR"), &json!(1)), "{result}");
    let wrong = if lua { "unexpected symbol" } else { "SyntaxError" };
    assert!(text(&result["critical"]).contains(wrong), "{result}");
    let result = run(client, language, &echo, json!("{no json"));
    assert!(result["state"] == "ERROR" && text(&result["critical"]).contains("the data is no JSON"), "{result}");
}

#[test]
fn the_interface_in_python() {
    one_interface(&mut Stage::start().client, "py", false);
}

#[test]
fn script_loads_no_module_of_its_working_folder() {
    let mut stage = Stage::start();
    let folder = stage.agent.scratch().join("shared");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("intruder.lua"), "return 1").expect("a module");
    fs::write(folder.join("intruder.py"), "").expect("a module");
    for (language, source) in [
        ("lua", "return result({tostring(pcall(require, 'intruder')), package.path, package.cpath})"),
        ("py", "try:\n    import intruder\nexcept ImportError:\n    result(['false'])"),
    ] {
        let answer = run_with(&mut stage.client, language, source, json!(""), json!({"workingdir": folder}));
        let answer = data(&answer);
        assert_eq!(answer[0], "false", "{language}: {answer}");
        let places = answer.as_array().expect("a list").iter().skip(1).flat_map(|list| text(list).split(';'));
        assert!(places.into_iter().all(|place| place.starts_with('/')), "{answer}");
    }
}

#[test]
fn the_interface_in_the_built_in_lua() {
    one_interface(&mut Stage::start().client, "lua", true);
}

#[test]
fn the_interface_in_a_configured_lua() {
    let found = ["lua5.4", "lua5.3", "lua5.1", "luajit"]
        .into_iter()
        .find(|name| std::process::Command::new(name).arg("-v").output().is_ok_and(|output| output.status.success()));
    // A machine without any has the built-in one, which has its own test.
    let Some(lua) = found else { return };
    let options = AgentOptions::default().config(&format!("[scripts]\nlua = \"{lua}\""));
    let mut stage = Stage::start_with(AccOptions::default(), options);
    one_interface(&mut stage.client, "lua", true);
}

#[test]
fn source_with_a_byte_order_mark_runs() {
    let mut stage = Stage::start();
    for (language, source) in [
        ("lua", "\u{feff}return result({1})"),
        ("lua", "\u{feff}#!/usr/bin/lua\r\nreturn result({1})"),
        ("py", "\u{feff}result([1])"),
        ("py", "\u{feff}#!/usr/bin/python3\r\nresult([1])"),
    ] {
        let result = run(&mut stage.client, language, source, json!(""));
        assert_eq!((&result["state"], data(&result)), (&json!("OK"), json!([1])), "{language}: {result}");
    }
}

#[test]
fn lua_has_its_libraries_and_json() {
    let mut stage = Stage::start();
    let source = r#"
        local tested = {}
        for _, name in ipairs{"os", "io", "string", "table", "math", "utf8", "coroutine", "debug", "json"} do
            tested[name] = type(_G[name])
        end
        assert(require("json") == json)
        local text = '{"a":[1,2.5,-3e2,true,false,null,"\\u00e9\\ud83d\\ude00\\n"],"e":[],"o":{}}'
        assert(json.encode(json.decode(text)) == '{"a":[1,2.5,-300.0,true,false,null,"é😀\\n"],"e":[],"o":{}}')
        for _, bad in ipairs{"", "{", "[1,]", "01", "nul", '"\1"', "1 2", "{1:2}", ("["):rep(1000)} do
            assert(not pcall(json.decode, bad), bad)
        end
        for _, bad in ipairs{print, 0/0, {[print] = 1}} do assert(not pcall(json.encode, bad)) end
        local pipe = io.popen("yes | head -n 1")
        tested.pipe = pipe:read("a")
        assert(pipe:close())
        return result(tested)
    "#;
    let result = run(&mut stage.client, "lua", source, json!(""));
    assert_eq!(result["state"], "OK", "{result}");
    let mut tested = data(&result);
    assert_eq!(tested["pipe"].take(), "y\n");
    assert_eq!(result["streams"][1], "", "{result}");
    assert!(tested.as_object().expect("an object").values().all(|kind| kind.is_null() || kind == "table"), "{tested}");
}

#[test]
fn scripts_are_jobs_like_every_other() {
    let mut stage = Stage::start();
    let client = &mut stage.client;
    for (language, source) in
        [("py", "import time\nprint('begun')\ntime.sleep(60)"), ("lua", "print('begun')\nos.execute('sleep 60')")]
    {
        // A time limit ends the whole tree, and what was written before is there.
        let result = run_with(client, language, source, json!(""), json!({"max_time": 4}));
        assert_eq!(result["state"], "TIMEOUT", "{result}");
        assert_eq!(text(&result["streams"][0]).trim_end(), "begun", "{result}");
    }
    let source = "import os, sys\nprint(os.environ['AGENT_JOB_ID'], os.environ['COLOUR'], os.getcwd(), sys.argv[1:])";
    let args = json!({"env": {"COLOUR": "red"}, "workingdir": "/", "args": ["x", 1]});
    let result = run_with(client, "py", source, json!(""), args);
    assert_eq!(text(&result["streams"][0]).trim_end(), format!("{} red / ['x', '1']", text(&result["id"])), "{result}");
    // Restarts: the third run succeeds.
    let count = stage.agent.scratch().join("count");
    let source = format!(
        "local file = io.open({0:?}, 'a') file:write('x') file:close()\n\
         file = io.open({0:?}) local runs = #file:read('a') file:close()\n\
         if runs < 3 then error('too early') end\n\
         function action() return runs end",
        count.to_str().expect("a path in UTF-8")
    );
    let result = run_with(client, "lua", &source, json!(""), json!({"max_restart": 5}));
    assert_eq!((&result["state"], data(&result)), (&json!("OK"), json!(3)), "{result}");
}

#[test]
fn a_script_runs_as_somebody_who_cannot_read_the_agents_folder() {
    let is_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !is_root {
        return; // Only root can become another user.
    }
    let mut stage = Stage::start();
    stage.client.wait_seen("1:10");
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(stage.agent.data_dir(), closed).expect("close the folder");
    for (language, source) in [
        ("py", "import os\ndef action(a):\n    return [os.getuid() > 0, a]"),
        ("lua", "function action(d) return {io.popen('id -u'):read('n') > 0, d.a} end"),
    ] {
        let result = run_with(
            &mut stage.client,
            language,
            source,
            json!({"a": 1}),
            json!({"user": "nobody", "workingdir": "/"}),
        );
        assert_eq!((&result["state"], data(&result)), (&json!("OK"), json!([true, 1])), "{result}");
    }
}

#[test]
fn much_data_arrives_whole() {
    let mut stage = Stage::start();
    let big = "x".repeat(1 << 20);
    for (language, source) in [
        ("py", "import sys\ndef action(text):\n    return len(text)"),
        ("lua", "function action(d) return #d.text end"),
    ] {
        let result = run(&mut stage.client, language, source, json!({"text": big}));
        assert_eq!(data(&result), json!(1 << 20), "{}", result["critical"]);
    }
    // More than a result can be is an error that says so, not half a result.
    let result = run(&mut stage.client, "py", "def action():\n    return 'x' * (1 << 20)", json!(""));
    assert_eq!(result["state"], "ERROR");
    assert!(text(&result["critical"]).contains("the most is 1048576"), "{result}");
}

#[test]
fn an_extension_is_filled_in_from_args() {
    let config = "[extensions.greet]\nbinary = \"/bin/echo\"\nargs = [\"hello\", \"{who}\"]\nenv = { A = \"b\" }";
    let mut stage = Stage::start_with(AccOptions::default(), AgentOptions::default().config(config));
    let result = stage.client.run("greet", json!({"who": "you there"}));
    assert_eq!((&result["state"], text(&result["streams"][0]).trim_end()), (&json!("OK"), "hello you there"));
    let result = stage.client.run("greet", json!({"name": "x"}));
    assert_eq!(result["state"], "ERROR", "{result}");
    assert!(text(&result["data"]).contains("'who' is missing"), "{result}");
    let result = stage.client.run("greet", json!({"who": "-n"}));
    assert!(text(&result["data"]).contains("who must not begin with -"), "{result}");
}

#[test]
fn a_thousand_nodes_ask_for_one_new_script_at_once() {
    let mut stage = Stage::start();
    let source = format!("# {}\n", "x".repeat(20_000));
    let hash = offer(&mut stage.client, &source);
    let gets = |client: &mut Client| -> u64 {
        let stats: String = client.redis(&["INFO", "commandstats"]);
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_get:calls=")).unwrap_or("0,");
        line.split(',').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let before = gets(&mut stage.client);
    let url = stage.acc.url();
    std::thread::scope(|scope| {
        for thread in 0..50 {
            let (url, hash, source) = (&url, &hash, &source);
            scope.spawn(move || {
                for n in 0..20 {
                    let node = FakeNode::new(url, None, 1, 1000 + thread * 20 + n, None);
                    let reply = node.get(&node.path(&format!("script?hash={hash}")));
                    assert_eq!((reply.status, &reply.body), (200, source), "node {n} of {thread}");
                }
            });
        }
    });
    let reads = gets(&mut stage.client) - before;
    assert!((1..=20).contains(&reads), "{reads} reads of Redis for a thousand nodes");
    let ttl: i64 = stage.client.redis(&["TTL", &format!("jsacc:script:{hash}")]);
    assert!(ttl > 3600, "its expiry was renewed by its use, {ttl} s are left");
}

// The examples.

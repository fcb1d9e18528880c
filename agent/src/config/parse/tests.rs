//! Tests of faults and values of a configuration.

use super::*;
use std::time::Duration;

const LEAST: &str = "[main]\ngid = 1\nnid = 10\ndata_dir = \"/d\"\n[controllers.main]\nurl = \"https://ac:4000/\"\n";

fn parse(text: &str) -> Result<Config, Vec<Fault>> {
    Config::parse(text, &Overrides::default())
}

/// Every fault of the text as `line: message`, and that each of `want` is the beginning of one.
#[track_caller]
fn check(text: &str, want: &[&str]) {
    let faults: Vec<String> =
        parse(text).unwrap_err().iter().map(|fault| format!("{}: {}", fault.line, fault.message)).collect();
    assert_eq!(faults.len(), want.len(), "{faults:#?}");
    for (fault, want) in faults.iter().zip(want) {
        assert!(fault.starts_with(want), "{fault} does not begin with {want}");
    }
}

#[test]
fn a_port_out_of_range_is_no_address() {
    for port in ["0", "65536", "40000000", "+1", "", "x", "00000000000000000001x"] {
        for host in ["127.0.0.1", "ac.example", "[::1]"] {
            for end in ["", "/", "/path"] {
                assert!(address(&format!("https://{host}:{port}{end}")).is_err(), "{host}:{port}{end}");
            }
        }
    }
    for good in ["https://ac:1", "https://ac:65535/", "http://[::1]:4000", "https://[::1]", "https://ac"] {
        assert_eq!(address(good).as_deref(), Ok(good.trim_end_matches('/')));
    }
}

#[test]
fn the_least_and_its_defaults() {
    let config = parse(LEAST).unwrap();
    assert_eq!((config.main.gid, config.main.nid, config.main.max_jobs), (1, 10, 100));
    assert_eq!(config.controllers["main"].urls, ["https://ac:4000"]);
    assert_eq!(config.logging.db.levels, LevelSet::parse("1-9,20-23,30").unwrap());
    assert_eq!(config.stats.interval, Duration::from_secs(60));
}

#[test]
fn programs_of_the_start_folder_are_absolute() {
    let text = format!(
        "{LEAST}[scripts]\npython = \"venv/python\"\nlua = \"lua5.4\"\n[extensions.a]\nbinary = \"./a\"\n\
         [extensions.b]\nbinary = \"./b\"\ncwd = \"/srv\"\n[extensions.c]\nbinary = \"$agentroot/c\"\n"
    );
    let config = parse(&text).unwrap();
    let here = std::env::current_dir().unwrap();
    assert_eq!(config.scripts.python, here.join("venv/python").to_string_lossy());
    assert_eq!(config.scripts.lua, "lua5.4");
    let binary = |name: &str| config.extensions[name].binary.as_str();
    assert_eq!(binary("a"), here.join("a").to_string_lossy());
    assert_eq!((binary("b"), binary("c")), ("./b", "$agentroot/c"));
}

#[test]
fn the_whole_of_it() {
    let text = r#"
        [main]
        gid = 1
        nid = 10
        roles = ["web"]
        data_dir = "/var/lib/jsagent"
        max_jobs = 7
        env = ["HTTPS_PROXY"]
        [controllers.main]
        url = ["https://ac.example:4000", "https://[::1]:4000"]
        token_file = "/etc/jsagent/token"
        ca = "/etc/jsagent/ca.pem"
        client_cert = ""
        client_key = ""
        [logging.db]
        levels = "1-9"
        max_size_mb = 1
        keep = 0
        [logging.ac]
        levels = ""
        flush_interval = 0.5
        batch_size = 10
        controllers = ["main"]
        [stats]
        interval = 5
        listen = "127.0.0.1:8125"
        controllers = []
        [monitor]
        interval = 1
        [scripts]
        python = "python3.12"
        lua = "lua5.4"
        path = "/srv/scripts"
        [extensions.backup]
        binary = "/usr/bin/rsync"
        args = ["-a", "{source}", "{target}"]
        cwd = ""
        env = { A = "b" }
        allow_options = ["source"]
        [startup.watchdog]
        cmd = "backup"
        args = { cmd = "/opt/watchdog", max_restart = 5, list = [1, 2.5, true], inner = { a = "b" } }
        data = "in"
    "#;
    let config = parse(text).unwrap();
    assert_eq!(config.controllers["main"].urls.len(), 2);
    assert!(config.controllers["main"].client_cert.is_none() && config.logging.ac.levels.is_empty());
    assert_eq!(config.logging.ac.flush_interval, Duration::from_millis(500));
    assert_eq!(config.extensions["backup"].env["A"], "b");
    let args =
        serde_json::json!({"cmd": "/opt/watchdog", "max_restart": 5, "list": [1, 2.5, true], "inner": {"a": "b"}});
    assert_eq!(serde_json::Value::Object(config.startup["watchdog"].args.clone()), args);
    assert_eq!(config.script_path(), PathBuf::from("/srv/scripts"));
}

#[test]
fn every_fault_at_once_with_its_line() {
    check(
        "[main]\ngid = 0\nnid = \"10\"\nrole = []\n[mian]\n[controllers.main]\nurl = \"ftp://x\"\nclient_cert = \"/c\"\n[logging.db]\nlevels = \"50\"\nkeep = -1\n",
        &[
            "5: unknown section mian; did you mean [main]?",
            "2: main.gid must be from 1 to 4294967295",
            "3: main.nid must be a whole number, not a string",
            "4: unknown key main.role; did you mean roles?",
            "6: controllers.main: client_cert and client_key belong together",
            "7: controllers.main.url: \"ftp://x\" must begin with https://",
            "10: logging.db.levels: level set '50'",
            "11: logging.db.keep must be from 0",
        ],
    );
}

#[test]
fn roles_of_other_characters_are_faults_with_their_line() {
    let with = |roles: &str| LEAST.replace("[main]\n", &format!("[main]\nroles = {roles}\n"));
    parse(&with(r#"["web", "db/1", "A.b_c:d-e"]"#)).unwrap();
    for (role, shown) in [
        ("x;touch${IFS}/tmp/p;:", "x;touch${IFS}/tmp/p;:"),
        ("$(reboot)", "$(reboot)"),
        ("a b", "a b"),
        ("a\\nb", "a\\nb"),
        ("*", "*"),
        ("", ""),
        ("\\u001b[1m", "\\u{1b}[1m"),
        ("ü", "ü"),
        (&"x".repeat(65), &"x".repeat(64)),
    ] {
        let want = format!("2: main.roles: \"{shown}\": a role is 1 to 64 of A-Z a-z 0-9 . _ : / -");
        check(&with(&format!("[\"web\", \"{role}\"]")), &[&want]);
    }
}

#[test]
fn missing_keys_are_named() {
    check("", &["1: main.gid is missing", "1: main.nid is missing", "1: no controller"]);
    let text = format!("{LEAST}[controllers.b]\n[extensions.x]\n[startup.y]\n");
    check(
        &text,
        &["7: controllers.b.url is missing", "8: extensions.x.binary is missing", "9: startup.y.cmd is missing"],
    );
}

#[test]
fn values_that_cannot_be() {
    for (line, want) in [
        ("[logging.ac]\ncontrollers = [\"x\"]", "8: logging.ac.controllers: there is no [controllers.x]"),
        ("[stats]\nlisten = \"8125\"", "8: stats.listen must be an address"),
        ("[stats]\ninterval = 0", "8: stats.interval must be from 1 to"),
        ("[monitor]\ninterval = \"1\"", "8: monitor.interval must be a number of seconds, not a string"),
        ("[extensions.ping]\nbinary = \"/x\"", "7: extensions.ping: that is a built-in command"),
        ("[startup.\"a b\"]\ncmd = \"ping\"", "7: startup.a b: the name is the job's id"),
        ("[startup.a]\ncmd = \"rsync\"", "8: startup.a.cmd: there is no command \"rsync\""),
        ("[scripts]\npython = \"\"", "8: scripts.python must name"),
        ("[extensions.x]\nbinary = \"/x\"\nargs = [1]", "9: extensions.x.args must be a list of strings, and"),
        (
            "[extensions.x]\nbinary = \"/x\"\nargs = [\"{a}\"]\nallow_options = [\"a\", \"b\"]",
            "10: extensions.x.allow_options: no argument in args has {b}",
        ),
        ("[controllers.b]\nurl = []", "8: controllers.b.url is an empty list"),
        (
            "[controllers.b]\nurl = \"https://127.0.0.1:40000000\"",
            "8: controllers.b.url: \"https://127.0.0.1:40000000\" has a port that is no number from 1 to 65535",
        ),
        ("[monitor]\ninterval = nan", "8: monitor.interval must be from"),
        ("[startup.a]\ncmd = \"ping\"\nargs = 5", "9: startup.a.args must be a table, not a whole number"),
        ("[startup.a]\ncmd = \"execute\"", "7: startup.a.args: cmd is missing"),
        (
            "[startup.a]\ncmd = \"execute\"\nargs = { cmd = \"ls\", max_time = \"x\" }",
            "9: startup.a.args: max_time must",
        ),
        ("[startup.a]\ncmd = \"execute_js_py\"\nargs = { nice = 50 }", "9: startup.a.args: nice must be"),
        ("[logging.db]\nlevels = 5", "8: logging.db.levels: a level set is a string or a list of numbers, not 5"),
        ("[logging.db]\nlevels = [1, 99]", "8: logging.db.levels: a level is a number from 0 to 31, not 99"),
    ] {
        check(&format!("{LEAST}{line}\n"), &[want]);
    }
}

#[test]
fn main_env_is_a_list_of_names() {
    let with = |names: &str| LEAST.replacen("[main]\n", &format!("[main]\nenv = {names}\n"), 1);
    let names = r#"["HTTPS_PROXY", "ProgramFiles(x86)"]"#;
    assert_eq!(parse(&with(names)).unwrap().main.env, ["HTTPS_PROXY", "ProgramFiles(x86)"]);
    for (bad, want) in [
        (r#"["A=b"]"#, r#"2: main.env: "A=b" holds a value"#),
        (r#"[""]"#, r#"2: main.env: "" is no name"#),
        (r#"["HTTP_*"]"#, r#"2: main.env: "HTTP_*" is no name"#),
        (r#"["A B"]"#, r#"2: main.env: "A B" is no name"#),
        (r#"["A\u0000"]"#, r#"2: main.env: "A\0" is no name"#),
        (r#"["AGENT_NID"]"#, r#"2: main.env: "AGENT_NID" is not for processes"#),
        (r#"["NOTIFY_SOCKET"]"#, r#"2: main.env: "NOTIFY_SOCKET" is not for processes"#),
        (r#""PATH""#, "2: main.env must be a list of strings"),
        ("[1]", "2: main.env must be a list of strings"),
    ] {
        check(&with(bad), &[want]);
    }
}

#[test]
fn levels_may_be_a_list_of_numbers() {
    let text = format!("{LEAST}[logging.db]\nlevels = [1, 2, 9]\n[logging.ac]\nlevels = []\n");
    let config = parse(&text).unwrap();
    assert_eq!(config.logging.db.levels, LevelSet::parse("1,2,9").unwrap());
    assert!(config.logging.ac.levels.is_empty());
}

#[test]
fn no_toml_is_one_fault_a_line() {
    check(&format!("{LEAST}[stats\ninterval = 5\n"), &["7: not TOML"]);
    let faults = parse("[main]\ngid = \nnid = 4\n").unwrap_err();
    assert!(faults.iter().any(|fault| fault.line == 2 && fault.message.starts_with("not TOML")), "{faults:?}");
}

#[test]
fn path_with_a_control_character_is_a_fault_with_its_line() {
    let with = |line: &str| LEAST.replace("data_dir = \"/d\"", line);
    let want = "data_dir holds a control character (\"C:\\new\\temp\")";
    check(&with(r#"data_dir = "C:\new\temp""#), &[&format!("4: main.{want}")]);
    check(&format!("{LEAST}token_file = \"/a\\rb\"\n"), &["7: controllers.main.token_file holds a control character"]);
    for (line, key) in [
        (
            r#"[scripts]
python = "C:\tools\run.exe""#,
            "scripts.python",
        ),
        ("[scripts]\nlua = \"C:\\tools\"", "scripts.lua"),
        ("[extensions.a]\nbinary = \"C:\\tools\"", "extensions.a.binary"),
        (
            "[startup.a]\ncmd = \"execute\"\nargs.cmd = \"x\"\nargs.workingdir = \"C:\\new\"",
            "startup.a.args.workingdir",
        ),
        ("[startup.a]\ncmd = \"execute\"\nargs.cmd = \"C:\\new\"\nargs.args = []", "startup.a.args.cmd"),
    ] {
        let fault = parse(&format!("{LEAST}{line}\n")).unwrap_err().remove(0);
        assert!(fault.message.starts_with(&format!("{key} holds a control character")), "{line}: {fault}");
        assert!(fault.line >= 8 && fault.message.contains("single quotes"), "{line}: {fault}");
    }
    parse(&with(r"data_dir = 'C:\new\temp'")).unwrap();
    parse(&format!("{LEAST}[startup.a]\ncmd = \"execute\"\nargs.cmd = \"sh -c\\n'x'\"\n")).unwrap();
}

#[test]
fn wrong_escape_is_told_once_with_advice() {
    let text = LEAST.replace("\"/d\"", r#""C:\data\agent\Users""#);
    check(
        &text,
        &["4: not TOML: in \"…\" a backslash begins an escape, and this is none: write a path in single quotes"],
    );
    let text = LEAST.replace("\"/d\"", r#""C:\Users\x""#);
    check(&text, &["4: not TOML: in \"…\" a backslash begins an escape"]);
}

#[test]
fn flags_win_and_are_enough() {
    let overrides = Overrides {
        gid: Some(2),
        nid: Some(3),
        controller: Some("http://127.0.0.1:1/".into()),
        data_dir: Some("/elsewhere".into()),
        insecure_paths: true,
    };
    for text in ["", LEAST] {
        let config = Config::parse(text, &overrides).unwrap();
        assert_eq!((config.main.gid, config.main.nid), (2, 3));
        assert_eq!(config.controllers["main"].urls, ["http://127.0.0.1:1"]);
        assert_eq!(config.main.data_dir, PathBuf::from("/elsewhere"));
    }
    let faults = Config::parse("", &Overrides { gid: Some(0), controller: Some("x".into()), ..Overrides::default() });
    assert!(faults.unwrap_err().iter().any(|fault| fault.to_string() == "--gid must be 1 or more"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(at in 0..LEAST.len(), with in ".{0,12}", cut in 0..20usize) {
        let mut text = LEAST.to_owned();
        text.replace_range(at..(at + cut).min(LEAST.len()), &with);
        for fault in parse(&text).err().unwrap_or_default() {
            proptest::prop_assert!(fault.line <= text.lines().count() + 1 && !fault.message.contains('\n'), "{fault}");
        }
    }
}

//! Arguments on command lines that `cmd.exe` reads.

use super::{Stage, drive};
use serde_json::json;
use std::fs;

#[test]
fn arguments_of_batch_files_and_values_of_extensions_stay_text() {
    let mut stage = Stage::with(
        "[extensions.say]\nbinary = \"cmd\"\nargs = [\"/c\", \"echo\", \"{what}\"]\n\
         [extensions.named]\nbinary = 'C:\\windows\\system32\\cmd.exe'\nargs = [\"/c\", \"echo\", \"{what}\"]\n",
    );
    for name in ["cmd.bat", "other.cmd"] {
        let file = stage.node.folder().join(name);
        fs::write(&file, "@echo off\r\necho [%1] [%2] [%3]\r\n").expect("a batch file");
        let mut said = |args: &[&str]| stage.out(json!({"cmd": drive(&file), "args": args}));
        assert_eq!(said(&["one", "x&echo INJECTED"]), r#"[one] ["x&echo INJECTED"] []"#, "{name}");
        assert_eq!(said(&["two words", "", "end"]), r#"["two words"] [""] [end]"#, "{name}");
        let result = stage.client.run("execute", json!({"cmd": drive(&file), "args": ["a\nb"]}));
        let why = result["data"].as_str().unwrap_or_default();
        assert!(result["state"] == "ERROR" && why.contains("cannot hold a line end"), "{result}");
    }
    // An empty argument of cmd itself is one.
    assert_eq!(stage.out(json!({"cmd": "cmd", "args": ["/c", "echo", "a", "", "b"]})), r#"a "" b"#);

    for name in ["say", "named"] {
        let result = stage.client.run(name, json!({"what": "plain"}));
        assert_eq!((&result["state"], &result["streams"][0]), (&json!("OK"), &json!("plain")), "{result}");
        let result = stage.client.run(name, json!({"what": "two words"}));
        assert_eq!(result["streams"][0], "\"two words\"", "{result}");
        for what in ["x&echo INJECTED", "x\"&echo INJECTED", "%PATH%", "a\nb"] {
            let result = stage.client.run(name, json!({"what": what}));
            let why = result["data"].as_str().unwrap_or_default();
            assert!(result["state"] == "ERROR" && why.contains("what must not hold "), "{result}");
        }
    }
}

//! `scripts/lib.sh`: what a script that was killed leaves, and what the system keeps of a package's installation.

use jstests::{Output, run_with};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Runs lines of a script that has sourced the library, with this folder for temporary files and programs
/// of its `bin` before all others.
#[track_caller]
fn script(dir: &Path, lines: &str) -> Output {
    let library = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lib.sh");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("bash");
    command.args(["-uc", &format!(". '{library}'\n{lines}")]);
    command.env("TMPDIR", dir).env("PATH", format!("{}:{path}", dir.join("bin").display()));
    run_with(&mut command)
}

fn folders(dir: &Path) -> Vec<String> {
    let names =
        fs::read_dir(dir).expect("the folder").flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("js-run-")).collect()
}

#[test]
fn folder_of_a_killed_script_is_removed_by_the_next_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = script(dir.path(), "own_tmp; [ \"$TMPDIR\" = \"$tmp\" ] && mktemp -d && kill -9 $$");
    assert_eq!(output.code, 137, "{output:?}");
    assert_eq!(folders(dir.path()).len(), 1, "nobody has removed it");
    // A script that is still at work keeps its own, whatever starts meanwhile.
    let library = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/lib.sh");
    let inner = format!("bash -uc '. {library}; own_tmp'; [ -d \"$tmp\" ] && ls -d \"$above\"/js-run-*");
    let output = script(dir.path(), &format!("above=$TMPDIR; own_tmp; TMPDIR=$above; {inner}"));
    assert_eq!(output.stdout.lines().count(), 1, "its own, and not that of the killed one: {output:?}");
    assert_eq!(folders(dir.path()), Vec::<String>::new(), "it goes with its script");
    // One that is told to end removes it as well.
    let output = script(dir.path(), "own_tmp; kill $$; sleep 1");
    assert_eq!(output.code, 143, "{output:?}");
    assert_eq!(folders(dir.path()), Vec::<String>::new());
}

#[test]
fn packages_start_no_service_and_leave_no_rule_behind() {
    let dir = tempfile::tempdir().expect("a folder");
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).expect("a folder");
    let program = |name: &str, text: &str| {
        fs::write(bin.join(name), format!("#!/bin/bash\n{text}\n")).expect("a program");
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).expect("its mode");
    };
    // As apt does: the scripts of a package have the path of its settings.
    let apt = format!(
        "for word; do case $word in DPkg::Path=*) path=${{word#*=}} ;; esac; done\n\
         [ \"$1\" = update ] || PATH=$path bash -c 'for one in invoke-rc.d deb-systemd-invoke service; do \
         type -P $one; $one x start; done' >>'{}/told' 2>&1",
        dir.path().display()
    );
    program("apt-get", &apt);
    program("sudo", "shift; exec \"$@\"");
    let output = script(dir.path(), "apt_install_still no-such-package-of-ours");
    assert_eq!(output.code, 0, "{output:?}");
    let told = fs::read_to_string(dir.path().join("told")).expect("what the package's scripts saw");
    let folder = dir.path().to_str().expect("a path in UTF-8");
    assert_eq!(told.lines().count(), 3, "they do nothing and say nothing: {told}");
    assert!(told.lines().all(|line| line.starts_with(folder)), "{told}");
    let left: Vec<_> = fs::read_dir(dir.path()).expect("the folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left.len(), 2, "only what this test has made: {left:?}");
}

#[test]
fn quickstart_ends_a_program_that_has_left_its_folder() {
    let dir = tempfile::tempdir().expect("a folder");
    let quickstart = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/quickstart");
    let lines = format!(
        "home=$TMPDIR/home; mkdir \"$home\"
         eval \"$(sed -n '/^running()/,/^}}/p; /^end()/,/^}}/p' '{quickstart}')\"
         (cd / && exec bash -c 'trap \"exit 0\" TERM; while :; do sleep 0.1; done' \"$home/agent.toml\") &
         echo $! >\"$home/jsagent.pid\"
         until running jsagent; do sleep 0.05; done
         end jsagent 30
         echo 1 >\"$home/jsagent.pid\"; running jsagent || echo another"
    );
    let output = script(dir.path(), &lines);
    assert!(output.stdout.ends_with("another\n") && output.stdout.contains("stopping jsagent"), "{output:?}");
}

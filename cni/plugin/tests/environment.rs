//! The environment matrix of the reference implementation, verb by verb, against the executable: what each verb
//! cannot do without, which version it came with, and where the answer stands.
#![allow(clippy::unwrap_used, reason = "test helpers")]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const VARIABLES: [(&str, &str); 5] = [
    ("CNI_CONTAINERID", "some-container-id"),
    ("CNI_NETNS", "/nowhere/netns"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_ARGS", "SOME=extra;args=values;=;;not a pair"),
    ("CNI_PATH", "/some/cni/path"),
];

fn call(verb: Option<&str>, without: &[&str], stdin: &str) -> Output {
    let given = VARIABLES.iter().filter(|(name, _)| !without.contains(name));
    call_with(verb, given.copied(), stdin)
}

fn call_with<'a>(
    verb: Option<&str>,
    variables: impl Iterator<Item = (&'a str, &'a str)>,
    stdin: &str,
) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_seaway-cni"))
        .env_clear()
        .envs(variables)
        .envs(verb.map(|verb| ("CNI_COMMAND", verb)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdin.take().unwrap().write_all(stdin.as_bytes()));
    child.wait_with_output().unwrap()
}

/// Success, or code and sentence.
fn outcome(output: &Output) -> Result<(), (u64, String)> {
    if output.status.success() {
        return Ok(());
    }
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["cniVersion"].as_str().map(str::len), Some(5), "{error}");
    assert!(output.stderr.is_empty(), "errors stand on stdout alone");
    Err((error["code"].as_u64().unwrap(), error["msg"].as_str().unwrap().to_owned()))
}

/// A configuration whose data lies where there can be none, so that no verb makes anything.
fn config(version: &str) -> String {
    format!(
        r#"{{"cniVersion":"{version}","name":"skel-test","type":"seaway-cni","dataDir":"/proc/nowhere"}}"#
    )
}

#[test]
fn each_variable_that_a_verb_needs_is_missed_by_name() {
    // One column per variable, as in the reference's table: y is required.
    let table = [
        ("ADD", "yyyny"),
        ("CHECK", "yyyny"),
        ("DEL", "ynyny"),
        ("GC", "nnnny"),
        ("STATUS", "nnnny"),
        ("VERSION", "nnnnn"),
    ];
    for (verb, required) in table {
        for ((name, _), mark) in VARIABLES.iter().zip(required.chars()) {
            let missed = outcome(&call(Some(verb), &[name], &config("1.1.0")));
            let wanted = format!("required env variables [{name}] missing");
            let named = missed == Err((4, wanted));
            assert_eq!(named, mark == 'y', "{verb} without {name}: {missed:?}");
            // One that is empty is as good as none.
            let emptied =
                VARIABLES.iter().map(|(other, value)| (*other, if other == name { "" } else { *value }));
            assert_eq!(outcome(&call_with(Some(verb), emptied, &config("1.1.0"))), missed);
        }
        let required: Vec<&str> = VARIABLES
            .iter()
            .zip(required.chars())
            .filter(|(_, mark)| *mark == 'y')
            .map(|((name, _), _)| *name)
            .collect();
        let all: Vec<&str> = VARIABLES.iter().map(|(name, _)| *name).collect();
        if !required.is_empty() {
            let wanted = format!("required env variables [{}] missing", required.join(","));
            assert_eq!(outcome(&call(Some(verb), &all, &config("1.1.0"))), Err((4, wanted)));
        }
    }
}

#[test]
fn each_verb_asks_for_the_version_that_it_came_with() {
    let since =
        [("ADD", "0.3.0"), ("DEL", "0.3.0"), ("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")];
    for (verb, since) in since {
        for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0", "1.2.0", "v1.0.0", ""]
        {
            let refused = outcome(&call(Some(verb), &[], &config(version)));
            let known = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"].contains(&version);
            let incompatible = matches!(&refused, Err((1, _)));
            assert_eq!(incompatible, !known || version < since, "{verb} at {version:?}: {refused:?}");
        }
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let with = |name: &str, value: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_seaway-cni"))
            .env_clear()
            .envs(VARIABLES)
            .env("CNI_COMMAND", "DEL")
            .env(name, value)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        outcome(&output).unwrap_err().0
    };
    for id in ["../x", "a/b", ".a", "-a", "a b", "a\n", "a:b"] {
        assert_eq!(with("CNI_CONTAINERID", id), 4, "{id:?}");
    }
    for ifname in [".", "..", "a/b", "a:b", "a b", "sixteencharacter"] {
        assert_eq!(with("CNI_IFNAME", ifname), 4, "{ifname:?}");
    }
    for name in ["", "../a", "a/b", "a b", "-a"] {
        let json = format!(r#"{{"cniVersion":"1.1.0","name":"{name}"}}"#);
        assert_eq!(outcome(&call(Some("DEL"), &[], &json)).unwrap_err().0, 7, "{name:?}");
    }
}

#[test]
fn verbs_that_there_are_not_are_named() {
    for verb in ["add", "ADD ", "UPDATE", "\u{e9}", "ADD\nDEL"] {
        for without in [&[][..], &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"][..]] {
            let wanted = Err((4, format!("unknown CNI_COMMAND: {verb}")));
            assert_eq!(outcome(&call(Some(verb), without, &config("1.1.0"))), wanted);
        }
    }
}

#[test]
fn version_needs_neither_a_configuration_nor_the_end_of_stdin() {
    let output = call(Some("VERSION"), &["CNI_PATH", "CNI_IFNAME"], "{\"cniVersion\":\"0.4.0\"}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["cniVersion"], "0.4.0");
    assert_eq!(answer["supportedVersions"].as_array().unwrap().len(), 5);
    for stdin in ["", "nonsense"] {
        assert!(call(Some("VERSION"), &[], stdin).status.success());
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_seaway-cni"));
    command.env_clear().env("CNI_COMMAND", "VERSION").stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let open = child.stdin.take();
    assert!(child.wait().unwrap().success());
    drop(open);
}

#[test]
fn without_a_command_it_says_what_it_is() {
    let output = call(None, &[], "");
    assert!(output.status.success() && output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("CNI plugin") && text.contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"), "{text}");
}

//! Checks the house rules that clippy does not check. A module may use only modules that
//! `src/lib.rs` lists before this module. Lines, files and test names have a maximum length.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use support::files;
use support::snippets::page as text;

/// The modules in the order of `lib.rs`.
fn modules() -> Vec<String> {
    let map = text("src/lib.rs");
    let modules = map.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    modules.map(str::to_owned).collect()
}

/// The name of the module to which a source file belongs. For example, `src/pool/ledger.rs` belongs
/// to the module `pool`.
fn module(file: &str) -> &str {
    let inside = file.strip_prefix("src/").unwrap();
    inside.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The names that follow `prefix` anywhere in Rust code, without its comments. After the prefix
/// `super::`, the code `super::{a, b::C}` contains the names `a` and `b`.
fn names_behind(prefix: &str, text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let first_name = |text: &str| text.chars().take_while(|c| is_name(*c)).collect::<String>();
    let code: Vec<_> = text.lines().filter_map(|line| line.split("//").next()).collect();
    let code = code.join("\n");
    let uses = code.split(prefix).skip(1).flat_map(|rest| match rest.strip_prefix('{') {
        None => vec![first_name(rest)],
        Some(list) => {
            let list = list.split('}').next().unwrap_or_default();
            list.split(',').map(|part| first_name(part.trim())).collect()
        }
    });
    uses.collect()
}

#[test]
fn modules_use_only_modules_listed_before_them() {
    let modules = modules();
    let place = |name: &str| modules.iter().position(|module| module == name);
    let (mut uses, mut wrong) = (0, Vec::new());
    for file in files("src", "rs").iter().filter(|file| !TOP.contains(&module(file))) {
        let own = place(module(file)).unwrap_or_else(|| panic!("lib.rs does not list {file}"));
        for other in names_behind("crate::", &text(file)) {
            uses += 1;
            if place(&other).is_none_or(|other| other > own) {
                wrong.push(format!("{file} uses crate::{other}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(uses > 50, "the test found only {uses} uses of modules");
}

/// The two source files in `src` that belong to no module.
const TOP: [&str; 2] = ["lib", "main"];

#[test]
fn only_launch_rs_mentions_the_pool() {
    let mut named = files("src", "rs");
    named.retain(|file| names_behind("crate::", &text(file)).contains("pool"));
    named.retain(|file| !["pool", "configuration"].contains(&module(file)));
    assert_eq!(named, ["src/launch.rs"]);
    for file in files("src/tunnel", "rs") {
        // Hints may contain the words "connection pools", which mean the pools of Redis clients in
        // apps.
        let text = text(&file).to_lowercase().replace("connection pools", "");
        assert!(!text.contains("pool"), "{file} mentions the pool");
    }
}

/// For each file in a module's folder: the other files of this folder that the file uses, as
/// `super::name` or `crate::module::name`. A subfolder counts as one file.
fn uses_inside(folder: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files(&format!("src/{folder}"), "rs") {
        let inside = file.strip_prefix(&format!("src/{folder}/")).unwrap();
        let name = inside.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        let text = text(&file);
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let found = uses.entry(name).or_default();
        found.extend(names_behind("super::", code));
        found.extend(names_behind(&format!("crate::{folder}::"), code));
    }
    for shared in ["mod", "tests"] {
        uses.remove(shared);
    }
    let names: BTreeSet<String> = uses.keys().cloned().collect();
    for (name, found) in &mut uses {
        found.retain(|other| other != name && names.contains(other));
    }
    uses
}

/// The modules that use each other in a circle, and all modules that use these modules.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut left: BTreeSet<String> = uses.keys().cloned().collect();
    // Remove a module that uses none of the modules that are left, again and again. Modules that
    // cannot be removed use each other in a circle, or use such modules.
    while let Some(last) = left.iter().find(|module| uses[*module].is_disjoint(&left)).cloned() {
        left.remove(&last);
    }
    left
}

#[test]
fn modules_of_a_folder_do_not_use_each_other_in_a_circle() {
    let mut seen = 0;
    for module in modules() {
        if std::fs::exists(format!("src/{module}")).unwrap() {
            let uses = uses_inside(&module);
            seen += uses.values().map(BTreeSet::len).sum::<usize>();
            assert_eq!(
                circle(&uses),
                BTreeSet::new(),
                "files of src/{module} use each other in a circle"
            );
        }
    }
    assert!(seen > 50, "the test found only {seen} uses of files");
}

#[test]
fn modules_that_use_each_other_in_a_circle_are_found() {
    let names =
        |list: &[&str]| -> BTreeSet<String> { list.iter().map(|n| n.to_string()).collect() };
    let graph = |edges: &[(&str, &[&str])]| -> BTreeMap<String, BTreeSet<String>> {
        edges.iter().map(|(from, to)| (from.to_string(), names(to))).collect()
    };
    assert!(circle(&graph(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])).is_empty());
    let found = circle(&graph(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &[])]));
    assert_eq!(found, names(&["a", "b", "c"]));
    let code = "use super::{a, b::C}; // super::x\nsuper::d::e(super::f)";
    assert_eq!(names_behind("super::", code), names(&["a", "b", "d", "f"]));
}

#[test]
fn no_line_of_rust_is_longer_than_a_hundred_columns() {
    let folders = ["src", "tests", "examples", "fuzz/src", "fuzz/fuzz_targets"];
    let files = folders.map(|folder| files(folder, "rs")).concat();
    for file in &files {
        for (number, line) in (1..).zip(text(file).lines()) {
            assert!(line.chars().count() <= 100, "{file}:{number} is too long");
        }
    }
    assert!(files.len() > 50, "the test found only {} files", files.len());
}

#[test]
fn files_and_test_names_are_short() {
    let mut tests = 0;
    for file in [files("src", "rs"), files("tests", "rs")].concat() {
        let text = text(&file);
        for test in text.split("#[test]\n").skip(1) {
            tests += 1;
            let name = test.split_once("fn ").and_then(|(_, rest)| rest.split('(').next());
            assert!(
                name.is_none_or(|name| name.len() <= 60),
                "{file}: the name {name:?} is too long"
            );
        }
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let is_code = |line: &&str| !line.is_empty() && !line.trim_start().starts_with("//");
        let lines = code.lines().filter(is_code).count();
        let limit = if file.starts_with("src/") { 400 } else { 600 };
        let is_unit_tests = file.starts_with("src/") && file.ends_with("tests.rs");
        assert!(
            lines <= limit || is_unit_tests,
            "{file} has {lines} lines of code, more than {limit}"
        );
    }
    assert!(tests > 400, "the test found only {tests} tests");
}

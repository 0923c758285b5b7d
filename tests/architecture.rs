//! Checks the order of modules in `src/lib.rs` (a module uses only modules that are listed before
//! it, so there are no circles), and the limits for lines, files and names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of the sources.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The modules in the order of `lib.rs`.
fn modules() -> Vec<String> {
    let map = fs::read_to_string(sources().join("lib.rs")).unwrap();
    let modules = map.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    modules.map(str::to_owned).collect()
}

/// The files of a module: `module.rs`, or the files in `module/`.
fn files(module: &str) -> Vec<PathBuf> {
    let file = sources().join(module).with_extension("rs");
    if file.exists() {
        return vec![file];
    }
    all_below(sources().join(module))
}

/// The Rust files in a folder and its subfolders.
fn all_below(folder: PathBuf) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder], Vec::new());
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder);
        for entry in entries.unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The modules that code names as `crate::module`, each with its line number. Skips comments.
fn used(text: &str) -> Vec<(usize, String)> {
    let mut used = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for (at, path) in code.match_indices("crate::") {
            let rest = &code[at + path.len()..];
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
            used.push((number + 1, rest[..end].to_owned()));
        }
    }
    used
}

#[test]
fn modules_use_only_modules_listed_before_them() {
    let modules = modules();
    let (mut uses, mut wrong) = (0, Vec::new());
    for (place, module) in modules.iter().enumerate() {
        for file in files(module) {
            for (line, other) in used(&fs::read_to_string(&file).unwrap()) {
                uses += 1;
                // `use crate::{a, b}` would hide its modules from this test.
                let known = modules.iter().position(|module| *module == other);
                if known.is_none_or(|known| known > place) {
                    wrong.push(format!("{}:{line}: {module} uses crate::{other}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        modules.len() > 10 && uses > 50,
        "this test sees {} modules, {uses} uses",
        modules.len()
    );
}

/// The paths in `src` of the files whose code names the pool, except in pool and configuration.
fn files_that_name_the_pool() -> Vec<String> {
    let mut named = Vec::new();
    for file in all_below(sources()) {
        let path = file.strip_prefix(sources()).unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&file).unwrap();
        if used(&text).iter().any(|(_, module)| module == "pool") {
            named.push(path);
        }
    }
    named.retain(|path| !path.starts_with("pool/") && !path.starts_with("configuration/"));
    named
}

#[test]
fn only_launch_rs_names_the_pool() {
    assert_eq!(files_that_name_the_pool(), ["launch.rs"]);
    for file in all_below(sources().join("tunnel")) {
        let text = fs::read_to_string(&file).unwrap().to_lowercase();
        // A hint mentions the connection pools of apps.
        let text = text.replace("connection pools", "");
        assert!(!text.contains("pool"), "{} names the pool", file.display());
    }
}

/// For each module of a folder, the modules of the same folder that it uses, as `super::name` or
/// `crate::folder::name`.
fn uses_inside(folder: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let parent = folder.file_name().unwrap().to_str().unwrap();
    let modules: BTreeSet<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() || path.extension().is_some_and(|kind| kind == "rs"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| !["mod", "tests"].contains(&name.as_str()))
        .collect();
    let mut uses = BTreeMap::new();
    for module in &modules {
        let file = folder.join(module).with_extension("rs");
        let files = if file.exists() { vec![file] } else { all_below(folder.join(module)) };
        let mut found = BTreeSet::new();
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            let code: Vec<_> = code.lines().filter_map(|line| line.split("//").next()).collect();
            let code = code.join("\n");
            let prefixes = ["super::".to_owned(), format!("crate::{parent}::")];
            found.extend(names_behind(&code, &prefixes));
        }
        found.retain(|name| modules.contains(name) && name != module);
        uses.insert(module.clone(), found);
    }
    uses
}

/// The names after these prefixes, also in braces: `super::{a, b::C}` contains `a` and `b`.
fn names_behind(code: &str, prefixes: &[String]) -> Vec<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let first_name = |text: &str| text.chars().take_while(|c| is_name(*c)).collect::<String>();
    let mut names = Vec::new();
    for prefix in prefixes {
        for (at, _) in code.match_indices(prefix) {
            let rest = &code[at + prefix.len()..];
            match rest.strip_prefix('{') {
                None => names.push(first_name(rest)),
                Some(list) => {
                    let list = list.split('}').next().unwrap_or_default();
                    names.extend(list.split(',').map(|part| first_name(part.trim())));
                }
            }
        }
    }
    names
}

/// The modules in circles, and those that use a module in a circle.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut left: BTreeSet<String> = uses.keys().cloned().collect();
    // Remove modules that use none of the others, until each one left uses another one.
    while let Some(last) = left.iter().find(|module| uses[*module].is_disjoint(&left)).cloned() {
        left.remove(&last);
    }
    left
}

#[test]
fn modules_of_a_folder_do_not_use_each_other_in_a_circle() {
    let mut seen = 0;
    let folders = fs::read_dir(sources()).unwrap().map(|entry| entry.unwrap().path());
    for folder in folders.filter(|path| path.is_dir()) {
        let uses = uses_inside(&folder);
        seen += uses.values().map(BTreeSet::len).sum::<usize>();
        assert_eq!(circle(&uses), BTreeSet::new(), "in {}", folder.display());
    }
    assert!(seen > 50, "this test sees {seen} uses");
}

#[test]
fn the_check_finds_circular_uses() {
    let graph = |edges: &[(&str, &[&str])]| -> BTreeMap<String, BTreeSet<String>> {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        edges.iter().map(|(from, to)| ((*from).to_owned(), names(to))).collect()
    };
    assert!(circle(&graph(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])).is_empty());
    let found = circle(&graph(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"]), ("d", &[])]));
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "b", "c"]);
    let prefixes = ["super::".to_owned()];
    assert_eq!(names_behind("use super::{a, b::C};\nsuper::d::e()", &prefixes), ["a", "b", "d"]);
}

#[test]
fn every_file_belongs_to_a_listed_module() {
    let modules = modules();
    for entry in fs::read_dir(sources()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_source = path.is_dir() || path.extension().is_some_and(|kind| kind == "rs");
        let is_module = modules.iter().any(|module| module == name);
        assert!(!is_source || is_module || ["lib", "main"].contains(&name), "{name}");
    }
}

#[test]
fn uses_in_code_are_found_and_comments_skipped() {
    let text = "use crate::b::X; // crate::c\nfn f() { crate::d::g(crate::e) }";
    let names: Vec<_> =
        used(text).into_iter().map(|(line, module)| format!("{line}{module}")).collect();
    assert_eq!(names, ["1b", "2d", "2e"]);
}

#[test]
fn no_line_of_rust_is_longer_than_a_hundred_columns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["src", "tests", "examples", "fuzz/src", "fuzz/fuzz_targets"];
    let (mut seen, mut long) = (0, Vec::new());
    for file in folders.into_iter().flat_map(|folder| all_below(root.join(folder))) {
        seen += 1;
        for (number, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            if line.chars().count() > 100 {
                long.push(format!("{}:{}", file.display(), number + 1));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
    assert!(seen > 50, "this test sees {seen} files");
}

#[test]
fn files_and_test_names_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut seen, mut long) = (0, Vec::new());
    for (folder, limit) in [("src", 400), ("tests", 600)] {
        for file in all_below(root.join(folder)) {
            let text = fs::read_to_string(&file).unwrap();
            for test in text.split("#[test]\n").skip(1) {
                seen += 1;
                let name = test.split_once("fn ").and_then(|(_, rest)| rest.split('(').next());
                long.extend(name.filter(|name| name.len() > 60).map(str::to_owned));
            }
            let is_unit_tests = folder == "src" && file.ends_with("tests.rs");
            let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
            let is_code = |line: &&str| !line.is_empty() && !line.trim_start().starts_with("//");
            let lines = code.lines().filter(is_code).count();
            if lines > limit && !is_unit_tests {
                long.push(format!("{}: {lines} lines of code", file.display()));
            }
        }
    }
    assert!(long.is_empty(), "{}", long.join("\n"));
    assert!(seen > 400, "this test sees {seen} tests");
}

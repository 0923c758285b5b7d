//! The order of rooms in `src/lib.rs`: no room uses one that the list has after it, so there are no
//! circles either.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the sources are.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The rooms in the order of `lib.rs`.
fn rooms() -> Vec<String> {
    let map = fs::read_to_string(sources().join("lib.rs")).unwrap();
    let rooms = map.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    rooms.map(str::to_owned).collect()
}

/// The files of a room: `room.rs`, or all below `room/`.
fn files(room: &str) -> Vec<PathBuf> {
    let file = sources().join(room).with_extension("rs");
    if file.exists() {
        return vec![file];
    }
    all_below(sources().join(room))
}

fn all_below(folder: PathBuf) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder], Vec::new());
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder);
        for entry in entries.unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

/// The rooms that a text names as `crate::room`, comments aside, each with its line.
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
fn no_room_uses_one_below_it() {
    let rooms = rooms();
    let (mut uses, mut wrong) = (0, Vec::new());
    for (place, room) in rooms.iter().enumerate() {
        for file in files(room) {
            for (line, other) in used(&fs::read_to_string(&file).unwrap()) {
                uses += 1;
                // `use crate::{a, b}` would hide its rooms from this test.
                let known = rooms.iter().position(|room| *room == other);
                if known.is_none_or(|known| known > place) {
                    wrong.push(format!("{}:{line}: {room} uses crate::{other}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rooms.len() > 10 && uses > 50, "this test sees {} rooms, {uses} uses", rooms.len());
}

#[test]
fn every_file_belongs_to_a_room_of_the_list() {
    let rooms = rooms();
    for entry in fs::read_dir(sources()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_source = path.is_dir() || path.extension().is_some_and(|kind| kind == "rs");
        let is_room = rooms.iter().any(|room| room == name);
        assert!(!is_source || is_room || ["lib", "main"].contains(&name), "{name}");
    }
}

#[test]
fn an_arrow_that_runs_up_is_seen() {
    let text = "use crate::b::X; // crate::c\nfn f() { crate::d::g(crate::e) }";
    let names: Vec<_> =
        used(text).into_iter().map(|(line, room)| format!("{line}{room}")).collect();
    assert_eq!(names, ["1b", "2d", "2e"]);
}

#[test]
fn no_line_of_rust_is_longer_than_a_hundred_columns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = ["src", "tests", "examples", "fuzz/src", "fuzz/fuzz_targets"];
    let (mut seen, mut long) = (0, Vec::new());
    for file in folders.into_iter().flat_map(|folder| all_below(root.join(folder))) {
        if file.extension().is_none_or(|kind| kind != "rs") {
            continue;
        }
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

//! Checks that the manual agrees with the program: settings, log events, metrics, modules, links
//! and versions.
//!
//! `WRITE_DOCS=1 cargo test --test docs` updates the generated tables.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use clap::ArgAction;
use proc_macro2::{TokenStream, TokenTree};
use start_stunnel::configuration::cli;
use start_stunnel::configuration::options::{self, Declaration};
use start_stunnel::figures::{Event, FailureReason};
use support::launcher::Launcher;
use support::snippets::page as text;
use support::status::StatusPage;
use support::{files, links, release_setting};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Splits a page into three parts: the text up to the comment `<!-- NAME … -->`, the text up to
/// `<!-- end of NAME -->`, and the rest.
fn around<'a>(page: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let begin = page
        .find(&format!("<!-- {name}"))
        .unwrap_or_else(|| panic!("the page lacks the comment <!-- {name}"));
    let begin = begin + page[begin..].find("-->\n").expect("the comment must end") + "-->\n".len();
    let length = page[begin..].find(&format!("<!-- end of {name} -->"));
    let end = begin + length.unwrap_or_else(|| panic!("the page lacks <!-- end of {name} -->"));
    (&page[..begin], &page[begin..end], &page[end..])
}

/// The cells of each row of a Markdown table, without the table's head.
fn rows(table: &str) -> Vec<Vec<&str>> {
    let lines = table.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    lines.skip(2).map(cells).collect()
}

/// The cells of a row. A `\|` is a part of a cell, and does not separate cells.
fn cells(row: &str) -> Vec<&str> {
    let (mut cells, mut begin) = (Vec::new(), 0);
    for (bar, _) in row.match_indices('|').filter(|(bar, _)| !row[..*bar].ends_with('\\')) {
        cells.push(row[begin..bar].trim());
        begin = bar + 1;
    }
    cells.push(row[begin..].trim());
    cells
}

/// Escapes plain text for a cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "\\<").replace('*', "\\*")
}

// --- Settings ---------------------------------------------------------------------------------

fn settings_table() -> String {
    let head = "| option | variable | default | meaning |\n| --- | --- | --- | --- |\n";
    let options = options::with_option().map(|(option, setting)| {
        let default =
            setting.default_shown().map_or("unset".to_owned(), |text| format!("`{text}`"));
        let Declaration { variable, help, .. } = setting;
        format!("| `--{option}` | `{variable}` | {default} | {} |\n", cell(help))
    });
    let command = cli::command();
    let flags =
        command.get_arguments().filter(|arg| matches!(arg.get_action(), ArgAction::SetTrue));
    let flags = flags.map(|flag| {
        let help = flag.get_help().expect("every option must have a help text").to_string();
        format!("| `--{}` | | | {} |\n", flag.get_id(), cell(&help))
    });
    let rows: String = options.chain(flags).collect();
    format!("\n{head}{rows}\n")
}

fn one_url_table() -> String {
    let head = "| for all URLs | for the URL in `CACHE_URL` alone |\n| --- | --- |\n";
    let rows: String = options::for_one_url()
        .map(|setting| format!("| `{}` | `{}` |\n", setting.variable, setting.for_one("CACHE_URL")))
        .collect();
    format!("\n{head}{rows}\n")
}

#[test]
fn tables_of_settings_match_the_declarations() {
    let name = "docs/configuration.md";
    let page = text(name);
    let mut written = page.clone();
    for (part, table) in [("settings", settings_table()), ("one URL's", one_url_table())] {
        let (before, _, behind) = around(&written, part);
        written = format!("{before}{table}{behind}");
    }
    if std::env::var_os("WRITE_DOCS").is_some() {
        fs::write(Path::new(ROOT).join(name), &written).unwrap();
        return;
    }
    let stale = written.lines().find(|line| page.lines().all(|found| found != *line));
    assert!(
        written == page,
        "{name} is not what src/configuration/options.rs declares: run WRITE_DOCS=1 cargo test \
         --test docs. The first line that it lacks: {stale:?}"
    );
}

// --- Log events -------------------------------------------------------------------------------

/// The logging macros. Each macro has the name of its level.
const LEVELS: [&str; 5] = ["err", "warning", "notice", "info", "debug"];

/// Finds every call of a logging macro. For each call, returns the level and the tokens of each
/// argument.
fn calls(stream: TokenStream) -> Vec<(String, Vec<Vec<String>>)> {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let mut calls = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let TokenTree::Group(group) = token else { continue };
        calls.extend(self::calls(group.stream()));
        let [.., level, mark] = &tokens[..index] else { continue };
        let level = level.to_string();
        if mark.to_string() == "!" && LEVELS.contains(&level.as_str()) {
            let words: Vec<_> = group.stream().into_iter().map(|word| word.to_string()).collect();
            let arguments = words.split(|word| word == ",").filter(|words| !words.is_empty());
            calls.push((level, arguments.map(<[String]>::to_vec).collect()));
        }
    }
    calls
}

/// Every log event in the sources, as a row of the manual's table: its name (`at=`), its levels and
/// its fields. The second set contains the fields in l2met's format (`count#…`), which the row
/// abbreviates.
fn events() -> (BTreeSet<String>, BTreeSet<String>) {
    let mut events: BTreeMap<String, (Vec<String>, Vec<String>)> = BTreeMap::new();
    let mut l2met = BTreeSet::new();
    let add = |known: &mut Vec<String>, new: String| {
        if !known.contains(&new) {
            known.push(new);
        }
    };
    let sources = files("src", "rs").into_iter();
    for (level, arguments) in sources
        .flat_map(|file| calls(text(&file).parse().expect("the file must contain valid Rust")))
    {
        let [at, fields @ ..] = &arguments[..] else { panic!("{level}! without a field") };
        let words = match &at.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["at", "=", word] => vec![word.trim_matches('"').to_owned()],
            ["at", "=", "event", ".", "word", "()"] => Event::WORDS.map(str::to_owned).to_vec(),
            _ => panic!("{level}! does not begin with at = \"word\", or at = event.word(): {at:?}"),
        };
        for word in words {
            let (levels, names) = events.entry(word).or_default();
            add(levels, level.clone());
            for field in fields {
                // A field is written as `name = value`, `name`, `%name` or `?name`.
                let name = field.iter().find(|word| !["%", "?"].contains(&word.as_str()));
                let name = name.expect("a name").trim_matches('"');
                let Some((kind, _)) = name.split_once('#') else {
                    add(names, format!("`{name}`"));
                    continue;
                };
                add(names, format!("`{kind}#…`"));
                l2met.insert(match name.split_once(".failed.") {
                    Some((count, _)) => format!("{count}.failed.REASON"),
                    None => name.to_owned(),
                });
            }
        }
    }
    let row = |(word, (levels, names)): (String, (Vec<String>, Vec<String>))| {
        format!("| `{word}` | {} | {} |", levels.join(" or "), names.join(", "))
    };
    (events.into_iter().map(row).collect(), l2met)
}

#[test]
fn manual_has_every_log_event_with_level_and_fields() {
    let (logged, l2met) = events();
    let page = text("docs/operation.md");
    let (_, table, _) = around(&page, "events");
    let mut documented = BTreeSet::new();
    for row in rows(table) {
        let [word, level, fields, meaning] = row[..] else {
            panic!("a row must have four cells: {row:?}")
        };
        assert!(!meaning.is_empty(), "{word} has no meaning");
        let is_new = documented.insert(format!("| {word} | {level} | {fields} |"));
        assert!(is_new, "docs/operation.md has {word} twice");
    }
    let missing: Vec<_> = logged.difference(&documented).collect();
    let extra: Vec<_> = documented.difference(&logged).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "docs/operation.md lacks {missing:#?}, and has unknown events: {extra:#?}"
    );
    assert!(logged.len() > 30, "{logged:?}");
    let (_, table, _) = around(&page, "l2met");
    let explained = rows(table).into_iter().map(|row| row[0].trim_matches('`').to_owned());
    let expected = l2met.into_iter().chain(["source".to_owned()]).collect::<BTreeSet<_>>();
    assert_eq!(explained.collect::<BTreeSet<_>>(), expected);
}

#[test]
fn table_rows_have_at_most_200_characters() {
    for page in pages() {
        for row in text(&page).lines().filter(|line| line.trim_start().starts_with('|')) {
            assert!(row.chars().count() <= 200, "{page}: {row}");
        }
    }
}

// --- Metrics ----------------------------------------------------------------------------------

/// The name, the kind and the labels of each metric that a new launcher prints in Prometheus's text
/// format.
fn metrics_of_a_launcher() -> Vec<(String, String, BTreeSet<String>)> {
    let held = Launcher::holding("redis://127.0.0.1:1").env("STUNNEL_STATUS_ADDRESS", "0");
    let held = held.start_held();
    let page = StatusPage::of(held.running.pid(), &[held.port]);
    let text = page.get_as("/metrics", "text/plain").body;
    held.finish();
    let metric = |block: &str| {
        let (name, kind) = block.lines().next()?.split_once(' ')?;
        let samples = block.lines().skip(1).filter(|line| !line.starts_with('#'));
        let labels = samples.filter_map(|line| Some(line.split_once('{')?.1.split_once('}')?.0));
        let names =
            labels.flat_map(|pairs| pairs.split(',')).filter_map(|pair| pair.split_once('='));
        let names = names.map(|(name, _)| name.to_owned()).filter(|name| name != "le");
        Some((name.to_owned(), kind.to_owned(), names.collect()))
    };
    text.split("# TYPE ")
        .skip(1)
        .map(|block| metric(block).expect("a metric must have a name and a kind"))
        .collect()
}

#[test]
fn manual_has_every_metric_with_kind_and_labels() {
    let served = metrics_of_a_launcher();
    let page = text("docs/operation.md");
    let (_, table, _) = around(&page, "metrics");
    assert_eq!(rows(table).len(), served.len(), "docs/operation.md lacks a metric: {served:?}");
    for (row, (name, kind, served)) in rows(table).iter().zip(&served) {
        let [documented, its_kind, labels, _] = row[..] else {
            panic!("a row must have four cells: {row:?}")
        };
        assert_eq!((documented, its_kind), (format!("`{name}`").as_str(), kind.as_str()));
        let labels = labels.split(", ").map(|label| label.trim_matches('`'));
        let labels: BTreeSet<_> = labels.filter(|label| !label.is_empty()).collect();
        // In Prometheus's format, only samples have labels. So a metric without a sample shows no
        // label.
        let is_silent = served.is_empty() && labels == BTreeSet::from(["tunnel"]);
        assert!(
            is_silent || labels.iter().eq(served),
            "{name} has the labels {served:?}, not {labels:?}"
        );
    }
    assert!(served.len() > 25, "{served:?}");
}

#[test]
fn manual_has_every_failure_reason() {
    let page = text("docs/operation.md");
    let (_, table, _) = around(&page, "reasons");
    let documented: Vec<&str> = rows(table).iter().map(|row| row[0].trim_matches('`')).collect();
    let known = FailureReason::WORDS;
    assert_eq!(documented, known);
}

// --- Modules ----------------------------------------------------------------------------------

#[test]
fn design_page_lists_the_modules_in_order() {
    let map = text("src/lib.rs");
    let in_source: Vec<&str> =
        map.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let page = text("docs/design.md");
    let (_, table, _) = around(&page, "modules");
    let in_page: Vec<&str> =
        rows(table).iter().map(|row| row[0].trim_matches(['`', '/'])).collect();
    assert_eq!(in_page, in_source);
}

// --- Links ------------------------------------------------------------------------------------

/// Every page of the manual, and the pages at the top level.
fn pages() -> Vec<String> {
    let top = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    top.map(str::to_owned).into_iter().chain(files("docs", "md")).collect()
}

#[test]
fn no_link_between_pages_is_broken() {
    let (links, broken) = links::check(Path::new(ROOT), &pages());
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(links > 30, "the test found only {links} links");
}

#[test]
fn readme_links_to_every_page() {
    let readme = links::targets(&text("README.md"));
    for page in files("docs", "md") {
        let linked = readme.iter().any(|target| target.split('#').next() == Some(page.as_str()));
        assert!(linked, "README.md has no link to {page}");
    }
}

#[test]
fn pages_name_the_version_and_address_of_this_release() {
    let version = env!("CARGO_PKG_VERSION");
    let repository = release_setting("REPOSITORY");
    assert_eq!(env!("CARGO_PKG_REPOSITORY"), repository, "Cargo.toml and release.conf must agree");
    // Until release.conf has an address, the pages show example.com.
    let address = match repository.as_str() {
        "" => "https://example.com".to_owned(),
        repository => format!("{repository}/releases/download/v{version}"),
    };
    let mut named = 0;
    let fixed = ["README.md", "examples/docker/Dockerfile"].map(str::to_owned).to_vec();
    for page in [fixed, files("docs", "md"), files("examples", "yaml")].concat() {
        let text = text(&page);
        for (before, archive) in
            text.match_indices("start-stunnel-").map(|(at, _)| text.split_at(at))
        {
            let archive = archive["start-stunnel-".len()..].trim_start_matches("buildpack-");
            if !archive.starts_with(|c: char| c.is_ascii_digit()) {
                continue;
            }
            named += 1;
            assert!(archive.starts_with(version), "{page}: another version than {version}");
            let word = before.rsplit(|c: char| c.is_whitespace() || "\"(`".contains(c)).next();
            let word = word.unwrap().trim_end_matches('/');
            assert!(!word.contains("://") || word == address, "{page}: {word}, not {address}");
        }
    }
    assert!(named > 5, "the test found only {named} archives");
    for page in ["README.md", "docs/releases.md"] {
        let says_so = text(page).contains("There is no published release yet");
        assert_eq!(says_so, repository.is_empty(), "{page} must say whether there is a release");
    }
}

/// The Rust files that a page names. `a/{b,c}.rs` counts as `a/b.rs` and `a/c.rs`.
fn files_named(page: &str) -> Vec<String> {
    let words = page.split(|c: char| c.is_whitespace() || "`()".contains(c));
    let names = words.filter(|word| word.ends_with(".rs") && !word.contains(['*', ':']));
    let several = |name: &str| match (name.split_once('{'), name.split_once('}')) {
        (Some((before, _)), Some((_, behind))) => {
            let alternatives = &name[before.len() + 1..name.len() - behind.len() - 1];
            alternatives.split(',').map(|one| format!("{before}{one}{behind}")).collect()
        }
        _ => vec![name.to_owned()],
    };
    names.flat_map(several).collect()
}

#[test]
fn source_files_named_in_pages_exist() {
    let sources = ["src", "tests", "examples", "fuzz"].map(|folder| files(folder, "rs")).concat();
    let mut named = 0;
    // CHANGELOG.md may name files that no longer exist.
    for page in pages().into_iter().filter(|page| page != "CHANGELOG.md") {
        for name in files_named(&text(&page)) {
            named += 1;
            let is_there = sources.iter().any(|source| Path::new(source).ends_with(&name));
            assert!(is_there, "{page}: there is no {name}");
        }
    }
    assert!(named > 10, "the test found only {named} names");
}

#[test]
fn security_md_names_every_file_with_unsafe_code() {
    let page = text("SECURITY.md");
    let (_, section) = page.split_once("## The code").expect("the page must have this section");
    let (unsafe_code, _) =
        section.split_once("\n\nURL rules").expect("the section must have this paragraph");
    let named = files_named(unsafe_code);
    let keyword = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"];
    let sources = files("src", "rs").into_iter();
    let sources: Vec<_> =
        sources.filter(|file| keyword.iter().any(|word| text(file).contains(word))).collect();
    let is_named = |file: &String| named.iter().any(|name| Path::new(file).ends_with(name));
    let missing: Vec<_> = sources.iter().filter(|file| !is_named(file)).collect();
    assert!(missing.is_empty(), "SECURITY.md does not name {missing:?}");
    assert_eq!(sources.len(), named.len(), "SECURITY.md names {named:?}, not {sources:?}");
}

#[test]
fn security_md_names_the_openssl_version_in_the_binary() {
    let lock = text("Cargo.lock");
    let (_, package) = lock
        .split_once("name = \"openssl-src\"\nversion = \"")
        .expect("Cargo.lock must list openssl-src");
    let (version, _) = package.split_once('"').expect("a version");
    let (_, version) =
        version.split_once('+').expect("the version must end with OpenSSL's version");
    let sentence = format!("The packaged OpenSSL version is {version}, ");
    assert!(text("SECURITY.md").contains(&sentence), "SECURITY.md does not say: {sentence}");
}

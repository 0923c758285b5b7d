//! Compares the manual with the program: settings, log events, metrics, modules, links, versions.
//!
//! `WRITE_DOCS=1 cargo test --test docs` updates the generated tables.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use clap::ArgAction;
use proc_macro2::{TokenStream, TokenTree};
use start_stunnel::configuration::cli;
use start_stunnel::configuration::options::{self, Declaration};
use start_stunnel::figures::FailureReason;
use support::launcher::Launcher;
use support::links;
use support::release_setting;
use support::status::StatusPage;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A file of this repository.
fn text(name: &str) -> String {
    let file = Path::new(ROOT).join(name);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// All files below a folder of this repository with this extension, in alphabetical order.
fn files(folder: &str, extension: &str) -> Vec<String> {
    let (mut folders, mut files) = (vec![PathBuf::from(ROOT).join(folder)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    files.sort();
    files
}

/// Splits a page into three parts: the text up to the comment `<!-- NAME … -->`, the text up to
/// `<!-- end of NAME -->`, and the rest.
fn around<'a>(page: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let begin = page.find(&format!("<!-- {name}")).unwrap_or_else(|| panic!("no <!-- {name}"));
    let begin = begin + page[begin..].find("-->\n").expect("the comment's end") + "-->\n".len();
    let length = page[begin..].find(&format!("<!-- end of {name} -->"));
    let end = begin + length.unwrap_or_else(|| panic!("no <!-- end of {name} -->"));
    (&page[..begin], &page[begin..end], &page[end..])
}

/// The cells of each row of a Markdown table, without the head.
fn rows(table: &str) -> Vec<Vec<&str>> {
    let lines = table.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    lines.skip(2).map(cells).collect()
}

/// The cells of a row. `\|` does not separate cells.
fn cells(row: &str) -> Vec<&str> {
    let (mut cells, mut begin) = (Vec::new(), 0);
    for (bar, _) in row.match_indices('|').filter(|(bar, _)| !row[..*bar].ends_with('\\')) {
        cells.push(row[begin..bar].trim());
        begin = bar + 1;
    }
    cells.push(row[begin..].trim());
    cells
}

/// Plain text as a cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "\\<").replace('*', "\\*")
}

// --- Settings ---------------------------------------------------------------------------------

/// The options without a value, such as --check, each with its help.
fn flags() -> Vec<(String, String)> {
    let command = cli::command();
    let flags =
        command.get_arguments().filter(|flag| matches!(flag.get_action(), ArgAction::SetTrue));
    flags
        .map(|flag| {
            let help = flag.get_help().expect("a flag has its help");
            (flag.get_long().expect("a flag has a long name").to_owned(), help.to_string())
        })
        .collect()
}

fn settings_table() -> String {
    let head = "| option | variable | default | meaning |\n| --- | --- | --- | --- |\n";
    let options = options::with_option().map(|(option, setting)| {
        let default =
            setting.default_shown().map_or("unset".to_owned(), |text| format!("`{text}`"));
        let Declaration { variable, help, .. } = setting;
        format!("| `--{option}` | `{variable}` | {default} | {} |\n", cell(help))
    });
    let flags = flags();
    let flags = flags.iter().map(|(flag, help)| format!("| `--{flag}` | | | {} |\n", cell(help)));
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

/// The logging macros, which have the names of the levels.
const LEVELS: [&str; 5] = ["err", "warning", "notice", "info", "debug"];

/// Adds every call of a logging macro to `calls`: its level and its fields.
fn find_calls(stream: TokenStream, calls: &mut Vec<(&'static str, Vec<Vec<TokenTree>>)>) {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    for window in tokens.windows(3) {
        let [TokenTree::Ident(name), TokenTree::Punct(mark), TokenTree::Group(group)] = window
        else {
            continue;
        };
        let level = LEVELS.iter().find(|level| name == *level);
        if let (Some(level), '!') = (level, mark.as_char()) {
            calls.push((level, fields(group.stream())));
        }
    }
    for token in tokens {
        if let TokenTree::Group(group) = token {
            find_calls(group.stream(), calls);
        }
    }
}

/// The arguments of a call.
fn fields(stream: TokenStream) -> Vec<Vec<TokenTree>> {
    let tokens: Vec<TokenTree> = stream.into_iter().collect();
    let is_comma = |token: &TokenTree| is_mark(token, &[',']);
    let fields = tokens.split(is_comma).filter(|field| !field.is_empty());
    fields.map(<[TokenTree]>::to_vec).collect()
}

fn is_mark(token: &TokenTree, marks: &[char]) -> bool {
    matches!(token, TokenTree::Punct(punct) if marks.contains(&punct.as_char()))
}

/// The values of `at = event.event()`: the strings in that function.
fn event_words() -> Vec<String> {
    let source = text("src/tunnel/warnings.rs");
    let (_, function) = source.split_once("fn event(").expect("fn event");
    let (body, _) = function.split_once("\n    }\n").expect("its end");
    body.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The text of a string literal.
fn string(literal: &str) -> Option<String> {
    Some(literal.strip_prefix('"')?.strip_suffix('"')?.to_owned())
}

/// The name of a field that is written as `name = value`, `name`, `%name` or `?name`.
fn field_name(field: &[TokenTree]) -> Option<String> {
    match field {
        [name, equals, ..] if is_mark(equals, &['=']) => {
            Some(string(&name.to_string()).unwrap_or_else(|| name.to_string()))
        }
        [name @ TokenTree::Ident(_)] => Some(name.to_string()),
        [mark, name @ TokenTree::Ident(_)] if is_mark(mark, &['%', '?']) => Some(name.to_string()),
        _ => None,
    }
}

/// Every event in the sources: its name (`at=`), levels and fields. If several calls log an event,
/// it has the levels and fields of all calls.
fn events() -> BTreeMap<String, (String, Vec<String>)> {
    let mut calls = Vec::new();
    for source in files("src", "rs") {
        find_calls(text(&source).parse().expect("the source is Rust"), &mut calls);
    }
    let mut events: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for (level, fields) in calls {
        let [at, fields @ ..] = &fields[..] else { panic!("{level}! without a field") };
        assert_eq!(field_name(at).as_deref(), Some("at"), "{level}!: the first field");
        let words = match &at[2..] {
            [word] => vec![string(&word.to_string()).expect("a string")],
            [.., method, TokenTree::Group(_)] if method.to_string() == "event" => event_words(),
            _ => panic!("{level}! does not begin with at = \"word\", or at = ….event(): {at:?}"),
        };
        for word in words {
            let (levels, names) =
                events.entry(word.clone()).or_insert_with(|| (level.to_owned(), Vec::new()));
            if !levels.split(" or ").any(|known| known == level) {
                *levels = format!("{levels} or {level}");
            }
            for field in fields {
                let name = field_name(field).unwrap_or_else(|| panic!("{word}: {field:?}"));
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
    }
    events
}

#[test]
fn manual_has_every_log_event_with_level_and_fields() {
    let logged: BTreeSet<String> = events()
        .into_iter()
        .map(|(word, (level, fields))| {
            let fields: Vec<_> = fields.iter().map(|field| format!("`{field}`")).collect();
            format!("| `{word}` | {level} | {} |", fields.join(", "))
        })
        .collect();
    let page = text("docs/operation.md");
    let (_, table, _) = around(&page, "events");
    let mut documented = BTreeSet::new();
    for row in rows(table) {
        let [word, level, fields, meaning] = row[..] else { panic!("four cells: {row:?}") };
        assert!(!meaning.is_empty(), "{word} has no meaning");
        let is_new = documented.insert(format!("| {word} | {level} | {fields} |"));
        assert!(is_new, "docs/operation.md has {word} twice");
    }
    let missing: Vec<_> = logged.difference(&documented).collect();
    let extra: Vec<_> = documented.difference(&logged).collect();
    assert!(
        missing.is_empty() && extra.is_empty(),
        "docs/operation.md lacks {missing:#?}, and has what nothing logs: {extra:#?}"
    );
    assert!(logged.len() > 30, "{logged:?}");
}

// --- Metrics ----------------------------------------------------------------------------------

/// The name, kind and labels of each metric in Prometheus's text format, as a new launcher prints
/// them, in that order.
fn metrics_of_a_launcher() -> Vec<(String, String, Vec<String>)> {
    let held = Launcher::holding("redis://127.0.0.1:1").env("STUNNEL_STATUS_ADDRESS", "0");
    let held = held.start_held();
    let page = StatusPage::of(held.running.pid(), &[held.port]);
    let text = page.get_as("/metrics", "text/plain").body;
    held.finish();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let labels = |name: &str| {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let mut labels: Vec<String> = Vec::new();
        for sample in samples.filter(|line| is_sample_of(line, name)) {
            let inside = sample.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
            let pairs = inside.map_or("", |(pairs, _)| pairs).split(',');
            let names = pairs.filter_map(|pair| Some(pair.split_once('=')?.0.to_owned()));
            labels.extend(names.filter(|name| name != "le"));
        }
        labels.sort();
        labels.dedup();
        labels
    };
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned(), labels(name))).collect()
}

fn is_sample_of(line: &str, name: &str) -> bool {
    let rest = line.strip_prefix(name).unwrap_or("x");
    ["{", " ", "_bucket{", "_sum", "_count"].iter().any(|next| rest.starts_with(next))
}

#[test]
fn manual_has_every_metric_with_kind_and_labels() {
    let served = metrics_of_a_launcher();
    let page = text("docs/operation.md");
    let (_, table, _) = around(&page, "metrics");
    let documented: Vec<(String, String, Vec<String>)> = rows(table)
        .iter()
        .map(|row| {
            let [name, kind, labels, _] = row[..] else { panic!("four cells: {row:?}") };
            let name = name.trim_matches('`').to_owned();
            let labels = labels.split(", ").filter(|label| !label.is_empty());
            let mut labels: Vec<_> =
                labels.map(|label| label.trim_matches('`').to_owned()).collect();
            labels.sort();
            // A metric without a sample shows no labels.
            let silent =
                served.iter().any(|(known, _, labels)| *known == name && labels.is_empty());
            if silent && !name.ends_with("_info") {
                labels.retain(|label| label != "tunnel");
            }
            (name, kind.to_owned(), labels)
        })
        .collect();
    assert_eq!(documented, served, "docs/operation.md has other metrics than a launcher");
    assert!(served.len() > 25, "{served:?}");
}

#[test]
fn manual_has_every_failure_reason() {
    let page = text("docs/operation.md");
    let (_, table, _) = around(&page, "reasons");
    let documented: Vec<&str> = rows(table).iter().map(|row| row[0].trim_matches('`')).collect();
    let known: Vec<&str> = FailureReason::ALL.iter().map(|reason| reason.word()).collect();
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
    assert!(links > 30, "{links} links");
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
fn pages_name_this_version_and_the_address_in_release_conf() {
    let version = env!("CARGO_PKG_VERSION");
    let repository = release_setting("REPOSITORY");
    assert_eq!(env!("CARGO_PKG_REPOSITORY"), repository, "Cargo.toml's `repository`");
    // Until there is an address, the pages use example.com.
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
    assert!(named > 5, "{named} archives");
    for page in ["README.md", "docs/releases.md"] {
        let says_so = text(page).contains("There is no published release yet");
        assert_eq!(says_so, repository.is_empty(), "{page}: whether there is a release");
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
    // The change log also names files that no longer exist.
    for page in pages().into_iter().filter(|page| page != "CHANGELOG.md") {
        for name in files_named(&text(&page)) {
            named += 1;
            let is_there = sources.iter().any(|source| Path::new(source).ends_with(&name));
            assert!(is_there, "{page}: there is no {name}");
        }
    }
    assert!(named > 10, "{named} names");
    assert_eq!(
        files_named("(`a/{b,c}.rs`, d.rs)"),
        ["a/b.rs", "a/c.rs", "d.rs"].map(str::to_owned)
    );
}

#[test]
fn security_names_every_file_with_unsafe_code() {
    let page = text("SECURITY.md");
    let (_, section) = page.split_once("## The code").expect("the section");
    let (unsafe_code, _) = section.split_once("\n\nURL rules").expect("the next paragraph");
    let named = files_named(unsafe_code);
    let keyword = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"];
    let sources = files("src", "rs").into_iter();
    let sources: Vec<_> =
        sources.filter(|file| keyword.iter().any(|word| text(file).contains(word))).collect();
    let is_named = |file: &String| named.iter().any(|name| Path::new(file).ends_with(name));
    let missing: Vec<_> = sources.iter().filter(|file| !is_named(file)).collect();
    assert!(missing.is_empty(), "SECURITY.md does not name {missing:?}");
    assert_eq!(sources.len(), named.len(), "{sources:?}, but SECURITY.md names {named:?}");
}

#[test]
fn security_names_the_openssl_version_inside() {
    let lock = text("Cargo.lock");
    let (_, package) = lock.split_once("name = \"openssl-src\"\nversion = \"").expect("a package");
    let (version, _) = package.split_once('"').expect("a version");
    let (_, version) = version.split_once('+').expect("OpenSSL's version");
    let sentence = format!("The version is {version}, ");
    assert!(text("SECURITY.md").contains(&sentence), "SECURITY.md does not say: {sentence}");
}

#[test]
fn broken_links_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let page = "# A page\n\n## `at=` and, or\n\n[a](b.md)\n\n```\n# no heading\n```\n\n\
                [c](#at-and-or) [d](https://example.com)\n\n## A page\n";
    assert_eq!(links::targets(page), ["b.md", "#at-and-or"]);
    assert_eq!(links::anchors(page), ["a-page", "at-and-or", "a-page-1"]);
    for (link, leads) in [
        ("page.md", true),
        ("#at-and-or", true),
        ("page.md#a-page-1", true),
        ("b.md", false),
        ("#no-heading", false),
        ("page.md#b", false),
    ] {
        fs::write(folder.path().join("page.md"), format!("{page}\n[x]({link})\n")).unwrap();
        let (_, broken) = links::check(folder.path(), &["page.md".to_owned()]);
        let is_broken = broken.iter().any(|broken| broken.ends_with(&format!("]({link})")));
        assert_eq!(is_broken, !leads, "{link}: {broken:?}");
    }
}

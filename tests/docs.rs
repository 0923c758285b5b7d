//! The manual says what the program does: settings, log events, rooms and links, compared with
//! their sources.
//!
//! `WRITE_DOCS=1 cargo test --test docs` writes anew what is generated.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ArgAction;
use start_stunnel::configuration::cli;
use start_stunnel::configuration::options::{self, Declaration, Scope};
use start_stunnel::figures::FailureReason;
use support::launcher::Launcher;
use support::links;
use support::status::StatusPage;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A file of this repository.
fn text(name: &str) -> String {
    let file = Path::new(ROOT).join(name);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// All files below a folder of this repository whose names end so, in alphabetical order.
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

/// A page in three: what stands before the comment `<!-- NAME … -->`, it included; the part that it
/// begins; and what follows from `<!-- end of NAME -->` on.
fn around<'a>(page: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let begin = page.find(&format!("<!-- {name}")).unwrap_or_else(|| panic!("no <!-- {name}"));
    let begin = begin + page[begin..].find("-->\n").expect("the comment's end") + "-->\n".len();
    let length = page[begin..].find(&format!("<!-- end of {name} -->"));
    let end = begin + length.unwrap_or_else(|| panic!("no <!-- end of {name} -->"));
    (&page[..begin], &page[begin..end], &page[end..])
}

/// The rows of a Markdown table behind its head, each as its cells.
fn rows(table: &str) -> Vec<Vec<&str>> {
    let lines = table.lines().filter_map(|line| line.strip_prefix('|')?.strip_suffix('|'));
    lines.skip(2).map(cells).collect()
}

/// The cells of a row: `\|` is a character of a cell.
fn cells(row: &str) -> Vec<&str> {
    let (mut cells, mut begin) = (Vec::new(), 0);
    for (bar, _) in row.match_indices('|').filter(|(bar, _)| !row[..*bar].ends_with('\\')) {
        cells.push(row[begin..bar].trim());
        begin = bar + 1;
    }
    cells.push(row[begin..].trim());
    cells
}

/// A table's cell of plain text.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "\\<").replace('*', "\\*")
}

// --- Settings ---------------------------------------------------------------------------------

/// The options that take no value, each with its help: what the launcher is to do instead of
/// launching.
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
        let default_shown = setting.default_shown();
        let Declaration { variable, help, .. } = setting;
        format!("| `--{option}` | `{variable}` | `{default_shown}` | {} |\n", cell(help))
    });
    let flags = flags();
    let flags = flags.iter().map(|(flag, help)| format!("| `--{flag}` | | | {} |\n", cell(help)));
    let rows: String = options.chain(flags).collect();
    format!("\n{head}{rows}\n")
}

fn one_url_table() -> String {
    let head = "| for all URLs | for the URL in `CACHE_URL` alone |\n| --- | --- |\n";
    let settings = options::ALL.iter().filter(|setting| setting.scope == Scope::OneUrlToo);
    let rows: String = settings
        .map(|setting| format!("| `{}` | `{}` |\n", setting.variable, setting.for_one("CACHE_URL")))
        .collect();
    format!("\n{head}{rows}\n")
}

#[test]
fn the_pages_tables_of_settings_are_those_of_the_declarations() {
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

#[test]
fn the_help_names_every_setting_that_the_page_names() {
    let output = Command::new(env!("CARGO_BIN_EXE_start-stunnel")).arg("--help").output().unwrap();
    let in_one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let help = in_one_line(&String::from_utf8(output.stdout).unwrap());
    let (settings, one_url) = (settings_table(), one_url_table());
    let of_settings = rows(&settings).concat();
    let of_one_url = rows(&one_url).into_iter().map(|row| row[1].trim_start_matches("`CACHE_URL"));
    for cell in of_settings.into_iter().chain(of_one_url) {
        let words = cell.replace(['`', '\\'], "");
        assert!(help.contains(&in_one_line(&words)), "--help lacks: {words}");
    }
}

// --- Log events -------------------------------------------------------------------------------

/// The macros that write a line, which are the levels' names as well.
const LEVELS: [&str; 5] = ["err", "warning", "notice", "info", "debug"];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A name or a number.
    Word(String),
    /// What a string literal holds, as it is written.
    Literal(String),
    Mark(char),
}

/// The tokens of Rust source text, as far as this test needs them apart; comments are left out.
fn tokens(source: &str) -> Vec<Token> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let raw = rest.strip_prefix('r').map(|rest| rest.trim_start_matches('#'));
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if raw.is_some_and(|raw| raw.starts_with('"')) {
            let hashes = "#".repeat(rest.len() - 1 - raw.unwrap().len());
            let begin = 1 + hashes.len() + 1;
            let end = begin + rest[begin..].find(&format!("\"{hashes}")).expect("a string's end");
            tokens.push(Token::Literal(rest[begin..end].to_owned()));
            end + 1 + hashes.len()
        } else if first == '"' {
            let end = 1 + closing_quote(&rest[1..]);
            tokens.push(Token::Literal(rest[1..end].to_owned()));
            end + 1
        } else if first == '\'' {
            char_literal(rest).unwrap_or(1)
        } else if is_word(first) {
            let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            end
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Mark(first));
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// Where the quote is that ends a string literal.
fn closing_quote(text: &str) -> usize {
    let mut escaped = false;
    let end = text.find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    end.expect("a string's end")
}

/// The length of a character literal; `None` for a lifetime.
fn char_literal(text: &str) -> Option<usize> {
    let inside = &text[1..];
    if let Some(escape) = inside.strip_prefix('\\') {
        let behind = 1 + escape.chars().next()?.len_utf8();
        return Some(1 + behind + inside[behind..].find('\'')? + 1);
    }
    let length = inside.chars().next()?.len_utf8();
    inside[length..].starts_with('\'').then_some(1 + length + 1)
}

/// What stands in the bracket that the first token opens, cut at the commas of its own.
fn in_bracket(tokens: &[Token]) -> Vec<&[Token]> {
    let (mut depth, mut begin, mut parts) = (0, 1, Vec::new());
    for (index, token) in tokens.iter().enumerate() {
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => depth -= 1,
            Token::Mark(',') if depth == 1 => {
                parts.push(&tokens[begin..index]);
                begin = index + 1;
            }
            _ => {}
        }
        if depth == 0 {
            parts.push(&tokens[begin..index]);
            parts.retain(|part| !part.is_empty());
            return parts;
        }
    }
    panic!("a bracket is not closed: {:?}", &tokens[..tokens.len().min(9)]);
}

/// Every call of a macro that writes a line: its level, and its fields, cut at commas.
fn calls(tokens: &[Token]) -> Vec<(&'static str, Vec<&[Token]>)> {
    let mut calls = Vec::new();
    for (index, window) in tokens.windows(3).enumerate() {
        if let [Token::Word(name), Token::Mark('!'), Token::Mark('(')] = window
            && let Some(level) = LEVELS.iter().find(|level| *level == name)
        {
            calls.push((*level, in_bracket(&tokens[index + 2..])));
        }
    }
    calls
}

/// The words of every `fn event`: what `at = something.event()` may be.
fn words_of_event_functions(tokens: &[Token]) -> Vec<String> {
    let mut words = Vec::new();
    for (index, window) in tokens.windows(2).enumerate() {
        let [Token::Word(keyword), Token::Word(name)] = window else { continue };
        if keyword == "fn" && name == "event" {
            let body = tokens[index..].iter().position(|token| *token == Token::Mark('{'));
            let body = in_bracket(&tokens[index + body.expect("a body")..]).concat();
            words.extend(body.into_iter().filter_map(|token| match token {
                Token::Literal(word) => Some(word),
                _ => None,
            }));
        }
    }
    words
}

/// The name of a field: `name = value`, or a variable of that name, `%` or `?` before it.
fn field_name(field: &[Token]) -> Option<&str> {
    match field {
        [Token::Word(name) | Token::Literal(name), Token::Mark('='), ..] => Some(name),
        [Token::Word(name)] | [Token::Mark('%' | '?'), Token::Word(name)] => Some(name),
        _ => None,
    }
}

/// Every event that the sources can log: the word behind `at=`, with its level, or levels, and its
/// fields. What several places log has the fields of all of them.
fn events_of(sources: &[String]) -> BTreeMap<String, (String, Vec<String>)> {
    let sources: Vec<Vec<Token>> = sources.iter().map(|source| tokens(source)).collect();
    let by_function: Vec<String> =
        sources.iter().flat_map(|source| words_of_event_functions(source)).collect();
    let mut events: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for (level, fields) in sources.iter().flat_map(|source| calls(source)) {
        let [at, fields @ ..] = &fields[..] else { panic!("{level}! without a field") };
        let words = match *at {
            [Token::Word(name), Token::Mark('='), Token::Literal(word)] if name == "at" => {
                vec![word.clone()]
            }
            [Token::Word(name), Token::Mark('='), .., Token::Word(method), _, _]
                if name == "at" && method == "event" =>
            {
                by_function.clone()
            }
            _ => panic!("{level}! does not begin with at = \"word\", or at = ….event(): {at:?}"),
        };
        assert!(!words.is_empty(), "no fn event has a word");
        for word in words {
            let (levels, names) =
                events.entry(word.clone()).or_insert_with(|| (level.to_owned(), Vec::new()));
            if !levels.split(" or ").any(|known| known == level) {
                *levels = format!("{levels} or {level}");
            }
            for field in fields {
                let name = field_name(field).unwrap_or_else(|| panic!("{word}: {field:?}"));
                if !names.iter().any(|known| known == name) {
                    names.push(name.to_owned());
                }
            }
        }
    }
    events
}

#[test]
fn every_log_event_is_in_the_manual_with_its_level_and_its_fields() {
    let sources: Vec<String> = files("src", "rs").iter().map(|name| text(name)).collect();
    let logged: Vec<String> = events_of(&sources)
        .into_iter()
        .map(|(word, (level, fields))| {
            let fields: Vec<_> = fields.iter().map(|field| format!("`{field}`")).collect();
            format!("| `{word}` | {level} | {} |", fields.join(", "))
        })
        .collect();
    let page = text("docs/operation.md");
    let (_, table, _) = around(&page, "events");
    let documented: Vec<String> = rows(table)
        .iter()
        .map(|row| {
            let [word, level, fields, meaning] = row[..] else { panic!("four cells: {row:?}") };
            assert!(!meaning.is_empty(), "{word} has no meaning");
            format!("| {word} | {level} | {fields} |")
        })
        .collect();
    for row in &logged {
        assert!(
            documented.contains(row),
            "docs/operation.md lacks the event, or has it otherwise: {row}"
        );
    }
    for row in &documented {
        assert!(logged.contains(row), "docs/operation.md has an event that nothing logs: {row}");
    }
    assert_eq!(documented.len(), logged.len(), "docs/operation.md has an event twice");
    assert!(logged.len() > 30, "{logged:?}");
}

#[test]
fn an_event_is_found_however_it_is_written() {
    let source = r##"
        // notice!(at = "in-a-comment", x = 1);
        fn event(&self) -> &'static str { match self { A(..) => "gone", _ => "refused" } }
        fn f<'a>(x: &'a str) {
            let text = "warning!(at = \"in-a-string\", x)";
            let raw = r#"err!(at = "in-a-raw-string")"#;
            let c = ('"', '\'', 'x');
            notice!(at = "one", var = f(a, b), %peer, msg = format!("{x}, // {y}"),);
            debug!(at = failure.event(), ?error);
            notice!(
                at = "one",
                hint,
            );
        }
    "##;
    let event = |word: &str, level: &str, fields: &[&str]| {
        let fields = fields.iter().map(|field| (*field).to_owned()).collect();
        (word.to_owned(), (level.to_owned(), fields))
    };
    let expected = BTreeMap::from([
        event("one", "notice", &["var", "peer", "msg", "hint"]),
        event("gone", "debug", &["error"]),
        event("refused", "debug", &["error"]),
    ]);
    assert_eq!(events_of(&[source.to_owned()]), expected);
}

// --- Figures ----------------------------------------------------------------------------------

/// A metric's name and kind, and the labels of its samples, in the order of the page: those of
/// Prometheus's text format, as a launcher has them that nobody has used.
fn metrics_told() -> Vec<(String, String, Vec<String>)> {
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
fn every_metric_is_in_the_manual_with_its_kind_and_its_labels() {
    let told = metrics_told();
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
            // Without a value there is no sample, and so no label, either.
            let silent = told.iter().any(|(known, _, labels)| *known == name && labels.is_empty());
            if silent && !name.ends_with("_info") {
                labels.retain(|label| label != "tunnel");
            }
            (name, kind.to_owned(), labels)
        })
        .collect();
    assert_eq!(documented, told, "docs/operation.md has other metrics than a launcher");
    assert!(told.len() > 25, "{told:?}");
}

#[test]
fn every_reason_of_a_failure_is_in_the_manual() {
    let page = text("docs/operation.md");
    let (_, table, _) = around(&page, "reasons");
    let documented: Vec<&str> = rows(table).iter().map(|row| row[0].trim_matches('`')).collect();
    let known: Vec<&str> = FailureReason::ALL.iter().map(|reason| reason.word()).collect();
    assert_eq!(documented, known);
}

// --- Rooms ------------------------------------------------------------------------------------

#[test]
fn the_page_about_the_design_has_the_rooms_of_the_map_in_its_order() {
    let map = text("src/lib.rs");
    let rooms_of_map: Vec<&str> =
        map.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let page = text("docs/design.md");
    let (_, table, _) = around(&page, "rooms");
    let rooms_of_page: Vec<&str> =
        rows(table).iter().map(|row| row[0].trim_matches(['`', '/'])).collect();
    assert_eq!(rooms_of_page, rooms_of_map);
}

// --- Links ------------------------------------------------------------------------------------

/// Every page of the manual, and those beside it.
fn pages() -> Vec<String> {
    let top = ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    top.map(str::to_owned).into_iter().chain(files("docs", "md")).collect()
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let (links, broken) = links::check(Path::new(ROOT), &pages());
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(links > 30, "{links} links");
}

#[test]
fn every_page_of_the_manual_can_be_reached_from_the_readme() {
    let readme = links::targets(&text("README.md"));
    for page in files("docs", "md") {
        let linked = readme.iter().any(|target| target.split('#').next() == Some(page.as_str()));
        assert!(linked, "README.md has no link to {page}");
    }
}

/// The Rust files that a page names in code, `a/{b,c}.rs` as `a/b.rs` and `a/c.rs`.
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
fn every_source_file_that_a_page_names_is_there() {
    let sources = ["src", "tests", "examples", "fuzz"].map(|folder| files(folder, "rs")).concat();
    let mut named = 0;
    // The change log names files of its time.
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
    let mut named = files_named(unsafe_code);
    named.push("main.rs".to_owned());
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
fn a_link_that_leads_nowhere_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let page = "# A page\n\n## `at=` and, or\n\n[a](b.md), `[no](link.md)`\n\n    [no](link.md)\n\n\
                ```\n# no heading\n[no](link.md)\n```\n\n[c](#at-and-or) [d](https://example.com)\n\
                \n## A page\n";
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

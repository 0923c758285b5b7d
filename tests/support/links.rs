//! Checks the links between Markdown pages.

use std::fs;
use std::path::Path;

/// The targets of a page's links, which look like `[words](target)`. Skips links to other sites.
pub fn targets(page: &str) -> Vec<String> {
    let targets = page.split("](").skip(1).filter_map(|behind| behind.split(')').next());
    targets.filter(|target| !target.contains("://")).map(str::to_owned).collect()
}

/// The anchors that GitHub creates for a page's headings.
pub fn anchors(page: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    let mut fenced = false;
    for line in page.lines() {
        fenced ^= line.starts_with("```");
        let heading = line.trim_start_matches('#');
        if fenced || heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
        let name: String = heading.trim().to_lowercase().chars().filter(kept).collect();
        let name = name.replace(' ', "-");
        let same = anchors.iter().filter(|known| **known == name).count();
        anchors.push(if same == 0 { name } else { format!("{name}-{same}") });
    }
    anchors
}

/// Checks the links of `pages`, which are paths relative to `root`. Returns the number of links,
/// and a list of the broken links.
pub fn check(root: &Path, pages: &[String]) -> (usize, Vec<String>) {
    let (mut links, mut broken) = (0, Vec::new());
    for page in pages {
        for target in targets(&read(&root.join(page))) {
            links += 1;
            if !leads_somewhere(&root.join(page), &target) {
                broken.push(format!("{page}: [...]({target})"));
            }
        }
    }
    (links, broken)
}

/// True if a link on `page` with this target works: the file exists, and contains the anchor if the
/// target has an anchor.
fn leads_somewhere(page: &Path, target: &str) -> bool {
    let (file, anchor) = match target.split_once('#') {
        Some((file, anchor)) => (file, Some(anchor)),
        None => (target, None),
    };
    let path = match file {
        "" => page.to_owned(),
        file => page.parent().unwrap().join(file),
    };
    let has = |anchor: &str| anchors(&read(&path)).iter().any(|known| known == anchor);
    path.exists() && anchor.is_none_or(has)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

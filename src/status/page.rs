//! Writes the status page as HTML. The page contains no script, and its graphs are SVG.

use openssl::base64;
use openssl::sha::sha256;

use super::StatusReport;
use super::words::{self, Block, FAILURES, HELD, TunnelState};
use crate::figures::{POINTS, Point};
use crate::text::printable;

/// Browsers reload the page at this interval, in seconds.
const REFRESH: u32 = 5;
/// The size of a graph, in SVG units.
const WIDTH: usize = POINTS * 10;
const HEIGHT: usize = 40;

const STYLE: &str = include_str!("page.css");

/// Returns the value of the header `Content-Security-Policy`, which makes browsers apply only the
/// page's own style sheet, and load no other resource.
pub fn security_policy() -> String {
    let style = base64::encode_block(&sha256(STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
}

/// Escapes text for HTML, and replaces control characters.
fn escaped(text: &str) -> String {
    printable(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

pub fn render(report: &StatusReport) -> String {
    let title = if report.is_well() { "well" } else { "FAILING" };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <meta http-equiv=\"refresh\" content=\"{REFRESH}\">\
         <title>{title} · start-stunnel</title><style>{STYLE}</style></head><body>\n\
         <h1>start-stunnel</h1>\n"
    );
    if report.tunnels.is_empty() {
        page += &format!("<p>{}</p>\n", escaped(&words::no_tunnel(report)));
    }
    for (block, tunnel) in words::blocks(report).iter().zip(&report.tunnels) {
        page += &section(block, &tunnel.graph);
    }
    let process = escaped(&words::process(report));
    page + &format!(
        "<footer><p>{process}</p><p><a href=\"metrics\">metrics</a> \
         <a href=\"status.json\">JSON</a></p></footer>\n</body></html>\n"
    )
}

/// Returns the CSS class that gives a tunnel's section of the page its colour.
fn class(state: TunnelState) -> &'static str {
    match state {
        TunnelState::Unused => "unused",
        TunnelState::Works => "works",
        TunnelState::Unsteady | TunnelState::Lapsed => "unsteady",
        TunnelState::Fails => "fails",
    }
}

fn section(block: &Block, graph: &[Point]) -> String {
    let (class, word) = (class(block.state), block.state.word());
    let (title, since) = (escaped(&block.title), escaped(&block.since));
    let mut section = format!(
        "<section class=\"{class}\"><h2>{title} <strong>{word}{since}</strong></h2>\n{}<dl>\n",
        advice(block.advice.as_deref())
    );
    for (number, row) in block.rows.iter().enumerate() {
        let (rank, important) = match number + 1 {
            rank @ ..=3 => (format!("{rank} "), " class=\"important\""),
            _ => (String::new(), ""),
        };
        let (label, text) = (row.label, escaped(&row.text));
        let advice = advice(row.advice);
        let bars = match row.label {
            HELD => bars("connections to Redis", "held", graph, |point| point.peak),
            FAILURES => bars("failures", "failed", graph, |point| point.failed),
            _ => String::new(),
        };
        section +=
            &format!("<dt{important}>{rank}{label}</dt><dd{important}>{text}{advice}{bars}</dd>\n");
    }
    section + "</dl></section>\n"
}

fn advice(text: Option<&str>) -> String {
    text.map_or_else(String::new, |text| format!("<p class=\"advice\">{}</p>", escaped(text)))
}

/// Draws a graph with one bar for each time slot of 30 seconds in the last ten minutes. The bar on
/// the right shows the current slot. Returns an empty text if all values are 0.
fn bars(what: &str, class: &str, points: &[Point], value: fn(&Point) -> u64) -> String {
    let most = points.iter().map(value).max().unwrap_or(0);
    if most == 0 {
        return String::new();
    }
    let (width, first) = (WIDTH / POINTS, POINTS.saturating_sub(points.len()));
    let bar = |(index, value)| {
        let height = (value as usize * HEIGHT).div_ceil(most as usize);
        let (x, y) = ((first + index) * width, HEIGHT - height);
        format!("<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{height}\"/>", width - 1)
    };
    let values = points.iter().map(value).enumerate();
    let bars: String = values.filter(|(_, value)| *value > 0).map(bar).collect();
    format!(
        "<svg class=\"{class}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" \
         role=\"img\" aria-label=\"{what} in the last 10 minutes, at most {most}\">{bars}</svg>\
         <small>{what}, last 10 minutes, at most {most}</small>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{HOSTILE, report};

    #[test]
    fn html_in_a_servers_name_is_escaped() {
        let page = render(&report());
        let shown = "&lt;/td&gt;&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39; &amp;amp; ?[31m ?";
        assert_eq!(page.matches(shown).count(), 2, "{page}");
        assert!(!page.contains("<script") && !page.contains(HOSTILE));
        assert!(!page.contains('\u{1b}'));
    }

    #[test]
    fn the_page_names_each_state_in_words() {
        let page = render(&report());
        for (class, word) in
            [("works", "working"), ("fails", "failing since"), ("unused", "not used yet")]
        {
            let section = page.split("<section class=\"").find(|part| part.starts_with(class));
            let section = section.unwrap_or_else(|| panic!("no {class}"));
            assert!(section.contains(&format!("<strong>{word}")), "{section}");
        }
        assert!(page.contains("<title>FAILING · start-stunnel</title>"));
    }

    #[test]
    fn a_graph_has_a_bar_for_each_slot_with_a_value() {
        let points = [0, 1, 8].map(|peak| Point { peak, failed: 0 });
        let page = bars("x", "held", &points, |point| point.peak);
        assert!(page.contains("<rect x=\"180\" y=\"35\" width=\"9\" height=\"5\"/>"), "{page}");
        assert!(page.contains("<rect x=\"190\" y=\"0\" width=\"9\" height=\"40\"/>"), "{page}");
        assert_eq!(page.matches("<rect").count(), 2);
        assert_eq!(bars("x", "failed", &points, |point| point.failed), "");
    }
}

//! Writes the status report as plain text, for `--status` and `/status.txt`.

use super::StatusReport;
use super::words::{self, HELD};
use crate::figures::Point;
use crate::text::{self, printable};

/// The maximum width of a line, in characters. Most terminals are at least this wide.
const COLUMNS: usize = 100;
/// The column at which the text of each row begins.
const INDENT: usize = 13;
/// The characters for the bars of a graph, from the lowest to the highest bar.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

pub fn render(report: &StatusReport) -> String {
    let mut text = String::new();
    let blocks = words::blocks(report);
    if blocks.is_empty() {
        text += &wrapped(0, "", &words::no_tunnel(report));
    }
    for (block, tunnel) in blocks.iter().zip(&report.tunnels) {
        let state = block.state.word().to_uppercase();
        text += &printable(&format!("{}   {state}{}", block.title, block.since));
        text.push('\n');
        if let Some(advice) = &block.advice {
            text += &wrapped(2, "", advice);
        }
        for (number, row) in block.rows.iter().enumerate() {
            let number = if number < 3 { (number + 1).to_string() } else { " ".to_owned() };
            text += &wrapped(INDENT, &format!("  {number} {}", row.label), &row.text);
            if row.label == HELD && tunnel.graph.len() > 1 {
                text += &wrapped(INDENT, "", &format!("{}  last 10 minutes", graph(&tunnel.graph)));
            }
            if let Some(advice) = row.advice {
                text += &wrapped(INDENT + 2, &format!("{:INDENT$}>", ""), advice);
            }
        }
    }
    text + &wrapped(2, "", &words::process(report))
}

fn wrapped(indent: usize, head: &str, content: &str) -> String {
    text::wrapped(COLUMNS, indent, head, &printable(content))
}

/// Draws a graph with one bar for each time slot of 30 seconds in the last ten minutes. The bar
/// shows the slot's highest number of connections to Redis.
fn graph(points: &[Point]) -> String {
    let most = points.iter().map(|point| point.peak).max().unwrap_or(0).max(1);
    let bar = |point: &Point| match point.peak {
        0 => ' ',
        peak => BARS[((peak * BARS.len() as u64).div_ceil(most) - 1) as usize],
    };
    points.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::report;

    #[test]
    fn no_line_is_wider_than_a_terminal() {
        let text = render(&report());
        assert!(text.starts_with("REDIS_URL → redis.example.com:6380   WORKING\n"), "{text}");
        assert!(text.contains("\nCACHE_URL → cache.example.com:6379   FAILING since "), "{text}");
        assert!(text.contains("\nOTHER_URL → other.example.com:6379   NOT USED YET\n"), "{text}");
        assert!(text.contains("\n  1 Held     18 relaying + 0 idle"), "{text}");
        assert!(text.trim_end().ends_with("only"), "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS, "{line}");
        }
    }

    #[test]
    fn a_servers_name_cannot_control_the_terminal() {
        let text = render(&report());
        assert!(text.contains("alert(1)") && text.contains("?[31m"), "{text}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn a_graph_has_a_bar_for_each_slot() {
        let points = [0, 1, 8, 4].map(|peak| Point { peak, failed: 0 });
        assert_eq!(graph(&points), " ▁█▄");
        assert_eq!(graph(&[Point { peak: 0, failed: 0 }]), " ");
    }
}

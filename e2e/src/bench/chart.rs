//! The figures as a picture: each by the number of Routes, so that growth shows.

use std::fmt::Write as _;

use super::figures::{AtSize, Report};
use super::generate::Layout;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 250.0;
const MARGIN: f64 = 50.0;

/// One line of a panel.
struct Line {
    name: String,
    color: &'static str,
    /// (Routes, figure)
    points: Vec<(f64, f64)>,
}

/// Draws an SVG.
pub(super) fn draw(report: &Report) -> String {
    let color = |layout: Layout| if layout == Layout::Layer4 { "#1f77b4" } else { "#d95f02" };
    let lines = |of: &dyn Fn(&AtSize) -> f64| -> Vec<Line> {
        Layout::ALL
            .into_iter()
            .map(|layout| {
                let points = report.of(layout).map(|one| (one.routes as f64, of(one))).collect();
                Line { name: layout.name().into(), color: color(layout), points }
            })
            .filter(|line: &Line| !line.points.is_empty())
            .collect()
    };
    let panels: [(&str, Vec<Line>); 6] = [
        ("a change until it is served, p50 (ms)", lines(&|one| one.propagation.p50)),
        ("a change until it is served, p99 (ms)", lines(&|one| one.propagation.p99)),
        ("CPU of the manager for a change (ms)", lines(&|one| one.manager_cpu_ms)),
        ("CPU of Envoy's main thread for a change (ms)", lines(&|one| one.envoy_main_cpu_ms)),
        ("xDS for each Envoy and change (bytes)", lines(&|one| one.xds_bytes)),
        ("memory of the manager (MiB)", lines(&|one| one.manager_mib)),
    ];
    let (width, height) = (WIDTH * 2.0, HEIGHT * 3.0 + 30.0);
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' font-family='sans-serif' \
         font-size='12'><rect width='100%' height='100%' fill='white'/>"
    );
    for (index, (title, lines)) in panels.iter().enumerate() {
        let (x, y) = ((index % 2) as f64 * WIDTH, (index / 2) as f64 * HEIGHT);
        let _ = write!(svg, "<g transform='translate({x},{y})'>{}</g>", panel(title, lines));
    }
    let _ = write!(
        svg,
        "<text x='10' y='{}' fill='#555'>{} · commit {}</text></svg>",
        height - 10.0,
        report.machine,
        report.commit
    );
    svg
}

fn panel(title: &str, lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    let top = all().map(|point| point.1).fold(0.0_f64, f64::max).max(1e-9) * 1.15;
    let (first, last) = all().fold((f64::MAX, 1.0_f64), |(a, b), p| (a.min(p.0), b.max(p.0)));
    // Decades: 100, 1,000 and 10,000 are equally far apart.
    let span = (last.log10() - first.log10()).max(1e-9);
    let x = |routes: f64| MARGIN + (routes.log10() - first.log10()) / span * (WIDTH - 2.0 * MARGIN);
    let y = |figure: f64| HEIGHT - MARGIN - figure / top * (HEIGHT - 2.0 * MARGIN);
    let mut svg = format!(
        "<text x='{MARGIN}' y='20' font-weight='bold'>{title}</text>\
         <path d='M{MARGIN},{0} H{1} M{MARGIN},{0} V{MARGIN}' stroke='#999' fill='none'/>",
        HEIGHT - MARGIN,
        WIDTH - MARGIN
    );
    for (index, line) in lines.iter().enumerate() {
        let path: Vec<_> =
            line.points.iter().map(|(r, f)| format!("{:.1},{:.1}", x(*r), y(*f))).collect();
        let color = line.color;
        let _ = write!(
            svg,
            "<polyline points='{}' stroke='{color}' fill='none' stroke-width='2'/>\
             <text x='{}' y='{}' fill='{color}'>{}</text>",
            path.join(" "),
            WIDTH - MARGIN - 70.0,
            36 + index * 14,
            line.name
        );
        for (routes, figure) in &line.points {
            let (px, py) = (x(*routes), y(*figure));
            let _ = write!(
                svg,
                "<circle cx='{px:.1}' cy='{py:.1}' r='3' fill='{color}'/>\
                 <text x='{px:.1}' y='{:.1}' text-anchor='middle' fill='{color}'>{}</text>\
                 <text x='{px:.1}' y='{:.1}' text-anchor='middle' fill='#555'>{routes}</text>",
                py - 7.0 - 12.0 * index as f64,
                shown(*figure),
                HEIGHT - MARGIN + 16.0
            );
        }
    }
    svg
}

fn shown(figure: f64) -> String {
    if figure >= 100.0 { format!("{figure:.0}") } else { format!("{figure:.2}") }
}

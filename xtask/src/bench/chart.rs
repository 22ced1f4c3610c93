//! The ratios as a picture: a group of bars for each workload, a bar for each tool.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

use super::Outcome;
use super::tool::TOOLS;

/// Of a bar, and at least of the group of a workload, whose name stands below it.
const BAR_WIDTH: u32 = 7;
const GROUP_WIDTH: u32 = 84;
const HEIGHT: u32 = 520;
/// Below this a bar would be nothing, above it would hide the others.
const RATIOS: std::ops::Range<f64> = 0.5..40.0;
/// One a tool, told apart by most eyes: Okabe and Ito's, and some more.
const COLOURS: [RGBColor; TOOLS.len()] = [
    RGBColor(0, 158, 115),
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(240, 228, 66),
    RGBColor(120, 120, 120),
    RGBColor(0, 0, 0),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
];

/// Writes the file.
///
/// # Errors
/// The file cannot be written, or nothing was measured that could be shown.
pub fn draw(file: &Path, outcomes: &[Outcome]) -> Result<()> {
    let mut workloads: Vec<&str> = Vec::new();
    let is_shown = |outcome: &&Outcome| outcome.work_ratio().is_some();
    for outcome in outcomes.iter().filter(is_shown) {
        if !workloads.contains(&outcome.workload.as_str()) {
            workloads.push(&outcome.workload);
        }
    }
    let seen = |name: &str| outcomes.iter().filter(is_shown).any(|outcome| outcome.tool == name);
    let tools: Vec<&str> = TOOLS.iter().map(|tool| tool.name).filter(|name| seen(name)).collect();
    let groups =
        u32::try_from(workloads.len()).ok().filter(|groups| *groups > 0).context("there is nothing to draw")?;
    // A bar's width is left between two groups, and room for the names of the tools.
    let group = GROUP_WIDTH.max((u32::try_from(tools.len())? + 1) * BAR_WIDTH);
    let area = SVGBackend::new(file, ((groups + 2) * group, HEIGHT)).into_drawing_area();
    // The library's errors are not all fit to be carried across threads.
    let failed = |what: &dyn std::fmt::Display| anyhow!("{}: {what}", file.display());
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Work under each tool, as a multiple of bare (less is better; logarithmic)", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..f64::from(groups + 2), RATIOS.log_scale())
        .map_err(|error| failed(&error))?;
    let label = |at: &f64| {
        // A place on the axis is a whole number or lies between two: labels stand in the middle.
        let group = workloads.iter().enumerate().find(|(index, _)| (middle(*index) - at).abs() < 0.01);
        group.map_or_else(String::new, |(_, name)| (*name).to_owned())
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * workloads.len() + 5)
        .x_label_formatter(&label)
        .x_label_style(("sans-serif", 12))
        .y_label_formatter(&|ratio| format!("{ratio}x"))
        .draw()
        .map_err(|error| failed(&error))?;
    let width = 0.8 / f64::from(u32::try_from(tools.len()).unwrap_or(1).max(1));
    for (place, (tool, colour)) in tools.iter().zip(COLOURS).enumerate() {
        let bars = outcomes.iter().filter(|outcome| outcome.tool == *tool).filter_map(|outcome| {
            let group = workloads.iter().position(|name| *name == outcome.workload)?;
            let left = middle(group) - 0.4 + width * f64::from(u32::try_from(place).ok()?);
            let height = outcome.work_ratio()?.clamp(RATIOS.start, RATIOS.end);
            Some(Rectangle::new([(left, 1.0), (left + width, height)], colour.filled()))
        });
        chart
            .draw_series(bars)
            .map_err(|error| failed(&error))?
            .label(*tool)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK)
        .draw()
        .map_err(|error| failed(&error))?;
    area.present().map_err(|error| failed(&error))
}

fn middle(group: usize) -> f64 {
    f64::from(u32::try_from(group).unwrap_or(u32::MAX)) + 0.5
}

//! The picture of a run: successes per second and the worst latency of every tenth of a second, over time.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use super::report::Report;

const SIZE: (u32, u32) = (960, 640);

/// Draws the report as an SVG file.
pub fn write_svg(report: &Report, path: &Path) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    draw(report, &root)?;
    root.present()?;
    Ok(())
}

fn draw(
    report: &Report,
    root: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
) -> Result<(), Box<dyn Error>> {
    root.fill(&WHITE)?;
    let (upper, lower) = root.split_vertically(SIZE.1 * 6 / 10);
    let step = report.slice_ms as f64 / 1000.0;
    let end = (report.slices.len().max(1) as f64) * step;
    let at = |i: usize| i as f64 * step;

    let rate: Vec<(f64, f64)> =
        report.slices.iter().enumerate().map(|(i, slice)| (at(i), slice.ok as f64 / step)).collect();
    let highest = rate.iter().map(|(_, y)| *y).fold(1.0, f64::max) * 1.1;
    let title = format!(
        "{}, {} clients, pipeline {}: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, longest gap {:.0} ms",
        report.workload,
        report.clients,
        report.pipeline,
        report.throughput,
        report.latency_us.p50 as f64 / 1000.0,
        report.latency_us.p99 as f64 / 1000.0,
        report.longest_gap_ms
    );
    let mut chart = ChartBuilder::on(&upper)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(20)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..end, 0.0..highest)?;
    chart.configure_mesh().y_desc("successes per second").draw()?;
    chart.draw_series(LineSeries::new(rate, &BLUE))?;

    let worst: Vec<(f64, f64)> =
        report.slices.iter().enumerate().map(|(i, slice)| (at(i), slice.max_us as f64 / 1000.0)).collect();
    let highest = worst.iter().map(|(_, y)| *y).fold(1.0, f64::max) * 1.1;
    let mut chart = ChartBuilder::on(&lower)
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..end, 0.0..highest)?;
    chart.configure_mesh().x_desc("seconds").y_desc("worst latency, ms").draw()?;
    chart.draw_series(LineSeries::new(worst, &RED))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::report::Slice;
    use super::*;

    #[test]
    fn a_report_becomes_a_picture() {
        let slices = vec![Slice { ok: 10, errors: 0, max_us: 900 }, Slice::default()];
        let report = Report { workload: "set".into(), slice_ms: 100, slices, ..Report::default() };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.svg");
        write_svg(&report, &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("<svg") && text.contains("successes per second") && text.contains("polyline")
        );
        write_svg(&Report::default(), &path).unwrap();
    }
}

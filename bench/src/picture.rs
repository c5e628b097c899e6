//! Drain rate against the size of the table, and against the age of the oldest snapshot.

use crate::book::{Book, Curve};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

const COLOURS: [RGBColor; 2] = [RGBColor(0, 90, 160), RGBColor(200, 90, 0)];
const FONT: &str = "sans-serif";

/// False when there is nothing to draw.
pub fn draw(book: &Book, path: &Path) -> Result<bool, Box<dyn Error>> {
    let curves = |wanted: &[&str]| -> Vec<Curve> {
        let all = book.sections.values().flat_map(|section| &section.curves);
        all.filter(|curve| wanted.contains(&curve.key.as_str())).cloned().collect()
    };
    let sizes = curves(&["size.queued", "size.finished"]);
    let snapshots = curves(&["snapshot.rate.0", "snapshot.rate.1"]);
    if sizes.is_empty() && snapshots.is_empty() {
        return Ok(false);
    }
    let root = SVGBackend::new(path, (1000, 420)).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(500);
    if !sizes.is_empty() {
        let (low, high) = range(&sizes);
        let axis = (low / 1.5..high * 1.5).log_scale();
        panel(&left, "by the size of the table", "rows in the table", axis, &sizes, &|n| short(*n))?;
    }
    if !snapshots.is_empty() {
        let (_, high) = range(&snapshots);
        panel(&right, "by the age of the oldest snapshot", "minutes", 0.0..high * 1.05, &snapshots, &minutes)?;
    }
    root.present()?;
    Ok(true)
}

fn panel<X>(
    area: &Area,
    title: &str,
    unit: &str,
    axis: X,
    curves: &[Curve],
    label: &dyn Fn(&f64) -> String,
) -> Result<(), Box<dyn Error>>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let top = curves.iter().flat_map(|curve| &curve.points).map(|(_, rate)| *rate).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("Jobs drained a second, {title}"), (FONT, 17))
        .margin(14)
        .x_label_area_size(42)
        .y_label_area_size(62)
        .build_cartesian_2d(axis, 0.0..top * 1.25)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .x_desc(unit)
        .y_desc("jobs a second")
        .x_label_formatter(label)
        .y_label_formatter(&|rate| short(*rate))
        .label_style((FONT, 13))
        .draw()?;
    for (curve, colour) in curves.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2)))?
            .label(&curve.label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(curve.points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 13))
        .draw()?;
    Ok(())
}

fn range(curves: &[Curve]) -> (f64, f64) {
    let all = curves.iter().flat_map(|curve| &curve.points).map(|(x, _)| *x);
    all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
}

/// Whole ones, unless the run was a short one for trying.
fn minutes(n: &f64) -> String {
    if n.fract().abs() < 1e-9 { format!("{n}") } else { format!("{n:.2}") }
}

/// 20k, 1.5M
fn short(n: f64) -> String {
    match n {
        n if n >= 1e6 => format!("{}M", n / 1e6),
        n if n >= 1e3 => format!("{}k", n / 1e3),
        n => format!("{n}"),
    }
}

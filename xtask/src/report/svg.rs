//! Drawings: one dot per boot and arm, so that a reader sees the spread that an interval only sums up; and a line per kernel over the
//! number of CPUs.

use super::curve::Curve;
use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// Size of a drawing, in pixels.
const SIZE: (u32, u32) = (640, 260);

/// A colour per arm, told apart by eye and in print (Okabe and Ito's palette).
const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(120, 120, 120), RGBColor(213, 94, 0)];

/// Draws the values of each arm, boot by boot, from zero up.
///
/// # Errors
/// The drawing library's.
pub fn dots(title: &str, unit: &str, arms: &[(String, Vec<f64>)]) -> Result<String> {
    let mut text = String::new();
    draw(&mut text, title, unit, arms).map_err(|error| anyhow!("drawing {title}: {error}"))?;
    Ok(text)
}

fn draw(
    text: &mut String,
    title: &str,
    unit: &str,
    arms: &[(String, Vec<f64>)],
) -> Result<(), Box<dyn std::error::Error>> {
    let most = arms.iter().flat_map(|(_, values)| values).fold(0.0_f64, |most, value| most.max(*value));
    let boots = arms.iter().map(|(_, values)| values.len()).max().unwrap_or(0);
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d(0.5..boots as f64 + 0.5, 0.0..most * 1.15)?;
    // A labelled tick per boot, no more: half a boot means nothing.
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_max_light_lines(0)
        .x_labels(boots + 2)
        .x_label_formatter(&whole)
        .x_desc("boot")
        .y_desc(unit)
        .draw()?;
    for (index, (name, values)) in arms.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        // Arms stand side by side within a boot's place.
        let shift = (index as f64 - (arms.len() as f64 - 1.0) / 2.0) * 0.18;
        let dots = values
            .iter()
            .enumerate()
            .map(|(boot, value)| Circle::new((boot as f64 + 1.0 + shift, *value), 4, colour.filled()));
        chart.draw_series(dots)?.label(name).legend(move |(x, y)| Circle::new((x + 8, y), 4, colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE)
        .draw()?;
    area.present()?;
    Ok(())
}

/// Draws a line for each kernel over the number of CPUs; bars reach from the slowest to the fastest boot.
///
/// # Errors
/// The drawing library's.
pub fn curve(title: &str, unit: &str, curve: &Curve) -> Result<String> {
    let mut text = String::new();
    draw_curve(&mut text, title, unit, curve).map_err(|error| anyhow!("drawing {title}: {error}"))?;
    Ok(text)
}

fn draw_curve(text: &mut String, title: &str, unit: &str, curve: &Curve) -> Result<(), Box<dyn std::error::Error>> {
    let lines = &curve.lines;
    let places = || lines.iter().flat_map(|line| &line.places);
    let most = places().fold(0.0_f64, |most, place| most.max(place.high));
    let cpus = places().map(|place| place.cpus).max().unwrap_or(1);
    let area = SVGBackend::with_string(text, (640, 360)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..f64::from(cpus) * 1.03, 0.0..most * 1.1)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_max_light_lines(0)
        .x_label_formatter(&whole)
        .x_desc("CPUs")
        .y_desc(unit)
        .draw()?;
    for (index, line) in lines.iter().enumerate() {
        // Grey is the control's, and no line here.
        let colour = if index == 0 { COLOURS[0] } else { COLOURS[2] };
        for (part, places) in line.unbroken(&curve.cpus).into_iter().enumerate() {
            let points = places.iter().map(|place| (f64::from(place.cpus), place.mean));
            let series = chart.draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?;
            if part == 0 {
                series
                    .label(&line.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
            }
        }
        let bars = line.places.iter().map(|place| {
            ErrorBar::new_vertical(f64::from(place.cpus), place.low, place.mean, place.high, colour.stroke_width(1), 6)
        });
        chart.draw_series(bars)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE)
        .draw()?;
    area.present()?;
    Ok(())
}

fn whole(value: &f64) -> String {
    if (value - value.round()).abs() < 1e-6 { format!("{value:.0}") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_boot_is_a_dot() {
        let arms = [("mainline".to_owned(), vec![1.0, 2.0]), ("patched".to_owned(), vec![3.0, 4.0])];
        let svg = dots("detach", "containers per second", &arms).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("detach") && svg.contains("patched"), "{svg}");
        // Two arms of two boots, and a dot per arm in the legend.
        assert_eq!(svg.matches("<circle").count(), 6);
    }
}

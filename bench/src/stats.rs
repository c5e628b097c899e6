//! Percentiles of a round, and a figure over the rounds.

/// The value below which `percent` of the samples lie; sorts them.
pub fn percentile(samples: &mut [f64], percent: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let last = samples.len() - 1;
    samples[((last as f64) * percent / 100.0).round() as usize]
}

/// Prints the median of the rounds with the lowest and the highest.
pub fn report(name: &str, unit: &str, mut rounds: Vec<f64>) {
    let median = percentile(&mut rounds, 50.0);
    let (low, high) = (rounds[0], rounds[rounds.len() - 1]);
    let digits = if median.abs() < 100.0 { 3 } else { 0 };
    println!("  {name:42} {median:10.digits$} {unit:7} ({low:.digits$} to {high:.digits$})");
}

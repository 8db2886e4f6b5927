//! Samples: from addresses to folded stacks with names, and from those to flame graphs.

use super::symbols::Symbols;
use anyhow::{Context, Result};
use inferno::flamegraph;
use std::collections::BTreeMap;

/// Folded stacks: "outermost;...;innermost" and the number of samples.
pub type Folded = BTreeMap<String, u64>;

/// Names the addresses of the simulator's folded stacks (simulator/src/profile.rs): "ADDRESS;... COUNT", outermost first.
///
/// # Errors
/// The line that is none.
pub fn named(text: &str, symbols: &Symbols) -> Result<Folded> {
    let mut folded = Folded::new();
    for line in text.lines() {
        let (stack, count) = parse(line).with_context(|| format!("'{line}' is no folded stack"))?;
        let last = stack.len() - 1;
        let name = |(at, address): (usize, &u64)| {
            // A return address is behind the call: it may be the next function's already.
            symbols.name(if at == last { *address } else { address - 1 })
        };
        let names: Vec<&str> = stack.iter().enumerate().map(name).collect();
        *folded.entry(names.join(";")).or_default() += count;
    }
    Ok(folded)
}

fn parse(line: &str) -> Option<(Vec<u64>, u64)> {
    let (stack, count) = line.rsplit_once(' ')?;
    let stack = stack.split(';').map(|address| u64::from_str_radix(address, 16).ok()).collect::<Option<Vec<u64>>>()?;
    Some((stack, count.parse().ok()?))
}

/// As lines of text.
pub fn text(folded: &Folded) -> String {
    folded.iter().map(|(stack, count)| format!("{stack} {count}\n")).collect()
}

/// Stacks of both kernels with both counts, as differential flame graphs take them: "STACK BASELINE CANDIDATE".
pub fn difference(baseline: &Folded, candidate: &Folded) -> String {
    let stacks: std::collections::BTreeSet<&String> = baseline.keys().chain(candidate.keys()).collect();
    let count = |folded: &Folded, stack: &String| folded.get(stack).copied().unwrap_or(0);
    stacks
        .into_iter()
        .map(|stack| format!("{stack} {} {}\n", count(baseline, stack), count(candidate, stack)))
        .collect()
}

/// A flame graph of folded lines; with two counts in each, red grew and blue shrank.
///
/// # Errors
/// There is nothing to draw.
pub fn flame(title: &str, subtitle: &str, lines: &str) -> Result<String> {
    let mut options = flamegraph::Options::default();
    options.title = title.to_owned();
    options.subtitle = Some(subtitle.to_owned());
    options.count_name = "samples".to_owned();
    // The same colours in each drawing of the same stacks.
    options.deterministic = true;
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.lines(), &mut svg).with_context(|| format!("drawing {title}"))?;
    Ok(String::from_utf8(svg)?)
}

/// The share of samples in which each function is innermost, largest first.
pub fn innermost(folded: &Folded) -> Vec<(String, f64)> {
    let total = folded.values().sum::<u64>().max(1) as f64;
    let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
    for (stack, count) in folded {
        *by_name.entry(stack.rsplit(';').next().unwrap_or_default()).or_default() += count;
    }
    let mut shares: Vec<(String, f64)> =
        by_name.into_iter().map(|(name, count)| (name.to_owned(), count as f64 / total)).collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_fold_and_unknown_ones_stay() {
        let symbols = Symbols::default();
        let folded = named("400000;401000 2\n400010;401010 3\n", &symbols).unwrap();
        assert_eq!(text(&folded), "user space;user space 5\n");
        assert!(named("no stack", &symbols).is_err());
    }

    #[test]
    fn a_difference_has_both_counts() {
        let (a, b): (Folded, Folded) =
            ([("x;y".to_owned(), 5)].into(), [("x;y".to_owned(), 2), ("x".to_owned(), 1)].into());
        assert_eq!(difference(&a, &b), "x 0 1\nx;y 5 2\n");
    }

    #[test]
    fn a_flame_graph_is_drawn() {
        let svg = flame("mainline", "64 CPUs (simulated)", "a;b 5\na;c 3\n").unwrap();
        assert!(svg.contains("<svg") && svg.contains("mainline") && svg.contains("(simulated)"));
        assert!(flame("difference", "", "a;b 5 2\na;c 3 9\n").unwrap().contains("<svg"));
    }

    #[test]
    fn the_innermost_functions_are_ranked() {
        let folded: Folded = [("a;b".to_owned(), 3), ("a;c".to_owned(), 1), ("d;b".to_owned(), 4)].into();
        assert_eq!(innermost(&folded), [("b".to_owned(), 0.875), ("c".to_owned(), 0.125)]);
    }
}

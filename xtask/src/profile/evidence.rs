//! What the kernels did under their mount locks, per container, side by side: pure.

use super::symbols::Symbols;
use crate::machine::Region;
use anyhow::{Context, Result, ensure};
use serde::Serialize;
use std::collections::BTreeMap;

/// Functions whose waits are told one by one; the rest are summed.
const WAITS_SHOWN: usize = 8;

/// One kernel's account of one region.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Account {
    /// The kernel.
    pub kernel: String,
    /// Containers started in the region.
    pub containers: u32,
    /// Virtual time of the region, ns.
    pub virtual_ns: u64,
    /// Mean number of CPUs that were awake.
    pub awake_cpus: f64,
    /// What was counted, by name: each in the whole region.
    pub counts: BTreeMap<String, u64>,
    /// Time spent in PAUSE by function, in ticks.
    pub waits: BTreeMap<String, u64>,
}

impl Account {
    /// Of a region.
    ///
    /// # Errors
    /// Evidence was not collected, or does not prove itself: stores to the sequence of `mount_lock` were missed.
    pub fn of(kernel: &str, containers: u32, region: &Region, symbols: &Symbols) -> Result<Account> {
        let counts = region.evidence.clone().context("the simulator has collected no evidence")?;
        let missed = region.sequence_stores_missed.context("the sequence of mount_lock could not be read")?;
        ensure!(missed == 0, "{missed} stores to the sequence of mount_lock were missed: what was counted is not all");
        let mut waits: BTreeMap<String, u64> = BTreeMap::new();
        for (address, wait) in &region.waits {
            let address = u64::from_str_radix(address, 16).context("an address of the summary")?;
            *waits.entry(symbols.name(address).to_owned()).or_default() += wait.ticks;
        }
        let awake: u64 = region.instructions.iter().chain(&region.paused).sum();
        let virtual_ns = region.virtual_ns;
        let awake_cpus = awake as f64 / virtual_ns.max(1) as f64;
        Ok(Account { kernel: kernel.to_owned(), containers, virtual_ns, awake_cpus, counts, waits })
    }

    fn per_container(&self, total: u64) -> f64 {
        total as f64 / f64::from(self.containers.max(1))
    }
}

/// A Markdown table of all accounts: a row for each count and each place of waiting, per container.
pub fn table(accounts: &[Account]) -> String {
    let head: String = accounts.iter().map(|account| format!(" {} |", account.kernel)).collect();
    let mut text = format!("| per container |{head}\n|---|{}\n", "---:|".repeat(accounts.len()));
    let mut row = |name: &str, of: &dyn Fn(&Account) -> f64| {
        let cells: String = accounts.iter().map(|account| format!(" {} |", number(of(account)))).collect();
        text += &format!("| {name} |{cells}\n");
    };
    row("time, us", &|account| account.per_container(account.virtual_ns) / 1e3);
    row("CPUs awake, mean of the region", &|account| account.awake_cpus);
    let names: Vec<String> = accounts.iter().flat_map(|account| account.counts.keys().cloned()).collect();
    let names: std::collections::BTreeSet<String> = names.into_iter().collect();
    for name in &names {
        row(name, &|account| account.per_container(account.counts.get(name).copied().unwrap_or(0)));
    }
    let places = largest_waits(accounts);
    for place in &places {
        let name = format!("spinning in {place}, ticks");
        row(&name, &|account| account.per_container(account.waits.get(place).copied().unwrap_or(0)));
    }
    row("spinning elsewhere, ticks", &|account| {
        let rest = account.waits.iter().filter(|(place, _)| !places.contains(place));
        account.per_container(rest.map(|(_, ticks)| ticks).sum())
    });
    text
}

fn largest_waits(accounts: &[Account]) -> Vec<String> {
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for (place, ticks) in accounts.iter().flat_map(|account| &account.waits) {
        *sums.entry(place).or_default() += ticks;
    }
    let mut places: Vec<(&str, u64)> = sums.into_iter().collect();
    places.sort_by_key(|(_, ticks)| std::cmp::Reverse(*ticks));
    places.into_iter().take(WAITS_SHOWN).map(|(place, _)| place.to_owned()).collect()
}

fn number(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Waits;

    fn region(missed: i64) -> Region {
        Region {
            virtual_ns: 4_000_000,
            instructions: vec![3_000_000, 1_000_000],
            paused: vec![2_000_000, 2_000_000],
            waits: [("1000".to_owned(), Waits { pauses: 9, parks: 1, ticks: 500 })].into(),
            evidence: Some([("expedited_grace_periods".to_owned(), 42)].into()),
            sequence_stores_missed: Some(missed),
            ..Region::default()
        }
    }

    #[test]
    fn counts_are_told_per_container() {
        let account = Account::of("mainline", 2, &region(0), &Symbols::default()).unwrap();
        assert_eq!(account.awake_cpus, 2.0);
        let text = table(&[account]);
        for part in ["| per container | mainline |", "| time, us | 2000 |", "| expedited_grace_periods | 21.0 |"] {
            assert!(text.contains(part), "{part} is missing in:\n{text}");
        }
        assert!(text.contains("| spinning in user space, ticks | 250 |"), "{text}");
    }

    #[test]
    fn evidence_that_missed_something_is_none() {
        assert!(Account::of("x", 1, &region(3), &Symbols::default()).unwrap_err().to_string().contains("3 stores"));
        let without = Region { evidence: None, ..region(0) };
        assert!(Account::of("x", 1, &without, &Symbols::default()).is_err());
    }
}

//! What model and kernel show alike: trees whose mounts are named by where they stand, with groups renamed in order.

use super::{Dir, Id, Model, Mount};
use crate::mountinfo::MountLine;
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A mount before anything is renamed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    /// Which namespace.
    pub world: usize,
    /// Its id, unique over the namespaces.
    pub id: u64,
    /// Its parent; nothing for the root of the world.
    pub parent: Option<u64>,
    /// Its file system.
    pub fs: String,
    /// Its root within the file system, "" for that of the file system.
    pub root: String,
    /// The directory of the parent's file system that it stands on.
    pub on: String,
    /// "shared:N".
    pub group: Option<u64>,
    /// "master:N".
    pub master: Option<u64>,
    /// "unbindable".
    pub unbindable: bool,
}

/// Mount trees up to renaming.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View(Vec<String>);

impl View {
    /// Renames: mounts by the places on the way to them, file systems and groups by first occurrence.
    pub fn of(raws: &[Raw]) -> View {
        let by_id: BTreeMap<u64, &Raw> = raws.iter().map(|raw| (raw.id, raw)).collect();
        let mut chains: Vec<(String, &Raw)> = raws.iter().map(|raw| (chain(&by_id, raw), raw)).collect();
        chains.sort_by(|a, b| a.0.cmp(&b.0));
        let (mut groups, mut disks) = (Names::default(), Names::default());
        let shown = chains.into_iter().map(|(chain, raw)| {
            let disk = disks.of(&raw.fs);
            let mut line = format!("{chain} is fs{disk}:{}/", raw.root);
            for (word, group) in [("shared", raw.group), ("master", raw.master)] {
                if let Some(group) = group {
                    line += &format!(" {word}:{}", groups.of(&group.to_string()));
                }
            }
            line + if raw.unbindable { " unbindable" } else { "" }
        });
        View(shown.collect())
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

/// Numbers in order of first use.
#[derive(Default)]
struct Names(BTreeMap<String, usize>);

impl Names {
    fn of(&mut self, name: &str) -> usize {
        let next = self.0.len() + 1;
        *self.0.entry(name.to_owned()).or_insert(next)
    }
}

fn chain(by_id: &BTreeMap<u64, &Raw>, raw: &Raw) -> String {
    match raw.parent.and_then(|parent| by_id.get(&parent)) {
        None => format!("world{}", raw.world),
        Some(parent) => format!("{} > {}/", chain(by_id, parent), raw.on),
    }
}

impl Raw {
    /// The mounts at and below `world_point` of one namespace's mountinfo.
    ///
    /// # Errors
    /// A mount whose parent is not there, or that does not lie below it.
    pub fn of_mountinfo(world: usize, world_point: &str, lines: &[MountLine]) -> Result<Vec<Raw>> {
        let below = |line: &&MountLine| std::path::Path::new(&line.point).starts_with(world_point);
        let lines: BTreeMap<u32, &MountLine> = lines.iter().filter(below).map(|line| (line.id, line)).collect();
        lines.values().map(|line| Raw::of_line(world, world_point, &lines, line)).collect()
    }

    fn of_line(world: usize, at: &str, lines: &BTreeMap<u32, &MountLine>, line: &MountLine) -> Result<Raw> {
        let parent = lines.get(&line.parent);
        ensure!(parent.is_some() || line.point == at, "mountinfo has no parent of {line:?}");
        let on = match parent {
            None => String::new(),
            Some(parent) => {
                let inside = line.point.strip_prefix(&parent.point);
                plain(&parent.root).to_owned() + inside.with_context(|| format!("{line:?} is not below {parent:?}"))?
            }
        };
        Ok(Raw {
            world,
            id: line.id.into(),
            parent: parent.map(|parent| parent.id.into()),
            fs: line.device.clone(),
            root: plain(&line.root).to_owned(),
            on,
            group: line.shared,
            master: line.master,
            unbindable: line.unbindable,
        })
    }
}

/// The kernel writes "/" for the root of a file system.
fn plain(path: &str) -> &str {
    path.trim_end_matches('/')
}

impl Model {
    /// What the model shows.
    pub fn view(&self) -> View {
        View::of(&self.mounts.keys().map(|id| self.raw(*id)).collect::<Vec<_>>())
    }

    fn raw(&self, id: Id) -> Raw {
        let mount = &self.mounts[&id];
        Raw {
            world: self.worlds.iter().position(|world| self.is_ancestor(*world, id)).unwrap_or(usize::MAX),
            id,
            parent: mount.on.as_ref().map(|on| on.0),
            fs: mount.root.fs.to_string(),
            root: mount.root.path.clone(),
            on: mount.on.as_ref().map(|on| on.1.path.clone()).unwrap_or_default(),
            group: mount.group,
            master: mount.master,
            unbindable: mount.unbindable,
        }
    }

    /// A model that begins where the kernel is: what threads left behind, to be looked into one operation at a time.
    pub fn of_raws(raws: &[Raw]) -> Model {
        let mut model = Model { last: raws.iter().flat_map(numbers).max().unwrap_or(0), ..Model::default() };
        let disks: BTreeSet<&str> = raws.iter().map(|raw| raw.fs.as_str()).collect();
        let disks: BTreeMap<&str, u64> = disks.into_iter().map(|fs| (fs, model.fresh())).collect();
        let fs_of: BTreeMap<u64, u64> = raws.iter().map(|raw| (raw.id, disks[raw.fs.as_str()])).collect();
        for raw in raws {
            let on = raw.parent.map(|parent| (parent, Dir { fs: fs_of[&parent], path: raw.on.clone() }));
            let root = Dir { fs: fs_of[&raw.id], path: raw.root.clone() };
            let (group, master, unbindable) = (raw.group, raw.master, raw.unbindable);
            if on.is_none() {
                model.worlds.push(raw.id);
            }
            model.mounts.insert(raw.id, Mount { root, on, group, master, unbindable, locked: false });
        }
        model
    }
}

fn numbers(raw: &Raw) -> [u64; 3] {
    [raw.id, raw.group.unwrap_or(0), raw.master.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mountinfo;

    const TABLE: &str = "\
30 1 0:9 / /w rw - tmpfs x rw
31 30 0:10 /a /w/b rw shared:7 - tmpfs x rw
32 31 0:9 / /w/b rw master:7 - tmpfs x rw
33 31 0:11 / /w/b/b rw unbindable - tmpfs x rw
";

    fn raws(table: &str) -> Vec<Raw> {
        Raw::of_mountinfo(0, "/w", &mountinfo::parse(table).unwrap()).unwrap()
    }

    #[test]
    fn mounts_are_named_by_the_places_they_stand_on() {
        let shown = View::of(&raws(TABLE)).0;
        assert_eq!(
            shown,
            [
                "world0 is fs1:/",
                "world0 > /b/ is fs2:/a/ shared:1",
                "world0 > /b/ > /a/ is fs1:/ master:1",
                "world0 > /b/ > /a/b/ is fs3:/ unbindable"
            ]
        );
    }

    #[test]
    fn other_numbers_are_the_same_view_and_other_groups_are_not() {
        let renamed = TABLE.replace("31 ", "91 ").replace(":7", ":8").replace("0:10", "0:77");
        assert_eq!(View::of(&raws(&renamed)), View::of(&raws(TABLE)));
        let apart = TABLE.replace("master:7", "master:9");
        assert_ne!(View::of(&raws(&apart)), View::of(&raws(TABLE)));
    }

    #[test]
    fn a_mount_without_its_parent_is_an_error() {
        let cut = TABLE.lines().filter(|line| !line.starts_with("31")).collect::<Vec<_>>().join("\n");
        assert!(Raw::of_mountinfo(0, "/w", &mountinfo::parse(&cut).unwrap()).is_err());
    }

    #[test]
    fn a_model_of_a_table_shows_that_table() {
        assert_eq!(Model::of_raws(&raws(TABLE)).view(), View::of(&raws(TABLE)));
    }
}

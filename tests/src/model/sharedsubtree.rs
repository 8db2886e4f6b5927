//! The tables of Documentation/filesystems/sharedsubtree.rst, as tests of the model.

use super::{Kind, Model, Op, Place};
use nix::errno::Errno;

fn at(path: &str) -> Place {
    Place(path.split('/').flat_map(str::chars).collect())
}

fn make(path: &str, kind: Kind) -> Op {
    Op::Make { at: at(path), kind, recursive: false }
}

fn bind(from: &str, to: &str) -> Op {
    Op::Bind { from: at(from), to: at(to), recursive: false, detached: false }
}

fn bind_recursive(from: &str, to: &str) -> Op {
    Op::Bind { from: at(from), to: at(to), recursive: true, detached: false }
}

fn move_to(from: &str, to: &str) -> Op {
    Op::Move { from: at(from), to: at(to), beneath: false }
}

/// Does all of this, none of which may be refused.
fn done(model: &mut Model, ops: &[Op]) {
    for op in ops {
        assert_eq!(model.apply(0, op), Some(Ok(())), "{op:?}\n{}", model.view());
        assert_eq!(model.flaws(), Vec::<String>::new(), "after {op:?}");
    }
}

fn refused(model: &mut Model, op: &Op) -> Errno {
    model.apply(0, op).expect("within the world").expect_err("refused")
}

/// The type of the mount at a path, as the tables call it.
fn type_of(model: &Model, path: &str) -> &'static str {
    let (id, dir) = model.walk(0, &at(path)).unwrap();
    let mount = &model.mounts[&id];
    assert_eq!(dir, mount.root, "nothing is mounted at {path}\n{}", model.view());
    match (mount.group.is_some(), mount.master.is_some(), mount.unbindable) {
        (true, true, false) => "shared and slave",
        (true, false, false) => "shared",
        (false, true, false) => "slave",
        (false, false, false) => "private",
        (false, false, true) => "unbindable",
        odd => panic!("{odd:?}"),
    }
}

fn peers(model: &Model, one: &str, other: &str) -> bool {
    let group = |path| model.mounts[&model.walk(0, &at(path)).unwrap().0].group;
    group(one).is_some() && group(one) == group(other)
}

/// A mount of this type at `path`. What a slave's master is stands beneath it.
fn mount_of_type(model: &mut Model, path: &str, kind: &str) {
    let below = format!("{path}/a");
    let change = match kind {
        "shared" => Kind::Shared,
        "private" => Kind::Private,
        "unbindable" => Kind::Unbindable,
        "slave" | "shared and slave" => {
            done(
                model,
                &[Op::New(at(&below)), make(&below, Kind::Shared), bind(&below, path), make(path, Kind::Slave)],
            );
            let change = [make(path, Kind::Shared)];
            return done(model, &change[..usize::from(kind != "slave")]);
        }
        other => panic!("{other}"),
    };
    done(model, &[Op::New(at(path)), make(path, change)]);
}

/// Section 5a of sharedsubtree.rst: bind.
#[test]
fn bind_makes_what_the_table_says() {
    for (source, destination, result) in [
        ("shared", "shared", "shared"),
        ("private", "shared", "shared"),
        ("slave", "shared", "shared and slave"),
        ("shared", "private", "shared"),
        ("private", "private", "private"),
        ("slave", "private", "slave"),
        ("shared", "slave", "shared"),
        ("private", "slave", "private"),
        ("slave", "slave", "slave"),
    ] {
        let mut model = Model::new();
        mount_of_type(&mut model, "a", source);
        mount_of_type(&mut model, "b", destination);
        done(&mut model, &[bind("a", "b/b")]);
        assert_eq!(type_of(&model, "b/b"), result, "{source} on {destination}");
        assert_eq!(peers(&model, "a", "b/b"), source == "shared", "{source} on {destination}");
    }
}

#[test]
fn bind_of_an_unbindable_mount_is_invalid() {
    for destination in ["shared", "private", "slave"] {
        let mut model = Model::new();
        mount_of_type(&mut model, "a", "unbindable");
        mount_of_type(&mut model, "b", destination);
        assert_eq!(refused(&mut model, &bind("a", "b/b")), Errno::EINVAL);
    }
}

/// Section 5d: move.
#[test]
fn move_makes_what_the_table_says() {
    for (source, destination, result) in [
        ("shared", "shared", "shared"),
        ("private", "shared", "shared"),
        ("slave", "shared", "shared and slave"),
        ("shared", "private", "shared"),
        ("private", "private", "private"),
        ("slave", "private", "slave"),
        ("unbindable", "private", "unbindable"),
    ] {
        let mut model = Model::new();
        mount_of_type(&mut model, "b", destination);
        done(&mut model, &[Op::New(at("a"))]);
        mount_of_type(&mut model, "a/b", source);
        let before = model.count();
        done(&mut model, &[move_to("a/b", "b/b")]);
        assert_eq!(type_of(&model, "b/b"), result, "{source} to {destination}");
        assert_eq!(model.count(), before);
    }
}

#[test]
fn move_of_an_unbindable_mount_to_a_shared_one_is_invalid() {
    let mut model = Model::new();
    mount_of_type(&mut model, "a", "unbindable");
    mount_of_type(&mut model, "b", "shared");
    assert_eq!(refused(&mut model, &move_to("a", "b/b")), Errno::EINVAL);
}

/// Section 5d: a mount that resides in a shared one cannot be moved, and none into its own child.
#[test]
fn move_from_a_shared_parent_or_into_itself_is_refused() {
    let mut model = Model::new();
    mount_of_type(&mut model, "a", "shared");
    done(&mut model, &[Op::New(at("a/a")), Op::New(at("b")), Op::New(at("b/a"))]);
    assert_eq!(refused(&mut model, &move_to("a/a", "b/b")), Errno::EINVAL);
    assert_eq!(refused(&mut model, &move_to("b", "b/a/a")), Errno::ELOOP);
}

/// Section 5b: a recursive bind leaves out what is unbindable.
#[test]
fn a_recursive_bind_prunes_what_is_unbindable() {
    let mut model = Model::new();
    done(&mut model, &[Op::New(at("a")), Op::New(at("a/a")), Op::New(at("a/b")), make("a/a", Kind::Unbindable)]);
    done(&mut model, &[bind_recursive("a", "b")]);
    assert_eq!(type_of(&model, "b/b"), "private");
    assert_eq!(model.count(), 6);
}

/// Section 5e: a mount on a shared mount reaches its peers and slaves, and only those.
#[test]
fn a_mount_reaches_peers_and_slaves() {
    let mut model = Model::new();
    mount_of_type(&mut model, "a", "shared");
    done(&mut model, &[bind("a", "b"), make("b", Kind::Slave), make("b", Kind::Shared)]);
    let before = model.count();
    done(&mut model, &[Op::New(at("a/a"))]);
    assert_eq!(model.count(), before + 2);
    assert_eq!((type_of(&model, "a/a"), type_of(&model, "b/a")), ("shared", "shared and slave"));
    done(&mut model, &[Op::New(at("b/b"))]);
    assert_eq!(model.count(), before + 3);
}

/// Section 5f: an umount reaches everyone who had the mount, but spares a copy with something mounted inside.
#[test]
fn an_umount_spares_a_copy_in_which_something_is_mounted() {
    let mut model = Model::new();
    mount_of_type(&mut model, "a", "shared");
    done(&mut model, &[bind("a", "b"), Op::New(at("a/a")), make("b/a", Kind::Private), Op::New(at("b/a/b"))]);
    let before = model.count();
    done(&mut model, &[Op::Umount(at("a/a"))]);
    assert_eq!(model.count(), before - 1);
    assert_eq!(type_of(&model, "b/a"), "private");
}

/// propagate_umount.txt: what covers the root of a copy that goes slides down to its place.
#[test]
fn what_covers_a_copy_that_goes_takes_its_place() {
    let mut model = Model::new();
    mount_of_type(&mut model, "a", "shared");
    done(&mut model, &[bind("a", "b"), make("b", Kind::Slave), Op::New(at("a/a")), Op::New(at("b/a"))]);
    let before = model.count();
    done(&mut model, &[Op::Umount(at("a/a"))]);
    assert_eq!(model.count(), before - 2);
    assert_eq!(type_of(&model, "b/a"), "private");
}

/// propagate_umount.txt: a locked copy whose parent stays must stay, or what it hides would show.
#[test]
fn a_locked_mount_is_neither_umounted_nor_left_out_of_a_clone() {
    let mut model = Model::new();
    done(&mut model, &[Op::New(at("a")), Op::New(at("a/a")), Op::LosePrivileges]);
    assert_eq!(refused(&mut model, &Op::Umount(at("a/a"))), Errno::EINVAL);
    assert_eq!(refused(&mut model, &bind("a", "b")), Errno::EINVAL);
    done(&mut model, &[bind_recursive("a", "b")]);
    assert_eq!(refused(&mut model, &Op::Detach(at("b/a"))), Errno::EINVAL);
    done(&mut model, &[Op::Detach(at("b"))]);
}

#[test]
fn a_held_copy_makes_an_umount_busy() {
    let mut model = Model::new();
    mount_of_type(&mut model, "a", "shared");
    done(&mut model, &[bind("a", "b"), Op::New(at("a/a")), Op::Hold(at("b/a"))]);
    assert_eq!(refused(&mut model, &Op::Umount(at("a/a"))), Errno::EBUSY);
    done(&mut model, &[Op::Release, Op::Umount(at("a/a"))]);
}

/// Section 8, "implementation": a slave without a master of its own group goes over to that one's master.
#[test]
fn slaves_of_a_group_that_dies_go_to_its_master() {
    let mut model = Model::new();
    mount_of_type(&mut model, "a", "shared");
    done(&mut model, &[bind("a", "b"), make("b", Kind::Slave), make("b", Kind::Shared)]);
    done(&mut model, &[bind("b", "b/a"), make("b/a", Kind::Slave)]);
    done(&mut model, &[make("b", Kind::Private)]);
    assert_eq!(type_of(&model, "b/a"), "slave");
    done(&mut model, &[Op::New(at("a/b"))]);
    assert_eq!(type_of(&model, "b/a/b"), "slave");
}

/// propagate_mnt() looks at the mounts of a tree that is moved before it makes them shared. Found by the random trials.
#[test]
fn a_slave_that_moves_below_its_master_gets_a_plain_slave_of_itself() {
    let mut model = Model::new();
    done(&mut model, &[Op::New(at("b")), make("b", Kind::Shared), bind("b", "a"), make("a", Kind::Slave)]);
    done(&mut model, &[move_to("a", "b/a")]);
    assert_eq!(type_of(&model, "b/a"), "shared and slave");
    assert_eq!(type_of(&model, "b/a/a"), "slave");
}

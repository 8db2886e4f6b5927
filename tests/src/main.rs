//! `lab-guest`: PID 1 of a lab kernel, or a plain program on a running one.

fn main() {}

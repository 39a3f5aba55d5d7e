//! Faults in system calls, through `strace`: the n-th call of one kind fails, or kills the
//! program. strace does not see what goes through a ring, so these runs use `--io threads`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::process::Command;

use super::run::binary;
use super::{Lab, Outcome, args, run, state, tool};

/// The calls by which a program changes files, or names of files. Not all of them are used; which
/// ones are, and how often, is counted.
const WRITE_LIKE: &str = "write,writev,pwrite64,pwritev,pwritev2,copy_file_range,fsync,fdatasync,\
    sync_file_range,rename,renameat,renameat2,link,linkat,unlink,unlinkat,openat,mkdir,mkdirat,\
    ftruncate,fallocate,flock";

/// What happens at the chosen call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Kill,
    InputOutputError,
    NoSpace,
}

/// One fault: at the `when`-th call (counted from 1 in each thread) of `call`.
#[derive(Debug, Clone)]
pub struct Injection {
    pub call: String,
    pub when: u64,
    pub fault: Fault,
}

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {} number {}", self.fault, self.call, self.when)
    }
}

/// The program under `strace`, with more options for strace itself.
pub fn traced(options: Vec<OsString>, arguments: Vec<OsString>) -> Command {
    let mut all = args!["-f", "-qq"];
    all.extend(options);
    all.extend(args!["--", binary()]);
    all.extend(arguments);
    let mut command = tool("strace", all);
    command.env_remove("QDELTA_REPO").env_remove("RUST_LOG").env("STATE_DIRECTORY", state());
    command
}

/// How often each write-like call is made, at most by one thread, in a run without a fault.
#[track_caller]
pub fn count_calls(lab: &Lab, arguments: Vec<OsString>) -> BTreeMap<String, u64> {
    let log = lab.path("strace.log");
    let trace = format!("trace={WRITE_LIKE}");
    run(traced(args!["-e", trace, "-o", log.as_path()], arguments)).ok();
    let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in std::fs::read_to_string(&log).unwrap().lines() {
        // A line is the thread, then the call; a call that was interrupted continues elsewhere.
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((name, _)) = call.trim_start().split_once('(') else { continue };
        if name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        {
            *counts.entry((name.to_owned(), thread.to_owned())).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((call, _), count) in counts {
        let entry = most.entry(call).or_insert(0);
        *entry = count.max(*entry);
    }
    assert!(most.len() > 3, "strace saw hardly anything: {most:?}");
    most
}

/// Every fault at every counted call. Above `each` calls of one kind, only about `each` of them,
/// the first and the last among them.
pub fn plan(counts: &BTreeMap<String, u64>, faults: &[Fault], each: u64) -> Vec<Injection> {
    let mut list = Vec::new();
    for (call, &count) in counts {
        // Until main, openat belongs to the dynamic loader; it is still a moment like any other.
        let step = count.div_ceil(each).max(1);
        let mut when = 1;
        while when <= count {
            list.extend(faults.iter().map(|&fault| Injection { call: call.clone(), when, fault }));
            when = if when < count { (when + step).min(count) } else { count + 1 };
        }
    }
    list
}

/// Runs the program with one fault.
#[track_caller]
pub fn run_with(injection: &Injection, arguments: Vec<OsString>) -> Outcome {
    let what = match injection.fault {
        Fault::Kill => "signal=KILL",
        Fault::InputOutputError => "error=EIO",
        Fault::NoSpace => "error=ENOSPC",
    };
    let inject = format!("inject={}:{what}:when={}", injection.call, injection.when);
    let trace = format!("trace={}", injection.call);
    run(traced(args!["-e", trace, "-e", inject, "-o", "/dev/null"], arguments))
}

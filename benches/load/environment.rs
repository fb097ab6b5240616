//! What the figures were measured on.

use std::fs;

use super::Bench;

/// Lines for the head of a report.
pub(crate) fn describe(bench: &Bench) -> String {
    let kernel = read("/proc/sys/kernel/osrelease");
    let memory = field(&read("/proc/meminfo"), "MemTotal:");
    let model = fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| "unknown".to_owned());
    let buffers = format!(
        "net.core.rmem_max {}, wmem_max {}",
        read("/proc/sys/net/core/rmem_max"),
        read("/proc/sys/net/core/wmem_max"),
    );
    let build = if cfg!(debug_assertions) {
        "DEBUG BUILD: these figures mean nothing"
    } else {
        "release build"
    };
    format!(
        "waterwheel load, {build}\n\
         kernel {kernel}, {} cores ({model}), memory {memory}\n\
         {buffers}; data on {}\n\
         kB = 1000 B, GB = 1e9 B; CPU = utime + stime; runs {}{}",
        cores(),
        file_system(&bench.dir),
        bench.runs,
        if bench.quick { ", quick" } else { "" },
    )
}

/// How many threads this machine runs at a time.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Kind and device of the file system a directory is on.
fn file_system(dir: &std::path::Path) -> String {
    let mounts = read("/proc/self/mounts");
    let best = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (device, place, kind) = (words.next()?, words.next()?, words.next()?);
            dir.starts_with(place)
                .then_some((place.len(), device, kind))
        })
        .max_by_key(|(length, _, _)| *length);
    best.map_or_else(
        || "an unknown file system".to_owned(),
        |(_, device, kind)| format!("{kind} ({device})"),
    )
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

fn field(text: &str, name: &str) -> String {
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .map_or_else(|| "unknown".to_owned(), |rest| rest.trim().to_owned())
}

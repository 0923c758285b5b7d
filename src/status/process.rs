//! What the system says about this process (proc(5), getrusage(2)).

use std::fs;
use std::time::Duration;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::unistd::{SysconfVar, sysconf};

/// What the system says about this process; `None` where it says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    pub cpu: Option<Duration>,
    /// In bytes.
    pub resident: Option<u64>,
    /// In bytes.
    pub virtual_memory: Option<u64>,
    pub descriptors: Option<u64>,
    /// `None` also if there is no limit.
    pub most_descriptors: Option<u64>,
}

impl Process {
    pub fn now() -> Process {
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
        let cpu = usage.map(|usage| usage.user_time() + usage.system_time());
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
        // The first two fields are total and resident pages.
        let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let mut pages = pages.split_whitespace().map(|field| field.parse::<u64>().ok());
        let mut bytes = || pages.next().flatten().map(|pages| pages * page);
        let (virtual_memory, resident) = (bytes(), bytes());
        // Reading the folder takes one descriptor itself.
        let descriptors = fs::read_dir("/proc/self/fd").map(|folder| folder.count() as u64 - 1);
        let limit = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft);
        Process {
            cpu: cpu.map(|time| {
                let microseconds = time.tv_usec().max(0) as u64;
                Duration::from_secs(time.tv_sec().max(0) as u64)
                    + Duration::from_micros(microseconds)
            }),
            resident,
            virtual_memory,
            descriptors: descriptors.ok(),
            most_descriptors: limit.filter(|limit| *limit != nix::libc::RLIM_INFINITY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_reports_this_process() {
        let file = fs::File::open("/dev/null").unwrap();
        let with = Process::now();
        drop(file);
        assert!(with.cpu.is_some() && with.most_descriptors.is_some_and(|most| most > 3));
        assert!(with.descriptors.is_some_and(|open| open >= 4), "{with:?}");
        assert!(with.resident.unwrap() > 1 << 20 && with.virtual_memory >= with.resident);
    }
}

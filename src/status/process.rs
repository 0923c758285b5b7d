//! Reads which resources this process uses (proc(5), getrusage(2)).

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeValLike as _;
use nix::unistd::{SysconfVar, sysconf};

/// The resources that this process uses. A field is `None` if its value is unknown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    pub cpu: Option<Duration>,
    /// The resident memory of this process, in bytes.
    pub resident: Option<u64>,
    /// The virtual memory of this process, in bytes.
    pub virtual_memory: Option<u64>,
    pub descriptors: Option<u64>,
    /// The limit on this process's open descriptors. `None` if the limit is unknown, or if there is
    /// no limit.
    pub max_descriptors: Option<u64>,
}

/// The open files in /proc from which this process reads how many resources it uses. The process
/// opens the files before the process enters the sandbox, because the sandbox forbids opening these
/// files.
#[derive(Debug)]
pub struct ProcFiles {
    statm: Option<File>,
    descriptors: Option<Mutex<Dir>>,
}

impl ProcFiles {
    pub fn open() -> ProcFiles {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let descriptors = Dir::open("/proc/self/fd", flags, nix::sys::stat::Mode::empty());
        ProcFiles {
            statm: File::open("/proc/self/statm").ok(),
            descriptors: descriptors.ok().map(Mutex::new),
        }
    }

    /// Reads the virtual and the resident memory, in bytes. The first two fields of the file statm
    /// contain these sizes in pages.
    fn memory(&self) -> [Option<u64>; 2] {
        let mut text = [0; 128];
        let length = self.statm.as_ref().and_then(|statm| statm.read_at(&mut text, 0).ok());
        let text = String::from_utf8_lossy(&text[..length.unwrap_or(0)]);
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
        let mut fields = text.split(' ').map(|pages| pages.parse::<u64>().ok());
        [0, 1].map(|_| Some(fields.next()?? * page))
    }

    /// Counts this process's open descriptors, including the two descriptors of `self`.
    fn descriptors(&self) -> Option<u64> {
        let mut folder = self.descriptors.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = folder.iter().flatten();
        let is_number = |name: &[u8]| name.iter().all(u8::is_ascii_digit);
        Some(entries.filter(|entry| is_number(entry.file_name().to_bytes())).count() as u64)
    }
}

impl Process {
    pub fn now(files: &ProcFiles) -> Process {
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
        let cpu = usage.map(|usage| usage.user_time() + usage.system_time());
        let [virtual_memory, resident] = files.memory();
        let limit = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft);
        Process {
            cpu: cpu.map(|time| Duration::from_micros(time.num_microseconds() as u64)),
            resident,
            virtual_memory,
            descriptors: files.descriptors(),
            max_descriptors: limit.filter(|limit| *limit != nix::libc::RLIM_INFINITY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_cpu_time_and_descriptors_are_known() {
        let files = ProcFiles::open();
        let before = Process::now(&files).descriptors;
        let file = File::open("/dev/null").unwrap();
        let with = Process::now(&files);
        drop(file);
        assert!(before < with.descriptors, "{before:?} {with:?}");
        assert!(with.cpu.is_some() && with.max_descriptors.is_some_and(|most| most > 3));
        assert!(with.descriptors.is_some_and(|open| open >= 4), "{with:?}");
        assert!(with.resident.unwrap() > 1 << 20 && with.virtual_memory >= with.resident);
    }
}

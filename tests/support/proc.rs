//! Reads facts about processes from /proc (see proc(5)).

use std::fs;
use std::path::Path;

use super::{eventually, wait_until};

/// The fields of `/proc/PID/stat` from the third field on (see proc(5)). `None` if the process does
/// not exist.
fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets, which may itself contain brackets.
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// The CPU time that a process has used, in ticks of 10 ms.
pub fn cpu_ticks(pid: i32) -> u64 {
    let stat = stat(pid).expect("a process");
    [&stat[11], &stat[12]].into_iter().map(|ticks| ticks.parse::<u64>().expect("ticks")).sum()
}

/// The state of a process: `S` if it sleeps, `T` if it is stopped, `Z` if it is a zombie.
pub fn state(pid: i32) -> char {
    stat(pid).expect("a process")[0].chars().next().expect("a state")
}

/// True if a process with this pid exists and is no zombie.
pub fn is_alive(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| stat[0] != "Z")
}

/// Waits until no process with this pid exists, not even a zombie.
pub fn wait_until_reaped(pid: i32) {
    wait_until("the process is reaped", || stat(pid).is_none());
}

/// The pids of all processes in the session of `leader`.
pub fn session(leader: i32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").expect("/proc");
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let leader = leader.to_string();
    pids.filter(|pid| stat(*pid).is_some_and(|stat| stat[3] == leader)).collect()
}

/// The number of processes whose working directory is `folder` or below it.
pub fn processes_in(folder: &Path) -> usize {
    let folder = folder.canonicalize().expect("a folder");
    let processes = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    // Skip processes whose working directory cannot be read. Such processes belong to another user,
    // or have just ended.
    let folders = processes.filter_map(|process| fs::read_link(process.path().join("cwd")).ok());
    folders.filter(|cwd| cwd.starts_with(&folder)).count()
}

/// The pids of the children of a process's main thread.
pub fn children(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children.split_whitespace().map(|child| child.parse().expect("a pid")).collect()
}

/// Waits until the launcher has exactly one child process, COMMAND. Returns its pid.
pub fn command_of(launcher: i32) -> i32 {
    eventually("COMMAND runs", || match children(launcher)[..] {
        [command] => Some(command),
        _ => None,
    })
}

/// The number of a process's open descriptors.
pub fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").count()
}

/// Resident memory of a process, in KiB.
pub fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a field");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

/// The soft limit on the size of a process's core dump.
pub fn core_limit(pid: i32) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let line = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a line");
    line.split_whitespace().nth(4).expect("a limit").to_owned()
}

/// The TCP and UDP sockets of a process. For each socket, returns the name of the table in
/// /proc/net that lists the socket, and the columns of the socket's row (see proc(5)).
pub fn sockets_of(pid: i32) -> Vec<(&'static str, Vec<String>)> {
    let inodes: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("descriptors")
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| {
            Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_owned())
        })
        .collect();
    let mut sockets = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let all = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in all.lines().skip(1) {
            let columns: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            if inodes.contains(&columns[9]) {
                sockets.push((table, columns));
            }
        }
    }
    sockets
}

/// The number of a process's TCP connections to one of these ports.
pub fn connections_to(pid: i32, ports: &[u16]) -> usize {
    const ESTABLISHED: &str = "01";
    let ports: Vec<String> = ports.iter().map(|port| format!(":{port:04X}")).collect();
    let leads_there = |columns: &[String]| {
        columns[3] == ESTABLISHED && ports.iter().any(|port| columns[2].ends_with(port.as_str()))
    };
    sockets_of(pid).iter().filter(|(_, columns)| leads_there(columns)).count()
}

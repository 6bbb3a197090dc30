//! What processes cost, read from `/proc`, and what Envoy counts.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A process of the stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process(u32);

/// CPU time of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Of all its threads.
    pub all: Duration,
    /// Of the first one; Envoy applies configuration there.
    pub main: Duration,
}

/// What all processors together had, in ticks since the start (`/proc/stat`).
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    all: u64,
    idle: u64,
    stolen: u64,
}

impl Machine {
    /// Until now.
    pub fn now() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/stat")?;
        let ticks = text.lines().next().context("no cpu")?.split_whitespace().skip(1);
        // user, nice, system, idle, iowait, irq, softirq, steal; guests are counted under user.
        let ticks = ticks.take(8).map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        let idle = ticks.iter().skip(3).take(2).sum();
        Ok(Self { all: ticks.iter().sum(), idle, stolen: ticks.get(7).copied().unwrap_or(0) })
    }

    /// Which shares of the time since then were idle, and were given to others by the hypervisor.
    pub fn shares_since(self, then: Self) -> (f64, f64) {
        let all = (self.all - then.all).max(1) as f64;
        // What a processor waited for may be less the next time it is read (proc(5)).
        let share = |now: u64, then: u64| now.saturating_sub(then) as f64 / all;
        (share(self.idle, then.idle), share(self.stolen, then.stolen))
    }
}

impl Process {
    /// The processes with this name, of which the kernel keeps 15 characters.
    pub fn find(name: &str) -> Vec<Self> {
        let short: String = name.chars().take(15).collect();
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let named = |pid: &u32| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            comm.is_ok_and(|comm| comm.trim_end() == short)
        };
        pids.filter(named).map(Self).collect()
    }

    /// The one process with this name.
    pub fn the(name: &str) -> Result<Self> {
        let mut all = Self::find(name);
        match all.len() {
            1 => Ok(all.remove(0)),
            count => bail!("{count} processes are named {name}, not one"),
        }
    }

    /// The one with this number.
    pub fn of(pid: u32) -> Self {
        Self(pid)
    }

    /// Its CPU time so far (`schedstat`, in nanoseconds).
    pub fn cpu(&self) -> Result<Cpu> {
        let mut cpu = Cpu::default();
        for task in std::fs::read_dir(format!("/proc/{}/task", self.0))?.flatten() {
            // A thread may end meanwhile.
            let spent = match spent(&task.path()) {
                Err(_) if !task.path().exists() => continue,
                spent => spent?,
            };
            cpu.all += spent;
            if task.file_name().to_str() == Some(&self.0.to_string()) {
                cpu.main = spent;
            }
        }
        Ok(cpu)
    }

    /// Its memory (proportional set size), in bytes.
    pub fn memory(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.0))?;
        let line = text.lines().find(|line| line.starts_with("Pss:")).context("no Pss")?;
        let kib: u64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
        Ok(kib * 1024)
    }

    fn is_of_the_fleet(&self) -> bool {
        self.file(ADMIN).exists()
    }

    /// A file as the process sees it.
    fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.0))
    }
}

/// CPU time of a thread, by its folder below `/proc` (`schedstat`, in nanoseconds).
pub fn spent(task: &Path) -> Result<Duration> {
    let text = std::fs::read_to_string(task.join("schedstat"))?;
    let nanos = text.split_whitespace().next().context("schedstat")?.parse()?;
    Ok(Duration::from_nanos(nanos))
}

/// What Envoy counts.
pub type Stats = BTreeMap<String, u64>;

/// One Envoy of the fleet.
#[derive(Debug, Clone)]
pub struct Envoy(pub Process);

/// Where Envoys of the fleet are asked what they count.
const ADMIN: &str = "/run/fairlead/admin.sock";

/// What is looked at of Envoy's counters.
const COUNTED: &str = concat!(
    r"^(cluster\.xds\.upstream_cx_rx_bytes_total",
    r"|cluster_manager\.(active_clusters|cluster_added|cluster_modified|cluster_removed)",
    r"|listener_manager\.(listener_added|listener_modified|listener_removed|total_filter_chains_draining))$"
);

impl Envoy {
    /// The fleet.
    pub fn fleet() -> Vec<Self> {
        Process::find("envoy").into_iter().filter(Process::is_of_the_fleet).map(Self).collect()
    }

    /// Envoys that are not of the fleet.
    pub fn others() -> Vec<Process> {
        Process::find("envoy").into_iter().filter(|one| !one.is_of_the_fleet()).collect()
    }

    /// One of its counters.
    pub fn counted(&self, name: &str) -> Result<u64> {
        Ok(self.stats()?.get(name).copied().unwrap_or(0))
    }

    /// Its counters.
    pub fn stats(&self) -> Result<Stats> {
        stats_of(&self.0.file(ADMIN))
    }
}

/// The counters of the Envoy with this socket.
pub fn stats_of(admin: &Path) -> Result<Stats> {
    let mut socket = UnixStream::connect(admin)?;
    let filter = COUNTED.replace('\\', "%5C").replace('|', "%7C").replace('^', "%5E");
    let ask =
        format!("GET /stats?filter={filter} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    socket.write_all(ask.as_bytes())?;
    let mut said = String::new();
    socket.read_to_string(&mut said)?;
    let lines = said.lines().filter_map(|line| line.split_once(": "));
    Ok(lines.filter_map(|(name, n)| Some((name.to_owned(), n.parse().ok()?))).collect())
}

/// What was spent up to one moment.
#[derive(Debug, Clone)]
pub struct Spent {
    at: Instant,
    cpu: [f64; 3],
    bytes: f64,
}

/// What was spent between two moments.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// How long that took.
    pub seconds: f64,
    /// CPU seconds of the manager.
    pub manager: f64,
    /// CPU seconds of the agent.
    pub agent: f64,
    /// CPU seconds of an Envoy's main thread, on average.
    pub envoy: f64,
    /// Bytes of xDS for each Envoy, on average.
    pub bytes: f64,
}

impl Spent {
    /// As it is now, and what is spent from now on.
    pub fn now() -> Result<Self> {
        // To be asked costs Envoys something: that is over before the clocks are read.
        let bytes = received()?;
        Ok(Self { at: Instant::now(), cpu: cpu()?, bytes })
    }

    /// What was spent since.
    pub fn until_now(&self) -> Result<Cost> {
        let (at, [manager, agent, envoy]) = (Instant::now(), cpu()?);
        let [was_manager, was_agent, was_envoy] = self.cpu;
        Ok(Cost {
            seconds: (at - self.at).as_secs_f64(),
            manager: manager - was_manager,
            agent: agent - was_agent,
            envoy: envoy - was_envoy,
            bytes: received()? - self.bytes,
        })
    }
}

/// CPU seconds of the manager, the agent and, on average, an Envoy's main thread.
pub fn cpu() -> Result<[f64; 3]> {
    let fleet = Envoy::fleet();
    let main = fleet.iter().map(|envoy| Ok(envoy.0.cpu()?.main.as_secs_f64()));
    let main = main.sum::<Result<f64>>()? / fleet.len().max(1) as f64;
    let all = |name: &str| Ok::<_, anyhow::Error>(Process::the(name)?.cpu()?.all.as_secs_f64());
    Ok([all("fairlead-manager")?, all("fairlead-agent")?, main])
}

/// Bytes of xDS that an Envoy was sent so far, on average.
pub fn received() -> Result<f64> {
    let fleet = Envoy::fleet();
    let name = "cluster.xds.upstream_cx_rx_bytes_total";
    let each = fleet.iter().map(|envoy| Ok(envoy.counted(name)? as f64));
    Ok(each.sum::<Result<f64>>()? / fleet.len().max(1) as f64)
}

impl Cost {
    /// What each of `count` changes cost, beyond what is spent when nothing changes.
    #[must_use]
    pub fn each(&self, count: usize, idle: &Self) -> Self {
        let per = |spent: f64, at_rest: f64| {
            let rest = at_rest / idle.seconds * self.seconds;
            (spent - rest).max(0.0) / count.max(1) as f64
        };
        Self {
            seconds: self.seconds / count.max(1) as f64,
            manager: per(self.manager, idle.manager),
            agent: per(self.agent, idle.agent),
            envoy: per(self.envoy, idle.envoy),
            bytes: per(self.bytes, idle.bytes),
        }
    }
}

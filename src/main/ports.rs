//! Which block of ports a sandbox gets, so that two sandboxes made at the same time, or one whose nodes are down, never
//! share one.
//!
//! A port that nobody listens on is not free: it may be the port of a node that is down just now, or one that somebody
//! chose a moment ago and opens a moment later. So a block that was chosen is written down, in one small file per block
//! in a folder of this user, under a lock. The file names the configuration of the sandbox's first node; it counts as long
//! as that configuration is there and names the block's ports.

use std::fs::{self, DirBuilder, File};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Fail;

/// Offsets of the peer and HTTP ports from the client port.
pub const PEER_OFFSET: u16 = 100;
pub const HTTP_OFFSET: u16 = 200;
/// Blocks lie below the ports that the kernel gives to outgoing connections (from 32768 unless configured otherwise).
const FIRST: u16 = 17_000;
const STEP: u16 = 300;
const BLOCKS: u16 = 52;

/// A block, held until the configurations that name it are written.
pub struct Block {
    pub base: u16,
    _held: Option<File>,
}

/// The block that was asked for, whose ports must be free, or the first one that nobody has.
/// `first_config`: the configuration of the sandbox's first node, about to be written.
pub fn choose(asked: Option<u16>, nodes: u16, first_config: &Path) -> Result<Block, Fail> {
    if let Some(base) = asked {
        if base > u16::MAX - HTTP_OFFSET - nodes || base < 1024 {
            return Err(Fail::usage(format!("{base} leaves no room for the ports"), "choose 1024 to 65000"));
        }
        return match first_taken(base, nodes) {
            None => Ok(Block { base, _held: None }),
            Some(port) => Err(taken(port)),
        };
    }
    let registry = Registry::open(&registry_folder());
    let mut port = None;
    for base in (0..BLOCKS).map(|block| FIRST + block * STEP) {
        if registry.as_ref().is_some_and(|registry| registry.owned(base)) {
            port = port.or(Some(base + 1));
            continue;
        }
        match first_taken(base, nodes) {
            Some(listening) => port = Some(listening),
            None => {
                let held = registry.map(|registry| registry.claim(base, first_config));
                return Ok(Block { base, _held: held });
            }
        }
    }
    Err(taken(port.unwrap_or(FIRST)))
}

fn taken(port: u16) -> Fail {
    Fail::failed(format!("port {port} is taken"), "choose another block with --base-port")
}

fn first_taken(base: u16, nodes: u16) -> Option<u16> {
    (1..=nodes)
        .flat_map(|node| [0, PEER_OFFSET, HTTP_OFFSET].map(|offset| base + offset + node))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_err())
}

fn registry_folder() -> PathBuf {
    std::env::temp_dir().join(format!("baton-ports-{}", rustix::process::getuid().as_raw()))
}

/// The folder of claims, locked.
struct Registry {
    folder: PathBuf,
    lock: File,
}

impl Registry {
    /// None when there can be no such folder: then only listening ports count as taken.
    fn open(folder: &Path) -> Option<Registry> {
        let _ = DirBuilder::new().mode(0o700).create(folder);
        let about = fs::symlink_metadata(folder).ok()?;
        // In a folder that others may write to, anybody can put a name first.
        if !about.is_dir() || about.uid() != rustix::process::getuid().as_raw() {
            return None;
        }
        let lock = File::create(folder.join("lock")).ok()?;
        lock.lock().ok()?;
        Some(Registry { folder: folder.to_path_buf(), lock })
    }

    fn file(&self, base: u16) -> PathBuf {
        self.folder.join(base.to_string())
    }

    fn owned(&self, base: u16) -> bool {
        let Ok(config) = fs::read_to_string(self.file(base)) else { return false };
        let port = format!("127.0.0.1:{}\"", base + 1);
        fs::read_to_string(config).is_ok_and(|text| text.contains(&port))
    }

    fn claim(self, base: u16, config: &Path) -> File {
        let _ = fs::write(self.file(base), config.as_os_str().as_encoded_bytes());
        self.lock
    }
}

#[cfg(test)]
mod tests {
    use super::super::Exit;
    use super::*;

    #[test]
    fn a_taken_port_is_named() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let config = Path::new("/nowhere/baton.toml");
        assert!(choose(Some(port - 1), 1, config).err().unwrap().message.contains(&port.to_string()));
        assert_eq!(choose(Some(65_500), 1, config).err().unwrap().exit, Exit::Usage);
    }

    #[test]
    fn a_block_belongs_to_the_configuration_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let claims = folder.path().join("claims");
        let config = folder.path().join("baton.toml");
        let registry = || Registry::open(&claims).expect("a folder of one's own");
        drop(registry().claim(17_300, &config));
        assert!(!registry().owned(17_300), "the configuration was never written");
        fs::write(&config, "client_listen = \"127.0.0.1:17301\"\n").unwrap();
        assert!(registry().owned(17_300), "although nobody listens there now");
        assert!(!registry().owned(17_600));
        fs::write(&config, "client_listen = \"127.0.0.1:17601\"\n").unwrap();
        assert!(!registry().owned(17_300), "another sandbox in the same folder");
        fs::remove_file(&config).unwrap();
        assert!(!registry().owned(17_300));
    }
}

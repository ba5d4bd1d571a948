//! Who is primary and who is standby, asked of the servers themselves.

use std::net::SocketAddr;
use std::time::Duration;

use super::client::Client;
use crate::resp::{Value, decode};

/// What the servers said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Roles {
    pub primaries: Vec<SocketAddr>,
    /// Named by themselves or by their primary.
    pub standbys: Vec<SocketAddr>,
}

/// Asks each server; whoever does not answer in time is left out. A primary names its standbys too.
pub fn look(servers: &[SocketAddr], password: Option<&str>, patience: Duration) -> Roles {
    let mut roles = Roles::default();
    for server in servers {
        let answer =
            Client::connect(*server, password, patience).and_then(|mut client| client.raw(&[b"ROLE"]));
        if let Ok(bytes) = answer {
            roles.hear(*server, &bytes);
        }
    }
    roles
}

impl Roles {
    fn hear(&mut self, server: SocketAddr, bytes: &[u8]) {
        let Ok(Value::Array(parts)) = decode(bytes) else { return };
        match parts.first().and_then(Value::text) {
            Some(b"slave") => add(&mut self.standbys, server),
            Some(b"master") => {
                add(&mut self.primaries, server);
                if let Some(Value::Array(standbys)) = parts.get(2) {
                    standbys.iter().filter_map(address).for_each(|addr| add(&mut self.standbys, addr));
                }
            }
            _ => {}
        }
    }
}

fn add(list: &mut Vec<SocketAddr>, addr: SocketAddr) {
    if !list.contains(&addr) {
        list.push(addr);
    }
}

/// A standby as ROLE names it: host, port, offset.
fn address(value: &Value<'_>) -> Option<SocketAddr> {
    let Value::Array(parts) = value else { return None };
    let part = |i: usize| std::str::from_utf8(parts.get(i)?.text()?).ok();
    Some(SocketAddr::new(part(0)?.parse().ok()?, part(1)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_primary_names_its_standbys_and_nobody_is_named_twice() {
        let mut roles = Roles::default();
        let master = b"*3\r\n$6\r\nmaster\r\n:4096\r\n*2\r\n\
            *3\r\n$9\r\n127.0.0.1\r\n$4\r\n7002\r\n$4\r\n4096\r\n\
            *3\r\n$3\r\n::1\r\n$4\r\n7003\r\n$1\r\n0\r\n";
        let slave = b"*5\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n:7001\r\n$9\r\nconnected\r\n:4096\r\n";
        roles.hear(addr("127.0.0.1:7001"), master);
        roles.hear(addr("127.0.0.1:7002"), slave);
        assert_eq!(roles.primaries, [addr("127.0.0.1:7001")]);
        assert_eq!(roles.standbys, [addr("127.0.0.1:7002"), addr("[::1]:7003")]);
    }

    #[test]
    fn strange_answers_name_nobody() {
        let mut roles = Roles::default();
        for answer in [
            &b"-NOAUTH Authentication required.\r\n"[..],
            b"*0\r\n",
            b"*1\r\n$8\r\nsentinel\r\n",
            b"*3\r\n$6",
        ] {
            roles.hear(addr("127.0.0.1:7001"), answer);
        }
        assert_eq!(roles, Roles::default());
    }
}

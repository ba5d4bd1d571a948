//! Valid inputs of the targets that play scripts, and of small files.

use baton::base::{Lsn, NodeId};
use baton::cluster::control_store::Revision;
use baton::node::{Mark, dir_store};
use baton::role::{Generation, StoredPolicy};

use super::files::FOLDER;
use super::targets::TERM;

/// One line for each command that a client may send, with the harness's words in between.
const LINES: [&str; 9] = [
    "SET a 1\r\nGET a\r\nINCR a\r\nDECRBY a 7\r\nINCRBY a 9\r\nDECR a\r\n@s\r\nAPPEND a xyz\r\nSTRLEN a\r\n@c\r\nGETDEL a\r\nEXISTS a\r\n@r\r\nGET a\r\n",
    "SET k v EX 10\r\nTTL k\r\nPTTL k\r\nPERSIST k\r\nEXPIRE k 1 NX\r\n@t\r\n@t\r\nGET k\r\nPEXPIRE k 10 GT\r\nPEXPIREAT k 1800000000000\r\nEXPIREAT k 1800000000\r\n@c\r\n@d\r\n@e\r\nDBSIZE\r\n",
    "SET k v PX 100 NX GET\r\nSET k w KEEPTTL XX\r\nSET k x EXAT 1800000000\r\nSET k y PXAT 1800000000000\r\nSET k z IFEQ y\r\nSETNX k 1\r\nSETEX k 10 q\r\nMSET a 1 b 2 c 3\r\nMGET a b c d\r\n@c\r\nDEL a b\r\nUNLINK c d\r\nTYPE k\r\n",
    "WATCH a\r\nMULTI\r\nSET a 1\r\nINCR b\r\nGET a\r\nEXEC\r\n@1\r\nSET a 2\r\n@0\r\nMULTI\r\nDISCARD\r\nUNWATCH\r\nWATCH a b\r\n@1\r\nDEL a\r\n@0\r\nMULTI\r\nPING\r\nEXEC\r\n",
    "HELLO 3 AUTH default pw SETNAME me\r\nAUTH pw\r\nAUTH default pw\r\nCLIENT ID\r\nCLIENT INFO\r\nCLIENT LIST\r\nCLIENT SETNAME x\r\nCLIENT GETNAME\r\nCLIENT SETINFO LIB-NAME y\r\nCLIENT NO-EVICT on\r\nCLIENT NO-TOUCH on\r\nCLIENT REPLY SKIP\r\nPING\r\nCLIENT REPLY OFF\r\nPING\r\nCLIENT REPLY ON\r\nCLIENT KILL ID 1\r\nRESET\r\nQUIT\r\n",
    "COMMAND COUNT\r\nCOMMAND DOCS get\r\nCOMMAND INFO get set\r\nCOMMAND LIST FILTERBY PATTERN g*\r\nCONFIG GET *\r\nCONFIG SET timeout 1\r\nCONFIG RESETSTAT\r\nINFO all\r\nROLE\r\nTIME\r\nDBSIZE\r\nECHO hi\r\nSELECT 0\r\nREADONLY\r\nREADWRITE\r\n",
    "MSET a 1 b 2 c 3 d 4 e 5\r\nSCAN 0 MATCH [a-c]* COUNT 2 TYPE string\r\nKEYS *\r\nRANDOMKEY\r\n@c\r\nSCAN 0 COUNT 1\r\nFLUSHDB ASYNC\r\nFLUSHALL\r\n@s\r\nSET z 1\r\n@r\r\nSCAN 0\r\nDBSIZE\r\n",
    "SET a 1\r\nWAIT 1 10\r\nWAITAOF 1 1 10\r\nBATON.LSN\r\nBATON.WAITLSN 0/1000 10\r\nBATON.COMMIT off\r\nFAILOVER ABORT\r\nREPLICAOF NO ONE\r\n@h\r\nSET a 2\r\n@h\r\nSET a 3\r\n",
    "*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$5\r\nhello\r\n*2\r\n$3\r\nGET\r\n$1\r\nx\r\n*0\r\n",
];

pub fn commands() -> Vec<Vec<u8>> {
    let open = LINES.iter().map(|text| [&[7, 0, 5], text.as_bytes()].concat());
    let guarded =
        [[0u8, 1, 1], [71, 1, 9], [3, 0, 2], [4, 0, 9], [1, 0, 9], [71, 0, 9]].into_iter().zip(LINES);
    open.chain(guarded.map(|(head, text)| [&head, text.as_bytes()].concat())).collect()
}

pub fn recoveries() -> Vec<Vec<u8>> {
    let plain: Vec<u8> = (0..12).flat_map(|i| [i % 5, i, i, i, i]).collect();
    let mut all = vec![[vec![0; 8], plain.clone()].concat()];
    // Some of everything, with each of the marks.
    for head in 0..8u8 {
        let marks = [head & 1, 2, head >> 1 & 1, 4, head >> 2 & 1, 6, 1, 0];
        let steps = [
            vec![1, 3, 9, 9, 9],
            vec![6, 1],
            vec![7, 2, 0, 0, 0],
            vec![5, 0, 1, 1, 1],
            vec![8, 3],
            vec![10, 1, 0, 0, 0, 1, 1],
        ];
        let mut script = [marks.to_vec(), plain.clone()].concat();
        steps.iter().cycle().skip(usize::from(head)).take(7).for_each(|step| script.extend_from_slice(step));
        script.extend_from_slice(&plain);
        all.push(script);
    }
    all
}

pub fn marks() -> Vec<Vec<u8>> {
    let mark =
        |number: u64| Mark { number, incarnation: FOLDER, end: Lsn(4096 * number), term: TERM }.encode();
    vec![mark(1), [mark(2), mark(3)].concat(), [vec![0; 4096], mark(3)].concat()]
}

pub fn histories() -> Vec<Vec<u8>> {
    let row = r#"{"at_ms":1700000000000,"node":1,"what":"role","from":"Standby","to":"Primary","term":3,"lsn":8192,"by":"op a","gap_ms":12,"evidence":"quorum=2"}"#;
    let status = r#"{"cluster_state":"Normal","cluster_id":"c","term":1,"policy":null,"nodes":[]}"#;
    [row.to_string(), format!("{row}\n{row}\n"), format!("{row}\nnoise\n"), status.into(), "{}".into()]
        .map(String::into_bytes)
        .to_vec()
}

pub fn stored(policy: Generation) -> Vec<Vec<u8>> {
    let value = StoredPolicy {
        mark: 5,
        term: TERM,
        leader: NodeId(1),
        policy: policy.clone(),
        pending: vec![policy],
    };
    vec![
        value.encode(),
        dir_store::encode(Revision(3), 9, &value.encode()),
        dir_store::encode(Revision(1), 1, b""),
    ]
}

//! The control thread: bytes of the admin socket and of the HTTP port, away from the node's loop.
//!
//! It is a parked tokio-uring runtime. It decides nothing: a request goes into the loop's bounded mailbox, and the
//! loop's answer goes back. When the loop does not take or answer a question within a second (its disk hangs), the
//! thread answers by itself, with the status that the loop left last.
//!
//! Invariants:
//! - it touches the data folder only to create and remove `admin.sock` and `baton.pid`;
//! - only the owner of the process, and root, are served, whatever the mode of the socket file says;
//! - every line and head is bounded in size, every connection in silence, all connections in number;
//! - a change asked for twice under one op id reaches the loop once.

use std::cell::{Cell, RefCell};
use std::fs::{self, File, Permissions};
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::{self, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_uring::net::{TcpStream, UnixStream};

use crate::admin::{
    self, Admitted, ErrorCode, LineSplitter, OpTable, Request, Response, Verb, decode_request,
    encode_response,
};
use crate::base::limits::{
    ADMIN_CONNECTIONS_MAX, ADMIN_LINE_BYTES_MAX, ADMIN_SILENCE_MAX, HTTP_HEAD_BYTES_MAX,
};
use crate::cluster::{NO_QUORUM, NodeState, NodeStatus, Role};
use crate::io::Waker;

/// Names in the data folder.
pub const SOCKET_FILE: &str = "admin.sock";
pub const PID_FILE: &str = "baton.pid";

/// A Unix socket path may have 108 bytes with its end; longer ones go through `/proc/self/fd`.
const SOCKET_PATH_MAX: usize = 100;
const READ_BYTES: usize = 16 << 10;
/// How long a stopping thread lets answers under way reach their callers.
const FAREWELL: Duration = Duration::from_millis(500);

/// What the control thread needs.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Data folder: `admin.sock` and `baton.pid` are created in it.
    pub data: PathBuf,
    pub http_listen: Option<SocketAddr>,
}

/// A request for the node's loop. Every message is to be answered once; one that is dropped counts as not answered.
pub struct ControlMessage {
    pub request: admin::Request,
    pub reply: Box<dyn FnOnce(admin::Response) + Send>,
}

/// Where the node's loop leaves its newest status, so that a busy loop can still be described.
#[derive(Debug, Default)]
pub struct StatusBoard {
    latest: Mutex<Option<NodeStatus>>,
}

impl StatusBoard {
    /// Called by the loop whenever role or state changes, and now and then.
    pub fn publish(&self, status: NodeStatus) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    pub fn latest(&self) -> Option<NodeStatus> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The path by which a socket in `folder` can be bound or connected, however long the folder's own path is. Valid as
/// long as the value lives.
pub struct SocketPath {
    path: PathBuf,
    _folder: Option<File>,
}

impl SocketPath {
    pub fn new(folder: &Path, file: &str) -> io::Result<SocketPath> {
        let path = folder.join(file);
        if path.as_os_str().len() <= SOCKET_PATH_MAX {
            return Ok(SocketPath { path, _folder: None });
        }
        let folder = File::open(folder)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{file}", folder.as_raw_fd()));
        Ok(SocketPath { path, _folder: Some(folder) })
    }

    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

/// The running control thread.
#[derive(Debug)]
pub struct ControlHandle {
    board: Arc<StatusBoard>,
    http: Option<SocketAddr>,
    data: PathBuf,
    stop: oneshot::Sender<()>,
    stopped: mpsc::Receiver<()>,
}

impl ControlHandle {
    pub fn board(&self) -> Arc<StatusBoard> {
        self.board.clone()
    }

    /// Where HTTP is served, with the port that was chosen when the configuration said 0.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Stops the thread and removes the files. Bounded: a hung connection does not hold it up. An answer given before
    /// this call still reaches its caller.
    pub fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.stopped.recv_timeout(FAREWELL * 2);
        let _ = fs::remove_file(self.data.join(SOCKET_FILE));
        let _ = fs::remove_file(self.data.join(PID_FILE));
    }
}

/// Starts the thread. Call it only while holding the data folder's lock: a socket file that is there is stale.
pub fn spawn(
    config: ControlConfig,
    mailbox: SyncSender<ControlMessage>,
    waker: Arc<dyn Waker>,
) -> io::Result<ControlHandle> {
    let named = |what: String| move |e: io::Error| io::Error::new(e.kind(), format!("{what}: {e}"));
    let socket = bind_socket(&config.data).map_err(named("the admin socket cannot be opened".into()))?;
    let http = match config.http_listen {
        Some(at) => Some(
            std::net::TcpListener::bind(at)
                .map_err(named(format!("a port cannot be opened (http_listen {at})")))?,
        ),
        None => None,
    };
    if let Some(http) = &http {
        http.set_nonblocking(true)?;
    }
    let http_addr = http.as_ref().map(std::net::TcpListener::local_addr).transpose()?;
    fs::write(config.data.join(PID_FILE), format!("{}\n", std::process::id()))?;

    let board = Arc::new(StatusBoard::default());
    let (stop, stop_asked) = oneshot::channel();
    let (stopped_tell, stopped) = mpsc::channel();
    let (ready_tell, ready) = mpsc::channel();
    let thread_board = board.clone();
    std::thread::Builder::new().name("control".into()).spawn(move || {
        let mut builder = tokio_uring::builder();
        builder.entries(64);
        let runtime = match tokio_uring::Runtime::new(&builder) {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = ready_tell.send(Err(error));
                return;
            }
        };
        let shared = Rc::new(Shared {
            mailbox,
            waker,
            board: thread_board,
            ops: RefCell::new(OpTable::new()),
            connections: Cell::new(0),
            answering: Cell::new(0),
            owner: rustix::process::geteuid().as_raw(),
        });
        runtime.block_on(async move {
            let _ = ready_tell.send(Ok(()));
            serve(shared, socket, http, stop_asked).await;
        });
        // Told before the runtime is dropped: what it still has in the ring belongs to closed connections.
        let _ = stopped_tell.send(());
    })?;
    ready.recv().map_err(|_| io::Error::other("the control thread ended while starting"))??;
    Ok(ControlHandle { board, http: http_addr, data: config.data, stop, stopped })
}

/// Binds under another name and renames, so that the socket is never reachable with a wider mode than 0600.
fn bind_socket(data: &Path) -> io::Result<StdUnixListener> {
    let fresh_name = format!("{SOCKET_FILE}.new");
    let fresh = data.join(&fresh_name);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = StdUnixListener::bind(SocketPath::new(data, &fresh_name)?.as_path())?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
    fs::rename(&fresh, data.join(SOCKET_FILE))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What all connections of the one thread share.
struct Shared {
    mailbox: SyncSender<ControlMessage>,
    waker: Arc<dyn Waker>,
    board: Arc<StatusBoard>,
    ops: RefCell<OpTable<oneshot::Sender<Response>>>,
    connections: Cell<usize>,
    /// Requests whose answer has not been written yet.
    answering: Cell<usize>,
    owner: u32,
}

/// Counts one up while it lives.
struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    fn new(cell: &'a Cell<usize>) -> Counted<'a> {
        cell.set(cell.get() + 1);
        Counted(cell)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn serve(
    shared: Rc<Shared>,
    socket: StdUnixListener,
    http: Option<std::net::TcpListener>,
    mut stop: oneshot::Receiver<()>,
) {
    let socket = tokio::net::UnixListener::from_std(socket).expect("a fresh socket registers");
    let http = http.map(|http| tokio::net::TcpListener::from_std(http).expect("a fresh socket registers"));
    loop {
        tokio::select! {
            _ = &mut stop => break,
            accepted = socket.accept() => match accepted {
                Ok((stream, _)) => admit_admin(&shared, stream),
                Err(error) => rest_after(&error).await,
            },
            accepted = accept_http(http.as_ref()) => match accepted {
                Ok(stream) => admit_http(&shared, stream),
                Err(error) => rest_after(&error).await,
            },
        }
    }
    let _ = timeout(FAREWELL, async {
        while shared.answering.get() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// Out of descriptors, most likely: a loop that tries again at once would burn a core.
async fn rest_after(error: &io::Error) {
    tracing::warn!(%error, "cannot accept a control connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn accept_http(listener: Option<&tokio::net::TcpListener>) -> io::Result<tokio::net::TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

fn admit_admin(shared: &Rc<Shared>, stream: tokio::net::UnixStream) {
    let caller = stream.peer_cred().map(|credentials| credentials.uid());
    let allowed = caller.as_ref().is_ok_and(|uid| *uid == shared.owner || *uid == 0);
    if !allowed {
        tracing::warn!(?caller, "refused an admin connection of another user");
        return;
    }
    if shared.connections.get() >= ADMIN_CONNECTIONS_MAX {
        tracing::warn!("refused an admin connection: too many are open");
        return;
    }
    // The ring waits for blocking sockets by itself; a non-blocking one would answer "try again".
    let blocking = stream.into_std().and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
    if let Ok(stream) = blocking {
        tokio_uring::spawn(admin_connection(shared.clone(), UnixStream::from_std(stream)));
    }
}

fn admit_http(shared: &Rc<Shared>, stream: tokio::net::TcpStream) {
    if shared.connections.get() >= ADMIN_CONNECTIONS_MAX {
        return;
    }
    let blocking = stream.into_std().and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
    if let Ok(stream) = blocking {
        tokio_uring::spawn(http_connection(shared.clone(), TcpStream::from_std(stream)));
    }
}

async fn admin_connection(shared: Rc<Shared>, stream: UnixStream) {
    let _open = Counted::new(&shared.connections);
    let mut splitter = LineSplitter::new();
    let mut buffer = vec![0u8; READ_BYTES];
    while let Ok((Ok(read), back)) = timeout(ADMIN_SILENCE_MAX, stream.read(buffer)).await {
        if read == 0 || !serve_lines(&shared, &stream, &mut splitter, &back[..read]).await {
            break;
        }
        buffer = back;
    }
    // Ends a read that is still in the ring after a time-out, so that its buffer comes back.
    let _ = stream.shutdown(Shutdown::Both);
}

/// Answers the whole lines in order. False when the connection is to be closed.
async fn serve_lines(
    shared: &Rc<Shared>,
    stream: &UnixStream,
    splitter: &mut LineSplitter,
    bytes: &[u8],
) -> bool {
    let Ok(lines) = splitter.push(bytes) else {
        let message = format!("a line may have {ADMIN_LINE_BYTES_MAX} bytes");
        let answer = Response::failed("", ErrorCode::TooLong, message, "send one request per line");
        let _ = write_all(stream, encode_response(&answer)).await;
        return false;
    };
    for line in lines {
        let _answering = Counted::new(&shared.answering);
        let answer = match decode_request(&line) {
            Ok(request) => answer(shared, request).await,
            Err(refusal) => *refusal,
        };
        if !write_all(stream, encode_response(&answer)).await {
            return false;
        }
    }
    true
}

async fn write_all(stream: &UnixStream, bytes: Vec<u8>) -> bool {
    matches!(timeout(ADMIN_SILENCE_MAX, stream.write_all(bytes)).await, Ok((Ok(()), _)))
}

/// Finds the answer to one request, within the verb's patience.
async fn answer(shared: &Rc<Shared>, request: Request) -> Response {
    if request.verb == Verb::Ping {
        let result = json!({"pid": std::process::id(), "version": env!("CARGO_PKG_VERSION")});
        return Response::done(&request, result);
    }
    let (tell, told) = oneshot::channel();
    let admitted = shared.ops.borrow_mut().admit(&request, tell);
    match admitted {
        Admitted::New(tell) => ask_loop(shared, &request, tell),
        Admitted::Answer(_, answer) => return *answer,
        Admitted::Joined => {}
    }
    match timeout(request.verb.patience(), told).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => unanswered(shared, &request),
    }
}

/// Hands the request to the loop. Whatever comes of it reaches the op table and everyone who waits, however late.
fn ask_loop(shared: &Rc<Shared>, request: &Request, first: oneshot::Sender<Response>) {
    let (tell, told) = oneshot::channel();
    let reply = Box::new(move |response| {
        let _ = tell.send(response);
    });
    let sent = shared.mailbox.try_send(ControlMessage { request: request.clone(), reply });
    let refusal = match sent {
        Ok(()) => {
            shared.waker.wake();
            let (shared, request) = (shared.clone(), request.clone());
            tokio_uring::spawn(async move {
                let answer = told.await.unwrap_or_else(|_| unanswered(&shared, &request));
                finish(&shared, &request, first, answer);
            });
            return;
        }
        Err(TrySendError::Full(_)) => busy(shared, request),
        Err(TrySendError::Disconnected(_)) => Response::failed(
            &request.op,
            ErrorCode::Stopping,
            "the node is stopping",
            "ask again when it runs",
        ),
    };
    finish(shared, request, first, refusal);
}

fn finish(shared: &Shared, request: &Request, first: oneshot::Sender<Response>, answer: Response) {
    let others = shared.ops.borrow_mut().finished(request, &answer);
    for waiter in others {
        let _ = waiter.send(answer.clone());
    }
    let _ = first.send(answer);
}

fn busy(shared: &Shared, request: &Request) -> Response {
    let message = "the node's loop is busy and did not answer";
    let hint = "its disk may hang; the last known status is in the result; ask again in a moment";
    let mut answer = Response::failed(&request.op, ErrorCode::Busy, message, hint);
    answer.result = json!({"last_known": shared.board.latest()});
    answer
}

/// A question that got no answer changed nothing; a change that got none may still happen.
fn unanswered(shared: &Shared, request: &Request) -> Response {
    if !request.verb.changes() {
        return busy(shared, request);
    }
    let message = format!("{} was handed to the node and is not answered yet", request.verb.name());
    let hint = "it may still happen: look at `baton query`, or ask again with the same op id";
    let mut answer = Response::failed(&request.op, ErrorCode::UnknownOutcome, message, hint);
    answer.result = json!({"last_known": shared.board.latest()});
    answer
}

async fn http_connection(shared: Rc<Shared>, stream: TcpStream) {
    let _open = Counted::new(&shared.connections);
    if let Ok(Some(head)) = timeout(Duration::from_secs(5), read_head(&stream)).await {
        let _answering = Counted::new(&shared.answering);
        let reply = http_answer(&shared, &head).await;
        let _ = timeout(ADMIN_SILENCE_MAX, stream.write_all(reply)).await;
    }
    let _ = stream.shutdown(Shutdown::Both);
}

/// The head up to its empty line; `None` when it is too long or the connection ends.
async fn read_head(stream: &TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    let mut buffer = vec![0u8; READ_BYTES];
    loop {
        let (read, back) = stream.read(buffer).await;
        match read {
            Ok(read) if read > 0 => head.extend_from_slice(&back[..read]),
            _ => return None,
        }
        if head.windows(4).any(|end| end == b"\r\n\r\n") || head.windows(2).any(|end| end == b"\n\n") {
            return Some(head);
        }
        if head.len() > HTTP_HEAD_BYTES_MAX {
            return None;
        }
        buffer = back;
    }
}

async fn http_answer(shared: &Rc<Shared>, head: &[u8]) -> Vec<u8> {
    let line = head.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    if method != "GET" && method != "HEAD" {
        return http_reply(method, "405 Method Not Allowed", "text/plain", "only GET and HEAD\n");
    }
    let path = target.split('?').next().unwrap_or("");
    match path {
        "/metrics" => {
            let answer = answer(shared, Request::new("http", Verb::Metrics)).await;
            match answer.result["text"].as_str() {
                Some(text) => http_reply(method, "200 OK", "text/plain; version=0.0.4", text),
                None => {
                    http_reply(method, "503 Service Unavailable", "text/plain", "the node's loop is busy\n")
                }
            }
        }
        "/health" | "/primary" | "/standby" => {
            let answer = answer(shared, Request::new("http", Verb::Status)).await;
            let status: Option<NodeStatus> = serde_json::from_value(answer.result.clone()).ok();
            let well = answer.ok && status.is_some_and(|status| healthy(&status, path));
            let code = if well { "200 OK" } else { "503 Service Unavailable" };
            http_reply(method, code, "application/json", &format!("{}\n", answer.result))
        }
        _ => {
            http_reply(method, "404 Not Found", "text/plain", "try /metrics, /health, /primary or /standby\n")
        }
    }
}

/// `/health`: serves in its role. `/primary` and `/standby`: and has that role, for load balancers.
fn healthy(status: &NodeStatus, path: &str) -> bool {
    let standby = matches!(status.role, Role::Standby | Role::CascadeStandby);
    let primary = status.role == Role::Primary;
    let role = match path {
        "/primary" => primary,
        "/standby" => standby,
        _ => primary || standby,
    };
    role && status.state == NodeState::Normal && status.detail != NO_QUORUM
}

fn http_reply(method: &str, code: &str, kind: &str, body: &str) -> Vec<u8> {
    let mut reply = format!(
        "HTTP/1.1 {code}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    if method != "HEAD" {
        reply.extend_from_slice(body.as_bytes());
    }
    reply
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream as StdTcpStream;
    use std::os::unix::net::UnixStream as StdUnixStream;
    use std::time::Instant;

    use super::*;
    use crate::admin::{Failover, StopMode, decode_response, encode_request};
    use crate::base::NodeId;
    use crate::cluster::StaticRole;

    struct NoWaker;
    impl Waker for NoWaker {
        fn wake(&self) {}
    }

    struct Stage {
        _folder: tempfile::TempDir,
        data: PathBuf,
        handle: ControlHandle,
        messages: mpsc::Receiver<ControlMessage>,
    }

    fn stage_at(data: PathBuf, folder: tempfile::TempDir) -> Stage {
        let (mailbox, messages) = mpsc::sync_channel(2);
        let config = ControlConfig { data: data.clone(), http_listen: Some(([127, 0, 0, 1], 0).into()) };
        let handle = spawn(config, mailbox, Arc::new(NoWaker)).unwrap();
        Stage { _folder: folder, data, handle, messages }
    }

    fn stage() -> Stage {
        let folder = tempfile::tempdir().unwrap();
        stage_at(folder.path().to_path_buf(), folder)
    }

    fn connect(data: &Path) -> BufReader<StdUnixStream> {
        let path = SocketPath::new(data, SOCKET_FILE).unwrap();
        BufReader::new(StdUnixStream::connect(path.as_path()).unwrap())
    }

    fn receive(stream: &mut BufReader<StdUnixStream>) -> Response {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        decode_response(line.as_bytes()).unwrap()
    }

    fn ask(stream: &mut BufReader<StdUnixStream>, request: &Request) -> Response {
        stream.get_mut().write_all(&encode_request(request)).unwrap();
        receive(stream)
    }

    fn status() -> NodeStatus {
        let mut status =
            NodeStatus::silent(NodeId(3), "h", "127.0.0.1:1", StaticRole::Standby, Role::Standby);
        status.state = NodeState::Normal;
        status
    }

    fn code(answer: &Response) -> ErrorCode {
        answer.error.as_ref().expect("an error answer").code
    }

    #[test]
    fn the_socket_is_private_and_goes_away_with_the_thread() {
        let stage = stage();
        let mode = fs::metadata(stage.data.join(SOCKET_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let answer = ask(&mut connect(&stage.data), &Request::new("a", Verb::Ping));
        assert_eq!(answer.result["pid"], std::process::id());
        let pid = fs::read_to_string(stage.data.join(PID_FILE)).unwrap();
        assert_eq!(pid.trim(), std::process::id().to_string());
        stage.handle.stop();
        assert!(!stage.data.join(SOCKET_FILE).exists() && !stage.data.join(PID_FILE).exists());
    }

    #[test]
    fn a_long_folder_path_and_a_stale_socket_are_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("d".repeat(120));
        fs::create_dir(&data).unwrap();
        fs::write(data.join(SOCKET_FILE), "stale").unwrap();
        fs::write(data.join("admin.sock.new"), "stale").unwrap();
        let stage = stage_at(data, folder);
        assert!(ask(&mut connect(&stage.data), &Request::new("a", Verb::Ping)).ok);
        stage.handle.stop();
    }

    #[test]
    fn a_request_reaches_the_loop_and_its_answer_comes_back() {
        let stage = stage();
        let messages = stage.messages;
        let node = std::thread::spawn(move || {
            let message = messages.recv().unwrap();
            let answer = Response::done_with(&message.request, &status());
            (message.reply)(answer);
        });
        let answer = ask(&mut connect(&stage.data), &Request::new("a", Verb::Status));
        assert!(answer.ok);
        assert_eq!(serde_json::from_value::<NodeStatus>(answer.result).unwrap(), status());
        node.join().unwrap();
        stage.handle.stop();
    }

    #[test]
    fn a_hung_loop_is_said_within_a_second_with_the_last_known_status() {
        let stage = stage();
        stage.handle.board().publish(status());
        let begin = Instant::now();
        let answer = ask(&mut connect(&stage.data), &Request::new("a", Verb::Query));
        assert!(begin.elapsed() < Duration::from_millis(1500), "{:?}", begin.elapsed());
        assert_eq!(code(&answer), ErrorCode::Busy);
        assert_eq!(answer.result["last_known"]["node"], 3);
        // The mailbox of this stage holds two: the third question finds it full and is answered at once.
        let second = Request::new("b", Verb::Query);
        assert_eq!(code(&ask(&mut connect(&stage.data), &second)), ErrorCode::Busy);
        let begin = Instant::now();
        assert_eq!(code(&ask(&mut connect(&stage.data), &second)), ErrorCode::Busy);
        assert!(begin.elapsed() < Duration::from_millis(500), "a full mailbox is not waited for");
        stage.handle.stop();
    }

    #[test]
    fn a_loop_that_is_gone_is_said_so() {
        let Stage { data, handle, messages, _folder } = stage();
        drop(messages);
        assert_eq!(code(&ask(&mut connect(&data), &Request::new("a", Verb::Status))), ErrorCode::Stopping);
        handle.stop();
    }

    #[test]
    fn a_change_asked_twice_under_one_id_reaches_the_loop_once() {
        let stage = stage();
        let request = Request::new("same", Verb::Failover(Failover { timeout_ms: 1, ..Failover::default() }));
        let slow = ask(&mut connect(&stage.data), &request);
        assert_eq!(
            code(&slow),
            ErrorCode::UnknownOutcome,
            "nobody answered in time, and it may still happen"
        );
        // Joins the one under way: only then does the loop answer, and the joined caller hears the truth.
        let mut second = connect(&stage.data);
        second.get_mut().write_all(&encode_request(&request)).unwrap();
        let message = stage.messages.recv().unwrap();
        (message.reply)(Response::done(&message.request, json!({"term": 9})));
        assert_eq!(receive(&mut second).result["term"], 9);
        // And it is remembered.
        assert_eq!(ask(&mut connect(&stage.data), &request).result["term"], 9);
        assert!(stage.messages.try_recv().is_err(), "the loop saw it once");
        let other = Request::new("same", Verb::Stop { mode: StopMode::Fast });
        assert_eq!(code(&ask(&mut connect(&stage.data), &other)), ErrorCode::OpReused);
        stage.handle.stop();
    }

    #[test]
    fn noise_gets_an_error_and_endless_lines_get_closed() {
        let stage = stage();
        let mut stream = connect(&stage.data);
        stream.get_mut().write_all(b"noise\n{\"op\":\"x\"}\n").unwrap();
        assert_eq!(code(&receive(&mut stream)), ErrorCode::Malformed);
        assert_eq!(receive(&mut stream).op, "x");
        assert!(ask(&mut stream, &Request::new("a", Verb::Ping)).ok, "the connection lives on");
        let mut endless = connect(&stage.data);
        let _ = endless.get_mut().write_all(&vec![b'x'; ADMIN_LINE_BYTES_MAX + 1]);
        assert_eq!(code(&receive(&mut endless)), ErrorCode::TooLong);
        assert_eq!(endless.read(&mut [0u8; 1]).unwrap_or(0), 0, "closed");
        stage.handle.stop();
    }

    fn http(stage: &Stage, head: &str) -> String {
        let mut stream = StdTcpStream::connect(stage.handle.http_addr().unwrap()).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    #[test]
    fn http_serves_metrics_and_health() {
        let mut stage = stage();
        let (_, nothing) = mpsc::channel();
        let messages = std::mem::replace(&mut stage.messages, nothing);
        let node = std::thread::spawn(move || {
            while let Ok(message) = messages.recv() {
                let answer = match message.request.verb {
                    Verb::Metrics => Response::done(&message.request, json!({"text": "baton_term 4\n"})),
                    _ => Response::done_with(&message.request, &status()),
                };
                (message.reply)(answer);
            }
        });
        let metrics = http(&stage, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(
            metrics.starts_with("HTTP/1.1 200 OK\r\n") && metrics.ends_with("\r\n\r\nbaton_term 4\n"),
            "{metrics}"
        );
        assert!(http(&stage, "GET /health HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 200"));
        assert!(http(&stage, "GET /standby?x=1 HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
        assert!(http(&stage, "GET /primary HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 503"));
        assert!(http(&stage, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
        assert!(http(&stage, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
        let head = http(&stage, "HEAD /metrics HTTP/1.1\r\n\r\n");
        assert!(head.ends_with("\r\n\r\n"), "no body: {head}");
        assert_eq!(http(&stage, &format!("GET /{} HTTP/1.1\r\n", "x".repeat(HTTP_HEAD_BYTES_MAX))), "");
        stage.handle.stop();
        node.join().unwrap();
    }

    #[test]
    fn an_answer_given_before_the_stop_still_arrives() {
        let stage = stage();
        let mut stream = connect(&stage.data);
        stream
            .get_mut()
            .write_all(&encode_request(&Request::new("s", Verb::Stop { mode: StopMode::Fast })))
            .unwrap();
        let message = stage.messages.recv().unwrap();
        (message.reply)(Response::done(&message.request, json!({"stopping": true})));
        stage.handle.stop();
        assert_eq!(receive(&mut stream).result["stopping"], true);
    }
}

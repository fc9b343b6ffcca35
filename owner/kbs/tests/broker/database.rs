//! A PostgreSQL of a test's own, on a port of the loopback interface.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Starting it does not take longer.
const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const PASSWORD: &str = "hunter2@ /?#%&=:";
/// As it stands in a URL.
pub(crate) const ENCODED_PASSWORD: &str = "hunter2%40%20%2F%3F%23%25%26%3D%3A";

/// It ends with its value.
pub(crate) struct Database {
    folder: TempDir,
    port: u16,
    server: Option<Child>,
}

impl Database {
    pub(crate) fn start() -> Self {
        Self::prepare(|_| {})
    }

    /// Starts it after something was done to its data folder.
    pub(crate) fn prepare(prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::write(folder.path().join("password"), PASSWORD).unwrap();
        let made = unprivileged("initdb")
            .args(["--no-sync", "--username=broker", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"])
            .arg("--pwfile")
            .arg(folder.path().join("password"))
            .arg("--pgdata")
            .arg(&data)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        // Without fsync, because nothing here takes the power away. Commits are late unless a client asks for more.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let configuration = format!(
            "\nlisten_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nfsync = off\n\
             synchronous_commit = off\nwal_writer_delay = 10s\nshared_buffers = 16MB\n\
             dynamic_shared_memory_type = mmap\nlc_messages = 'C'\n",
            folder.path().display()
        );
        append(&data.join("postgresql.conf"), &configuration);
        prepare(&data);
        let mut database = Self { folder, port, server: None };
        database.restart();
        database
    }

    /// Starts it again after it was killed.
    pub(crate) fn restart(&mut self) {
        assert!(self.server.is_none());
        let log = self.folder.path().join("log");
        let log = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let server = unprivileged("postgres")
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.server = Some(server);
        let end = Instant::now() + PATIENCE;
        while !self.psql("SELECT 1").output().unwrap().status.success() {
            assert!(Instant::now() < end, "PostgreSQL does not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it at once, with all its processes.
    pub(crate) fn kill(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        // The first process of a namespace takes the others with it; it is the only child of the one that we started.
        let children = format!("/proc/{0}/task/{0}/children", server.id());
        let first = std::fs::read_to_string(children).unwrap_or_default();
        let killed = Command::new("kill").args(["-s", "KILL"]).args(first.split_whitespace()).status();
        assert!(killed.is_ok_and(|status| status.success()), "{first:?}");
        server.wait().unwrap();
    }

    pub(crate) fn url(&self) -> String {
        self.url_at("127.0.0.1", "sslmode=disable")
    }

    pub(crate) fn url_at(&self, host: &str, options: &str) -> String {
        format!("postgresql://broker:{ENCODED_PASSWORD}@{host}:{}/postgres?{options}", self.port)
    }

    /// A file with its URL, in the folder where its sockets are.
    pub(crate) fn url_file(&self) -> PathBuf {
        let path = self.folder.path().join("url");
        std::fs::write(&path, self.url() + "\n").unwrap();
        path
    }

    /// Runs statements, and gives the rows as text.
    #[track_caller]
    pub(crate) fn ask(&self, statements: &str) -> String {
        let output = self.psql(statements).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn psql(&self, statements: &str) -> Command {
        let mut psql = Command::new(program("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"])
            .args(["--username", "broker", "--dbname", "postgres", "--port", &self.port.to_string()])
            .arg("--host")
            .arg(self.folder.path())
            .args(["--command", statements])
            .env("PGPASSWORD", PASSWORD);
        psql
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("PostgreSQL's log:\n{}", self.log());
        }
        self.kill();
    }
}

fn append(path: &Path, text: &str) {
    let before = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, format!("{before}{text}\n")).unwrap();
}

/// Namespaces of its own, in which its user is not root, as it demands, and after which nothing is left of it.
fn unprivileged(name: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-user=1000", "--map-group=1000", "--ipc", "--pid", "--fork", "--kill-child"])
        .arg(program(name));
    command
}

/// Debian keeps them out of PATH, each release in a folder of its own.
fn program(name: &str) -> PathBuf {
    let releases =
        std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL: scripts/setup.sh installs it");
    let mut programs: Vec<PathBuf> =
        releases.map(|release| release.unwrap().path().join("bin").join(name)).collect();
    programs.retain(|program| program.exists());
    programs.sort();
    programs.pop().unwrap_or_else(|| panic!("PostgreSQL has no {name}"))
}

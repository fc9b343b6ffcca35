//! The snapshotter as a service of systemd's.

use crate::places::Places;

/// The unit's name.
pub(crate) const NAME: &str = "sealpod-snapshotter.service";
/// The units that start it, by the links that `systemctl enable` would make.
pub(crate) const WANTED_BY: [&str; 2] = ["multi-user.target", "containerd.service"];
/// containerd's socket, which the snapshotter takes without being told.
const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";

/// The unit's file. `containerd` is containerd's socket.
pub(crate) fn text(places: &Places, containerd: &str) -> String {
    let program = places.bin().join(crate::SNAPSHOTTER);
    let mut command =
        format!("{} --config {}", program.display(), places.snapshotter_configuration().display());
    command += &format!(" --root {} --address {}", places.snapshots().display(), places.socket().display());
    if containerd != CONTAINERD_SOCKET {
        command += &format!(" --containerd-address {containerd}");
    }
    let (data, runtime) = (places.data.display(), places.runtime.display());
    // It makes no mounts: containerd and the shims do. So a view of the file system of its own breaks none, as long as
    // the folders are the same ones. /run/sealpod has the folders of pods' VMs, too, and must outlive it.
    format!(
        "\
{written}[Unit]
Description=Snapshotter that leaves the layers of pods' images to measured VMs
Before=containerd.service

[Service]
Type=notify
ExecStart={command}
Restart=always
RestartSec=1
OOMScoreAdjust=-999
LimitNOFILE=65536
CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID
NoNewPrivileges=yes
PrivateDevices=yes
PrivateNetwork=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
ExecStartPre=+/bin/mkdir -p {data} {runtime}
ReadWritePaths=-{data} -{runtime}
RestrictAddressFamilies=AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy={wanted}
",
        written = crate::WRITTEN,
        wanted = WANTED_BY.join(" "),
    )
}

//! The pod: what the guest is after the host's `StartPod`, which comes once.

use std::path::Path;
use std::sync::Arc;

use sealpod_agent_policy::Policy;
use sealpod_agent_protocol::{Failure, FailureKind, Request, StartPod};

use crate::attestation::{Attestation, Evidence};
use crate::boot::Parameters;
use crate::config::Config;
use crate::container::{Containers, PodFiles, SHARED_MEMORY};
use crate::ephemeral_disk;
use crate::failure::{chain, failure, internal};
use crate::images::Images;
use crate::modules;
use crate::network;
use crate::reaper::Reaper;
use crate::sysctls;
use crate::workload_api;

/// A started pod.
pub(crate) struct Pod {
    pub(crate) policy: Policy,
    pub(crate) attestation: Arc<Attestation>,
    pub(crate) images: Images,
    pub(crate) containers: Containers,
}

impl Pod {
    /// Starts the pod. Nothing of the init data takes effect before it is measured, but for the name of its hash algorithm.
    pub(crate) async fn start(
        request: StartPod,
        parameters: &Parameters,
        reaper: Reaper,
    ) -> Result<Arc<Self>, Failure> {
        // While the TPM works, which takes its time.
        let devices = tokio::task::spawn_blocking(prepare_devices);
        let (evidence, init_data) = Evidence::open(parameters.tee, request.init_data.clone()).await?;
        let config = Config::new(parameters, &init_data)
            .map_err(|error| failure(FailureKind::Invalid, error.to_string()))?;
        let policy = Policy::new(config.policy.as_deref())
            .map_err(|error| failure(FailureKind::Invalid, error.to_string()))?;
        policy.decide(&Request::StartPod(request.clone()), None)?;
        devices.await.map_err(|error| internal("prepare the devices", &error))??;
        let files = set_up_network(&request)?;
        let attestation = Arc::new(Attestation::new(evidence, config.key_broker, init_data)?);
        workload_api::start(attestation.clone(), parameters.tee)
            .await
            .map_err(|error| internal("start the workload's API", &error))?;
        Ok(Arc::new(Self {
            policy,
            images: Images::new(config.image, attestation.clone())?,
            attestation,
            containers: Containers::new(reaper, files),
        }))
    }
}

fn prepare_devices() -> Result<(), Failure> {
    // Not needed for the first answer to the host, and takes some tenths of a second on an emulated machine.
    for group in [modules::NETWORK, modules::OVERLAY] {
        modules::load(group).map_err(|error| internal("load the kernel modules", &error))?;
    }
    network::prepare().map_err(|error| internal("prepare the network", &error))?;
    ephemeral_disk::attach().map_err(|error| internal("prepare the ephemeral disk", &error))
}

fn set_up_network(request: &StartPod) -> Result<PodFiles, Failure> {
    let invalid = |error: network::Error| {
        let kind = match error {
            network::Error::Kernel { .. } => FailureKind::Internal,
            _ => FailureKind::Invalid,
        };
        failure(kind, chain(&error))
    };
    network::check_hostname(&request.hostname).map_err(invalid)?;
    let etc = vec![
        ("hostname", format!("{}\n", request.hostname)),
        ("hosts", network::hosts(&request.hostname, &request.interfaces, &request.hosts).map_err(invalid)?),
        ("resolv.conf", network::resolv_conf(&request.dns).map_err(invalid)?),
    ];
    network::configure(&request.interfaces).map_err(invalid)?;
    sysctls::apply(&request.sysctls)?;
    rustix::system::sethostname(request.hostname.as_bytes())
        .map_err(|error| internal("set the host name", &std::io::Error::from(error)))?;
    write_files(&etc).map_err(|error| internal("write the pod's files", &error))?;
    Ok(PodFiles { hostname: request.hostname.clone(), etc, interfaces: request.interfaces.clone() })
}

/// The agent's own copies: it resolves names as its containers do.
fn write_files(etc: &[(&'static str, String)]) -> std::io::Result<()> {
    std::fs::create_dir_all("/etc")?;
    for (name, text) in etc {
        std::fs::write(Path::new("/etc").join(name), text)?;
    }
    std::fs::create_dir_all(SHARED_MEMORY)?;
    let flags = rustix::mount::MountFlags::NOSUID
        | rustix::mount::MountFlags::NODEV
        | rustix::mount::MountFlags::NOEXEC;
    rustix::mount::mount("shm", SHARED_MEMORY, "tmpfs", flags, c"mode=1777,size=65536k")?;
    Ok(())
}

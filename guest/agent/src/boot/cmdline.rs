//! Our parameters on the kernel's command line. It is measured (PCR 9), so these can be trusted as
//! far as the owner's reference values go.

use sealpod_evidence::Tee;
use sealpod_kbs_protocol::ResourceUri;

/// What carries the requests of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Transport {
    /// A virtio-serial port named `sealpod.agent`.
    #[default]
    VirtioSerial,
    /// vsock.
    Vsock,
}

/// The parameters that start with `sealpod.`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// `sealpod.tee`: where evidence comes from. `sample` only if it is named here.
    pub(crate) tee: Tee,
    /// `sealpod.transport`
    pub(crate) transport: Transport,
    /// `sealpod.kbs`: the key broker's address where there is no init data.
    pub(crate) key_broker: Option<String>,
    /// `sealpod.image_policy`: the image policy's resource where there is no init data.
    pub(crate) image_policy: Option<ResourceUri>,
}

/// Why the command line was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// It cannot be read.
    #[error("cannot read /proc/cmdline")]
    Read(#[from] std::io::Error),
    /// A parameter of ours that we do not know.
    #[error("unknown parameter {0:?}; known are sealpod.tee, .transport, .kbs and .image_policy")]
    Unknown(String),
    /// A parameter given twice: one of the two would be silently ignored.
    #[error("parameter {0:?} stands more than once")]
    Repeated(String),
    /// A value that the parameter cannot have.
    #[error("parameter {name} is {actual:?}, expected {expected}")]
    Value {
        /// The parameter.
        name: &'static str,
        /// What came.
        actual: String,
        /// What may come.
        expected: &'static str,
    },
}

/// Evidence comes from a TPM unless something else is named.
impl Default for Parameters {
    fn default() -> Self {
        Self { tee: Tee::Tpm, transport: Transport::default(), key_broker: None, image_policy: None }
    }
}

impl Parameters {
    /// Reads the parameters of the running kernel.
    pub(crate) fn read() -> Result<Self, Error> {
        Self::parse(&std::fs::read_to_string("/proc/cmdline")?)
    }

    fn parse(cmdline: &str) -> Result<Self, Error> {
        let mut parameters = Self::default();
        let mut seen = Vec::new();
        for word in cmdline.split_ascii_whitespace().filter(|word| word.starts_with("sealpod.")) {
            let (name, value) = word.split_once('=').ok_or_else(|| Error::Unknown(word.into()))?;
            if seen.contains(&name) {
                return Err(Error::Repeated(name.into()));
            }
            seen.push(name);
            parameters.set(name, value)?;
        }
        Ok(parameters)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        let wrong = |name, expected| Error::Value { name, actual: value.into(), expected };
        match name {
            "sealpod.tee" => {
                self.tee = match value {
                    "tpm" => Tee::Tpm,
                    "sample" => Tee::Sample,
                    _ => return Err(wrong("sealpod.tee", "tpm or sample")),
                }
            }
            "sealpod.transport" => {
                self.transport = match value {
                    "virtio-serial" => Transport::VirtioSerial,
                    "vsock" => Transport::Vsock,
                    _ => return Err(wrong("sealpod.transport", "virtio-serial or vsock")),
                }
            }
            "sealpod.kbs" => {
                if !value.starts_with("https://") && !value.starts_with("http://") {
                    return Err(wrong("sealpod.kbs", "an http or https URL"));
                }
                self.key_broker = Some(value.into());
            }
            "sealpod.image_policy" => {
                let uri =
                    value.parse().map_err(|_| wrong("sealpod.image_policy", "kbs:///repository/type/tag"))?;
                self.image_policy = Some(uri);
            }
            _ => return Err(Error::Unknown(name.into())),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_parameters_are_left_alone() {
        let parameters = Parameters::parse("console=ttyS0 quiet panic=-1 init.x=1\n").unwrap();
        assert_eq!(parameters.tee, Tee::Tpm);
        assert_eq!(parameters.transport, Transport::VirtioSerial);
        assert_eq!(parameters.key_broker, None);
    }

    #[test]
    fn ours_are_read() {
        let parameters = Parameters::parse(
            "sealpod.tee=sample sealpod.transport=vsock sealpod.kbs=http://10.0.2.2:8080 \
             sealpod.image_policy=kbs:///default/image-policy/default",
        )
        .unwrap();
        assert_eq!(parameters.tee, Tee::Sample);
        assert_eq!(parameters.transport, Transport::Vsock);
        assert_eq!(parameters.key_broker.as_deref(), Some("http://10.0.2.2:8080"));
        assert!(parameters.image_policy.is_some());
    }

    #[test]
    fn what_is_unknown_repeated_or_wrong_is_refused() {
        for cmdline in [
            "sealpod.tea=tpm",
            "sealpod.tee",
            "sealpod.tee=tdx",
            "sealpod.tee=tpm sealpod.tee=sample",
            "sealpod.transport=pipe",
            "sealpod.kbs=ftp://host",
            "sealpod.image_policy=file:///etc/policy.json",
        ] {
            assert!(Parameters::parse(cmdline).is_err(), "{cmdline}");
        }
    }
}

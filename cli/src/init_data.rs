//! `sealpod init-data`: what the owner binds a pod to: its key broker, image policy and agent policy.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sealpod_evidence::init_data::{self, Image, KeyBroker, Settings};
use sealpod_image::reference::Reference;
use sealpod_kbs_protocol::ResourceUri;

use crate::error::{Context, Error, Result};
use crate::output;

/// Make and measure a pod's init data: its key broker, image policy and agent policy
#[derive(Debug, Args)]
#[command(
    after_help = "The guest measures the init data before it reads it; the key broker releases secrets only to \
guests whose init data it knows. Register the digest as the reference value `init_data`.

Examples:
  sealpod init-data create --kbs https://broker.example:8080 \\
      --kbs-certificate broker/tls.crt --agent-policy policy.rego \\
      --image-policy kbs:///default/image-policy/web > web.toml
  sealpod kbs reference-value set init_data $(sealpod init-data digest web.toml)
  sealpod run --init-data web.toml registry.example/web:1"
)]
pub(crate) struct InitDataArgs {
    #[command(subcommand)]
    command: InitDataCommand,
}

#[derive(Debug, Subcommand)]
enum InitDataCommand {
    /// Write init data (TOML) to standard output
    #[command(after_help = "Examples:
  sealpod init-data create --kbs https://broker.example:8080 \\
      --kbs-certificate broker/tls.crt --agent-policy policy.rego \\
      --image-policy kbs:///default/image-policy/web > web.toml")]
    Create(Source),
    /// Print the digest that the guest measures and the key broker compares
    #[command(after_help = "Examples:
  sealpod init-data digest web.toml")]
    Digest {
        /// The init data
        file: PathBuf,
    },
    /// Print the value of the pod annotation `io.katacontainers.config.hypervisor.cc_init_data`
    #[command(after_help = "Examples:
  sealpod init-data annotation web.toml")]
    Annotation {
        /// The init data
        file: PathBuf,
    },
}

/// The parts that a pod's init data is made of.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Source {
    #[command(flatten)]
    pub(crate) owner: Owner,
    /// What the host may ask of the guest (Rego); without it nothing beyond running the image as it is
    #[arg(long, value_name = "FILE", requires = "kbs")]
    pub(crate) agent_policy: Option<PathBuf>,
}

/// What is the same for all pods of an owner: the key broker, and how images are pulled.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Owner {
    /// The owner's key broker, as the guest reaches it
    #[arg(long, value_name = "URL")]
    pub(crate) kbs: Option<String>,
    /// The key broker's certificate or its authority's (PEM); pinned, the guest trusts no other
    #[arg(long, value_name = "FILE", requires = "kbs")]
    pub(crate) kbs_certificate: Option<PathBuf>,
    /// Which images may run: kbs:///repository/type/tag, or a policy.json file
    #[arg(long, value_name = "URI|FILE", requires = "kbs")]
    pub(crate) image_policy: Option<String>,
    /// A registry that is reached by plain HTTP
    #[arg(long, value_name = "HOST:PORT", requires = "kbs")]
    pub(crate) plain_http: Vec<String>,
    /// A further authority that registries' certificates may chain to (PEM)
    #[arg(long, value_name = "FILE", requires = "kbs")]
    pub(crate) registry_authority: Vec<PathBuf>,
    /// Credentials for registries (a docker auth.json), as kbs:///repository/type/tag
    #[arg(long, value_name = "URI", requires = "kbs")]
    pub(crate) registry_credentials: Option<String>,
}

pub(crate) fn run(args: InitDataArgs) -> Result<()> {
    match args.command {
        InitDataCommand::Create(source) => {
            let toml = source.create()?.ok_or_else(|| {
                Error::new("a pod without a key broker needs no init data").hint("add --kbs URL")
            })?;
            output::line(toml.trim_end())
        }
        InitDataCommand::Digest { file } => output::line(digest(&read(&file)?)?),
        InitDataCommand::Annotation { file } => {
            let annotation =
                init_data::encode_annotation(&read(&file)?).context("cannot encode the annotation")?;
            output::line(annotation)
        }
    }
}

/// The digest of raw init data under the algorithm that it names, in hexadecimal.
pub(crate) fn digest(raw: &str) -> Result<String> {
    let digest = init_data::digest(raw).context("this is no init data")?;
    Ok(hex::encode(digest))
}

impl Source {
    /// The init data (TOML), if there is a key broker to name.
    pub(crate) fn create(&self) -> Result<Option<String>> {
        self.owner.init_data(self.agent_policy.as_ref().map(read_agent_policy).transpose()?)
    }
}

impl Owner {
    /// The init data (TOML) with this policy (Rego). The same options always give the same bytes, so that a digest can
    /// be registered beforehand.
    pub(crate) fn init_data(&self, agent_policy: Option<String>) -> Result<Option<String>> {
        let Some(url) = &self.kbs else { return Ok(None) };
        check_address(url)?;
        self.plain_http.iter().try_for_each(|registry| check_registry(registry))?;
        if let Some(uri) = &self.registry_credentials {
            check_resource(uri)?;
        }
        let (uri, inline) = match &self.image_policy {
            Some(uri) if uri.starts_with("kbs://") => {
                check_resource(uri)?;
                (Some(uri.clone()), None)
            }
            Some(file) => (None, Some(read_image_policy(&PathBuf::from(file))?)),
            None => (None, None),
        };
        let settings = Settings {
            key_broker: Some(KeyBroker {
                url: url.clone(),
                cert: self.kbs_certificate.as_ref().map(read_certificate).transpose()?,
            }),
            image: Image {
                image_security_policy_uri: uri,
                image_security_policy: inline,
                authenticated_registry_credentials_uri: self.registry_credentials.clone(),
                plain_http_registries: self.plain_http.clone(),
                extra_root_certificates: self
                    .registry_authority
                    .iter()
                    .map(read_certificate)
                    .collect::<Result<_>>()?,
            },
            agent_policy,
        };
        Ok(Some(settings.to_toml().context("cannot make the init data")?))
    }
}

fn read(path: &PathBuf) -> Result<String> {
    std::fs::read_to_string(path).context(format!("cannot read {}", path.display()))
}

// What the guest would refuse is refused here, where its author sits.

fn check_address(url: &str) -> Result<()> {
    let has_scheme = url.starts_with("https://") || url.starts_with("http://");
    match reqwest::Url::parse(url) {
        Ok(_) if has_scheme => Ok(()),
        _ => Err(Error::new(format!("{url:?} is no address of a key broker"))
            .hint("as https://broker.example:8080")),
    }
}

fn check_registry(name: &str) -> Result<()> {
    let image = Reference::parse(&format!("{name}/image")).ok();
    match image.filter(|image| image.registry() == name) {
        Some(_) => Ok(()),
        None => Err(Error::new(format!("{name:?} is no registry")).hint("as registry.example:5000")),
    }
}

fn check_resource(uri: &str) -> Result<()> {
    uri.parse::<ResourceUri>().map(drop).context(uri).hint("as kbs:///repository/type/tag")
}

fn read_certificate(path: &PathBuf) -> Result<String> {
    let pem = read(path)?;
    let what = || format!("{} is no certificate in PEM", path.display());
    let certificates = reqwest::Certificate::from_pem_bundle(pem.as_bytes()).context(what())?;
    if certificates.is_empty() { Err(Error::new(what())) } else { Ok(pem) }
}

fn read_agent_policy(path: &PathBuf) -> Result<String> {
    let rego = read(path)?;
    sealpod_agent_policy::Policy::new(Some(&rego)).context(path.display())?;
    Ok(rego)
}

fn read_image_policy(path: &PathBuf) -> Result<String> {
    let json = read(path)?;
    sealpod_image::policy::Policy::parse(&json).context(path.display())?;
    Ok(json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        Owner {
            kbs: Some("https://10.0.2.2:8443".into()),
            image_policy: Some("kbs:///default/image-policy/web".into()),
            plain_http: vec!["10.0.2.2:5000".into()],
            ..Owner::default()
        }
    }

    fn source() -> Source {
        Source { owner: owner(), agent_policy: None }
    }

    #[test]
    fn the_same_parts_make_the_same_bytes() {
        assert_eq!(source().create().unwrap(), source().create().unwrap());
    }

    #[test]
    fn what_is_made_parses_as_init_data_and_one_changed_part_changes_its_digest() {
        let raw = source().create().unwrap().unwrap();
        let parsed = Settings::parse(&raw).unwrap();
        assert_eq!(parsed.key_broker.unwrap().url, "https://10.0.2.2:8443");
        assert_eq!(parsed.image.image_security_policy_uri.unwrap(), "kbs:///default/image-policy/web");
        let other = Owner { plain_http: vec![], ..owner() }.init_data(None).unwrap().unwrap();
        assert_ne!(digest(&raw).unwrap(), digest(&other).unwrap());
    }

    #[test]
    fn what_the_guest_would_refuse_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text.pem");
        std::fs::write(&text, "no certificate").unwrap();
        let kbs = |url: &str| Owner { kbs: Some(url.into()), ..owner() };
        for (owner, words) in [
            (kbs("broker.example"), "is no address of a key broker"),
            (kbs("https://"), "is no address of a key broker"),
            (kbs("HTTPS://broker.example"), "is no address of a key broker"),
            (kbs(" https://broker.example"), "is no address of a key broker"),
            (kbs("https://a b"), "is no address of a key broker"),
            (kbs("http://broker.example:99999"), "is no address of a key broker"),
            (Owner { image_policy: Some("kbs:///a/b".into()), ..owner() }, "kbs:///a/b"),
            (Owner { registry_credentials: Some("auth.json".into()), ..owner() }, "auth.json"),
            (Owner { plain_http: vec!["http://x".into()], ..owner() }, "is no registry"),
            (Owner { plain_http: vec!["shop".into()], ..owner() }, "is no registry"),
            (Owner { kbs_certificate: Some(text.clone()), ..owner() }, "is no certificate in PEM"),
            (Owner { registry_authority: vec![text], ..owner() }, "is no certificate in PEM"),
        ] {
            let error = owner.init_data(None).unwrap_err();
            assert!(error.message().contains(words), "{error:?}");
        }
        for registry in ["localhost", "registry.example", "10.0.2.2:5000", "[::1]:5000"] {
            let owner = Owner { plain_http: vec![registry.into()], ..owner() };
            assert!(owner.init_data(None).is_ok(), "{registry}");
        }
    }

    #[test]
    fn without_a_key_broker_there_is_no_init_data() {
        assert_eq!(Source::default().create().unwrap(), None);
    }
}

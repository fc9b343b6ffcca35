//! `sealpod image`: make, encrypt, sign, push and look at images.

mod hints;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use sealpod_image::author::{self, BuildOptions, Inspection, Layout, SigningKey};
use sealpod_image::reference::Reference;
use sealpod_image::registry::{Client, ClientOptions, Credentials};
use sealpod_ocicrypt::Recipient;
use serde_json::{Value, json};

use crate::error::{Context, Error, Result};
use crate::output::{self, Progress};

/// Make, encrypt, sign, push and look at images
#[derive(Debug, Args)]
#[command(after_help = "Images stand in folders (OCI image layouts) until they are pushed.

Examples:
  sealpod image build root/ --cmd /app/serve --output web/
  sealpod image encrypt web/ sealed/ --recipient \\
      provider:attestation-agent:keyid=kbs:///default/key/web::keypath=web.key
  sealpod image push sealed/ registry.example/web:1
  sealpod image keygen --output signing
  sealpod image sign --key signing.key registry.example/web:1
  sealpod image inspect registry.example/web:1")]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Make an image from a root folder; the same folder gives the same image
    #[command(after_help = "Examples:
  sealpod image build root/ --cmd /app/serve --output web/
  sealpod image build root/ --config config.json --user 1000:1000 \\
      --env MODE=production --output web/")]
    Build(BuildArgs),
    /// Encrypt an image's layers for one or more recipients
    #[command(after_help = "Examples:
  sealpod image encrypt web/ sealed/ --recipient \\
      provider:attestation-agent:keyid=kbs:///default/key/web::keypath=web.key
  sealpod image encrypt --recipient jwe:reviewer.pem web/ sealed/")]
    Encrypt {
        /// jwe:PUBLIC-KEY-FILE, or provider:attestation-agent:keyid=kbs:///REPOSITORY/TYPE/TAG::keypath=FILE
        #[arg(long, required = true, value_name = "RECIPIENT")]
        recipient: Vec<String>,
        /// The image (a folder)
        from: PathBuf,
        /// Where the encrypted image goes
        to: PathBuf,
    },
    /// Push an image to a registry
    #[command(after_help = "Examples:
  sealpod image push --authfile ~/.docker/config.json \\
      sealed/ registry.example/web:1
  sealpod image push --plain-http sealed/ localhost:5000/web:1")]
    Push {
        #[command(flatten)]
        registry: RegistryArgs,
        /// The image (a folder)
        from: PathBuf,
        /// registry.example/repository:tag
        to: String,
    },
    /// Sign an image in a registry, as cosign does with a key
    #[command(after_help = "Examples:
  sealpod image sign --key signing.key registry.example/web:1
  sealpod image sign --key signing.key --plain-http \\
      --identity registry.example/web:1 localhost:5000/web:1")]
    Sign {
        #[command(flatten)]
        registry: RegistryArgs,
        /// The private key (P-256, PKCS#8 PEM)
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The name that the signature is for, where guests use another than this command
        #[arg(long, value_name = "REFERENCE")]
        identity: Option<String>,
        /// registry.example/repository:tag
        image: String,
    },
    /// Make a key pair for signing: FILE.key and FILE.pub
    #[command(after_help = "Examples:
  sealpod image keygen --output signing")]
    Keygen {
        /// The files' name without its ending
        #[arg(long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Show what anybody who has the image can see of it
    #[command(after_help = "Examples:
  sealpod image inspect sealed/
  sealpod image inspect --json registry.example/web:1")]
    Inspect {
        #[command(flatten)]
        registry: RegistryArgs,
        /// A folder, or registry.example/repository:tag
        image: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct BuildArgs {
    /// What the image's root directory holds
    root: PathBuf,
    /// The `config` of the image configuration (OCI image specification), JSON
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The entrypoint, word by word
    #[arg(long, allow_hyphen_values = true, value_name = "WORD")]
    entrypoint: Vec<String>,
    /// The command, word by word
    #[arg(long, allow_hyphen_values = true, value_name = "WORD")]
    cmd: Vec<String>,
    /// A variable of the environment
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The user
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// The working directory
    #[arg(short, long, value_name = "FOLDER")]
    workdir: Option<String>,
    /// Where the image goes (an OCI image layout)
    #[arg(short, long, value_name = "FOLDER")]
    output: PathBuf,
}

/// How the registry is reached.
#[derive(Debug, Args)]
struct RegistryArgs {
    /// Speak plain HTTP to the registry
    #[arg(long)]
    plain_http: bool,
    /// A further authority that the registry's certificate may chain to (PEM)
    #[arg(long, value_name = "FILE")]
    registry_authority: Vec<PathBuf>,
    /// Credentials (a docker config.json)
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

pub(crate) async fn run(args: ImageArgs) -> Result<()> {
    match args.command {
        ImageCommand::Build(args) => tokio::task::spawn_blocking(move || build(args)).await?,
        ImageCommand::Encrypt { recipient, from, to } => {
            tokio::task::spawn_blocking(move || encrypt(&recipient, &from, &to)).await?
        }
        ImageCommand::Push { registry, from, to } => push(&registry, &from, &to).await,
        ImageCommand::Sign { registry, key, identity, image } => {
            sign(&registry, &key, identity, &image).await
        }
        ImageCommand::Keygen { output } => keygen(&output),
        ImageCommand::Inspect { registry, image, json } => inspect(&registry, &image, json).await,
    }
}

fn build(args: BuildArgs) -> Result<()> {
    let mut config = match &args.config {
        None => json!({}),
        Some(path) => {
            let text = std::fs::read(path).context(format!("cannot read {}", path.display()))?;
            serde_json::from_slice(&text).context(format!("{} is no JSON", path.display()))?
        }
    };
    let members = config.as_object_mut().ok_or_else(|| Error::new("the image's config is no JSON object"))?;
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            members.insert(name.into(), value);
        }
    };
    let words = |words: Vec<String>| (!words.is_empty()).then(|| Value::from(words));
    set("Entrypoint", words(args.entrypoint));
    set("Cmd", words(args.cmd));
    set("Env", words(args.env));
    set("User", args.user.map(Value::from));
    set("WorkingDir", args.workdir.map(Value::from));
    let progress = Progress::start("building the image");
    let options = BuildOptions { root: args.root, config, output: args.output };
    let layout = author::build(&options).map_err(hints::of_folder)?;
    drop(progress);
    output::line(layout.digest.to_string())
}

fn encrypt(recipients: &[String], from: &Path, to: &Path) -> Result<()> {
    let recipients = recipients
        .iter()
        .map(|text| Recipient::parse(text).context(format!("{text:?} is no recipient")))
        .collect::<Result<Vec<_>>>()?;
    let progress = Progress::start("encrypting the layers");
    let layout = author::encrypt(&Layout::open(from)?, to, &recipients).map_err(hints::of_folder)?;
    drop(progress);
    output::line(layout.digest.to_string())
}

async fn push(registry: &RegistryArgs, from: &Path, to: &str) -> Result<()> {
    let reference = parse(to)?;
    let client = registry.client(&reference)?;
    let layout = Layout::open(from)?;
    let progress = Progress::start(format!("pushing to {reference}"));
    let pushed = std::cell::Cell::new(0);
    let digest = author::push(&client, &layout, &reference, |bytes| {
        pushed.set(pushed.get() + bytes);
        progress.say(format!("pushing to {reference}: {}", output::bytes(pushed.get())));
    })
    .await
    .map_err(|error| hints::of_registry(error, registry))?;
    drop(progress);
    output::line(format!("{}@{digest}", reference.name()))
}

async fn sign(registry: &RegistryArgs, key: &Path, identity: Option<String>, image: &str) -> Result<()> {
    let reference = parse(image)?;
    let key = std::fs::read(key).context(format!("cannot read {}", key.display()))?;
    let key = SigningKey::from_pem(&key)?;
    let identity = match identity {
        Some(identity) => parse(&identity)?.to_string(),
        None => reference.to_string(),
    };
    let digest = author::sign(&registry.client(&reference)?, &reference, &identity, &key)
        .await
        .map_err(|error| hints::of_registry(error, registry))?;
    output::line(format!("signed {digest} as {identity}"))
}

/// Makes both files or none, and replaces none that is there.
fn keygen(output: &Path) -> Result<()> {
    let private = SigningKey::generate()?;
    let public = SigningKey::from_pem(private.as_bytes())?.public_pem()?;
    let [key_file, public_file] = [".key", ".pub"].map(|ending| {
        let mut path = output.as_os_str().to_owned();
        path.push(ending);
        PathBuf::from(path)
    });
    write_new(&key_file, 0o600, private.as_bytes())?;
    write_new(&public_file, 0o644, public.as_bytes()).inspect_err(|_| {
        // Made a moment ago, and good for nothing alone.
        let _ = std::fs::remove_file(&key_file);
    })
}

fn write_new(path: &Path, mode: u32, content: &[u8]) -> Result<()> {
    let cannot = || format!("cannot make {}", path.display());
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|error| {
            match error.kind() {
                ErrorKind::AlreadyExists => Error::new(format!("{} is there already", path.display()))
                    .hint("no key is replaced: choose another --output, or move that file away"),
                _ => anyhow::Error::new(error).context(cannot()).into(),
            }
        })?;
    let written = file.write_all(content).context(cannot());
    written.inspect_err(|_| {
        // What is cut short is no key.
        let _ = std::fs::remove_file(path);
    })
}

async fn inspect(registry: &RegistryArgs, image: &str, json: bool) -> Result<()> {
    let folder = Path::new(image);
    let inspection = if folder.is_dir() {
        author::inspect_layout(&Layout::open(folder)?)?
    } else {
        let reference = parse(image)?;
        author::inspect_reference(&registry.client(&reference)?, &reference)
            .await
            .map_err(|error| hints::of_registry(error, registry))?
    };
    if json { output::json(&inspection) } else { show(&inspection) }
}

fn show(inspection: &Inspection) -> Result<()> {
    output::line(format!("digest      {}", inspection.digest))?;
    let text = |pointer: &str| {
        inspection.config.pointer(pointer).map(|value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
    };
    let platform = [text("/os"), text("/architecture")].map(Option::unwrap_or_default).join("/");
    output::line(format!("platform    {platform}"))?;
    for (label, pointer) in
        [("entrypoint", "/config/Entrypoint"), ("command", "/config/Cmd"), ("user", "/config/User")]
    {
        if let Some(value) = text(pointer) {
            output::line(format!("{label:10}  {value}"))?;
        }
    }
    if let Some(signatures) = inspection.signatures {
        output::line(format!("signatures  {signatures}"))?;
    }
    let mut rows = vec![["LAYER", "SIZE", "CONTENT", "KEY"].map(str::to_owned).to_vec()];
    for layer in &inspection.layers {
        let content = if layer.encrypted { "encrypted" } else { "readable by anybody" };
        rows.push(vec![
            layer.digest.to_string(),
            output::bytes(layer.size),
            content.to_owned(),
            layer.recipients.join(", "),
        ]);
    }
    output::table(&rows)
}

impl RegistryArgs {
    fn client(&self, reference: &Reference) -> Result<Client> {
        let read =
            |path: &PathBuf| std::fs::read_to_string(path).context(format!("cannot read {}", path.display()));
        let credentials = match &self.authfile {
            None => Credentials::default(),
            Some(path) => {
                Credentials::parse(&read(path)?).context(format!("{} has no credentials", path.display()))?
            }
        };
        let plain_http: BTreeSet<String> =
            self.plain_http.then(|| reference.registry().to_owned()).into_iter().collect();
        let options = ClientOptions {
            plain_http,
            extra_root_certificates: self.registry_authority.iter().map(read).collect::<Result<_>>()?,
            credentials,
            ..ClientOptions::default()
        };
        Ok(Client::new(options)?)
    }
}

fn parse(image: &str) -> Result<Reference> {
    Reference::parse(image).context(format!("{image:?} names no image"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_pair_is_made_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        keygen(&path("fresh")).unwrap();
        SigningKey::from_pem(&std::fs::read(path("fresh.key")).unwrap()).unwrap();
        for (name, ending) in [("first", "pub"), ("second", "key")] {
            let taken = path(&format!("{name}.{ending}"));
            std::fs::write(&taken, "precious").unwrap();
            let message = keygen(&path(name)).unwrap_err().message();
            assert!(message.contains(&taken.display().to_string()), "{message}");
            assert_eq!(std::fs::read(&taken).unwrap(), b"precious");
        }
        let mut left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["first.pub", "fresh.key", "fresh.pub", "second.key"]);
    }
}

//! `sealpod kbs`: what an owner keeps in the key broker, and why it refused.

mod audit;
mod client;

use std::io::Read;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

pub(crate) use client::{AuditEntry, Client, Connection, PolicyKind};

use crate::error::{Context, Error, Result};
use crate::output;

/// Manage the key broker: secrets, policies, reference values, and its audit log
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  export SEALPOD_KBS=https://broker.example:8080 SEALPOD_ADMIN_KEY=admin.key
  sealpod kbs resource set default/key/web --file web.key
  sealpod kbs reference-value set --from measurements.json
  sealpod kbs policy set resource --file resource.rego
  sealpod kbs why 5f0c6c7e9b1d4a52")]
pub(crate) struct KbsArgs {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: KbsCommand,
}

#[derive(Debug, Subcommand)]
enum KbsCommand {
    /// Secrets: keys, policies, credentials, anything that a pod fetches
    #[command(after_help = "Examples:
  sealpod kbs resource set default/key/web --file web.key
  sealpod kbs resource list")]
    #[command(subcommand)]
    Resource(ResourceCommand),
    /// The broker's own policies (Rego)
    #[command(after_help = "Examples:
  sealpod kbs policy get resource > resource.rego
  sealpod kbs policy set resource --file resource.rego")]
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// What a trustworthy guest measures to
    #[command(after_help = "Examples:
  sealpod kbs reference-value set --from measurements.json
  sealpod kbs reference-value list")]
    #[command(subcommand)]
    ReferenceValue(ReferenceValueCommand),
    /// Show the audit log, newest last
    #[command(after_help = "Examples:
  sealpod kbs audit
  sealpod kbs audit --limit 1000 --json")]
    Audit {
        /// At most this many entries
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Explain a refusal by the id that the guest and `sealpod run` showed
    #[command(after_help = "Examples:
  sealpod kbs why 5f0c6c7e9b1d4a52")]
    Why {
        /// The refusal's id
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum ResourceCommand {
    /// Store a secret, replacing what was there
    #[command(after_help = "Examples:
  sealpod kbs resource set default/key/web --file web.key
  pass show web | sealpod kbs resource set default/secret/web")]
    Set {
        /// repository/type/tag, as default/key/web
        path: String,
        /// Read it from this file instead of standard input
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Write a secret to standard output
    #[command(after_help = "Examples:
  sealpod kbs resource get default/key/web > web.key")]
    Get {
        /// repository/type/tag
        path: String,
    },
    /// List the paths of all secrets
    #[command(after_help = "Examples:
  sealpod kbs resource list")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a secret
    #[command(after_help = "Examples:
  sealpod kbs resource delete default/key/web")]
    Delete {
        /// repository/type/tag
        path: String,
    },
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Replace a policy
    #[command(after_help = "Examples:
  sealpod kbs policy set resource --file resource.rego")]
    Set {
        /// Which of the two
        kind: PolicyKind,
        /// Read it from this file instead of standard input
        #[arg(long)]
        file: Option<PathBuf>,
    },
    /// Print a policy
    #[command(after_help = "Examples:
  sealpod kbs policy get attestation")]
    Get {
        /// Which of the two
        kind: PolicyKind,
    },
}

#[derive(Debug, Subcommand)]
enum ReferenceValueCommand {
    /// Set one value, or all those of a file
    #[command(after_help = "Examples:
  sealpod kbs reference-value set --from measurements.json
  sealpod kbs reference-value set init_data $(sealpod init-data digest web.toml)")]
    #[command(group(clap::ArgGroup::new("source").required(true).args(["id", "from"])))]
    Set {
        /// The value's id, as `initrd`
        #[arg(requires = "value")]
        id: Option<String>,
        /// Accepted values of that id
        #[arg(num_args = 1..)]
        value: Vec<String>,
        /// A JSON object of ids and lists of accepted values, as `sealpod guest measure --json` prints
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
    },
    /// Print one value as JSON
    #[command(after_help = "Examples:
  sealpod kbs reference-value get init_data")]
    Get {
        /// The value's id
        id: String,
    },
    /// List all ids with their values
    #[command(after_help = "Examples:
  sealpod kbs reference-value list")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) async fn run(args: KbsArgs) -> Result<()> {
    let client = args.connection.client()?;
    match args.command {
        KbsCommand::Resource(command) => resource(&client, command).await,
        KbsCommand::Policy(command) => policy(&client, command).await,
        KbsCommand::ReferenceValue(command) => reference_value(&client, command).await,
        KbsCommand::Audit { limit, json } => show_audit(&client, limit, json).await,
        KbsCommand::Why { id, json } => why(&client, &id, json).await,
    }
}

async fn resource(client: &Client, command: ResourceCommand) -> Result<()> {
    match command {
        ResourceCommand::Set { path, file } => client.set_resource(&path, input(file)?).await,
        ResourceCommand::Get { path } => output::raw(&client.resource(&path).await?),
        ResourceCommand::List { json: true } => output::json(&client.resources().await?),
        ResourceCommand::List { json: false } => client.resources().await?.iter().try_for_each(output::line),
        ResourceCommand::Delete { path } => client.delete_resource(&path).await,
    }
}

async fn policy(client: &Client, command: PolicyCommand) -> Result<()> {
    match command {
        PolicyCommand::Set { kind, file } => {
            let rego = String::from_utf8(input(file)?).context("the policy is not text")?;
            client.set_policy(kind, &rego).await
        }
        PolicyCommand::Get { kind } => output::line(client.policy(kind).await?.trim_end()),
    }
}

async fn reference_value(client: &Client, command: ReferenceValueCommand) -> Result<()> {
    match command {
        ReferenceValueCommand::Set { from: Some(file), .. } => {
            let text = std::fs::read_to_string(&file).context(format!("cannot read {}", file.display()))?;
            let values: Map<String, Value> = serde_json::from_str(&text)
                .context(format!("{} is not a JSON object of reference values", file.display()))?;
            client.set_reference_values(&values).await
        }
        ReferenceValueCommand::Set { id, value, from: None } => {
            let id = id.ok_or_else(|| Error::new("no id given"))?;
            client.set_reference_values(&Map::from_iter([(id, Value::from(value))])).await
        }
        ReferenceValueCommand::Get { id } => output::json(&client.reference_value(&id).await?),
        ReferenceValueCommand::List { json: true } => output::json(&client.reference_values().await?),
        ReferenceValueCommand::List { json: false } => {
            let mut rows = vec![vec!["ID".into(), "ACCEPTED".into()]];
            for (id, value) in client.reference_values().await? {
                rows.push(vec![id, value.to_string()]);
            }
            output::table(&rows)
        }
    }
}

async fn show_audit(client: &Client, limit: usize, json: bool) -> Result<()> {
    let entries = client.audit(None, limit).await?;
    if json {
        return output::json(&entries);
    }
    output::table(&audit::table(&entries))
}

async fn why(client: &Client, id: &str, json: bool) -> Result<()> {
    let entries = client.audit(Some(id), 1).await?;
    if entries.is_empty() {
        return Err(Error::new(format!("the audit log has no entry {id}"))
            .hint("is this the broker that refused? `sealpod kbs audit` lists its latest entries"));
    }
    if json {
        return output::json(&entries);
    }
    for entry in &entries {
        let accepted = match audit::reference_value(entry) {
            // Advice does without it.
            Some(id) => client.reference_value(id).await.ok(),
            None => None,
        };
        output::line(audit::explain(entry, accepted.as_ref()))?;
    }
    Ok(())
}

/// A file's bytes, or standard input's.
fn input(file: Option<PathBuf>) -> Result<Vec<u8>> {
    match file {
        Some(path) => std::fs::read(&path).context(format!("cannot read {}", path.display())),
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
            Ok(bytes)
        }
    }
}

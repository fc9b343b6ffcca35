//! A container's variables: from the manifest, from ConfigMaps and Secrets, from the pod's own fields.

use std::collections::BTreeMap;

use crate::expansion::{Meaning, expand, known};
use crate::kubernetes::{Container, EnvFrom, EnvSource, EnvVar, KeyRef, ObjectRef};
use crate::manifest::{Kind, ObjectKind, Value, Values};
use crate::policy::{Expected, Pattern, Variable};

use super::{Context, Result, problem};

/// How much of its maker's name a pod's name begins with at least, however long that is.
const SHORTEST_PREFIX: usize = 40;
/// The variable that the Job controller adds behind all others of a container whose `env` has none of this name.
const COMPLETION_INDEX: &str = "JOB_COMPLETION_INDEX";

/// ConfigMaps that the cluster makes in each namespace: the certificates of its own authorities.
const OF_THE_CLUSTER: [&str; 2] = ["kube-root-ca.crt", "openshift-service-ca.crt"];

/// A container's variables.
pub(super) struct Environment {
    pub(super) variables: BTreeMap<String, Variable>,
    service_links: bool,
}

impl Environment {
    /// What `$(NAME)` stands for.
    pub(super) fn meaning(&self, name: &str) -> Meaning {
        match self.variables.get(name) {
            Some(Variable { value: Expected::Exactly(text), optional: false }) => Meaning::Text(text.clone()),
            Some(_) => Meaning::Variable,
            None if self.may_be_of_a_service(name) => Meaning::Variable,
            None => Meaning::Unknown,
        }
    }

    /// As the policy's rules know them.
    fn may_be_of_a_service(&self, name: &str) -> bool {
        let ends = ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].iter().any(|end| name.ends_with(end));
        let has = ["_SERVICE_PORT_", "_PORT_"].iter().any(|word| name.contains(word));
        (self.service_links || name.starts_with("KUBERNETES_")) && (ends || has)
    }

    fn set(&mut self, name: &str, value: Expected, optional: bool) {
        self.variables.insert(name.into(), Variable { value, optional });
    }
}

impl Context<'_> {
    pub(super) fn environment(&self, container: &Container) -> Result<Environment> {
        let mut environment = Environment { variables: BTreeMap::new(), service_links: self.service_links };
        for source in &container.env_from {
            self.take_all(source, &mut environment)?;
        }
        for variable in &container.env {
            let inside = |problem: super::Problem| super::Problem {
                what: format!("env.{}{}", variable.name, problem.what),
                ..problem
            };
            self.take_one(variable, &mut environment).map_err(inside)?;
        }
        let says_index = container.env.iter().any(|variable| variable.name == COMPLETION_INDEX);
        if self.pod.kind == Kind::IndexedJob && !says_index {
            environment.set(COMPLETION_INDEX, Expected::Like(Pattern::Number), false);
        }
        Ok(environment)
    }

    /// `envFrom`: without the object, not even the variables' names are known.
    fn take_all(&self, source: &EnvFrom, environment: &mut Environment) -> Result<()> {
        let references = [
            (ObjectKind::ConfigMap, source.config_map_ref.as_ref()),
            (ObjectKind::Secret, source.secret_ref.as_ref()),
        ];
        for (kind, reference) in references {
            let Some(ObjectRef { name, optional }) = reference else { continue };
            let values = match self.object(kind, name) {
                Some(values) => values,
                // Then it must not be there: anything could be in it.
                None if *optional => continue,
                None => {
                    return Err(problem(
                        "envFrom",
                        format!(
                            "{} {name:?} is not in the input, and without it not even the variables' names are known; \
                             give it by --with FILE, or name the variables one by one in env",
                            kind.name()
                        ),
                    ));
                }
            };
            let any = kind == ObjectKind::Secret || self.may_be_anything(kind, name);
            for (key, value) in values {
                let variable = format!("{}{key}", source.prefix);
                let Some(always) = is_taken(&variable).filter(|_| !value.is_binary) else { continue };
                let value = match any {
                    true => Expected::Like(Pattern::Anything),
                    false => Expected::Exactly(text(value, key)?),
                };
                environment.set(&variable, value, !always);
            }
        }
        Ok(())
    }

    fn take_one(&self, variable: &EnvVar, environment: &mut Environment) -> Result<()> {
        let name = &variable.name;
        let source = match &variable.value_from {
            Some(source) if variable.value.is_empty() => source,
            _ => {
                let parts = expand(&variable.value, |name| environment.meaning(name));
                let value = known(parts).map_or_else(Expected::MadeOf, Expected::Exactly);
                environment.set(name, value, false);
                return Ok(());
            }
        };
        match source {
            EnvSource { config_map_key_ref: Some(reference), .. } => {
                self.take_key(ObjectKind::ConfigMap, reference, name, environment)
            }
            EnvSource { secret_key_ref: Some(reference), .. } => {
                self.take_key(ObjectKind::Secret, reference, name, environment)
            }
            EnvSource { field_ref: Some(field), .. } => {
                environment.set(name, self.field(&field.field_path)?, false);
                Ok(())
            }
            EnvSource { resource_field_ref: Some(_), .. } => {
                environment.set(name, Expected::Like(Pattern::Number), false);
                Ok(())
            }
            _ => Err(problem("", "this kind of valueFrom is not known")),
        }
    }

    fn take_key(
        &self,
        kind: ObjectKind,
        reference: &KeyRef,
        variable: &str,
        environment: &mut Environment,
    ) -> Result<()> {
        let KeyRef { name, key, optional } = reference;
        let any = kind == ObjectKind::Secret || self.may_be_anything(kind, name);
        match self.object(kind, name) {
            Some(values) => match (values.get(key).filter(|value| !value.is_binary), optional) {
                (Some(value), _) => {
                    let value = match any {
                        true => Expected::Like(Pattern::Anything),
                        false => Expected::Exactly(text(value, key)?),
                    };
                    environment.set(variable, value, false);
                    Ok(())
                }
                (None, true) => Ok(()),
                (None, false) => Err(problem("", format!("{} {name:?} has no key {key:?}", kind.name()))),
            },
            None if any => {
                environment.set(variable, Expected::Like(Pattern::Anything), *optional);
                Ok(())
            }
            // Then it must not be there.
            None if *optional => Ok(()),
            None => Err(problem("", not_in_input(kind, name))),
        }
    }

    /// The pod's own fields (downward API).
    fn field(&self, path: &str) -> Result<Expected> {
        let metadata = &self.pod.template.metadata;
        if let Some(key) = key_of(path, "labels") {
            return Ok(of_controller(metadata.labels.get(key), key));
        }
        if let Some(key) = key_of(path, "annotations") {
            return Ok(of_controller(metadata.annotations.get(key), key));
        }
        Ok(match path {
            "metadata.name" => self.pod_name(),
            "metadata.namespace" => match self.pod.namespace() {
                Some(namespace) => Expected::Exactly(namespace.into()),
                None => Expected::Like(Pattern::Name),
            },
            "metadata.uid" | "spec.nodeName" => Expected::Like(Pattern::Name),
            "spec.serviceAccountName" => {
                let spec = &self.pod.template.spec;
                let names = [&spec.service_account_name, &spec.service_account].into_iter().flatten();
                let given = names.map(String::as_str).find(|name| !name.is_empty());
                Expected::Exactly(given.unwrap_or("default").into())
            }
            "status.podIP" | "status.podIPs" | "status.hostIP" | "status.hostIPs" => {
                Expected::Like(Pattern::Address)
            }
            other => return Err(problem("", format!("the pod's field {other:?} is not known"))),
        })
    }

    fn pod_name(&self) -> Expected {
        let owner = &self.pod.owner;
        let begins = |prefix: String| Expected::Begins(prefix.chars().take(SHORTEST_PREFIX).collect());
        match (self.pod.kind, owner.name.as_deref(), owner.generate_name.as_deref()) {
            (Kind::Pod, Some(name), _) => Expected::Exactly(name.into()),
            (Kind::Pod, None, Some(prefix)) => begins(prefix.into()),
            (_, Some(name), _) => begins(format!("{name}-")),
            (_, None, prefix) => begins(prefix.unwrap_or_default().into()),
        }
    }

    pub(super) fn object(&self, kind: ObjectKind, name: &str) -> Option<&Values> {
        self.manifest.objects().get(kind, self.pod.namespace(), name)
    }

    pub(super) fn may_be_anything(&self, kind: ObjectKind, name: &str) -> bool {
        let of_cluster = kind == ObjectKind::ConfigMap && OF_THE_CLUSTER.contains(&name);
        of_cluster && self.object(kind, name).is_none()
            || self.options.any_content.contains(&(kind, name.to_owned()))
    }
}

pub(super) fn not_in_input(kind: ObjectKind, name: &str) -> String {
    let kind_name = kind.name();
    format!(
        "{kind_name} {name:?} is not in the input; give it by --with FILE, or let the cluster choose its content with \
         --allow-any-content {kind_name}/{name}"
    )
}

fn text(value: &Value, key: &str) -> Result<String> {
    let text = std::str::from_utf8(&value.bytes)
        .map_err(|_| problem("", format!("the value of {key:?} is no text")))?;
    Ok(text.to_owned())
}

/// Whether Kubernetes makes a variable of an object's key: always, or in newer releases only; nothing where it never does.
fn is_taken(name: &str) -> Option<bool> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic() && byte != b'=';
    let always = name.bytes().all(plain) && !name.starts_with(|first: char| first.is_ascii_digit());
    (!name.is_empty() && name.bytes().all(printable)).then_some(always)
}

fn key_of<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    path.strip_prefix("metadata.")?.strip_prefix(field)?.strip_prefix("['")?.strip_suffix("']")
}

/// A label's value, or what a controller will say under it.
fn of_controller(value: Option<&String>, key: &str) -> Expected {
    let controllers = key.contains("kubernetes.io/")
        || matches!(
            key,
            "pod-template-hash"
                | "controller-revision-hash"
                | "pod-template-generation"
                | "job-name"
                | "controller-uid"
        );
    match value {
        Some(value) => Expected::Exactly(value.clone()),
        None if controllers => Expected::Like(Pattern::Name),
        None => Expected::Exactly(String::new()),
    }
}

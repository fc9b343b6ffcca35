//! The objects of a manifest: pods, whatever makes them, and the ConfigMaps and Secrets that they use.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealpod_agent_protocol::VolumeLimits;
use serde::de::DeserializeOwned;

use crate::kubernetes::{ClaimTemplate, DataObject, Metadata, PodTemplate};
use crate::yaml::{self, AnnotateError, Annotation, Content, Node, Step, YamlError};

/// The annotation by which a pod gets its init data.
pub const ANNOTATION: &str = "io.katacontainers.config.hypervisor.cc_init_data";
/// The annotation by which containerd 1.7 and newer know, when they pull a pod's images, that its runtime leaves them to the guest.
const RUNTIME_HANDLER: &str = "io.containerd.cri.runtime-handler";
/// The name that our runtime has in the configuration of container engines, and that its RuntimeClass has unless another
/// was chosen.
pub const RUNTIME: &str = "sealpod";
/// What the names of Kubernetes' own resources may begin with; others are of devices' plugins, or are counted only.
const OWN_RESOURCES: &str = "kubernetes.io/";
/// What Kubernetes allows all annotations of an object together, in bytes.
const MOST_ANNOTATIONS: usize = 256 << 10;

/// A manifest as its author wrote it.
#[derive(Debug)]
pub struct Manifest {
    text: String,
    pods: Vec<Pod>,
    objects: Objects,
    unknown: Vec<String>,
}

/// A pod, or the template of pods.
#[derive(Debug)]
pub struct Pod {
    /// As `Deployment/web`, with the namespace where one is given: `Deployment/shop/web`.
    name: String,
    pub(crate) kind: Kind,
    /// Of the object that makes the pods.
    pub(crate) owner: Metadata,
    pub(crate) template: PodTemplate,
    document: usize,
    steps: Vec<Step>,
}

/// What a pod's annotations say to the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodAnnotations {
    /// Its init data, as [`sealpod_evidence::init_data::encode_annotation`] writes it.
    pub init_data: String,
    /// What its volumes may hold, which the policy in its init data demands.
    pub volume_limits: VolumeLimits,
}

/// ConfigMaps and Secrets, by kind, namespace and name.
#[derive(Debug, Default)]
pub(crate) struct Objects(BTreeMap<(ObjectKind, String, String), Values>);

/// What an object holds, by key.
pub(crate) type Values = BTreeMap<String, Value>;

/// What an object holds under a key.
#[derive(Debug)]
pub(crate) struct Value {
    pub(crate) bytes: Vec<u8>,
    /// Whether it is for files only (`binaryData`).
    pub(crate) is_binary: bool,
}

/// A kind of object that pods get variables and files from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    /// Whose content is not secret.
    ConfigMap,
    /// Whose content is not to be told.
    Secret,
}

/// What makes pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pod,
    StatefulSet,
    /// Each of its pods has a number, in its name and in a variable.
    IndexedJob,
    Other,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is no YAML that all readers understand alike.
    #[error("this is no YAML to rely on: {0}")]
    Yaml(#[from] YamlError),
    /// Nothing in it makes pods.
    #[error(
        "there is no pod in it, expected a Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or CronJob, or a List of them"
    )]
    NoPod,
    /// An object is not as Kubernetes has it.
    #[error("{object}: {problem}")]
    Shape {
        /// Kind and name.
        object: String,
        /// The field, and what was expected there.
        problem: String,
    },
    /// The annotation does not fit into the text.
    #[error("{pod}: {source}")]
    Annotate {
        /// Kind and name.
        pod: String,
        /// Why.
        source: AnnotateError,
    },
    /// Kubernetes would refuse it.
    #[error(
        "{pod}: its annotations would have {actual} bytes, Kubernetes allows {MOST_ANNOTATIONS}; \
         give the pod fewer long values (a ConfigMap as a volume counts with a digest a file only)"
    )]
    TooLong {
        /// Kind and name.
        pod: String,
        /// Their length.
        actual: usize,
    },
}

impl Manifest {
    /// Reads a manifest: one or many documents.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn read(text: &str) -> Result<Self, ManifestError> {
        let manifest = Self::read_any(text)?;
        if manifest.pods.is_empty() { Err(ManifestError::NoPod) } else { Ok(manifest) }
    }

    fn read_any(text: &str) -> Result<Self, ManifestError> {
        let (pods, objects, unknown) = (Vec::new(), Objects::default(), Vec::new());
        let mut manifest = Self { text: text.into(), pods, objects, unknown };
        for (document, root) in yaml::parse(text)?.iter().enumerate() {
            manifest.take(root, document, &[])?;
        }
        Ok(manifest)
    }

    /// Takes ConfigMaps and Secrets from another text too, instead of those of the same name; its pods are not asked for.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn add_objects(&mut self, text: &str) -> Result<(), ManifestError> {
        self.objects.0.extend(Self::read_any(text)?.objects.0);
        Ok(())
    }

    /// Takes the other pods for somebody else's where some name this RuntimeClass, and gives their names. Where none does,
    /// all stay: whoever admits them to the cluster may give them one.
    pub fn leave_others(&mut self, runtime_class: &str) -> Vec<String> {
        let is_ours = |pod: &Pod| pod.runtime_class() == Some(runtime_class);
        if !self.pods.iter().any(is_ours) {
            return Vec::new();
        }
        let others = self.pods.extract_if(.., |pod| !is_ours(pod));
        others.map(|pod| pod.name).collect()
    }

    /// The pods, in their order.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Objects of unknown kinds that seem to make pods.
    pub fn unknown(&self) -> &[String] {
        &self.unknown
    }

    pub(crate) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The text with the annotations for each pod, in their order: its init data, what its volumes may hold where they have
    /// limits, and one more for containerd where a pod names our runtime's RuntimeClass. All else stays as it is.
    ///
    /// # Errors
    /// [`ManifestError::TooLong`], [`ManifestError::Annotate`].
    pub fn annotate(
        &self,
        annotations: &[PodAnnotations],
        runtime_class: &str,
    ) -> Result<String, ManifestError> {
        let (mut init_data, mut limits, mut handlers) = (Vec::new(), Vec::new(), Vec::new());
        for (pod, PodAnnotations { init_data: value, volume_limits }) in self.pods.iter().zip(annotations) {
            let annotation = |name, value: &str| Annotation {
                document: pod.document,
                steps: pod.steps.clone(),
                name,
                value: value.into(),
            };
            init_data.push(annotation(ANNOTATION, value));
            let there = &pod.template.metadata.annotations;
            let others = there
                .iter()
                .filter(|(name, _)| ![ANNOTATION, VolumeLimits::ANNOTATION].contains(&name.as_str()));
            let others: usize = others.map(|(name, value)| name.len() + value.len()).sum();
            let mut actual = others + ANNOTATION.len() + value.len();
            // One of an earlier time would say what does not hold any more.
            if !volume_limits.is_empty() || there.contains_key(VolumeLimits::ANNOTATION) {
                let value = volume_limits.to_string();
                actual += VolumeLimits::ANNOTATION.len() + value.len();
                limits.push(annotation(VolumeLimits::ANNOTATION, &value));
            }
            if pod.runtime_class() == Some(runtime_class) && !there.contains_key(RUNTIME_HANDLER) {
                handlers.push(annotation(RUNTIME_HANDLER, RUNTIME));
                actual += RUNTIME_HANDLER.len() + RUNTIME.len();
            }
            if actual > MOST_ANNOTATIONS {
                return Err(ManifestError::TooLong { pod: pod.name.clone(), actual });
            }
        }
        // One after the other, since each may have to make the place for all.
        let all = [init_data, limits, handlers];
        let annotated = all.iter().try_fold(self.text.clone(), |text, one| yaml::annotate(&text, one));
        annotated.map_err(|source| {
            let pods: Vec<_> = self.pods.iter().map(Pod::name).collect();
            ManifestError::Annotate { pod: pods.join(", "), source }
        })
    }

    fn take(&mut self, object: &Node, document: usize, steps: &[Step]) -> Result<(), ManifestError> {
        let word = |name: &str| object.get(name).and_then(Node::text).unwrap_or_default();
        let (api, kind) = (word("apiVersion"), word("kind"));
        if kind.ends_with("List")
            && let Some(Node { content: Content::List(items), .. }) = object.get("items")
        {
            for (number, item) in items.iter().enumerate() {
                let steps = [steps, &[Step::Key("items"), Step::Item(number)]].concat();
                self.take(item, document, &steps)?;
            }
            return Ok(());
        }
        let (kind_of_pods, template): (_, &[&'static str]) = match (api, kind) {
            ("v1", "ConfigMap") => return self.objects.take(ObjectKind::ConfigMap, object),
            ("v1", "Secret") => return self.objects.take(ObjectKind::Secret, object),
            ("v1", "Pod") => (Kind::Pod, &[]),
            ("apps/v1", "StatefulSet") => (Kind::StatefulSet, &["spec", "template"]),
            ("apps/v1", "Deployment" | "DaemonSet" | "ReplicaSet") | ("v1", "ReplicationController") => {
                (Kind::Other, &["spec", "template"])
            }
            ("batch/v1", "Job") => (kind_of_job(object.at(&["spec"])), &["spec", "template"]),
            ("batch/v1" | "batch/v1beta1", "CronJob") => (
                kind_of_job(object.at(&["spec", "jobTemplate", "spec"])),
                &["spec", "jobTemplate", "spec", "template"],
            ),
            _ => {
                if object.at(&["spec", "template", "spec", "containers"]).is_some() {
                    let name = object.at(&["metadata", "name"]).and_then(Node::text).unwrap_or_default();
                    self.unknown.push(format!("{kind}/{name} ({api})"));
                }
                return Ok(());
            }
        };
        let owner: Metadata = match object.get("metadata") {
            Some(metadata) => typed(metadata, kind, "metadata")?,
            None => Metadata::default(),
        };
        let own_name = owner.name.as_deref().or(owner.generate_name.as_deref()).unwrap_or_default();
        let words = [kind].into_iter().chain(owner.namespace.as_deref()).chain([own_name]);
        let name = words.collect::<Vec<_>>().join("/");
        let node = object.at(template).ok_or_else(|| ManifestError::Shape {
            object: name.clone(),
            problem: format!("{}: is missing", template.join(".")),
        })?;
        let template_steps = template.iter().map(|name| Step::Key(name));
        let steps = steps.iter().cloned().chain(template_steps).collect();
        let mut template: PodTemplate = typed(node, &name, &template.join("."))?;
        if kind_of_pods == Kind::StatefulSet
            && let Some(claims) = object.at(&["spec", "volumeClaimTemplates"])
        {
            let claims: Vec<ClaimTemplate> = typed(claims, &name, "spec.volumeClaimTemplates")?;
            claims.into_iter().for_each(|claim| template.spec.add_claim(claim));
        }
        self.pods.push(Pod { name, kind: kind_of_pods, owner, template, document, steps });
        Ok(())
    }
}

impl Pod {
    /// Kind, namespace and name, as `Deployment/web`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The annotation that it has now.
    pub fn annotation(&self) -> Option<&str> {
        self.template.metadata.annotations.get(ANNOTATION).map(String::as_str)
    }

    /// The RuntimeClass that it names.
    pub fn runtime_class(&self) -> Option<&str> {
        self.template.spec.runtime_class_name.as_deref()
    }

    /// What its containers want of the node beyond processors, memory and room, as `nvidia.com/gpu`.
    pub fn extended_resources(&self) -> BTreeSet<&str> {
        let spec = &self.template.spec;
        let limits = spec.init_containers.iter().chain(&spec.containers);
        let names = limits.flat_map(|container| container.resources.limits.keys()).map(String::as_str);
        names.filter(|name| name.contains('/') && !name.starts_with(OWN_RESOURCES)).collect()
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        self.template.metadata.namespace.as_deref().or(self.owner.namespace.as_deref())
    }
}

impl Objects {
    /// An object's values by key. One without a namespace is of that to which the manifest is applied.
    pub(crate) fn get(&self, kind: ObjectKind, namespace: Option<&str>, name: &str) -> Option<&Values> {
        let key = |namespace: &str| (kind, namespace.to_owned(), name.to_owned());
        self.0.get(&key(namespace.unwrap_or_default())).or_else(|| self.0.get(&key("")))
    }

    fn take(&mut self, kind: ObjectKind, object: &Node) -> Result<(), ManifestError> {
        let read: DataObject = typed(object, kind.name(), "")?;
        let name = read.metadata.name.unwrap_or_default();
        let shape =
            |problem: String| ManifestError::Shape { object: format!("{}/{name}", kind.name()), problem };
        let decode = |key: &String, value: &String| {
            let value: String = value.split_ascii_whitespace().collect();
            STANDARD.decode(value).map_err(|error| shape(format!("{key}: is no base64: {error}")))
        };
        let mut values = BTreeMap::new();
        let (text, encoded) = match kind {
            ObjectKind::ConfigMap => (read.data, read.binary_data),
            ObjectKind::Secret => (read.string_data, read.data),
        };
        for (key, value) in encoded {
            let value = Value { bytes: decode(&key, &value)?, is_binary: kind == ObjectKind::ConfigMap };
            values.insert(key, value);
        }
        let text =
            text.into_iter().map(|(key, text)| (key, Value { bytes: text.into_bytes(), is_binary: false }));
        values.extend(text);
        let namespace = read.metadata.namespace.unwrap_or_default();
        self.0.insert((kind, namespace, name), values);
        Ok(())
    }
}

impl ObjectKind {
    /// As Kubernetes calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }
}

fn kind_of_job(spec: Option<&Node>) -> Kind {
    match spec.and_then(|spec| spec.get("completionMode")).and_then(Node::text) {
        Some("Indexed") => Kind::IndexedJob,
        _ => Kind::Other,
    }
}

fn typed<T: DeserializeOwned>(node: &Node, object: &str, place: &str) -> Result<T, ManifestError> {
    serde_path_to_error::deserialize(node.to_json()).map_err(|error| {
        let (path, mut problem) = (error.path().to_string(), error.inner().to_string());
        if problem.ends_with("expected a string") {
            problem += ", in quotes";
        }
        let words = [place, path.as_str()].into_iter().filter(|word| !word.is_empty() && *word != ".");
        let path = words.collect::<Vec<_>>().join(".");
        let problem = if path.is_empty() { problem } else { format!("{path}: {problem}") };
        ManifestError::Shape { object: object.into(), problem }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        Manifest::read(text).unwrap().pods().iter().map(|pod| pod.name().to_owned()).collect()
    }

    const POD: &str = "{containers: [{name: a, image: i}]}";

    fn of(init_data: &str) -> PodAnnotations {
        PodAnnotations { init_data: init_data.into(), volume_limits: VolumeLimits::default() }
    }

    #[test]
    fn whatever_makes_pods_is_found() {
        let template = format!("{{template: {{spec: {POD}}}}}");
        let mut text =
            format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: shop}}\nspec: {POD}\n");
        for (api, kind) in [
            ("apps/v1", "Deployment"),
            ("apps/v1", "StatefulSet"),
            ("apps/v1", "DaemonSet"),
            ("apps/v1", "ReplicaSet"),
            ("v1", "ReplicationController"),
            ("batch/v1", "Job"),
        ] {
            text.push_str(&format!(
                "---\napiVersion: {api}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {template}\n"
            ));
        }
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n- apiVersion: batch/v1\n  kind: CronJob\n  \
             metadata: {{name: c}}\n  spec: {{jobTemplate: {{spec: {template}}}}}\n"
        ));
        let expected = [
            "Pod/shop/p",
            "Deployment/x",
            "StatefulSet/x",
            "DaemonSet/x",
            "ReplicaSet/x",
            "ReplicationController/x",
            "Job/x",
            "CronJob/c",
        ];
        assert_eq!(names(&text), expected);
        let manifest = Manifest::read(&text).unwrap();
        let annotated = manifest.annotate(&vec![of("QQ=="); 8], RUNTIME).unwrap();
        let again = Manifest::read(&annotated).unwrap();
        assert!(again.pods().iter().all(|pod| pod.annotation() == Some("QQ==")), "{annotated}");
    }

    #[test]
    fn containerd_is_told_to_leave_the_images_of_our_runtimes_pods() {
        let annotated = |metadata: &str, class: &str| {
            let spec = format!("{{runtimeClassName: {class}, containers: [{{name: a, image: i}}]}}");
            let text = format!("apiVersion: v1\nkind: Pod\n{metadata}spec: {spec}\n");
            let annotated = Manifest::read(&text).unwrap().annotate(&[of("QQ==")], RUNTIME).unwrap();
            let again = Manifest::read(&annotated).unwrap();
            assert_eq!(again.pods()[0].annotation(), Some("QQ=="), "{annotated}");
            again.pods()[0].template.metadata.annotations.get(RUNTIME_HANDLER).cloned()
        };
        for metadata in ["", "metadata: {name: p}\n", "metadata:\n  name: p\n  annotations: {a: b}\n"] {
            assert_eq!(annotated(metadata, "sealpod").as_deref(), Some("sealpod"), "{metadata}");
            assert_eq!(annotated(metadata, "other"), None, "{metadata}");
        }
        let own = "metadata: {annotations: {io.containerd.cri.runtime-handler: mine}}\n";
        assert_eq!(annotated(own, "sealpod").as_deref(), Some("mine"));
    }

    #[test]
    fn pods_of_others_are_left_alone_where_some_are_ours() {
        let pod = |name: &str, class: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{{class} containers: [{{name: a, image: i}}]}}\n---\n"
            )
        };
        let (ours, others, none) =
            (pod("a", "runtimeClassName: sealed,"), pod("b", "runtimeClassName: runc,"), pod("c", ""));
        let mut manifest = Manifest::read(&[ours, others.clone(), none.clone()].concat()).unwrap();
        assert_eq!(manifest.leave_others("sealed"), ["Pod/b", "Pod/c"]);
        let annotated = manifest.annotate(&[of("QQ==")], "sealed").unwrap();
        let again = Manifest::read(&annotated).unwrap();
        let annotations: Vec<_> = again.pods().iter().map(Pod::annotation).collect();
        assert_eq!(annotations, [Some("QQ=="), None, None], "{annotated}");
        let handler = again.pods()[0].template.metadata.annotations.get(RUNTIME_HANDLER);
        assert_eq!(handler.map(String::as_str), Some(RUNTIME), "the handler's name is not the class's");
        let mut manifest = Manifest::read(&[others, none].concat()).unwrap();
        assert_eq!((manifest.leave_others("sealed").len(), manifest.pods().len()), (0, 2));
    }

    #[test]
    fn what_is_of_an_unknown_kind_and_what_is_the_nodes_is_named() {
        let rollout = format!(
            "apiVersion: argoproj.io/v1alpha1\nkind: Rollout\nmetadata: {{name: r}}\nspec: {{template: {{spec: {POD}}}}}\n"
        );
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, image: i, resources: {limits: \
                   {cpu: 1, memory: 1Gi, nvidia.com/gpu: 1, kubernetes.io/batch-cpu: 1}}}]}\n";
        let manifest = Manifest::read(&format!("{rollout}---\n{pod}")).unwrap();
        assert_eq!(manifest.unknown(), ["Rollout/r (argoproj.io/v1alpha1)"]);
        assert_eq!(manifest.pods()[0].extended_resources(), BTreeSet::from(["nvidia.com/gpu"]));
    }

    #[test]
    fn an_object_without_a_namespace_is_of_the_one_that_all_is_applied_to() {
        let map = |namespace: &str, value: &str| {
            format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c{namespace}}}\ndata: {{a: '{value}'}}\n---\n"
            )
        };
        let read = |maps: &[String], namespace: Option<&str>| {
            let manifest = Manifest::read_any(&maps.concat()).unwrap();
            let values = manifest.objects.get(ObjectKind::ConfigMap, namespace, "c");
            values.map(|values| String::from_utf8(values["a"].bytes.clone()).unwrap())
        };
        let (none, shop) = (map("", "none"), map(", namespace: shop", "shop"));
        for (maps, namespace, expected) in [
            (vec![none.clone(), shop.clone()], Some("shop"), Some("shop")),
            (vec![none.clone(), shop.clone()], None, Some("none")),
            (vec![none], Some("shop"), Some("none")),
            (vec![shop.clone()], None, None),
            (vec![shop], Some("bank"), None),
        ] {
            assert_eq!(read(&maps, namespace).as_deref(), expected, "{maps:?} {namespace:?}");
        }
    }

    #[test]
    fn limits_are_written_where_there_are_any_or_were() {
        const NAME: &str = VolumeLimits::ANNOTATION;
        let annotated = |text: &str, limits: &str| {
            let annotations = PodAnnotations { volume_limits: limits.parse().unwrap(), ..of("QQ==") };
            Manifest::read(text).unwrap().annotate(&[annotations], RUNTIME).unwrap()
        };
        let read = |text: &str| {
            Manifest::read(text).unwrap().pods()[0].template.metadata.annotations.get(NAME).cloned()
        };
        for metadata in ["", "metadata: {name: p}\n", "metadata:\n  name: p\n  annotations: {a: b}\n"] {
            let text = format!("apiVersion: v1\nkind: Pod\n{metadata}spec: {POD}\n");
            assert_eq!(read(&annotated(&text, "none")), None, "{metadata}");
            let limited = annotated(&text, "cache=1 scratch-2=2");
            assert_eq!(read(&limited).as_deref(), Some("cache=1 scratch-2=2"), "{metadata}");
            // Again, with others and without any.
            assert_eq!(read(&annotated(&limited, "a=3 b=4")).as_deref(), Some("a=3 b=4"), "{metadata}");
            assert_eq!(read(&annotated(&limited, "none")).as_deref(), Some("none"), "{metadata}");
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused_in_one_sentence() {
        for (text, words) in [
            ("", "no pod"),
            ("just text", "no pod"),
            ("apiVersion: v1\nkind: Service\n", "no pod"),
            ("apiVersion: example.org/v1\nkind: Pod\nspec: {}\n", "no pod"),
            ("a: [", "no YAML"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n", "Pod/p: missing field `spec`"),
            (
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n",
                "Deployment/d: spec.template: is missing",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, image: [1]}]}\n",
                "Pod/p: spec.containers[0].image: invalid type",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, env: [{name: A, value: 1}]}]}\n",
                "env[0].value: invalid type: integer `1`, expected a string, in quotes",
            ),
            (
                "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {a: '%'}\n",
                "Secret/s: a: is no base64",
            ),
        ] {
            let error = Manifest::read(text).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains('\n'), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_annotation_that_kubernetes_would_refuse_is_refused() {
        let text =
            format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p, annotations: {{a: b}}}}\nspec: {POD}\n");
        let manifest = Manifest::read(&text).unwrap();
        let error = manifest.annotate(&[of(&"a".repeat(256 << 10))], RUNTIME).unwrap_err().to_string();
        assert!(error.contains("Pod/p") && error.contains("262144"), "{error}");
        let room = (256 << 10) - ANNOTATION.len() - 2;
        assert!(manifest.annotate(&[of(&"a".repeat(room))], RUNTIME).is_ok());
    }
}

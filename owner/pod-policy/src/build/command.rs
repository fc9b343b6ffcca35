//! What a container runs, and what kubelet executes in it.

use std::collections::BTreeMap;

use crate::expansion::{Meaning, expand, expand_word, known};
use crate::kubernetes::{Container, Handler};
use crate::policy::{Command, Exec, Word};

use super::environment::Environment;

impl Environment {
    /// The container's own command.
    pub(super) fn command(&self, container: &Container) -> Command {
        let words = |words: &[String]| -> Vec<Word> {
            words.iter().map(|word| expand_word(word, |name| self.meaning(name))).collect()
        };
        match (container.command.as_slice(), container.args.as_slice()) {
            ([], []) => Command::Image,
            ([], arguments) => Command::Arguments(words(arguments)),
            (command, arguments) => Command::Exactly([words(command), words(arguments)].concat()),
        }
    }
}

/// The commands of probes, in which kubelet replaces references to variables that have a value in the manifest, and of
/// hooks, in which it replaces nothing.
pub(super) fn of_probes_and_hooks(container: &Container) -> Vec<Exec> {
    let values: BTreeMap<_, _> =
        container.env.iter().map(|variable| (variable.name.as_str(), variable.value.as_str())).collect();
    let meaning = |name: &str| match values.get(name) {
        Some(value) => Meaning::Text((*value).to_owned()),
        None => Meaning::Unknown,
    };
    let replaced = |word: &String| known(expand(word, meaning)).unwrap_or_else(|_| word.clone());
    let command =
        |handler: &Option<Handler>| handler.as_ref()?.exec.as_ref().map(|exec| exec.command.clone());
    let probes = [&container.liveness_probe, &container.readiness_probe, &container.startup_probe];
    let probes = probes.into_iter().filter_map(command).map(|words| words.iter().map(replaced).collect());
    let hooks = container.lifecycle.iter().flat_map(|hooks| [&hooks.post_start, &hooks.pre_stop]);
    let commands = probes.chain(hooks.filter_map(command));
    commands.map(|command| Exec { command, interactive: false }).collect()
}

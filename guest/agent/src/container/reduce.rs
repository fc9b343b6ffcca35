//! Takes out of the host's request what the image says anyway.
//!
//! A container engine merges the image's config into what it asks for, so the same pod comes as a short request from
//! one host and as a long one from another. The policy decides by the short form: what differs from the image.

use std::collections::BTreeMap;

use sealpod_agent_protocol::CreateContainer;

use super::spec::{DEFAULT_PATH, DEFAULT_TERM, ImageProcess};

/// Leaves in the request only what changes the image's own process.
pub(crate) fn reduce(request: &mut CreateContainer, image: &ImageProcess, hostname: &str) {
    reduce_command(request, image);
    reduce_environment(request, image, hostname);
    let working_directory = Some(image.working_directory.as_str()).filter(|folder| !folder.is_empty());
    if request.working_directory.as_deref() == Some(working_directory.unwrap_or("/")) {
        request.working_directory = None;
    }
    if request.user.as_deref().is_some_and(|user| plain(user) == plain(&image.user)) {
        request.user = None;
    }
}

/// The program and its arguments that a request leads to.
pub(crate) fn effective_command(request: &CreateContainer, image: &ImageProcess) -> Vec<String> {
    let given = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
    match (given(&request.command), given(&request.arguments)) {
        (Some(command), arguments) => [command, arguments.unwrap_or_default()].concat(),
        (None, Some(arguments)) => [image.entrypoint.clone(), arguments].concat(),
        (None, None) => [image.entrypoint.clone(), image.command.clone()].concat(),
    }
}

fn reduce_command(request: &mut CreateContainer, image: &ImageProcess) {
    let effective = effective_command(request, image);
    (request.command, request.arguments) = match effective.strip_prefix(image.entrypoint.as_slice()) {
        Some(arguments) if arguments == image.command => (None, None),
        // Without an entrypoint, all of it is the image's command, replaced.
        Some(arguments) if !image.entrypoint.is_empty() && !arguments.is_empty() => {
            (None, Some(arguments.to_vec()))
        }
        _ => (Some(effective), None),
    };
}

fn reduce_environment(request: &mut CreateContainer, image: &ImageProcess, hostname: &str) {
    let own = own_environment(request, image, hostname);
    request.environment.retain(|name, value| own.get(name) != Some(&*value));
}

/// The variables that the container has if the request adds none.
pub(crate) fn own_environment(
    request: &CreateContainer,
    image: &ImageProcess,
    hostname: &str,
) -> BTreeMap<String, String> {
    let terminal = request.terminal.then_some(("TERM", DEFAULT_TERM));
    let defaults = [("HOSTNAME", hostname), ("PATH", DEFAULT_PATH)].into_iter().chain(terminal);
    // The last one counts, as for a program.
    let of_image = image.environment.iter().filter_map(|variable| variable.split_once('='));
    defaults.chain(of_image).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// One way to write root; others as they are.
fn plain(user: &str) -> &str {
    match user {
        "" | "root" | "0" | "root:root" | "0:0" => "0",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::tests::{self, list as words};

    fn image() -> ImageProcess {
        ImageProcess { user: "1000".into(), ..tests::image() }
    }

    fn reduced(image: &ImageProcess, change: impl FnOnce(&mut CreateContainer)) -> CreateContainer {
        let mut request = CreateContainer { image: "i".into(), ..CreateContainer::default() };
        change(&mut request);
        reduce(&mut request, image, "pod");
        request
    }

    #[test]
    fn what_the_image_says_disappears() {
        let request = reduced(&image(), |r| {
            r.command = words(&["/entry", "serve"]);
            r.environment = [("A", "1"), ("PATH", "/bin"), ("HOSTNAME", "pod")]
                .map(|(name, value)| (name.into(), value.into()))
                .into();
            r.working_directory = Some("/srv".into());
            r.user = Some("1000".into());
        });
        assert_eq!(request, CreateContainer { image: "i".into(), ..CreateContainer::default() });
    }

    #[test]
    fn a_container_has_the_images_variables_and_the_usual_ones() {
        let request = CreateContainer { terminal: true, ..CreateContainer::default() };
        let own = own_environment(&request, &image(), "pod");
        let own: Vec<_> = own.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(own, [("A", "1"), ("HOSTNAME", "pod"), ("PATH", "/bin"), ("TERM", "xterm")]);
    }

    #[test]
    fn what_differs_stays() {
        let request = reduced(&image(), |r| {
            r.command = words(&["/bin/sh", "-c", "id"]);
            r.environment = [("A", "2"), ("PATH", "/evil"), ("HOSTNAME", "other"), ("TERM", "xterm")]
                .map(|(name, value)| (name.into(), value.into()))
                .into();
            r.working_directory = Some("/".into());
            r.user = Some("0".into());
        });
        assert_eq!(request.command, words(&["/bin/sh", "-c", "id"]));
        assert_eq!(request.environment.len(), 4);
        assert_eq!(request.working_directory.as_deref(), Some("/"));
        assert_eq!(request.user.as_deref(), Some("0"));
    }

    #[test]
    fn other_arguments_of_the_same_entrypoint_are_arguments() {
        let request = reduced(&image(), |r| r.command = words(&["/entry", "check", "-v"]));
        assert_eq!((request.command, request.arguments), (None, words(&["check", "-v"])));
        let request = reduced(&image(), |r| r.arguments = words(&["check"]));
        assert_eq!((request.command, request.arguments), (None, words(&["check"])));
        // The entrypoint alone: not the image's command, and not no arguments either.
        let request = reduced(&image(), |r| r.command = words(&["/entry"]));
        assert_eq!((request.command, request.arguments), (words(&["/entry"]), None));
    }

    #[test]
    fn without_an_entrypoint_the_command_is_replaced_as_a_whole() {
        let image = ImageProcess { entrypoint: Vec::new(), ..image() };
        assert_eq!(reduced(&image, |r| r.arguments = words(&["serve"])).command, None);
        assert_eq!(reduced(&image, |r| r.arguments = words(&["sh"])).command, words(&["sh"]));
    }

    #[test]
    fn what_is_reduced_runs_the_same() {
        let images = [image(), ImageProcess { entrypoint: Vec::new(), ..image() }, ImageProcess::default()];
        let choices = [None, words(&[]), words(&["/entry"]), words(&["serve"]), words(&["/entry", "serve"])];
        for image in &images {
            for command in &choices {
                for arguments in &choices {
                    let mut request = CreateContainer {
                        command: command.clone(),
                        arguments: arguments.clone(),
                        ..CreateContainer::default()
                    };
                    let before = effective_command(&request, image);
                    reduce(&mut request, image, "pod");
                    assert_eq!(effective_command(&request, image), before, "{command:?} {arguments:?}");
                }
            }
        }
    }

    #[test]
    fn root_is_root_however_it_is_written() {
        let image = ImageProcess { user: "root".into(), ..image() };
        assert_eq!(reduced(&image, |r| r.user = Some("0".into())).user, None);
        assert_eq!(reduced(&image, |r| r.user = Some("0:5".into())).user.as_deref(), Some("0:5"));
    }
}

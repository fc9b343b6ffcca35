//! Pods end to end: an owner with a registry and a key broker, measured VMs with TPMs, containers from encrypted and
//! signed images. Most tests share one booted pod; those of `sealpod run` boot their own.

mod command_line;
mod containers;
mod images;
mod policy;
mod process;
mod workload;
mod world;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use world::World;

/// Trials with the names of their asynchronous functions.
macro_rules! trials {
    ($world:expr, $module:ident: $($name:ident),* $(,)?) => {
        [$({
            let world = Arc::clone(&$world);
            Trial::test(concat!(stringify!($module), "::", stringify!($name)), move || {
                world.runtime().block_on($module::$name(&world));
                Ok(())
            })
        }),*]
    };
}

/// The same of functions that wait for programs, and would keep others from the runtime.
macro_rules! blocking_trials {
    ($world:expr, $module:ident: $($name:ident),* $(,)?) => {
        [$({
            let world = Arc::clone(&$world);
            Trial::test(concat!(stringify!($module), "::", stringify!($name)), move || {
                $module::$name(&world);
                Ok(())
            })
        }),*]
    };
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let world = Arc::new(World::default());
    let mut trials = Vec::new();
    trials.extend(trials!(world, containers:
        a_container_lives_and_ends_as_its_phases_say,
        two_containers_share_network_and_memory_but_not_processes_and_files,
        the_image_says_user_folder_environment_and_command,
        users_and_groups_are_those_of_the_image,
        volumes_are_where_the_images_links_lead,
        root_in_a_container_has_few_capabilities_and_gains_none,
        what_reveals_or_tunes_the_guest_is_hidden,
        a_read_only_root_stays_as_it_is,
        a_container_that_takes_too_much_memory_is_killed_and_it_is_said,
        a_limit_on_processes_holds,
        names_resolve_as_the_pod_says,
        requests_that_make_no_sense_are_refused_by_kind,
    ));
    trials.extend(trials!(world, process:
        exit_codes_and_signals_come_through,
        both_outputs_arrive_whole_and_apart,
        input_reaches_the_process_to_its_end,
        a_terminal_has_a_size_that_follows_the_hosts,
        an_exec_runs_in_its_container,
        an_exec_has_what_its_container_has_and_no_more,
        a_program_that_cannot_be_run_is_named,
        a_signal_to_all_reaches_every_process,
    ));
    trials.extend(trials!(world, images:
        an_image_without_a_good_signature_is_refused,
        an_image_for_another_repository_is_refused,
        a_layer_that_the_registry_altered_is_refused_and_leaves_nothing,
        an_image_that_does_not_fit_is_refused_and_the_pod_goes_on,
        what_is_not_there_is_said_to_be_not_there,
        registries_that_the_policy_does_not_name_are_not_asked,
        registries_that_cannot_be_reached_are_named,
        an_image_policy_that_cannot_be_used_is_reported,
        a_key_that_does_not_fit_the_image_is_reported,
        an_image_for_other_machines_is_refused,
    ));
    trials.extend(trials!(world, policy:
        a_rule_decides_by_the_requests_fields,
        the_policy_sees_the_image_and_the_command_that_will_run,
        nobody_reads_or_writes_what_no_rule_allows,
        a_pod_without_init_data_runs_nothing_and_shows_nothing,
        init_data_that_the_broker_does_not_know_gets_no_key,
    ));
    trials.extend(trials!(world, workload:
        a_container_fetches_a_secret,
        the_token_says_what_was_measured_from_the_files,
        what_the_broker_does_not_have_is_not_found,
        the_guest_says_what_it_is,
        evidence_binds_a_containers_own_data,
    ));
    trials.extend(blocking_trials!(world, command_line:
        run_gives_streams_status_ports_and_a_report,
        run_passes_on_input_and_a_terminal,
        run_reports_what_cannot_work_and_leaves_nothing,
        an_interrupted_run_leaves_nothing,
        an_image_larger_than_the_memory_runs_from_a_disk_that_shows_nothing,
        a_broker_that_is_not_there_is_named,
        a_rom_that_was_altered_gives_no_agent_and_no_module,
        a_guest_that_dies_is_reported_with_its_last_words,
        a_machine_that_hangs_or_dies_under_a_container_is_reported,
    ));
    let conclusion = libtest_mimic::run(&arguments, trials);
    match Arc::into_inner(world) {
        Some(world) => world.end(),
        None => eprintln!("a test still uses the pod"),
    }
    conclusion.exit_code()
}

//! Pods on a node: a stock containerd drives them by CRI as kubelet would, or the shim is called as CRI-O calls it, in
//! namespaces that the tests make for themselves, so that nothing of it is seen outside or outlives them.

mod containers;
mod crio;
mod disks;
mod engines;
mod failures;
mod hostile;
mod network;
mod pods;
mod soak;
mod streams;
mod versions;
mod volumes;
mod world;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};
use sealpod_tests::node::namespaces::{self, End};

use world::World;

/// Trials with the names of their asynchronous functions.
macro_rules! trials {
    ($world:expr, $module:ident: $($name:ident),* $(,)?) => {
        [$({
            let world = Arc::clone(&$world);
            Trial::test(concat!(stringify!($module), "::", stringify!($name)), move || {
                world.run(async |world| $module::$name(world).await);
                Ok(())
            })
        }),*]
    };
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if !arguments.list {
        network::grpc_server();
        if let Some(code) = namespaces::enter(End::Killed) {
            return code;
        }
    }
    // Pods share the machine's two processors; one after the other they are not slower, and easier to follow.
    arguments.test_threads = Some(1);
    let world = Arc::new(World::default());
    let mut trials = Vec::new();
    trials.extend(trials!(world, pods:
        an_encrypted_image_runs_and_the_host_asks_for_no_layer,
        a_pod_has_the_size_the_place_and_the_parameters_that_it_asked_for,
        a_pod_stays_within_what_kubelet_allows_it,
        what_a_confidential_pod_cannot_have_is_refused_with_the_reason,
        what_the_policy_does_not_allow_is_refused_by_name,
        a_runc_pod_runs_beside,
        containers_of_a_pod_share_processes_where_it_says_so,
        a_debug_container_sees_its_targets_processes,
    ));
    trials.extend(trials!(world, network:
        a_pod_is_reached_by_its_address_and_reaches_others,
        a_grpc_probe_is_answered,
        a_pod_has_the_interfaces_ports_and_limits_that_its_networks_give,
        a_pod_may_have_no_address_but_of_ipv6,
    ));
    trials.extend(trials!(world, containers:
        exit_codes_times_and_logs_are_true,
        a_container_that_failed_runs_again_with_the_pods_volumes,
        an_exec_runs_and_its_exit_code_comes_back,
        a_container_is_stopped_with_grace_and_then_without,
        the_image_says_user_and_command_and_the_pod_may_change_them,
        a_security_context_holds,
        limits_hold_and_are_counted,
        requests_and_processors_are_the_guests,
        much_output_arrives_whole,
        output_waits_for_its_reader,
        a_paused_container_stands_still,
    ));
    trials.extend(trials!(world, streams:
        an_exec_on_a_terminal_heeds_its_size_and_what_is_typed,
        execs_on_terminals_leave_nothing_with_the_shim,
        files_are_copied_both_ways_as_kubectl_cp_does,
        one_attaches_to_a_container_and_its_input_ends_with_that,
        a_containers_own_terminal_is_attached_to,
        a_port_of_the_loopback_is_forwarded_if_the_policy_allows_it,
    ));
    trials.extend(trials!(world, volumes:
        files_of_the_host_arrive_and_are_updated,
        empty_volumes_are_shared_and_bounded,
        an_empty_volume_larger_than_the_memory_is_on_a_disk_that_shows_nothing,
        a_limit_of_the_manifests_holds_or_is_missed,
        a_volume_takes_the_place_of_what_every_container_has,
        another_pods_volume_is_refused,
        a_part_of_an_empty_volume_is_in_the_volume,
        files_belong_to_whom_kubelet_gave_them,
    ));
    trials.extend(trials!(world, disks:
        a_raw_block_volume_is_a_device_of_the_container,
        a_csi_volume_is_mounted_in_the_guest_and_left_clean,
        a_volume_that_is_mounted_on_the_host_is_refused,
    ));
    trials.extend(trials!(world, versions:
        containerd_1_7_runs_pods,
        containerd_2_runs_pods,
    ));
    trials.extend(trials!(world, crio:
        runs_a_pod,
        execs,
        asks_whether_a_container_lives,
        notes_that_a_container_was_out_of_memory,
        cannot_give_the_hosts_network,
        pods_cannot_name_another_pod,
        leaves_images_to_the_guest,
    ));
    trials.extend(trials!(world, failures:
        a_pod_fails_with_each_of_its_processes_and_leaves_nothing,
        a_pod_killed_at_its_start_fails_and_leaves_nothing,
        a_shim_whose_start_call_was_killed_leaves_nothing,
        a_pod_killed_while_it_pulls_an_image_fails_and_leaves_nothing,
        a_pod_killed_while_a_container_is_stopped_or_removed_fails_and_leaves_nothing,
        a_pod_killed_while_it_is_stopped_or_removed_leaves_nothing,
        a_pod_whose_guest_hangs_is_removed_and_costs_no_other,
        a_pod_that_may_not_be_killed_is_removed_all_the_same,
        a_container_on_which_its_engine_gives_up_is_removed,
    ));
    trials.extend(trials!(world, engines:
        pods_outlive_containerd,
        containerd_killed_while_a_pod_starts_leaves_nothing_that_cannot_be_removed,
        containerd_killed_while_an_image_is_pulled_or_a_container_is_made_is_missed_only_meanwhile,
        a_snapshotter_killed_while_a_container_is_made_is_missed_only_meanwhile,
        a_snapshotter_killed_while_an_image_is_pulled_or_a_pod_starts_is_missed_only_meanwhile,
    ));
    trials.extend(trials!(world, soak:
        pods_in_a_row_and_at_once_leave_nothing,
    ));
    trials.extend(trials!(world, hostile:
        a_guest_that_lies_and_floods_costs_its_own_pod_only,
    ));
    let conclusion = libtest_mimic::run(&arguments, trials);
    match Arc::into_inner(world) {
        Some(world) => world.end(),
        None => eprintln!("a test still uses the node"),
    }
    conclusion.exit_code()
}

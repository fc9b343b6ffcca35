# What follows is the same for every pod. A request is allowed if all about it fits. The sets of denials say what does
# not fit, for people; they decide nothing.

ReadStdout if pod.allow.logs

ReadStderr if pod.allow.logs

ReadTerminationMessage if pod.allow.termination_messages

WriteStdin if pod.allow.attach

StartPod if {
	sysctls_fit
	hostname_misleads_nobody
	hosts_mislead_nobody
}

CreateContainer if {
	fields_are_known
	image_fits
	command_fits
	environment_fits
	user_fits
	groups_fit
	working_directory_fits
	capabilities_fit
	processes_fit
	every field, value in container.fixed { input[field] == value }
	mounts_fit
	devices_fit
	hosts_mislead_nobody
	hosts_are_complete
}

CreateContainer if {
	fields_are_known
	is_debug_container
	hosts_mislead_nobody
}

ExecProcess if {
	fields_are_known
	exec_is_plain
	exec_is_allowed
}

WriteVolume if {
	fields_are_known
	group_fits(input.group)
	files_fit
}

# A request of a later version may have more fields; what the policy does not know must say nothing.

known_fields := {
	"id", "name", "image", "command", "arguments", "environment", "user", "supplemental_groups", "working_directory",
	"terminal", "stdin", "read_only_root", "capabilities", "allow_privilege_escalation", "unmasked_paths", "privileged",
	"mounts", "hosts", "resources", "effective_command", "image_digest", "image_entrypoint", "image_environment",
	"image_user", "image_working_directory", "process_namespace", "target", "devices", "container", "exec", "volume", "group", "files",
}

fields_are_known if every field, value in input { is_known(field, value) }

is_known(field, _) if field in known_fields

is_known(_, value) if value in [null, false, 0, "", [], {}]

unknown_fields contains {"field": field, "expected": "nothing", "actual": "a field that the policy does not know"} if {
	some field, value in input
	not is_known(field, value)
}

CreateContainer_denials contains denial if some denial in unknown_fields

ExecProcess_denials contains denial if some denial in unknown_fields

WriteVolume_denials contains denial if some denial in unknown_fields

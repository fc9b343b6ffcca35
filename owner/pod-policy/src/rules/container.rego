# A container: which, from which image.

container := pod.containers[input.name]

CreateContainer_denials contains {"field": "name", "expected": names, "actual": input.name} if {
	not container
	not has_debug_image
	names := [name | some name, _ in pod.containers]
}

image_fits if input.image_digest == container.image.digest

image_fits if input.image in container.image.names

CreateContainer_denials contains {"field": "image_digest", "expected": expected, "actual": input.image_digest} if {
	expected := container.image.digest
	not image_fits
}

CreateContainer_denials contains {"field": "image", "expected": expected, "actual": input.image} if {
	expected := container.image.names
	not image_fits
}

# What it runs.

command_fits if {
	container.command == "image"
	input.command == null
	input.arguments == null
}

command_fits if input.effective_command == array.concat(input.image_entrypoint, filled(container.command.arguments))

command_fits if input.effective_command == filled(container.command.exactly)

filled(words) := [filled_word(word) | some word in words]

filled_word(word) := word if is_string(word)

filled_word(word) := filled_text(word.made_of)

filled_text(parts) := concat("", [filled_part(part) | some part in parts])

filled_part(part) := part if is_string(part)

filled_part(part) := object.get(variables, part.variable, reference(part.variable))

reference(variable) := concat("", ["$(", variable, ")"])

# What the engine puts in: the request's variables, and those of the manifest's that the image has with the same value.
variables := object.union(
	{name: value | some name, _ in container.environment; value := input.image_environment[name]},
	input.environment,
)

shown(words) := [shown_word(word) | some word in words]

shown_word(word) := word if is_string(word)

shown_word(word) := shown_text(word.made_of)

shown_text(parts) := concat("", [shown_part(part) | some part in parts])

shown_part(part) := part if is_string(part)

shown_part(part) := reference(part.variable)

expected_command := "the image's own" if container.command == "image"

expected_command := array.concat(["(the image's entrypoint)"], shown(container.command.arguments))

expected_command := shown(container.command.exactly)

command_words := words if words := container.command.arguments

command_words := words if words := container.command.exactly

# Words with variables may have a secret in them.
command_is_secret if {
	some word in command_words
	word.made_of
}

CreateContainer_denials contains {"field": "command", "expected": expected_command, "actual": input.effective_command} if {
	container
	not command_fits
	not command_is_secret
}

CreateContainer_denials contains {"field": "command", "expected": expected_command, "actual": "another command"} if {
	command_is_secret
	not command_fits
}

# Who runs it.

user_of_image := "0" if input.image_user in {"", "root", "root:root", "0:0"}

user_of_image := input.image_user if not input.image_user in {"", "root", "root:root", "0:0"}

asked_user := user_of_image if input.user == null

asked_user := input.user if input.user != null

# Engines leave out the group that the image's config has.
number_of_image := split(user_of_image, ":")[0]

wanted_number := number_of_image if container.user.number == null

wanted_number := format_int(container.user.number, 10) if container.user.number != null

user_fits if asked_user in wanted_users

wanted_users := {user_of_image, number_of_image} if {
	container.user.number == null
	container.user.group == null
}

wanted_users := {wanted_number} if {
	container.user.number != null
	container.user.group == null
}

wanted_users := {wanted_number} if container.user.group == 0

wanted_users := {concat(":", [wanted_number, format_int(container.user.group, 10)])} if container.user.group > 0

CreateContainer_denials contains {"field": "user", "expected": wanted_users, "actual": asked_user} if {
	container
	not user_fits
}

groups_fit if {
	every group in input.supplemental_groups { group in container.supplemental_groups }
	every group in container.supplemental_groups { group_is_there(group) }
}

group_is_there(group) if group in input.supplemental_groups

# Engines leave out the user's own.
group_is_there(group) if group == object.get(container.user, "group", 0)

group_is_there(0) if container.user.group == null

CreateContainer_denials contains {"field": "supplemental_groups", "expected": container.supplemental_groups, "actual": input.supplemental_groups} if not groups_fit

working_directory_fits if {
	container.working_directory == null
	input.working_directory == null
}

working_directory_fits if folder == container.working_directory

folder := input.working_directory if input.working_directory != null

folder := input.image_working_directory if input.working_directory == null

CreateContainer_denials contains {"field": "working_directory", "expected": container.working_directory, "actual": input.working_directory} if not working_directory_fits

capabilities_fit if input.capabilities in container.capabilities

CreateContainer_denials contains {"field": "capabilities", "expected": container.capabilities, "actual": input.capabilities} if not capabilities_fit

processes_fit if {
	pod.share_processes
	input.process_namespace == {"kind": "pod"}
}

processes_fit if {
	not pod.share_processes
	input.process_namespace == null
}

CreateContainer_denials contains {"field": "process_namespace", "expected": expected, "actual": input.process_namespace} if {
	container
	not processes_fit
	expected := {true: "the pod's", false: "its own"}[pod.share_processes]
}

CreateContainer_denials contains {"field": field, "expected": value, "actual": input[field]} if {
	some field, value in container.fixed
	input[field] != value
}

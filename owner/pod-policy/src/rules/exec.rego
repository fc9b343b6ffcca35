# Executing a command.

exec_is_plain if {
	input.user == null
	input.working_directory == null
	count(input.environment) == 0
}

exec_is_allowed if pod.allow.any_exec

exec_is_allowed if {
	some exec in pod.exec
	exec.command == input.command
	input_fits(exec.interactive)
}

exec_is_allowed if {
	pod.allow.copy
	is_copy(input.command)
	input.terminal == false
}

input_fits(true) := true

input_fits(false) if {
	input.terminal == false
	input.stdin == false
}

# What `kubectl cp` runs.

is_copy(command) if {
	array.slice(command, 0, count(command) - 1) in [["test", "-d"], ["tar", "cf", "-"]]
	is_path(command[count(command) - 1])
}

is_copy(command) if command in unpacking

is_copy(command) if {
	array.slice(command, 0, count(command) - 2) in unpacking
	command[count(command) - 2] == "-C"
	is_path(command[count(command) - 1])
}

unpacking := [["tar", "-xmf", "-"], ["tar", "--no-same-permissions", "--no-same-owner", "-xmf", "-"]]

is_path(word) if not startswith(word, "-")

ExecProcess_denials contains {"field": "command", "expected": allowed, "actual": input.command} if {
	not exec_is_allowed
	not exec_is_known
	allowed := [exec.command | some exec in pod.exec]
}

exec_is_known if {
	some exec in pod.exec
	exec.command == input.command
}

ExecProcess_denials contains {"field": field, "expected": false, "actual": true} if {
	exec_is_known
	not exec_is_allowed
	some field in ["terminal", "stdin"]
	input[field]
}

ExecProcess_denials contains {"field": field, "expected": "the container's own", "actual": input[field]} if {
	some field in ["user", "working_directory"]
	input[field] != null
}

ExecProcess_denials contains {"field": concat("", ["environment.", name]), "expected": "absent", "actual": "present"} if {
	some name, _ in input.environment
}

# Its environment.

environment_fits if {
	every name, value in input.environment { sent_variable_fits(name, value) }
	every name, variable in container.environment { declared_variable_fits(name, variable) }
}

sent_variable_fits(name, value) if value_fits(container.environment[name], value)

# Where a service is must not change what the image itself sets.
sent_variable_fits(name, value) if {
	not container.environment[name]
	is_of_service(name, value)
	names_of_image := object.keys(input.image_environment)
	not name in names_of_image
}

declared_variable_fits(name, variable) if {
	variable.optional
	not name in object.keys(input.environment)
}

declared_variable_fits(name, variable) if value_fits(variable, variables[name])

letters := {"address": "0123456789abcdefABCDEF.:,", "number": "0123456789", "name": "0123456789abcdefghijklmnopqrstuvwxyz-."}

value_fits(variable, value) if variable.exactly == value

value_fits(variable, value) if filled_text(variable.made_of) == value

value_fits(variable, _) if variable.like == "anything"

value_fits(variable, value) if {
	trim(value, letters[variable.like]) == ""
	not is_missing(variable.like, value)
}

# A name may be that of a label which no controller has set.
is_missing(like, "") if like in {"address", "number"}

value_fits(variable, value) if {
	startswith(value, variable.begins)
	trim(substring(value, count(variable.begins), -1), letters.name) == ""
}

# As Kubernetes tells where services are: NAME_SERVICE_HOST, NAME_PORT_80_TCP_ADDR and their like. The values are
# addresses, numbers and URLs of these.
is_of_service(name, value) if {
	service_may_be_told(name)
	trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
	is_service_name(name)
	trim(value, "0123456789abcdef.:/[]tcpuds") == ""
}

service_may_be_told(_) if pod.service_links

service_may_be_told(name) if startswith(name, "KUBERNETES_")

is_service_name(name) if endswith(name, "_SERVICE_HOST")

is_service_name(name) if endswith(name, "_SERVICE_PORT")

is_service_name(name) if contains(name, "_SERVICE_PORT_")

is_service_name(name) if endswith(name, "_PORT")

is_service_name(name) if {
	parts := split(name, "_PORT_")
	count(parts) > 1
	words := split(parts[count(parts) - 1], "_")
	trim(words[0], letters.number) == ""
	words[1] in {"TCP", "UDP", "SCTP"}
	array.slice(words, 2, count(words)) in [[], ["ADDR"], ["PORT"], ["PROTO"]]
}

CreateContainer_denials contains {"field": concat("", ["environment.", name]), "expected": "absent", "actual": "present"} if {
	some name, value in input.environment
	container
	not container.environment[name]
	not sent_variable_fits(name, value)
}

CreateContainer_denials contains {"field": concat("", ["environment.", name]), "expected": shown_value(variable), "actual": "absent"} if {
	some name, variable in container.environment
	not declared_variable_fits(name, variable)
	not name in object.keys(variables)
}

CreateContainer_denials contains {"field": concat("", ["environment.", name]), "expected": shown_value(variable), "actual": actual} if {
	some name, variable in container.environment
	not declared_variable_fits(name, variable)
	value := variables[name]
	actual := shown_actual(variable, value)
}

shown_value(variable) := variable.exactly

shown_value(variable) := shown_text(variable.made_of)

shown_value(variable) := concat(" ", ["any", variable.like]) if variable.like != "anything"

shown_value(variable) := "anything" if variable.like == "anything"

shown_value(variable) := concat("", [variable.begins, "…"])

# It may have a secret in it.
shown_actual(variable, _) := "another value" if variable.made_of

shown_actual(variable, value) := value if not variable.made_of

# Kernel parameters.

# Some engines set these for every pod.
usual_sysctls := {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}

sysctls_fit if {
	every name, value in pod.sysctls { input.sysctls[name] == value }
	every name, value in input.sysctls { sysctl_may_be(name, value) }
}

sysctl_may_be(name, value) if pod.sysctls[name] == value

sysctl_may_be(name, value) if usual_sysctls[name] == value

StartPod_denials contains {"field": concat("", ["sysctls.", name]), "expected": value, "actual": actual} if {
	some name, value in pod.sysctls
	actual := object.get(input.sysctls, name, "absent")
	actual != value
}

StartPod_denials contains {"field": concat("", ["sysctls.", name]), "expected": "absent", "actual": value} if {
	some name, value in input.sysctls
	not pod.sysctls[name]
	not sysctl_may_be(name, value)
}

# Lines of /etc/hosts, and the pod's host name, for which the guest writes a line before these. None may lead a name that
# is the manifest's own, or localhost, elsewhere. For all other names the network is asked, whose answers the host could
# change just as well.

hosts_mislead_nobody if every line in input.hosts {
	every name in line.names { name_may_be(line.address, name) }
}

hostname_misleads_nobody if {
	name := lower(input.hostname)
	not is_reserved(name)
}

name_may_be(_, name) if not is_reserved(lower(name))

name_may_be(address, name) if {
	some alias in pod.host_aliases
	alias.address == address
	name in alias.names
}

is_reserved(name) if name == "localhost"

is_reserved(name) if startswith(name, "localhost.")

is_reserved(name) if endswith(name, ".localhost")

is_reserved(name) if {
	some alias in pod.host_aliases
	some known in alias.names
	lower(known) == name
}

hosts_are_complete if every alias in pod.host_aliases {
	every name in alias.names { has_host(alias.address, name) }
}

has_host(address, name) if {
	some line in input.hosts
	line.address == address
	name in line.names
}

# The loopback's own names: the guest writes them itself, and engines' lines of them are left out.
has_host(_, name) if name in loopbacks_names

has_host(_, name) if startswith(name, "ip6-")

loopbacks_names := {
	"localhost", "localhost.localdomain", "localhost4", "localhost4.localdomain4", "localhost6", "localhost6.localdomain6",
}

misleading_hosts contains {"field": "hosts", "expected": "no other address for this name", "actual": actual} if {
	some line in input.hosts
	some name in line.names
	not name_may_be(line.address, name)
	actual := concat(" ", [line.address, name])
}

StartPod_denials contains denial if some denial in misleading_hosts

StartPod_denials contains {"field": "hostname", "expected": "neither localhost nor a name of the manifest's hostAliases", "actual": input.hostname} if {
	not hostname_misleads_nobody
}

CreateContainer_denials contains denial if some denial in misleading_hosts

CreateContainer_denials contains {"field": "hosts", "expected": concat(" ", [alias.address, name]), "actual": "no such line"} if {
	some alias in pod.host_aliases
	some name in alias.names
	not has_host(alias.address, name)
}

# Connections to ports of the pod's loopback.

ForwardPort if pod.allow.any_port

ForwardPort if input.port in pod.ports

ForwardPort_denials contains {"field": "port", "expected": pod.ports, "actual": input.port} if {
	not pod.allow.any_port
	not input.port in pod.ports
}

# Debug containers, of which the owner has named the images: what they run and whose processes they see is up to whoever
# adds one. They have no volumes, and no more rights than a debugger needs.

is_debug_container if {
	not container
	some image in pod.debug
	is_image(image)
	input.privileged == false
	input.unmasked_paths == false
	debug_capabilities_fit
	every mount in input.mounts { mount.source.kind == "empty_file" }
}

is_image(image) if input.image_digest == image.digest

is_image(image) if input.image in image.names

debug_capabilities_fit if input.capabilities == null

debug_capabilities_fit if every capability in input.capabilities { capability in debug_capabilities }

debug_capabilities := {
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	"CAP_SYS_PTRACE",
}

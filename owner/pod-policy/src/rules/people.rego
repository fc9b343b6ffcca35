# Connections to ports of the pod's loopback.

ForwardPort if pod.allow.any_port

ForwardPort if input.port in pod.ports

ForwardPort_denials contains {"field": "port", "expected": pod.ports, "actual": input.port} if {
	not pod.allow.any_port
	not input.port in pod.ports
}

# Debug containers, of which the owner has named the images: what they run and whose processes they see is up to whoever
# adds one, who can thus read what the pod has. They get nothing that would let them see more of the guest.

is_debug_container if {
	has_debug_image
	input.privileged == false
	input.unmasked_paths == false
	debug_capabilities_fit
	debug_processes_fit
	debug_mounts_fit
	input.devices == []
}

has_debug_image if {
	not container
	some image in pod.debug
	is_image(image)
}

is_image(image) if input.image_digest == image.digest

is_image(image) if input.image in image.names

debug_capabilities_fit if input.capabilities == null

debug_capabilities_fit if every capability in input.capabilities { capability in debug_capabilities }

# A pod's own namespace is made for pods that share it.
debug_processes_fit if input.process_namespace != {"kind": "pod"}

debug_processes_fit if pod.share_processes

debug_mounts_fit if every mount in input.mounts { mount.source.kind == "empty_file" }

CreateContainer_denials contains {"field": "capabilities", "expected": debug_capabilities, "actual": input.capabilities} if {
	has_debug_image
	not debug_capabilities_fit
}

CreateContainer_denials contains {"field": field, "expected": false, "actual": true} if {
	has_debug_image
	some field in ["privileged", "unmasked_paths"]
	input[field]
}

CreateContainer_denials contains {"field": "process_namespace", "expected": "a container's", "actual": "the pod's"} if {
	has_debug_image
	not debug_processes_fit
}

CreateContainer_denials contains {"field": "devices", "expected": "none", "actual": "some"} if {
	has_debug_image
	input.devices != []
}

CreateContainer_denials contains {"field": "mounts", "expected": "none", "actual": "some"} if {
	has_debug_image
	not debug_mounts_fit
}

debug_capabilities := {
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}
